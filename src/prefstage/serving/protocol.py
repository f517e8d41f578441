"""What goes between us and a server: replies in one shape, and what to ask again after a fault."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from tenacity import RetryCallState

from prefstage.core import parse_json

T = TypeVar("T")

# Beside 5xx: time-out, locked, failed dependency, too early, too many; 498 of Groq: no capacity.
_RETRYABLE = frozenset({408, 423, 424, 425, 429, 498, 499})
# About one request's content: the next one may well be answered. 403 and 451 are moderation's.
_OF_CONTENT = frozenset({400, 413, 422, 451})
_FORBIDDEN, _SERVER_ERROR, _UNIMPLEMENTED = 403, 500, 501
_OVERLOADED = frozenset({503, 529})
_MODERATION = re.compile(
    r"moderat|flagged|polic(?:y|ies)|safety|content|prohibited|guardrail", re.IGNORECASE
)
# What no request of this run will be spared, whatever its status: Gemini refuses a wrong key with
# 400, Anthropic an empty account, LiteLLM and OpenRouter an unknown model.
_OF_RUN = re.compile(
    r"api[ _-]?key|credit|billing|quota|\bauth|unauthori[sz]ed|credential|permission|subscription"
    r"|(?:invalid|unknown|no such) model|model_not_found|not a valid model|decommissioned"
    r"|model\b.{0,60}\b(?:does not exist|not found|not available|not loaded)",
    re.IGNORECASE,
)
# Of errors inside a 200, which have no status: by type or code.
_STATUS_OF = {
    400: re.compile(r"invalid|content|filter|moderat|polic|safety|context|too_?(?:long|large)"),
    401: re.compile(r"auth|api_?key"),
    402: re.compile(r"credit|billing|insufficient_quota"),
    404: re.compile(r"not_found"),
    429: re.compile(r"rate|overload|capacity|too_many"),
}
_UNUSABLE_RETRIES = 2  # of a reply without a usable choice: a moderated prompt stays one
_MESSAGE_CHARS = 300
_LONGEST_S = 1e9
_LONGEST_RESET_S = 60.0
_EPOCH_S, _EPOCH_MS = 1e9, 1e12  # numbers above are moments, of which there are two spellings


class Fault(Exception):  # noqa: N818 - not an error until the retries are spent
    """A request without the answer that is due.

    Attributes:
        status: HTTP status; 0 where there was none, or no error of it.
        wait_s: Seconds that the server asks to wait before the next attempt, or 0; None where
            it refuses the request, now and again.
        of_content: Whether the fault may lie in what this request holds, so that others may
            well be answered; else it is the server's, the way's, or that of the whole run.
        retries: How often to ask again at most; None: as often as for any fault.
        field: The request's field that the server names as the fault; else empty.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        wait_s: float | None = 0.0,
        of_content: bool = False,
        retries: int | None = None,
        field: str = "",
    ) -> None:
        super().__init__(reason)
        self.status, self.wait_s, self.of_content = status, wait_s, of_content
        self.retries, self.field = retries, field


def server_wait_s(retry_state: RetryCallState) -> float:
    """Seconds that the server asked to wait before the next attempt, in Retry-After; else 0."""
    fault = retry_state.outcome.exception() if retry_state.outcome else None
    return (isinstance(fault, Fault) and fault.wait_s) or 0.0


def read_response(
    response: httpx2.Response, content: bytes, read: Callable[[Any], T], *, longest_wait_s: float
) -> T:
    """What the JSON body of a successful response says.

    Args:
        response: Any response.
        content: Its body; of any content type, as gateways and proxies name it as they like.
        read: Reads the decoded body; what it stumbles over is a body of another shape.
        longest_wait_s: A server that asks for a longer wait than this is given up.

    Returns:
        What `read` gives.

    Raises:
        Fault: If it says nothing; the text is the server's own message.
    """
    try:
        body = parse_json(content)
    except ValueError:
        body = None
    failed = None
    if isinstance(body, Mapping) and not body.get("choices"):
        failed = body.get("error") or (body if body.get("object") == "error" else None)
    if not response.is_success:
        raise _failure(response, response.status_code, body, content, longest_wait_s)
    if failed:  # a failure that a gateway passes on as a success
        raise _failure(response, _code_of(failed), body, content, longest_wait_s)
    if body is None:
        kind = response.headers.get("content-type") or "no type"
        raise Fault(f"an answer of {kind} that is not JSON", of_content=True)
    try:
        return read(body)
    except Fault:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        shape = " ".join(str(body)[:80].split())
        raise Fault(
            f"an answer without a usable choice ({shape})",
            of_content=True,
            retries=_UNUSABLE_RETRIES,
        ) from None


