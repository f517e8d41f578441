# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .client import (
    RefusedRequestError as RefusedRequestError,
    ServerClient as ServerClient,
    ask_all as ask_all,
)
from .managed import (
    check_command as check_command,
    managed_server as managed_server,
    run_program as run_program,
)
from .protocol import ChatReply as ChatReply
