"""What an OpenAI-compatible server is asked for a response, and how its reply is read."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefstage.core.errors import InputError
from prefstage.data.conversation_tokens import probe_turn
from prefstage.data.records import Message
from prefstage.data.settings import CHAT_FORMATS
from prefstage.data.thoughts import Reply, read_parts, read_reply
from prefstage.sampling.base import Sample, SampleRequest, SamplingConfig
from prefstage.serving import ChatReply

Dialect = Literal["standard", "transformers"]


class PlainFormat:
    """Renders prompts for a base model, whose server has no template.

    Args:
        name: Of `CHAT_FORMATS`.

    Attributes:
        lead: Whitespace before the response, which the model generates.

    Raises:
        InputError: If there is no such format.
    """

    def __init__(self, name: str) -> None:
        if name not in CHAT_FORMATS:
            raise InputError.of(
                saw=f"chat_format={name!r}",
                expected=f"one of {', '.join(CHAT_FORMATS)}, or none for the server's template",
                cure="choose one of them",
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(CHAT_FORMATS[name])
        self.lead = probe_turn(self._render).lead or ""

    def prompt(self, prompt: Sequence[Message]) -> str:
        """The prompt as text, up to where the response begins."""
        return self._render(prompt, True)

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self._template.render(
            messages=messages, add_generation_prompt=generation_prompt, eos_token=""
        )


def request_options(config: SamplingConfig, seed: int, dialect: Dialect) -> dict[str, Any]:
    """The sampling settings as fields of a request.

    Args:
        config: How to sample.
        seed: Of this response.
        dialect: How the server wants them.

    Returns:
        The fields.
    """
    if dialect == "transformers":
        sampled = config.temperature > 0
        generation: dict[str, Any] = {
            "max_new_tokens": config.max_new_tokens,
            "do_sample": sampled,
            "repetition_penalty": 1.0,
        }
        if sampled:
            generation |= {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
            }
        return {"generation_config": json.dumps(generation), "seed": seed}
    options: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_new_tokens,
        "seed": seed,
    }
    return options | ({"top_k": config.top_k} if config.top_k else {})


def sample_of(request: SampleRequest, reply: ChatReply, plain: PlainFormat | None) -> Sample:
    """The answer that a server's reply holds.

    Args:
        request: What was wanted.
        reply: The reply.
        plain: The format that rendered the prompt; None for the server's template.

    Returns:
        The answer, with what was thought before it apart; without tokens, which servers keep.
    """
    reasons: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
    finish_reason: Literal["stop", "length", "other"] = reasons.get(reply.finish_reason, "other")
    parts = _parts(reply, plain)
    return Sample(
        prompt_id=request.prompt_id,
        index=request.index,
        text=parts.answer,
        finish_reason=finish_reason,
        prompt_tokens=reply.prompt_tokens,
        response_tokens=reply.completion_tokens,
        thought=parts.thought,
        thought_cut=parts.cut and finish_reason != "other",  # a tool call has no text either
    )


def _parts(reply: ChatReply, plain: PlainFormat | None) -> Reply:
    """Thought and answer: as the server parts them, or by the marks that it leaves in the text."""
    if plain is not None:
        return read_reply(reply.text.removeprefix(plain.lead), opened=False)
    if reply.reasoning.strip():
        return read_parts(reply.text, reply.reasoning)
    return read_reply(reply.text)
