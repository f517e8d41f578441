"""Control tokens in texts: a text that spells one stays text, so that no turn can be forged."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from prefstage.data.records import Message
from prefstage.data.rendering import ChatTemplate, RenderingError
from prefstage.data.thoughts import THOUGHT_MARKS

_MARKS = re.compile("[\U000f0000\U000f0001]")

# Marks of an assistant's own language: a thought in its text is meant as one.
_OF_THOUGHTS = {mark for marks in THOUGHT_MARKS for mark in (marks.opening, marks.closing)}


class ControlText:
    """Finds control tokens in messages, and encodes a conversation so that they stay text.

    Control tokens of users' (and system's and tools') texts are those of transformers'
    ``apply_chat_template(..., sanitize_control_tokens=True)``: the tokenizer's special tokens,
    and the added tokens that the chat template writes. An assistant's text may hold the marks
    of a thought, and added tokens that are not special and end no turn, such as
    ``<tool_call>``: they belong to its language.

    Args:
        tokenizer: A transformers tokenizer.
        template: Its chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        sources, turns = "\0".join(template.sources.values()), template.around_turns
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        written = {token.content for token in added if token.content in sources}
        around = {token.content for token in added if token.content in turns}
        self._in_others = _pattern(special | written)
        self._in_assistants = _pattern((special | around) - _OF_THOUGHTS)

    def spelled(self, messages: Sequence[Message]) -> bool:
        """Whether a text of these messages spells a control token."""
        return any(_holds(message, self._pattern_of(message)) for message in messages)

    def marked(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with marks around the control tokens that they spell.

        Args:
            messages: The turns.

        Returns:
            Messages to render and then `encode`.

        Raises:
            RenderingError: If a text holds the characters that mark them.
        """
        for index, message in enumerate(messages):
            if _holds(message, _MARKS):
                raise RenderingError.at(
                    f"turn {index}",
                    saw="the characters U+F0000 or U+F0001 beside a control token",
                    expected="text without them, since they mark the control tokens of texts",
                    cure="remove them, or set control_tokens: keep",
                )
        return [mark_control_tokens(message, self._pattern_of(message)) for message in messages]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that was rendered from marked messages."""
        return list(encode_marked_chat(self._tokenizer, text))

    def _pattern_of(self, message: Message) -> re.Pattern[str]:
        return self._in_assistants if message["role"] == "assistant" else self._in_others


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a text in which no added token is looked for.

    transformers' own switch, `split_special_tokens`, still finds added tokens that are not
    special; this is what its `encode_marked_chat` uses.
    """
    return list(tokenizer._encode_without_added_tokens(text))


def _pattern(texts: set[str]) -> re.Pattern[str]:
    """Any of the texts, the longer first; added whitespace controls nothing."""
    listed = sorted((text for text in texts if text.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) or r"(?!)")


def _holds(value: Any, pattern: re.Pattern[str]) -> bool:
    """Whether a text anywhere in a value matches."""
    if isinstance(value, str):
        return pattern.search(value) is not None
    if isinstance(value, Mapping):
        return any(_holds(item, pattern) for item in value.values())
    return isinstance(value, list | tuple) and any(_holds(item, pattern) for item in value)
