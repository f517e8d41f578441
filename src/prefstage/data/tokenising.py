"""Prompts and responses as tokens: exactly those the model reads, and those it would write."""

import datetime
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from prefstage.core.errors import InputError, ModelError
from prefstage.core.hashing import digest
from prefstage.core.runs import run_date
from prefstage.data.chat_formats import QUESTION, TurnShape, probe_turn
from prefstage.data.chat_settings import ChatSettings, ControlTokens
from prefstage.data.control_tokens import ControlText
from prefstage.data.records import SAMPLED, Message, prompt_id_of
from prefstage.data.rendering import THOUGHT_FIELDS, ChatTemplate, RenderingError
from prefstage.data.thoughts import Reply, opens_thought, read_reply
from prefstage.data.tokenizer_files import load_tokenizer

_OPENING_TOKENS = 32  # more than a template writes to open a thought
_Settings = TypeVar("_Settings", bound=ChatSettings)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenTree:
    """One prompt and its responses as tokens; the prompt stands once.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt_ids: Tokens of the prompt, generation prompt included.
        response_ids: Tokens of each response, end-of-turn included unless truncated;
            none is empty.
        opening_ids: What the generation prompt has after `prompt_ids`, where the border moved:
            a policy that is asked for a response reads both.
    """

    prompt_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[tuple[int, ...], ...]
    opening_ids: tuple[int, ...] = ()


@dataclass
class EncodingCounts:
    """What encoding did so far.

    Attributes:
        prompts: Prompts encoded.
        responses: Responses encoded.
        prompts_truncated: Prompts that lost their beginning.
        prompt_tokens_dropped: Tokens they lost.
        responses_truncated: Responses that lost their end, end-of-turn included.
        response_tokens_dropped: Tokens they lost.
        borders_moved: Trees whose responses begin before the generation prompt's end: the
            template renders another opening once a response follows, or the tokenizer
            merges the prompt's end with a response's start.
        openings_removed: Prompts that ended with the generation prompt's own opening.
        without_end: Responses after which the chat template writes no end-of-turn.
        control_tokens: Prompts and responses whose text spells a control token.
        thoughts_left_out: Responses whose thought the chat template does not show.
        sampled: Responses that are the tokens which a policy generated.
    """

    prompts: int = 0
    responses: int = 0
    prompts_truncated: int = 0
    prompt_tokens_dropped: int = 0
    responses_truncated: int = 0
    response_tokens_dropped: int = 0
    borders_moved: int = 0
    openings_removed: int = 0
    without_end: int = 0
    control_tokens: int = 0
    thoughts_left_out: int = 0
    sampled: int = 0


