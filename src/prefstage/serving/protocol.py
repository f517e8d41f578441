"""What goes between us and a server: replies in one shape, and what to ask again after a fault."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx2
from tenacity import RetryCallState
from tenacity.wait import wait_base, wait_random_exponential

_RETRYABLE = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)
_MESSAGE_CHARS = 300


class TransientFault(Exception):  # noqa: N818 - not an error until the retries are spent
    """A request that is worth asking again.

    Attributes:
        wait_s: Seconds that the server asks to wait before, or 0.
    """

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RefusedError(Exception):
    """A request that the server refuses, now and again; `status` is its HTTP status."""

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(reason)
        self.status = status


class BackoffWait(wait_base):
    """Exponential backoff with full jitter, after what the server asks for in Retry-After.

    The wait before retry k is ``w + U(0, min(longest, base·2^k))``, with w the server's.

    Source:
        Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog: "full jitter".
    """

    def __init__(self, *, base_s: float, longest_s: float) -> None:
        self._jitter = wait_random_exponential(multiplier=base_s, max=longest_s)

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds to wait before the next attempt."""
        fault = retry_state.outcome.exception() if retry_state.outcome else None
        asked_s = fault.wait_s if isinstance(fault, TransientFault) else 0.0
        return asked_s + self._jitter(retry_state)


def read_json(response: httpx2.Response, *, longest_wait_s: float) -> Any:
    """The JSON body of a successful response.

    Args:
        response: Any response, its body read.
        longest_wait_s: A server that asks for a longer wait than this is given up.

    Returns:
        The decoded body.

    Raises:
        TransientFault: If the request is worth asking again.
        RefusedError: If it is not; the text is the server's own message.
    """
    if not response.is_success:
        raise _failure(response, longest_wait_s)
    kind = response.headers.get("content-type", "")
    if "json" not in kind:
        raise TransientFault(f"an answer of type {kind or 'unknown'!r} where JSON is due")
    try:
        return json.loads(response.content)
    except ValueError:
        raise TransientFault("an answer that is not JSON") from None


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
    if value is None:
        return 0.0
    try:
        return min(max(float(value), 0.0), 1e9)
    except ValueError:
        pass
    try:
        due = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max((due - (now or datetime.now(UTC))).total_seconds(), 0.0)


def _failure(response: httpx2.Response, longest_wait_s: float) -> Exception:
    status, (message, code) = response.status_code, _server_message(response)
    reason = f"HTTP {status} {response.reason_phrase}".strip() + (
        f" ({message})" if message else ""
    )
    retryable = status in _RETRYABLE or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if not retryable or code == "insufficient_quota":
        return RefusedError(reason, status=status)
    wait_s = retry_after_s(response.headers.get("retry-after"))
    if wait_s > longest_wait_s:
        return RefusedError(f"{reason}, to be asked again in {wait_s:.0f} s", status=status)
    return TransientFault(reason, wait_s=wait_s)


def _server_message(response: httpx2.Response) -> tuple[str, str | None]:
    """What the server says went wrong, and its error code if it names one."""
    try:
        body = json.loads(response.content)
    except ValueError:
        return " ".join(response.text.split())[:_MESSAGE_CHARS], None
    error = body.get("error", body) if isinstance(body, dict) else body
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(error, dict):
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


def read_chat(body: Any) -> ChatReply:
    """Read the body of /v1/chat/completions.

    Raises:
        TransientFault: If it is not the body of a chat completion.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        reply = _reply(body, choice, message.get("content"), _chat_logprobs(choice.get("logprobs")))
        return replace(reply, reasoning=_reasoning(message))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise _misshapen(body) from None


def read_completion(body: Any) -> ChatReply:
    """Read the body of /v1/completions.

    Raises:
        TransientFault: If it is not the body of a text completion.
    """
    try:
        choice = body["choices"][0]
        top = (choice.get("logprobs") or {}).get("top_logprobs")
        return _reply(body, choice, choice["text"], tuple(map(dict, top)) if top else None)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise _misshapen(body) from None


def read_models(body: Any) -> list[str]:
    """Read the body of /v1/models: the names of the models a server offers.

    Raises:
        TransientFault: If it is not a list of models.
    """
    try:
        return [str(model["id"]) for model in body["data"]]
    except (KeyError, TypeError):
        raise _misshapen(body) from None


def _reply(
    body: Any, choice: Any, text: Any, top_logprobs: tuple[Mapping[str, float], ...] | None
) -> ChatReply:
    if text is not None and not isinstance(text, str):
        raise TypeError(text)
    usage = body.get("usage") or {}
    return ChatReply(
        text=_without_lone_surrogates(text or ""),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        top_logprobs=top_logprobs,
    )


def _reasoning(message: Any) -> str:
    """The thought beside the content: `reasoning_content` of most servers, `reasoning` of some."""
    for name in ("reasoning_content", "reasoning"):
        thought = message.get(name)
        if isinstance(thought, str) and thought:
            return _without_lone_surrogates(thought)
    return ""


def _chat_logprobs(logprobs: Any) -> tuple[Mapping[str, float], ...] | None:
    content = (logprobs or {}).get("content")
    if not content:
        return None
    return tuple(
        {str(top["token"]): float(top["logprob"]) for top in token["top_logprobs"]}
        for token in content
    )


def _misshapen(body: Any) -> TransientFault:
    return TransientFault(f"an answer of another shape ({str(body)[:80]})")


def _without_lone_surrogates(text: str) -> str:
    """Replace halves of characters, which JSON can carry and UTF-8 files cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
