"""Prompts and responses as tokens: exactly those the model reads, and those it would write."""

import copy
import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import takewhile
from typing import Any, Literal, get_args

from prefstage.core import InputError, digest
from prefstage.data.compat import Tokenizer
from prefstage.data.conversation_tokens import ConversationTokens
from prefstage.data.messages import common_prefix
from prefstage.data.records import SAMPLED, Message, prompt_id_of
from prefstage.data.rendering import THOUGHT_FIELDS, ChatTemplate, RenderingError
from prefstage.data.settings import ControlTokens
from prefstage.data.thoughts import Reply, opens_thought, read_reply

Cause = Literal["text", "truncation", "template", "normalisation"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
_OPENING_TOKENS = 32  # more than a template writes to open a thought
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
        cut: Of each response, whether it lost its end.
    """

    prompt_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[tuple[int, ...], ...]
    opening_ids: tuple[int, ...] = ()
    cut: tuple[bool, ...] = field(default=(), compare=False)


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
        tokenizer: Tokenizer,
        *,
        chat_format: str | None = None,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        template_options: Mapping[str, Any] | None = None,
        template_date: datetime.date | str | None = None,
        control_tokens: ControlTokens = "split",
    ) -> None:
        for name, limit in (
            ("max_prompt_tokens", max_prompt_tokens),
            ("max_response_tokens", max_response_tokens),
        ):
            InputError.unless(
                limit is None or limit >= 1,
                saw=f"{name}={limit}",
                expected="at least 1 token, or none for no limit",
                cure="raise it",
            )
        self.tokenizer = tokenizer
        self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
        self.counts = EncodingCounts()
        with InputError.instead_of(
            ValueError,
            saw=f"template_date={template_date!r}",
            expected="a date",
            cure="write it as 2026-01-31",
        ):
            self.template_date = (
                datetime.date.fromisoformat(template_date)
                if isinstance(template_date, str)
                else template_date or datetime.date.today()
            )
        self._template = ChatTemplate(
            tokenizer, chat_format, template_options or {}, self.template_date
        )
        # A chat template writes the begin-of-sequence itself; the named formats do not, so they
        # get it wherever the tokenizer puts it before plain text.
        bos = tokenizer.bos_token_id
        self._starts_with_bos = (
            chat_format is not None and bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        )
        self._keeps_control = control_tokens == "keep"
        self._tokens = ConversationTokens(
            tokenizer, self._template, split_control=not self._keeps_control
        )
        self.end_of_turn_ids = self._tokens.end_of_turn_ids
        self._warn = cache(_log.warning)  # once an encoder: the counts say how often

    @property
    def end_of_turn(self) -> str:
        """Text of the end-of-turn."""
        return self._text(self.end_of_turn_ids)

    @property
    def chat_template(self) -> str:
        """The template as a tokenizer needs it to read prompts as this encoder does."""
        return ("{{ bos_token }}" if self._starts_with_bos else "") + self._template.sources[
            "default"
        ]

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the generation prompt has opened a thought, which the policy goes on with."""
        return opens_thought(self._tokens.opening)

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

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt, after truncation (counted)."""
        turns = self._unopened(prompt)
        self._template.check_read(turns)
        self._count_control(turns)
        return self._cut_prompt(self._tokens.together(turns, [])[0])

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
        answers = [
            {"role": "assistant", "content": response} if isinstance(response, str) else response
            for response in responses
        ]
        sampled = [self._sampled_ids(answer) for answer in answers]
        self._count_control(turns, *([answer] for answer in answers))
        rendered = {n: answer for n, answer in enumerate(answers) if sampled[n] is None}
        for index, answer in rendered.items():
            self._template.check_read([*turns, answer], f"responses[{index}]")
            if self._template.thought_field is None and any(map(answer.get, THOUGHT_FIELDS)):
                self.counts.thoughts_left_out += 1
                self._warn(
                    "the chat template shows no thoughts; those of responses are left out (counted)"
                )
        before, wholes = self._tokens.together(turns, list(rendered.values()))
        border = min((common_prefix(before, whole) for whole in wholes), default=len(before))
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
        lost = [len(ids) - len(ids[: self.max_response_tokens]) for ids in rows]
        self.counts.responses += len(rows)
        self.counts.responses_truncated += sum(map(bool, lost))
        self.counts.response_tokens_dropped += sum(lost)
        return TokenTree(
            prompt_id_of(prompt),
            self._cut_prompt(before[:border]),
            tuple(tuple(ids[: self.max_response_tokens]) for ids in rows),
            tuple(before[border:]),
            tuple(map(bool, lost)),
        )

    def read(self, response_ids: Sequence[int], prompt_ids: Sequence[int] | None = None) -> Reply:
        """What a policy wrote, the inverse of `encode`: its answer, and what it thought before.

        Args:
            response_ids: Tokens as generated; what follows the first end-of-turn goes.
            prompt_ids: What it read, whose end says whether a thought was opened; None for
                what the template opens usually.

        Returns:
            The reply, split by the marks that models put around their thoughts; without control
            tokens and the whitespace that the template puts before an answer.
        """
        ids = list(takewhile(lambda token: token != self.end_of_turn_ids[-1], response_ids))
        reply = read_reply(
            self._text(ids),
            opened=self.opens_thought
            if prompt_ids is None
            else opens_thought(self._text(prompt_ids[-_OPENING_TOKENS:])),
        )
        answer, thought = reply.answer.removeprefix(self._tokens.lead), reply.thought
        if any(token in self._tokens.marks for token in ids):
            answer = self._tokens.special.sub("", answer)
            thought = self._tokens.special.sub("", reply.thought or "").strip() or None
        return Reply(answer, thought, reply.cut)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _ended(self, ids: list[int]) -> list[int]:
        # Without what the template writes after the end of the turn.
        after, marks = self._tokens.after_turn, self._tokens.marks
        cut = len(ids) - len(after)
        ids = ids[:cut] if cut > 0 and ids[cut:] == after and ids[cut - 1] in marks else ids
        if ids and ids[-1] not in marks:
            self.counts.without_end += 1
            self._warn(
                "the chat template ends the last turn with no control token: responses are "
                "trained on without an end-of-turn (counted); a template that writes one teaches "
                "the policy to stop",
            )
        return ids

    def _sampled_ids(self, answer: Message) -> list[int] | None:
        # Text tokenises in one way, but a policy may have written it in another: it is trained
        # on what it generated, as long as the ids are of this tokenizer.
        sampled = answer.get(SAMPLED)
        if not sampled or sampled["tokenizer"] != self.tokenizer_fingerprint:
            return None
        self.counts.sampled += 1
        return list(sampled["token_ids"])

    def _unopened(self, prompt: Sequence[Message]) -> list[Message]:
        # Transcripts often end with the opening of the answer, which the template adds anyway.
        turns, opening = list(prompt), self._tokens.opening.strip()
        text = str(turns[-1].get("content") or "").rstrip() if turns else ""
        rest = text.removesuffix(opening)
        alone = rest.endswith("\n") or self._tokens.any_mark.match(opening)
        if rest == text or not rest.strip() or not alone:
            return turns
        self.counts.openings_removed += 1
        self._warn(
            "prompts end with the generation prompt's own opening, which is not repeated (counted)",
        )
        return [*turns[:-1], {**turns[-1], "content": rest.rstrip()}]

    def _count_control(self, *texts: Sequence[Message]) -> None:
        spelled = sum(map(self._tokens.control.spelled, texts))
        self.counts.control_tokens += spelled
        if spelled:
            keeps = self._keeps_control
            self._warn(
                "texts spell control tokens of the tokenizer; they are read as "
                f"{'the tokens' if keeps else 'ordinary text'} (counted; control_tokens: "
                f"{'split' if keeps else 'keep'} reads them otherwise)",
            )

    def _cut_prompt(self, ids: list[int]) -> tuple[int, ...]:
        bos = self.tokenizer.bos_token_id
        if self._starts_with_bos and ids[:1] != [bos]:
            ids = [bos, *ids]
        lost = max(0, len(ids) - (self.max_prompt_tokens or len(ids)))
        self.counts.prompts += 1
        self.counts.prompts_truncated += lost > 0
        self.counts.prompt_tokens_dropped += lost
        # Models have hardly seen text that does not begin with this token.
        kept = 1 if lost and ids[0] == bos and self.max_prompt_tokens != 1 else 0
        return (*ids[:kept], *ids[lost + kept :])


def _tokenizer_content(tokenizer: Tokenizer) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab(), special]
    # Padding and truncation are states of the last call, not parts of the tokenizer.
    content = json.loads(backend.to_str()).items()
    return [{k: v for k, v in content if k not in ("padding", "truncation")}, special]


def cause_of(
    prompt: Sequence[Message], first: Message, second: Message, encoder: ResponseEncoder
) -> Cause:
    """Why two responses are the same tokens.

    Args:
        prompt: Messages before them.
        first: One response.
        second: The other one, whose tokens are the same.
        encoder: What encoded them.

    Returns:
        "text" where they are the same response; "truncation" where they differ behind the
        limit; "normalisation" where the tokenizer gives both texts the same tokens; otherwise
        "template", which does not write what differs (a field that it does not read, space at
        the ends of a text).
    """
    if first == second:
        return "text"
    whole = copy.copy(encoder)  # without truncation, and with new counts
    whole.max_prompt_tokens = whole.max_response_tokens = None
    whole.counts = EncodingCounts()
    if len(set(whole.encode(prompt, [first, second]).response_ids)) > 1:
        return "truncation"
    ids = encoder.tokenizer(
        [str(message.get("content") or "") for message in (first, second)],
        add_special_tokens=False,
    )["input_ids"]
    same = first | {"content": ""} == second | {"content": ""} and ids[0] == ids[1]
    return "normalisation" if same else "template"
