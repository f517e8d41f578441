"""OpenAI-compatible servers: the client (retries, usage), starting and stopping one."""

from prefstage.serving.asking import ask_each
from prefstage.serving.client import ServerClient, Usage
from prefstage.serving.managed import managed_server
from prefstage.serving.replies import ChatReply

__all__ = ["ChatReply", "ServerClient", "Usage", "ask_each", "managed_server"]
