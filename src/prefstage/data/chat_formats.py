"""Named formats for models without a chat template, and what a template's turns look like."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefstage.core.errors import ModelError
from prefstage.data.records import Message

CHAT_FORMATS = {
    # Blank-line separated texts: what a base model continues most naturally.
    "plain": (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' and loop.last %}{{ eos_token }}"
        "{% else %}{{ '\n\n' }}{% endif %}{% endfor %}"
    ),
    # The transcripts of Anthropic's HH data; the space after the colon is generated.
    "human-assistant": (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] }}"
        "{% if loop.last %}{{ eos_token }}{% endif %}"
        "{% elif message['role'] == 'system' %}{{ message['content'] }}"
        "{% else %}{{ '\n\nHuman: ' + message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
    ),
}
"""Jinja templates by name; a response ends with the tokenizer's end-of-sequence token."""

_PROBE = "prefstage probe"
QUESTION: Message = {"role": "user", "content": "question"}
"""A prompt that every template can render."""


@dataclass(frozen=True)
class TurnShape:
    """What a template puts around a response.

    Attributes:
        lead: Whitespace between the generation prompt and the response's text, which the
            model generates; None if the template writes anything else there.
        suffix: All text after the response's text, up to the end.
    """

    lead: str | None
    suffix: str


def probe_turn(render: Callable[[Sequence[Message], bool], str]) -> TurnShape:
    """Find out what a template puts around a response by rendering a known one.

    Args:
        render: Messages and whether to add the generation prompt, to text.

    Raises:
        ModelError: If the template leaves the response out.
    """
    before = render([QUESTION], True)
    after = render([QUESTION, {"role": "assistant", "content": _PROBE}], False)
    place = after.rfind(_PROBE)
    if place < 0:
        raise ModelError.of(
            saw="a chat template that leaves the assistant's text out",
            expected="a template that renders assistant turns",
            cure="set tokenizer.chat_template to a complete template, or name a chat_format",
        )
    lead = after[len(before) : place] if after[:place].startswith(before) else None
    if lead is not None and lead.strip():
        lead = None
    return TurnShape(lead, suffix=after[place + len(_PROBE) :])
