"""What goes between us and a server: replies in one shape, and what to ask again after a fault."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import httpx2
from tenacity import RetryCallState

from prefstage.core import parse_json

T = TypeVar("T")

_RETRYABLE = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
_MESSAGE_CHARS = 300


class Fault(Exception):  # noqa: N818 - not an error until the retries are spent
    """A request without the answer that is due.

    Attributes:
        status: HTTP status; 0 where there was none, or no error of it.
        wait_s: Seconds that the server asks to wait before the next attempt, or 0; None where
            it refuses the request, now and again.
    """

    def __init__(self, reason: str, *, status: int = 0, wait_s: float | None = 0.0) -> None:
        super().__init__(reason)
        self.status, self.wait_s = status, wait_s


def server_wait_s(retry_state: RetryCallState) -> float:
    """Seconds that the server asked to wait before the next attempt, in Retry-After; else 0."""
    fault = retry_state.outcome.exception() if retry_state.outcome else None
    return (isinstance(fault, Fault) and fault.wait_s) or 0.0


def read_response(
    response: httpx2.Response, read: Callable[[Any], T], *, longest_wait_s: float
) -> T:
    """What the JSON body of a successful response says.

    Args:
        response: Any response, its body read.
        read: Reads the decoded body; what it stumbles over is a body of another shape.
        longest_wait_s: A server that asks for a longer wait than this is given up.

    Returns:
        What `read` gives.

    Raises:
        Fault: If it says nothing; the text is the server's own message.
    """
    if not response.is_success:
        status, (message, code) = response.status_code, _server_message(response)
        reason = f"HTTP {status} {response.reason_phrase}".strip()
        reason += f" ({message})" if message else ""
        retryable = status in _RETRYABLE or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        wait_s: float | None = None
        if retryable and code != "insufficient_quota":
            wait_s = retry_after_s(response.headers.get("retry-after"))
            if wait_s > longest_wait_s:
                reason, wait_s = f"{reason}, to be asked again in {wait_s:.0f} s", None
        raise Fault(reason, status=status, wait_s=wait_s)
    kind = response.headers.get("content-type", "")
    if "json" not in kind:
        raise Fault(f"an answer of type {kind or 'unknown'!r} where JSON is due")
    try:
        body = parse_json(response.content)
    except ValueError:
        raise Fault("an answer that is not JSON") from None
    try:
        return read(body)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise Fault(f"an answer of another shape ({str(body)[:80]})") from None


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float:
    """Seconds to wait by a Retry-After header.

    Args:
        value: The header: seconds, or an HTTP date; None if it is missing.
        now: The present, for a date.

    Returns:
        Seconds, >= 0; 0 for a missing or unreadable header.

    Source:
        RFC 9110, section 10.2.3.
    """
    with suppress(ValueError):
        return min(max(float(value or 0), 0.0), 1e9)
    with suppress(ValueError):
        wait = parsedate_to_datetime(str(value)) - (now or datetime.now(UTC))
        return max(wait.total_seconds(), 0.0)
    return 0.0


# What the server says went wrong, and its error code if it names one.
def _server_message(response: httpx2.Response) -> tuple[str, str | None]:
    try:
        body = parse_json(response.content)
    except ValueError:
        return " ".join(response.text.split())[:_MESSAGE_CHARS], None
    error, code = body.get("error", body) if isinstance(body, dict) else body, None
    if isinstance(error, dict):
        code = error.get("code")
        error = error.get("message") or error.get("detail") or error
    return " ".join(str(error).split())[:_MESSAGE_CHARS], None if code is None else str(code)


@dataclass(frozen=True)
class ChatReply:
    """One answer of a server.

    Attributes:
        text: What the model answered; empty where the server sends no text.
        finish_reason: As the server names it: "stop", "length", "content_filter", ...
        prompt_tokens: Tokens of the prompt; 0 where the server does not count.
        completion_tokens: Tokens generated; 0 where the server does not count.
        top_logprobs: For each generated token the likeliest tokens and their log-probs
            [nats]; None where they were not asked for or the server does not give them.
        reasoning: What the model thought before, where the server sends it apart; else empty.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    top_logprobs: tuple[Mapping[str, float], ...] | None
    reasoning: str = ""


# These raise what a body of another shape makes them stumble over: see `read_response`.


def read_chat(body: Any) -> ChatReply:
    """Read the body of /v1/chat/completions."""
    choice = body["choices"][0]
    message = choice["message"]
    top = [
        {str(top["token"]): float(top["logprob"]) for top in token["top_logprobs"]}
        for token in (choice.get("logprobs") or {}).get("content") or ()
    ]
    # The thought beside the content: `reasoning_content` of most servers, `reasoning` of some.
    thoughts = (message.get(name) for name in ("reasoning_content", "reasoning"))
    thought = next((thought for thought in thoughts if isinstance(thought, str) and thought), "")
    return _reply(body, choice, message.get("content"), top, reasoning=thought)


def read_completion(body: Any) -> ChatReply:
    """Read the body of /v1/completions."""
    choice = body["choices"][0]
    top = [dict(top) for top in (choice.get("logprobs") or {}).get("top_logprobs") or ()]
    return _reply(body, choice, choice["text"], top)


def read_models(body: Any) -> list[str]:
    """Read the body of /v1/models: the names of the models a server offers."""
    return [str(model["id"]) for model in body["data"]]


def _reply(
    body: Any, choice: Any, text: Any, top: list[dict[str, float]], *, reasoning: str = ""
) -> ChatReply:
    if text is not None and not isinstance(text, str):
        raise TypeError(text)
    usage = body.get("usage") or {}
    return ChatReply(
        text=_without_lone_surrogates(text or ""),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        top_logprobs=tuple(top) or None,
        reasoning=_without_lone_surrogates(reasoning),
    )


# Halves of characters, which JSON can carry and UTF-8 files cannot, are replaced.
def _without_lone_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
