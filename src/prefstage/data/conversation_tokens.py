"""Whole conversations as tokens: where a response begins and ends, and text that stays text."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefstage.core import ModelError
from prefstage.data.compat import Tokenizer, marking
from prefstage.data.messages import common_prefix
from prefstage.data.records import Message
from prefstage.data.rendering import PROBE, ChatTemplate, RenderingError
from prefstage.data.thoughts import THOUGHT_MARKS

# A prompt that every template can render.
QUESTION: Message = {"role": "user", "content": "question"}
_ANSWER: Message = {"role": "assistant", "content": PROBE}
_MARKS = re.compile("[\U000f0000\U000f0001]")

# Marks of an assistant's language: a thought in its text is meant as one.
_OF_THOUGHTS = {*THOUGHT_MARKS, *THOUGHT_MARKS.values()}


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

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        sources = "\0".join(template.sources.values())
        around_turns = template.render(
            [{**QUESTION, "content": PROBE}, _ANSWER], generation_prompt=False
        ).replace(PROBE, "\0")
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        self._in_others = _any_of(t for t, special in added.items() if special or t in sources)
        self._in_assistants = _any_of(
            t
            for t, special in added.items()
            if (special or t in around_turns) and t not in _OF_THOUGHTS
        )

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
        return [
            marking().mark_control_tokens(message, self._pattern_of(message))
            for message in messages
        ]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that was rendered from marked messages."""
        return list(marking().encode_marked_chat(self._tokenizer, text))

    def _pattern_of(self, message: Message) -> re.Pattern[str]:
        return self._in_assistants if message["role"] == "assistant" else self._in_others


def _holds(value: Any, pattern: re.Pattern[str]) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    return (
        pattern.search(value) is not None
        if isinstance(value, str)
        else isinstance(value, Mapping | list | tuple) and any(_holds(i, pattern) for i in items)
    )


def probe_turn(render: Callable[..., str]) -> tuple[str, str]:
    """What a template puts around a response, from rendering a known one.

    Args:
        render: Messages, and with `generation_prompt` whether to add it, to text.

    Returns:
        Lead and suffix. The lead is whitespace between the generation prompt and the
        response's text, which the model generates; empty if the template writes anything else
        there. The suffix is all text after the response's text, up to the end.

    Raises:
        ModelError: If the template leaves the response out.
    """
    before = render([QUESTION], generation_prompt=True)
    start, end, suffix = render([QUESTION, _ANSWER], generation_prompt=False).rpartition(PROBE)
    ModelError.unless(
        end,
        saw="a chat template that leaves the assistant's text out",
        expected="a template that renders assistant turns",
        cure="set tokenizer.chat_template to a complete template, or name a chat_format",
    )
    lead = start.removeprefix(before)
    return lead if start.startswith(before) and not lead.strip() else "", suffix


