"""OpenAI-compatible servers: the client (retries, usage), starting and stopping one."""

from prefstage.serving.client import RefusedRequestError, ServerClient, Usage, ask_all
from prefstage.serving.managed import check_command, managed_server, run_program
from prefstage.serving.protocol import ChatReply

__all__ = [
    "ChatReply",
    "RefusedRequestError",
    "ServerClient",
    "Usage",
    "ask_all",
    "check_command",
    "managed_server",
    "run_program",
]