def _failure(
    response: httpx2.Response, status: int, body: Any, content: bytes, longest_wait_s: float
) -> Fault:
    message, code, field = _server_message(body, content)
    reason = f"HTTP {status} {response.reason_phrase if status == response.status_code else ''}"
    reason = reason.strip() + (f" ({message})" if message else "")
    said = f"{message} {code}"
    if response.is_redirect:
        reason += f" to {response.headers.get('location', 'nowhere')}"
    moderated = status == _FORBIDDEN and bool(_MODERATION.search(said))
    wait_s: float | None = None
    spent = code == "insufficient_quota" or status == _UNIMPLEMENTED
    if (status in _RETRYABLE or status >= _SERVER_ERROR) and not spent:
        wait_s = wait_of(response.headers)
        if wait_s > longest_wait_s:
            reason, wait_s = f"{reason}, to be asked again in {wait_s:.0f} s", None
    # Such as 500 and 502 for one prompt that breaks the model; 503 and 529 speak of the server.
    breaks = status >= _SERVER_ERROR and status not in _OVERLOADED
    return Fault(
        reason,
        status=status,
        wait_s=wait_s,
        of_content=breaks or ((status in _OF_CONTENT or moderated) and not _OF_RUN.search(said)),
        field=field,
    )


def _code_of(error: Any) -> int:
    names = ("code", "status", "type") if isinstance(error, Mapping) else ()
    named: list[Any] = [error.get(name) for name in names]
    for code in named:
        with suppress(TypeError, ValueError, OverflowError):
            if 400 <= int(code) < 600:  # noqa: PLR2004 - the range of HTTP's errors
                return int(code)
    words = " ".join(map(str, named)).lower()
    return next((code for code, pattern in _STATUS_OF.items() if pattern.search(words)), 500)


def wait_of(headers: Mapping[str, str]) -> float:
    """Seconds to wait by the headers of a response.

    Args:
        headers: `retry-after-ms` in milliseconds (OpenAI, Azure) wins over `retry-after` (seconds,
            an HTTP date, or a duration such as "1m30s"), and that over `x-ratelimit-reset` and
            those of requests and tokens where none remain.

    Returns:
        Seconds, >= 0; 0 where there is no such header, or none that can be read.
    """
    if milliseconds := headers.get("retry-after-ms"):
        return retry_after_s(milliseconds) / 1000
    if asked := headers.get("retry-after"):
        return retry_after_s(asked)
    limits = [
        f"x-ratelimit-reset{kind}"
        for kind in ("", "-requests", "-tokens")
        if not kind or headers.get(f"x-ratelimit-remaining{kind}") == "0"
    ]
    # When a limit is whole again, which may be long after the next request would pass.
    return min(max(retry_after_s(headers.get(name)) for name in limits), _LONGEST_RESET_S)


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float:
    """Seconds to wait by a Retry-After header.

    Args:
        value: The header: seconds, a duration such as "1m30s" or "250ms", an HTTP or ISO 8601
            date, or a moment in seconds or milliseconds since 1970; None if it is missing.
        now: The present, for a date.

    Returns:
        Seconds, >= 0; 0 for a missing or unreadable header.

    Source:
        RFC 9110, section 10.2.3; durations as gateways write them.
    """
    text, seconds = str(value or "").strip(), math.nan
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?", text)
    with suppress(ValueError, TypeError, OverflowError):
        if text and parts:
            units = zip((3600, 60, 1, 0.001), parts.groups(), strict=True)
            seconds = sum(unit * float(number) for unit, number in units if number)
        elif re.fullmatch(r"[-+]?[\d.]+(?:e[-+]?\d+)?", text, re.IGNORECASE):
            seconds = float(text)
            if _EPOCH_S < seconds < 10 * _EPOCH_MS:
                seconds /= 1000 if seconds > _EPOCH_MS else 1
                seconds -= (now or datetime.now(UTC)).timestamp()
        else:
            iso = re.match(r"\d{4}-", text)
            date = datetime.fromisoformat(text) if iso else parsedate_to_datetime(text)
            seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_S)