class ConversationTokens:
    """Reads conversations as `apply_chat_template` does.

    Args:
        tokenizer: A transformers tokenizer.
        template: Its chat template.
        split_control: Whether control tokens that texts spell are ordinary text.

    Attributes:
        marks: Added tokens that are no whitespace, by id.
        special: Finds any special token in a text.
        control: Finds control tokens that texts spell.
        lead: What the template writes before a response's text, as of `probe_turn`.
        opening: What the generation prompt adds to a prompt.
        any_mark: Finds any added token in a text.
        end_of_turn_ids: Tokens that end a turn.
        after_turn: Tokens that the template writes after the end of the last turn.

    Raises:
        ModelError: If the template leaves responses out, or nothing ends a turn.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, split_control: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._splits = split_control
        added = tokenizer.added_tokens_decoder.items()
        # Some tokenizers add runs of spaces as tokens; those end and control nothing.
        self.marks = {token: str(text) for token, text in added if str(text).strip()}
        self.special = _any_of(str(text) for _, text in added if text.special)
        self.any_mark = _any_of(self.marks.values())
        self.lead, suffix = probe_turn(template.render)
        self.opening = self._opening_of(
            [QUESTION], template.render([QUESTION], generation_prompt=True)
        )
        self.end_of_turn_ids, self.after_turn = self._find_end_of_turn(suffix)
        self.control = ControlText(tokenizer, template)

    def together(
        self, turns: Sequence[Message], answers: Sequence[Message]
    ) -> tuple[list[int], list[list[int]]]:
        """Tokens of a prompt, and of the prompt with each response.

        Args:
            turns: The prompt.
            answers: The responses as messages.

        Returns:
            Tokens of the prompt with the generation prompt, as the responses follow it; and
            of each whole conversation.

        Raises:
            RenderingError: If the template refuses a conversation, or renders the prompt of
                one response otherwise than that of another.
        """
        conversations = [list(turns), *([*turns, answer] for answer in answers)]
        # None where no text spells a control token, as in nearly every row.
        marked = [
            self.control.marked(turns) if self._splits and self.control.spelled(turns) else None
            for turns in conversations
        ]
        readable = [m or turns for m, turns in zip(marked, conversations, strict=True)]
        texts = [
            self._template.render(turns, generation_prompt=not n)
            for n, turns in enumerate(readable)
        ]
        before, wholes = self._agreed_prompt(readable, texts), texts[1:]
        first, *others = (
            map(self.control.encode, (before, *wholes))
            if any(marked)
            else self._tokenise_together(before, wholes)
        )
        return first, others

    def _agreed_prompt(self, conversations: Sequence[Sequence[Message]], texts: list[str]) -> str:
        # Some templates render earlier turns otherwise once a response follows (they drop the
        # thoughts of tool calls); then the prompt is what the response follows.
        before, *wholes = texts
        if all(whole.startswith(before) for whole in wholes):
            return before
        opening = self._opening_of(conversations[0], before)
        prompts = {
            self._prompt_in(before, opening, whole, turns[-1])
            for whole, turns in zip(wholes, conversations[1:], strict=True)
        }
        if len(prompts) > 1:
            raise RenderingError.at(
                "responses",
                saw="responses before which the chat template renders different prompts",
                expected="one prompt for all responses of a row",
                cure="remove the row (on_bad_row: quarantine sets it aside)",
            )
        return prompts.pop()

    def _opening_of(self, turns: Sequence[Message], before: str) -> str:
        start = common_prefix(before, self._template.render(turns, generation_prompt=False))
        # A template may close a prompt with a mark that begins as the opening's does.
        marks = self.any_mark.finditer(before)
        return before[next((m.start() for m in marks if m.start() < start < m.end()), start) :]

    def _prompt_in(self, before: str, opening: str, whole: str, answer: Message) -> str:
        if common_prefix(before, whole) >= len(before) - len(opening):
            return before
        # The template renders the turns before otherwise: find the last opening of a turn.
        first, text = self.any_mark.match(opening), str(answer.get("content") or "").strip()
        start = whole.rfind(first.group() if first else opening or "\0")
        if start < 0 or (text and whole.rfind(text) < start):
            raise RenderingError.at(
                "prompt",
                saw="turns that the chat template renders otherwise once a response follows",
                expected="a template in which the response's beginning can be told",
                cure="remove the row (on_bad_row: quarantine sets it aside), or use another "
                "chat template",
            )
        return whole[: start + common_prefix(opening, whole[start:])]

    def _tokenise_together(self, before: str, wholes: Sequence[str]) -> list[list[int]]:
        # The common beginning is tokenised once. Tokenizers cut texts at special tokens first,
        # so what stands before the last common one merges with nothing after it.
        shared = min((common_prefix(before, whole) for whole in wholes), default=len(before))
        # A special token at the very end of what is common may be the start of a longer one.
        cut = max((mark.start() for mark in self.special.finditer(before[:shared])), default=0)
        first, *tails = self._tokenise([before, *(text[cut:] for text in (before, *wholes))])
        head = first[: len(first) - len(tails[0])]
        return (
            self._tokenise([before, *wholes])
            if cut and [*head, *tails[0]] != first
            else [first, *([*head, *tail] for tail in tails[1:])]
        )

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        return list(
            map(list, self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        )

    def _find_end_of_turn(self, suffix: str) -> tuple[tuple[int, ...], list[int]]:
        # The end is the first run of control tokens after the text: a model generates all of
        # ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``, and nothing that stands after such a run.
        ids = self._tokenise([suffix])[0]
        controls = [n for n, token in enumerate(ids) if token in self.marks]
        if controls:
            end = next(n for n in range(controls[0], len(ids) + 1) if n not in controls)
            return tuple(ids[:end]), ids[end:]
        eos = self._tokenizer.eos_token_id
        ModelError.unless(
            eos is not None,
            saw=f"{self._tokenizer.name_or_path!r}: no special token ends a turn and none "
            "ends a text",
            expected="a tokenizer with an end-of-turn or end-of-sequence token",
            cure="set tokenizer.eos_token",
        )
        return (int(eos),), []


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    # The longer first, since one token may begin as another.
    marks = map(re.escape, sorted(filter(str.strip, texts), key=len, reverse=True))
    return re.compile("|".join(marks) or r"(?!)")
