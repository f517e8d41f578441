"""What an OpenAI-compatible server answers, read into one shape."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefstage.serving.faults import TransientFault


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