class ResponseEncoder:
    """Turns a prompt and its responses into a token tree.

    Prompt and response are what the chat template makes of the whole conversation, up to the
    end of the response's turn: the tokens of `apply_chat_template`. The border between them
    is where the generation prompt ends; where a template renders another opening once a
    response follows (an opened thought), it is where both part. A response that a policy
    sampled is the tokens that it generated.

    Args:
        tokenizer: A transformers tokenizer.
        chat_format: None for the tokenizer's own chat template, or a name of
            `CHAT_FORMATS` for a model without one.
        max_prompt_tokens: Longer prompts keep their end (and a leading
            begin-of-sequence token). None for no limit.
        max_response_tokens: Longer responses keep their start and lose their
            end-of-turn. None for no limit.
        template_options: Extra variables for the chat template, such as
            ``{"enable_thinking": False}``.
        template_date: What templates read as today (an ISO date); None for the date on which
            the encoder is made.
        control_tokens: "split": control tokens in texts are ordinary text; "keep": they are
            the tokens, so that texts can open and close turns.

    Raises:
        ModelError: If the tokenizer has no chat template and no format is named, or the
            end of a turn cannot be found.
        InputError: If the format's name is unknown or a limit is below 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_format: str | None = None,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        template_options: Mapping[str, Any] | None = None,
        template_date: datetime.date | str | None = None,
        control_tokens: ControlTokens = "split",
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.max_prompt_tokens = _checked_limit("max_prompt_tokens", max_prompt_tokens)
        self.max_response_tokens = _checked_limit("max_response_tokens", max_response_tokens)
        self.counts = EncodingCounts()
        self.template_date = _checked_date(template_date)
        self._template = ChatTemplate(
            tokenizer, chat_format, template_options or {}, self.template_date
        )
        self._starts_with_bos = chat_format is not None and _adds_bos(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        # Some tokenizers add runs of spaces as tokens; those end and control nothing.
        self._marks = {token: str(text) for token, text in added if str(text).strip()}
        self._any_mark = _any_of(self._marks.values())
        self._special = _any_of(str(text) for _, text in added if text.special)
        self._shape: TurnShape = probe_turn(self._render)
        self._opening = self._opening_of([QUESTION], self._render([QUESTION], True))
        self.end_of_turn_ids, self._after_turn = self._find_end_of_turn()
        self._keeps_control = control_tokens == "keep"
        self._control = ControlText(tokenizer, self._template)
        self._warned: set[str] = set()

    @property
    def end_of_turn(self) -> str:
        """Text of the end-of-turn."""
        return str(self.tokenizer.decode(list(self.end_of_turn_ids), skip_special_tokens=False))

    @property
    def chat_template(self) -> str:
        """The template as a tokenizer needs it to read prompts as this encoder does."""
        return ("{{ bos_token }}" if self._starts_with_bos else "") + self._template.source

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the generation prompt has opened a thought, which the policy goes on with."""
        return opens_thought(self._opening)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything the tokens depend on: tokenizer, template, truncation."""
        return digest(
            {
                "tokenizer": _tokenizer_content(self.tokenizer),
                "template": self._template.sources,
                "options": self._template.variables,
                "limits": [self.max_prompt_tokens, self.max_response_tokens],
                "control_tokens": "keep" if self._keeps_control else "split",
            }
        )

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hash of the tokenizer alone: equal ones mean the same by the same ids."""
        return digest(_tokenizer_content(self.tokenizer))

    def prompt_text(self, prompt: Sequence[Message]) -> str:
        """The prompt as the model reads it, generation prompt included, before tokenising."""
        return self._render(self._unopened(prompt), True)

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt, after truncation (counted)."""
        turns = self._unopened(prompt)
        self._template.check_read(turns, [f"prompt[{n}]" for n in range(len(turns))])
        self._count_control(turns)
        marked = self._marked(turns)
        if marked is None:
            (ids,) = self._tokenise([self._render(turns, True)])
        else:
            ids = self._control.encode(self._render(marked, True))
        return self._cut_prompt(self._with_bos(ids))

    def encode(self, prompt: Sequence[Message], responses: Sequence[str | Message]) -> TokenTree:
        """Tokenise a prompt and its responses.

        Args:
            prompt: Messages up to and with the last user turn.
            responses: Each response's text, or its whole message: with tool calls, a thought
                (`reasoning_content`), or the tokens that a policy generated.

        Returns:
            The tree; its prompt tokens followed by a response's are those of
            `apply_chat_template` for the whole conversation up to the end of the turn.

        Raises:
            RenderingError: If the template refuses the conversation, leaves a part of it out,
                or renders the prompt of one response otherwise than that of another.
        """
        turns = self._unopened(prompt)
        answers = [_message(response) for response in responses]
        sampled = [self._sampled_ids(answer) for answer in answers]
        self._count_control(turns, *([answer] for answer in answers))
        names = [f"prompt[{n}]" for n in range(len(turns))]
        for index, answer in enumerate(answers):
            if sampled[index] is None:
                self._template.check_read([*turns, answer], [*names, f"responses[{index}]"])
                self._note_thought(answer)
        rendered = [answer for answer, ids in zip(answers, sampled, strict=True) if ids is None]
        before, wholes = self._conversations(turns, rendered)
        border = min((_shared(before, whole) for whole in wholes), default=len(before))
        self.counts.borders_moved += border < len(before)
        tails = iter([self._ended(whole)[border:] for whole in wholes])
        rows = [next(tails) if ids is None else [*before[border:], *ids] for ids in sampled]
        if not all(rows):
            raise RenderingError.at(
                f"responses[{rows.index([])}]",
                saw="a response of which the chat template shows nothing",
                expected="a response with at least one token",
                cure="remove the row, or use another chat template",
            )
        return TokenTree(
            prompt_id_of(prompt),
            self._cut_prompt(self._with_bos(before[:border])),
            tuple(self._cut_response(ids) for ids in rows),
            tuple(before[border:]),
        )

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a response's answer: the inverse of `encode` for one response.

        Args:
            response_ids: Tokens as encoded, or as generated.

        Returns:
            The answer, without thought, control tokens and the whitespace that the template
            puts before it.
        """
        return self.read(response_ids).answer

    def read(self, response_ids: Sequence[int], prompt_ids: Sequence[int] | None = None) -> Reply:
        """What a policy wrote: its answer, and what it thought before.

        Args:
            response_ids: Tokens as generated; what follows the first end-of-turn goes.
            prompt_ids: What it read, whose end says whether a thought was opened; None for
                what the template opens usually.

        Returns:
            The reply, split by the marks that models put around their thoughts.
        """
        ids = list(response_ids)
        if self.end_of_turn_ids[-1] in ids:
            ids = ids[: ids.index(self.end_of_turn_ids[-1])]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        opened = self.opens_thought
        if prompt_ids is not None:
            end = list(prompt_ids[-_OPENING_TOKENS:])
            opened = opens_thought(str(self.tokenizer.decode(end, skip_special_tokens=False)))
        reply = read_reply(text, opened=opened)
        answer, thought = reply.answer.removeprefix(self._shape.lead or ""), reply.thought
        if any(token in self._marks for token in ids):
            answer = self._special.sub("", answer)
            thought = None if reply.thought is None else self._special.sub("", reply.thought)
        return Reply(answer, thought, reply.cut)

    # --- Conversations to tokens ------------------------------------------------------------

    def _conversations(
        self, turns: Sequence[Message], answers: Sequence[Message]
    ) -> tuple[list[int], list[list[int]]]:
        """Tokens of the prompt, and of the prompt with each answer."""
        conversations = [list(turns), *([*turns, answer] for answer in answers)]
        marked = [self._marked(conversation) for conversation in conversations]
        if any(each is not None for each in marked):
            whole = [m if m is not None else c for m, c in zip(marked, conversations, strict=True)]
            texts = [self._render(turns, not n) for n, turns in enumerate(whole)]
            before, texts = self._agreeing(whole, texts)
            ids = [self._control.encode(text) for text in (before, *texts)]
        else:
            texts = [self._render(turns, not n) for n, turns in enumerate(conversations)]
            before, texts = self._agreeing(conversations, texts)
            ids = self._tokenise_together(before, texts)
        return ids[0], ids[1:]

    def _agreeing(
        self, conversations: Sequence[Sequence[Message]], texts: list[str]
    ) -> tuple[str, list[str]]:
        """The prompt's text as the texts with a response begin, and those texts.

        Some templates render earlier turns otherwise once a response follows (they drop the
        thoughts of tool calls); then the prompt is what the response follows.
        """
        before, wholes = texts[0], texts[1:]
        if all(whole.startswith(before) for whole in wholes):
            return before, wholes
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
        return prompts.pop(), wholes

    def _opening_of(self, turns: Sequence[Message], before: str) -> str:
        """What the generation prompt adds to the text of the prompt."""
        start = _shared(before, self._render(turns, False))
        # A template may close a prompt with a mark that begins as the opening's does.
        cut = (m.start() for m in self._any_mark.finditer(before) if m.start() < start < m.end())
        return before[next(cut, start) :]

    def _prompt_in(self, before: str, opening: str, whole: str, answer: Message) -> str:
        if _shared(before, whole) >= len(before) - len(opening):
            return before
        # The template renders the turns before otherwise: find the last opening of a turn.
        first = self._any_mark.match(opening)
        start = whole.rfind(first.group() if first else opening or "\0")
        text = str(answer.get("content") or "").strip()
        body = whole.rfind(text) if text else len(whole)
        if start < 0 or body < start:
            raise RenderingError.at(
                "prompt",
                saw="turns that the chat template renders otherwise once a response follows",
                expected="a template in which the response's beginning can be told",
                cure="remove the row (on_bad_row: quarantine sets it aside), or use another "
                "chat template",
            )
        return whole[: start + _shared(opening, whole[start:])]

    def _tokenise_together(self, before: str, wholes: Sequence[str]) -> list[list[int]]:
        """Tokens of texts that begin alike, tokenising the common beginning once.

        Tokenizers cut texts at special tokens first, so what stands before the last common
        one merges with nothing after it.
        """
        common = before[: min((_shared(before, whole) for whole in wholes), default=len(before))]
        cuts = [match.start() for match in self._special.finditer(common)]
        # A special token at the very end of what is common may be the start of a longer one.
        cut = max((place for place in cuts if place < len(common)), default=0)
        first, *tails = self._tokenise([before, *(text[cut:] for text in (before, *wholes))])
        if cut and first[len(first) - len(tails[0]) :] != tails[0]:
            return self._tokenise([before, *wholes])
        head = first[: len(first) - len(tails[0])]
        return [first, *([*head, *tail] for tail in tails[1:])]

    def _ended(self, ids: list[int]) -> list[int]:
        """A conversation's tokens without what the template writes after the end of the turn."""
        after = self._after_turn
        if after and ids[len(ids) - len(after) :] == after:
            cut = len(ids) - len(after)
            ids = ids[:cut] if cut and ids[cut - 1] in self._marks else ids
        if ids and ids[-1] not in self._marks:
            self.counts.without_end += 1
            self._warn(
                "end",
                "the chat template ends the last turn with no control token: responses are "
                "trained on without an end-of-turn (counted); a template that writes one teaches "
                "the policy to stop",
            )
        return ids

    def _sampled_ids(self, answer: Message) -> list[int] | None:
        """The tokens that a policy with this tokenizer generated, or None."""
        sampled = answer.get(SAMPLED)
        if not sampled or sampled["tokenizer"] != self.tokenizer_fingerprint:
            return None
        self.counts.sampled += 1
        return list(sampled["token_ids"])

    def _unopened(self, prompt: Sequence[Message]) -> list[Message]:
        """The prompt without a generation prompt that its own text ends with."""
        turns = list(prompt)
        last = turns[-1] if turns else {}
        text, opening = str(last.get("content") or "").rstrip(), self._opening.strip()
        if not opening or not text.endswith(opening):
            return turns
        rest = text[: len(text) - len(opening)]
        if not rest.strip() or not (rest.endswith("\n") or self._any_mark.match(opening)):
            return turns
        self.counts.openings_removed += 1
        self._warn(
            "openings",
            "prompts end with the generation prompt's own opening, which is not repeated (counted)",
        )
        return [*turns[:-1], {**last, "content": rest.rstrip()}]

    def _marked(self, turns: Sequence[Message]) -> list[Message] | None:
        """The turns with marks around the control tokens of their texts; None if there are none."""
        if self._keeps_control or not self._control.spelled(turns):
            return None
        return self._control.marked(turns)

    def _count_control(self, *texts: Sequence[Message]) -> None:
        spelled = sum(map(self._control.spelled, texts))
        self.counts.control_tokens += spelled
        if spelled:
            read = "the tokens" if self._keeps_control else "ordinary text"
            other = "split" if self._keeps_control else "keep"
            self._warn(
                "control",
                f"texts spell control tokens of the tokenizer; they are read as {read} (counted; "
                f"control_tokens: {other} reads them otherwise)",
            )

    def _note_thought(self, answer: Message) -> None:
        if self._template.thought_field is None and any(answer.get(k) for k in THOUGHT_FIELDS):
            self.counts.thoughts_left_out += 1
            self._warn(
                "thoughts",
                "the chat template shows no thoughts; those of responses are left out (counted)",
            )

    def _warn(self, kind: str, text: str) -> None:
        """Log once an encoder."""
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning(text)

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self._template.render(messages, generation_prompt=generation_prompt)

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        rows = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [list(row) for row in rows]

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self._starts_with_bos and ids[:1] != [bos] else ids

    def _cut_prompt(self, ids: list[int]) -> tuple[int, ...]:
        self.counts.prompts += 1
        limit = self.max_prompt_tokens
        if limit is None or len(ids) <= limit:
            return tuple(ids)
        self.counts.prompts_truncated += 1
        self.counts.prompt_tokens_dropped += len(ids) - limit
        if ids[0] == self.tokenizer.bos_token_id and limit > 1:
            return (ids[0], *ids[len(ids) - limit + 1 :])
        return tuple(ids[len(ids) - limit :])

    def _cut_response(self, ids: list[int]) -> tuple[int, ...]:
        self.counts.responses += 1
        limit = self.max_response_tokens
        if limit is None or len(ids) <= limit:
            return tuple(ids)
        self.counts.responses_truncated += 1
        self.counts.response_tokens_dropped += len(ids) - limit
        return tuple(ids[:limit])

    def _find_end_of_turn(self) -> tuple[tuple[int, ...], list[int]]:
        """Tokens that end a turn, and those that the template writes after them.

        The end is the first run of control tokens after the text: a model generates all of
        ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``, and nothing that stands after such a run.
        """
        ids = list(self._tokenise([self._shape.suffix])[0])
        first = next((n for n, token in enumerate(ids) if token in self._marks), None)
        if first is not None:
            rest = (n for n in range(first, len(ids)) if ids[n] not in self._marks)
            end = next(rest, len(ids))
            return tuple(ids[:end]), ids[end:]
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError.of(
                saw=f"{self.tokenizer.name_or_path!r}: no special token ends a turn and none "
                "ends a text",
                expected="a tokenizer with an end-of-turn or end-of-sequence token",
                cure="set tokenizer.eos_token",
            )
        return (int(eos),), []