# What the server says went wrong, its error code, and the request's field that it names.
def _server_message(body: Any, content: bytes) -> tuple[str, str, str]:
    if body is None:
        text = re.sub(r"<[^>]*>", " ", content[: 64 * _MESSAGE_CHARS].decode(errors="replace"))
        return " ".join(text.split())[:_MESSAGE_CHARS], "", ""
    error, code, field = body.get("error", body) if isinstance(body, Mapping) else body, "", ""
    if isinstance(error, Mapping):
        code = str(error.get("code") or error.get("type") or "")
        field = str(error.get("param") or "")
        message = error.get("message") or error.get("detail") or error
        metadata = error.get("metadata")  # of OpenRouter: what the provider said
        raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
        error = f"{message}: {raw}" if raw else message
    said = without_lone_surrogates(" ".join(str(error).split()))
    return said[:_MESSAGE_CHARS], code, field


# --- Requests ------------------------------------------------------------------------------------

_NOT_TAKEN = re.compile(
    r"not supported|n[o']t support|unsupported|unrecogni[sz]ed|unknown|unexpected|not permitted|"
    r"not allowed|forbidden|invalid (?:param|arg|field)|deprecated|instead|strictly positive|"
    r"cannot (?:both )?be (?:set|specified)|only the default|not available|not implemented|"
    r"only \S+ is allowed|max(?:imum)? allowed|extra (?:inputs|fields)",
    re.IGNORECASE,
)
# What may be left out of a request without changing what is asked, and what takes its place.
OPTIONAL = (
    *("top_logprobs", "logprobs", "temperature", "top_p", "top_k", "seed", "stop"),
    *("max_tokens", "chat_template_kwargs"),
)
INSTEAD = {"max_tokens": "max_completion_tokens"}


def not_taken(fault: Fault, fields: Sequence[str]) -> str:
    """The field of a refused request that the server does not take.

    Args:
        fault: The refusal.
        fields: Of the request.

    Returns:
        One of `OPTIONAL` that the server names as unknown or unsupported; else "".
    """
    if not (fault.of_content and _NOT_TAKEN.search(str(fault))):
        return ""
    text = f"{fault.field} {fault}"
    named = (name for name in OPTIONAL if re.search(rf"(?<!\w){name}(?!\w)", text))
    return next((name for name in named if name in fields), "")


# --- Replies -------------------------------------------------------------------------------------

_REASONS = {
    "length": (
        *("length", "max_tokens", "model_length", "max_output_tokens", "token_limit"),
        *("max_length", "max_new_tokens", "model_context_window_exceeded"),
        *("maxpredictedtokensreached", "contextlengthreached"),
    ),
    "content_filter": (
        *("content_filter", "content_filtered", "safety", "recitation", "blocklist", "spii"),
        *("prohibited_content", "guardrail_intervened", "refusal", "sensitive", "censored"),
    ),
    "tool_calls": ("tool_calls", "tool_use", "function_call"),
    "error": ("error", "abort", "aborted", "failed", "cancelled", "insufficient_system_resource"),
}
# vLLM, TGI (eos_token, stop_sequence), SGLang, llama.cpp, Anthropic's and Gemini's gateways.
_REASON_OF = {name: reason for reason, names in _REASONS.items() for name in names}


