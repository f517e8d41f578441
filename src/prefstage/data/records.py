"""The records that travel: pairs, candidates, labelled responses, conversations."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prefstage.core import digest
from prefstage.data.rows import RowFault, expect, show

Message = dict[str, Any]
"""One chat message: at least `role` and `content`; tool fields are kept as they came."""

Prompt = tuple[Message, ...]
"""The messages before the response; the last one is a user's (or a tool's) turn."""

# An agreement of raters that are split evenly.
TIE = 0.5

# What becomes of pairs whose raters are split evenly, where a better response is looked for.
Ties = Literal["leave-out", "keep"]


@dataclass(frozen=True)
class Vote:
    """One annotator's label of a pair.

    Attributes:
        annotator: Who voted.
        preference: For `chosen`: 1; for `rejected`: 0; a tie: ½.
    """

    annotator: str
    preference: float


@dataclass(frozen=True)
class Generation:
    """How a policy wrote a response: what training on it has to see.

    Attributes:
        thought: What it thought before its answer, without the marks around it; None if it
            did not think.
        token_ids: The tokens that it generated, thought and end-of-turn included; empty
            where a server did not say.
        tokenizer: Fingerprint of the tokenizer that the ids belong to
            (`ResponseEncoder.tokenizer_fingerprint`); empty where there are none.
    """

    thought: str | None = None
    token_ids: tuple[int, ...] = ()
    tokenizer: str = ""

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Generation":
        """What its fields hold where they are stored; some may be absent or null."""
        return cls(
            stored.get("thought"),
            tuple(map(operator.index, stored.get("token_ids") or ())),
            stored.get("tokenizer") or "",
        )


@dataclass(frozen=True)
class Record:
    """What all records have.

    Attributes:
        prompt_id: Names the prompt's content; equal prompts have equal ids.
        prompt: Messages up to and with the last user turn.
    """

    prompt_id: str
    prompt: Prompt


@dataclass(frozen=True)
class Pair(Record):
    """Two responses to one prompt, of which raters (or a judge) prefer `chosen`.

    Attributes:
        prompt_id: Names the prompt's content; equal prompts have equal ids.
        prompt: Messages up to and with the last user turn.
        chosen: The preferred response, as the assistant message(s) that follow the prompt.
        rejected: The other response.
        score_chosen: Its score where the dataset has one.
        score_rejected: Likewise.
        source_chosen: Who wrote it, where known.
        source_rejected: Likewise.
        agreement: α, the share of raters that prefer `chosen`, in [½, 1]; ½ is a tie;
            None where the dataset has a bare label.
        annotator: Who labelled the pair, where one did and is known.
        votes: Every annotator's label where several are known; `agreement` is their mean.
        judge_probability: P(chosen ≻ rejected | x) by a judge, in [0, 1], where one gave it.
            It may lie below ½: the label is the raters', and the judge may not share it.
        gold: A third response to imitate, as losses such as `tpo` do; empty without one.
    """

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    score_chosen: float | None = None
    score_rejected: float | None = None
    source_chosen: str | None = None
    source_rejected: str | None = None
    agreement: float | None = None
    annotator: str | None = None
    votes: tuple[Vote, ...] = ()
    judge_probability: float | None = None
    gold: tuple[Message, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether the raters are split evenly: neither response is the better one."""
        return self.agreement == TIE

    @property
    def preference(self) -> float | None:
        """P(chosen ≻ rejected): the judge's, or else the share of the raters."""
        return self.agreement if self.judge_probability is None else self.judge_probability

    def swapped(self) -> "Pair":
        """The pair with its responses exchanged, and all that belongs to them."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            score_chosen=self.score_rejected,
            score_rejected=self.score_chosen,
            source_chosen=self.source_rejected,
            source_rejected=self.source_chosen,
            agreement=None if self.agreement is None else 1 - self.agreement,
            judge_probability=None
            if self.judge_probability is None
            else 1 - self.judge_probability,
            votes=tuple(replace(vote, preference=1 - vote.preference) for vote in self.votes),
        )

    def candidates(self) -> "Candidates":
        """The prompt with both responses, and all that is known of them.

        Returns:
            The candidates: the chosen response first, then the rejected one.

        Raises:
            RowFault: If a response has tool calls, which candidates cannot hold.
        """
        first, second = self.chosen[0], self.rejected[0]
        for name, message in (("chosen", first), ("rejected", second)):
            RowFault.unless(
                message["content"].strip() and not message.get("tool_calls"),
                name,
                saw="a tool call",
                expected="a response of text alone",
                cure="load such rows as pairs (load_pairs), or remove them",
            )
        return Candidates(
            prompt_id=self.prompt_id,
            prompt=self.prompt,
            responses=(first["content"], second["content"]),
            sources=(self.source_chosen, self.source_rejected),
            scores=(self.score_chosen, self.score_rejected),
            generations=generations_of(map(generation_of, (first, second))),
        )

    @property
    def sides(self) -> tuple[str, str]:
        """Hashes of both responses with their sources."""
        return (
            digest([self.chosen, self.source_chosen]),
            digest([self.rejected, self.source_rejected]),
        )

    @property
    def key(self) -> str:
        """Names the pair whichever of its responses is preferred: a hash of what it holds."""
        return digest([self.prompt_id, sorted(self.sides)])

    def unpaired(self) -> "tuple[Unpaired, Unpaired]":
        """Both responses by themselves: a desirable and an undesirable one."""
        prompt = (self.prompt_id, self.prompt)
        return (
            Unpaired(*prompt, self.chosen, True, self.score_chosen, self.source_chosen),
            Unpaired(*prompt, self.rejected, False, self.score_rejected, self.source_rejected),
        )

    def demonstration(self) -> "Conversation":
        """The chosen response as a demonstration."""
        return Conversation(self.prompt_id, self.prompt, self.chosen)


@dataclass(frozen=True)
class Candidates(Record):
    """One prompt and the responses it has so far.

    Attributes:
        prompt_id: As in `Pair`.
        prompt: As in `Pair`.
        responses: Text of each response, in order.
        sources: Who wrote each response, or None where unknown. Same length.
        scores: Each response's score, or None where unknown. Same length.
        generations: How a policy wrote each response, or None where nobody sampled it.
            Same length, or empty where nobody sampled any.
    """

    responses: tuple[str, ...]
    sources: tuple[str | None, ...]
    scores: tuple[float | None, ...]
    generations: tuple[Generation | None, ...] = ()

    def __post_init__(self) -> None:
        """Check that the columns go together."""
        columns = (self.sources, self.scores, self.generations or self.responses)
        for name, values in zip(("sources", "scores", "generations"), columns, strict=True):
            RowFault.unless(
                len(values) == len(self.responses),
                name,
                saw=f"{len(values)} {name} beside {len(self.responses)} responses",
                expected="lists of equal length",
                cure=f"give one of {name} (or null) for each response",
            )

    def message(self, index: int) -> Message:
        """A response as the assistant message that training sees.

        Args:
            index: Of the response.

        Returns:
            The message: its content is the answer; what the policy thought is
            `reasoning_content`, and the tokens that it generated are `SAMPLED`.
        """
        return response_message(self.responses[index], self.generation(index))

    def messages(self) -> list[Message]:
        """All responses, as `message` gives them."""
        return [self.message(index) for index in range(len(self.responses))]

    def generation(self, index: int) -> Generation | None:
        """How a policy wrote a response; None where nobody sampled it."""
        return self.generations[index] if self.generations else None

    def only(self, indices: Sequence[int]) -> "Candidates":
        """The same prompt with some of the responses, and all that is known of them.

        Args:
            indices: Of the responses, in the order that they shall have.

        Returns:
            The candidates.
        """
        return Candidates(
            self.prompt_id,
            self.prompt,
            responses=tuple(self.responses[index] for index in indices),
            sources=tuple(self.sources[index] for index in indices),
            scores=tuple(self.scores[index] for index in indices),
            generations=generations_of(self.generation(index) for index in indices),
        )


@dataclass(frozen=True)
class Unpaired(Record):
    """One response to a prompt, and whether it is wanted.

    Attributes:
        prompt_id: As in `Pair`.
        prompt: As in `Pair`.
        completion: The response, as the assistant message that follows the prompt.
        label: Whether it is desirable.
        score: Its score where the dataset has one.
        source: Who wrote it, where known.
    """

    completion: tuple[Message, ...]
    label: bool
    score: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Conversation(Record):
    """A demonstration: what came before, and turns of which every assistant's is to be learnt.

    Attributes:
        prompt_id: As in `Pair`.
        prompt: Messages before the first turn to be learnt; as in `Pair`.
        completion: What follows: assistant turns, and the users' (or tools') between them.
    """

    completion: tuple[Message, ...]

    def turns(self) -> Iterator[tuple[Prompt, Message]]:
        """Each assistant turn of the completion, with everything before it."""
        messages = (*self.prompt, *self.completion)
        return (
            (messages[:index], messages[index])
            for index in range(len(self.prompt), len(messages))
            if messages[index]["role"] == "assistant"
        )


# Field of an assistant message that a policy wrote: ``{"token_ids": [...], "tokenizer": ...}``.
# No template sees it: it says which tokens to train on.
SAMPLED = "sampled"


def response_message(text: str, generation: Generation | None = None) -> Message:
    """A response as an assistant message.

    Args:
        text: The answer.
        generation: How a policy wrote it, if one did.

    Returns:
        The message, with `reasoning_content` and `SAMPLED` where there is something to say.
    """
    message: Message = {"role": "assistant", "content": text}
    if generation is not None and generation.thought is not None:
        message["reasoning_content"] = generation.thought
    if generation is not None and generation.token_ids:
        message[SAMPLED] = {
            "token_ids": list(generation.token_ids),
            "tokenizer": generation.tokenizer,
        }
    return message


def generation_of(message: Message) -> Generation | None:
    """How a policy wrote an assistant's message: the inverse of `response_message`.

    None if it has neither a thought nor tokens.
    """
    thought, sampled = message.get("reasoning_content"), message.get(SAMPLED) or {}
    stored = {**sampled, "thought": thought if isinstance(thought, str) else None}
    return None if thought is None and not sampled else Generation.of(stored)


def generations_of(generations: Iterable[Generation | None]) -> tuple[Generation | None, ...]:
    """How responses were written, as `Candidates` keeps it: nothing if nobody sampled any."""
    listed = tuple(generations)
    return listed if any(listed) else ()


def prompt_id_of(prompt: Sequence[Message]) -> str:
    """Name a prompt by its content: equal messages give equal ids on every machine."""
    return digest([without_nulls(message) for message in prompt])


def without_nulls(message: Message) -> Message:
    """A message without its empty fields, which Arrow adds to messages that lack them."""
    return {key: value for key, value in message.items() if value is not None}


# Fields of a pair that are shares: the least that they may be, what they are, and a cure.
_SHARES = (
    (
        *("agreement", TIE, "the share of raters for the chosen response, in [0.5, 1]"),
        "where it is below 0.5, swap chosen and rejected",
    ),
    (
        *("judge_probability", 0, "P(chosen better than rejected) by the judge, in [0, 1]"),
        "mend the value, or rename the column if it means something else",
    ),
)


def make_pair(
    prompt: Prompt,
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    *,
    columns: Sequence[str] = ("chosen", "rejected"),
    **optional: Any,
) -> Pair:
    """Build a pair after the checks that every pair must pass.

    Args:
        prompt: Messages before the response.
        chosen: The preferred response: one assistant message.
        rejected: The other one.
        columns: That the responses came from, for faults.
        optional: The optional fields of `Pair`, already of their types.

    Raises:
        RowFault: If the prompt does not end with a user's or tool's turn, a response is
            not one non-empty assistant message, both responses are equal, the
            agreement lies outside [½, 1], or the judge's probability outside [0, 1].
    """
    check_prompt(prompt)
    check_response(chosen, columns[0])
    check_response(rejected, columns[1])
    if tuple(chosen) == tuple(rejected):
        raise RowFault(
            columns[1],
            saw=f"the same response as in {columns[0]}: {show(chosen[0]['content'])}",
            expected="two different responses",
            cure="remove the row, or write the other response",
        )
    if gold := optional.get("gold"):
        check_response(gold, "gold")
    for name, least, expected, cure in _SHARES:
        share = optional.get(name)
        expect(share is None or least <= share <= 1, name, share, expected, cure)
    return Pair(
        prompt_id=prompt_id_of(prompt),
        prompt=tuple(prompt),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        **optional,
    )


def make_candidates(
    prompt: Prompt,
    responses: Sequence[Any],
    *,
    sources: Sequence[str | None] | None = None,
    scores: Sequence[float | None] | None = None,
    generations: Sequence[Generation | None] = (),
    column: str = "responses",
) -> Candidates:
    """Build candidates after the checks that every prompt and response must pass.

    Raises:
        RowFault: As `make_pair`, and if the three lists differ in length.
    """
    check_prompt(prompt)
    RowFault.unless(
        responses,
        column,
        saw="an empty list",
        expected="at least one response",
        cure="remove the row",
    )
    for index, response in enumerate(responses):
        check_text(response, f"{column}[{index}]" if column == "responses" else column)
    nothing = (None,) * len(responses)
    return Candidates(
        prompt_id=prompt_id_of(prompt),
        prompt=tuple(prompt),
        responses=tuple(responses),
        sources=nothing if sources is None else tuple(sources),
        scores=nothing if scores is None else tuple(scores),
        generations=tuple(generations),
    )


def check_prompt(prompt: Sequence[Message]) -> None:
    """Fault a prompt that a model could not answer next."""
    RowFault.unless(
        prompt and prompt[-1]["role"] in ("user", "tool"),
        "prompt",
        saw=f"a last turn of role {prompt[-1]['role']!r}" if prompt else "no turn at all",
        expected="a prompt that ends with a user (or tool) turn",
        cure="cut the prompt after its last user turn, or remove the row",
    )
    RowFault.unless(
        any(message["content"].strip() for message in prompt),
        "prompt",
        saw="only empty turns",
        expected="a prompt with text",
        cure="write the prompt, or remove the row",
    )


def check_response(response: Sequence[Message], field: str) -> None:
    """Fault a response that is not one non-empty assistant message."""
    roles = [message["role"] for message in response]
    RowFault.unless(
        roles == ["assistant"],
        field,
        saw=f"turns {roles} after the prompt" if roles else "no turn after the prompt",
        expected="one assistant turn",
        cure="end both conversations with their first different answer, or remove the row",
    )
    if not response[0].get("tool_calls"):
        check_text(response[0]["content"], field)


def check_text(text: Any, field: str) -> None:
    """Fault anything but a text with something in it."""
    expect(isinstance(text, str), field, text, "text", "fill the field, or remove the row")
    RowFault.unless(
        text.strip(),
        field,
        saw=f"only whitespace: {text[:20]!r}" if text else "an empty response",
        expected="a response with text",
        cure="write the response, or remove the row",
    )