def reads_clock(name_or_path: str) -> bool:
    """Whether a model's chat template writes today's date.

    Args:
        name_or_path: A model's folder or its id on the Hub; of a server it is not known.

    Returns:
        Whether it does; False where there is no tokenizer to look at.
    """
    if name_or_path.startswith(("openai:", "serve:")):
        return False
    try:
        tokenizer = load_tokenizer(name_or_path)
    except ModelError:
        return False
    return "strftime_now" in str(tokenizer.chat_template)


def with_date(settings: _Settings, policy: str | None, run: Path | None) -> _Settings:
    """Settings that name the day which the policy's chat template reads as today.

    Args:
        settings: With `template_date`.
        policy: Who answers; None for nobody.
        run: The run's folder: one that goes on keeps the day on which it began.

    Returns:
        The settings with the day, if the template reads the clock and none was set.
    """
    if settings.template_date is not None or policy is None or not reads_clock(policy):
        return settings
    return settings.model_copy(update={"template_date": run_date(run)})


def _message(response: str | Message) -> Message:
    return {"role": "assistant", "content": response} if isinstance(response, str) else response


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the common beginning of two texts or two lists of tokens."""
    if second[: len(first)] == first:  # the usual case, without a loop over its characters
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _any_of(texts: Any) -> re.Pattern[str]:
    """Any of some texts, the longer first."""
    listed = sorted((text for text in texts if text.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) or r"(?!)")


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _checked_limit(name: str, limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise InputError.of(
            saw=f"{name}={limit}",
            expected="at least 1 token, or none for no limit",
            cure="raise it",
        )
    return limit


def _checked_date(date: datetime.date | str | None) -> datetime.date:
    if date is None:
        return datetime.date.today()
    try:
        return date if isinstance(date, datetime.date) else datetime.date.fromisoformat(date)
    except ValueError:
        raise InputError.of(
            saw=f"template_date={date!r}", expected="a date", cure="write it as 2026-01-31"
        ) from None


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab(), special]
    content = json.loads(backend.to_str())
    # Padding and truncation are states of the last call, not parts of the tokenizer.
    return [{k: v for k, v in content.items() if k not in ("padding", "truncation")}, special]