@dataclass(frozen=True)
class ChatReply:
    """One answer of a server.

    Attributes:
        text: What the model answered; empty where the server sends no text.
        finish_reason: "stop", "length", "content_filter" or "tool_calls", whatever the server
            calls them; "stop" where it says something else or nothing.
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
    content, thoughts = _parts(message.get("content"))
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]  # the model's words all the same
    # The thought beside the content, under the names that servers have for it.
    for name in ("reasoning_content", "reasoning", "thinking", "reasoning_details"):
        if thoughts:
            break
        thoughts = _text_of(message.get(name))
    return _reply(body, choice, content, reasoning=thoughts)


def read_completion(body: Any) -> ChatReply:
    """Read the body of /v1/completions."""
    choice = body["choices"][0]
    return _reply(body, choice, choice["text"])


def read_models(body: Any) -> list[str]:
    """Read the body of /v1/models: the names of the models a server offers."""
    rows = body if isinstance(body, list) else body["data"]
    return [str(model["id"]) for model in rows]


# Text and thought of a content, which may be a list of parts.
def _parts(content: Any) -> tuple[str | None, str]:
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list | Mapping):
        raise TypeError(content)
    texts: dict[bool, list[str]] = {False: [], True: []}
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        texts[kind in ("thinking", "reasoning", "redacted_thinking")].append(_text_of(part))
    return "".join(texts[False]), "\n".join(texts[True])


# The text of a part or of a list of parts, under whichever name it stands.
def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(map(_text_of, part))
    if isinstance(part, Mapping):
        names = ("text", "thinking", "reasoning", "summary", "content", "refusal")
        return next((t for name in names if (t := _text_of(part.get(name)))), "")
    return ""


def _reply(body: Any, choice: Any, text: Any, *, reasoning: str = "") -> ChatReply:
    if text is not None and not isinstance(text, str):
        raise TypeError(text)
    named = choice.get("finish_reason") or choice.get("stop_reason") or "stop"
    reason = _REASON_OF.get(str(named).lower(), "stop")
    words = without_lone_surrogates(text or "")
    if reason == "error" or choice.get("error"):
        said = choice.get("error") or named
        raise Fault(f"a generation that failed ({str(said)[:80]})", status=500, of_content=True)
    if reason == "content_filter" and not words.strip():
        raise Fault(f"withheld by the server ({named})", wait_s=None, of_content=True)
    usage = body.get("usage")
    return ChatReply(
        text=words,
        finish_reason=reason,
        prompt_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(usage, "completion_tokens", "output_tokens"),
        top_logprobs=_top_logprobs(choice.get("logprobs")),
        reasoning=without_lone_surrogates(reasoning),
    )


def _count(usage: Any, *names: str) -> int:
    for name in names if isinstance(usage, Mapping) else ():
        with suppress(TypeError, ValueError, OverflowError):
            return max(int(usage[name]), 0) if usage.get(name) is not None else 0
    return 0


# Of every generated token; None where they are absent or in a shape that nobody knows: a reply is
# no worse for it.
def _top_logprobs(given: Any) -> tuple[Mapping[str, float], ...] | None:
    with suppress(KeyError, IndexError, TypeError, ValueError, AttributeError):
        if given.get("content"):
            return tuple(dict(_alternatives(token)) for token in given["content"])
        # The older shape, which some servers use for chats too.
        tops = given.get("top_logprobs") or [
            {token: value}
            for token, value in zip(given["tokens"], given["token_logprobs"], strict=True)
        ]
        return tuple({str(t): float(p) for t, p in (top or {}).items()} for top in tops) or None
    return None


def _alternatives(token: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    tops = token.get("top_logprobs") or [token]
    if isinstance(tops, Mapping):
        tops = [{"token": text, "logprob": value} for text, value in tops.items()]
    for top in tops:
        with suppress(KeyError, TypeError, ValueError):  # a null is no number
            yield str(top["token"]), float(top["logprob"])


def without_lone_surrogates(text: str) -> str:
    """Replace halves of characters, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
