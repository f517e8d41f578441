"""Where the two sides' responses come from: written before, or sampled on demand."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from prefstage.core import InputError, Ledger, ServiceError, digest, seed_for
from prefstage.data import Candidates, CandidateSet, PairSet, load_candidates, pairs_to_candidates
from prefstage.data.sets import DataSource
from prefstage.sampling.base import Sample, Sampler, collect, requests_for, to_candidates

T = TypeVar("T")

# A prompt with the responses that take part, and how many more there were.
Drawn = tuple[Candidates, int]


@dataclass(frozen=True)
class Pool:
    """Prompts with responses that exist already, by prompt.

    Attributes:
        rows: The prompts with their responses; a row is read when it is asked for.
        positions: The row of each prompt that has a response.
        fingerprint: Hash of the content.
        responses: How many responses of a prompt take part at most.
        seed: Of the choice where there are more.
        name: Of the side, in results.
    """

    rows: Sequence[Candidates] | CandidateSet
    positions: Mapping[str, int]
    fingerprint: str
    responses: int
    seed: int
    name: str = "given responses"
    # What sampling cost, as fields of `Stage`, for a side that samples nothing.
    costs: ClassVar[Mapping[str, Any]] = {
        **{"tokens": None, "cut_responses": 0, "cut_thoughts": 0, "refused_responses": 0},
    }

    @classmethod
    def of(cls, source: DataSource, *, side: str, responses: int, seed: int) -> "Pool":
        """Index responses by prompt.

        Args:
            source: Pairs or candidates: a record set, records, rows, a file, folder or Hub id.
            side: "on-policy" or "off-policy", for messages.
            responses: How many of a prompt take part at most, >= 1.
            seed: Of the choice where there are more.

        Returns:
            The pool.

        Raises:
            InputError: If a prompt stands twice, or the source cannot be read.
        """
        rows: Any = source
        if isinstance(source, list | tuple) and all(isinstance(row, Candidates) for row in source):
            ids = [row.prompt_id if row.responses else "" for row in rows]
            fingerprint = digest([[row.prompt_id, list(row.responses)] for row in rows])
        else:
            rows = (
                pairs_to_candidates(source)
                if isinstance(source, PairSet)
                else load_candidates(source)
            )
            ids, fingerprint = list(rows.dataset["prompt_id"]), rows.fingerprint  # none is empty
        positions: dict[str, int] = {}
        for position, prompt_id in enumerate(ids):
            if prompt_id in positions:
                raise InputError.of(
                    saw=f"the {side} prompt {prompt_id} in rows {positions[prompt_id]} and "
                    f"{position}",
                    expected="each prompt once, with all its responses",
                    cure="load the data by load_candidates, which groups by prompt",
                )
            if prompt_id:
                positions[prompt_id] = position
        return cls(rows, positions, fingerprint, responses, seed)

    def row(self, prompt_id: str) -> Candidates:
        """The prompt with all its responses."""
        return self.rows[self.positions[prompt_id]]

    def count(self, prompt_id: str) -> int:
        """How many responses to this prompt take part."""
        return min(self.responses, len(self.row(prompt_id).responses))

    def respond(self, prompts: Sequence[Candidates], tell: Callable[[str], None]) -> list[Drawn]:
        """The responses to each prompt that take part."""
        tell("reading responses")
        return [self.draw(self.row(prompt.prompt_id)) for prompt in prompts]

    def draw(self, row: Candidates) -> Drawn:
        """The responses of a row that take part: all, or a choice of them by the seed."""
        unused = len(row.responses) - self.responses
        if unused <= 0:
            return row, 0
        # A generator of the prompt alone: the choice does not depend on which prompts came before.
        draw = random.Random(seed_for(self.seed, "responses", row.prompt_id))
        return row.only(sorted(draw.sample(range(len(row.responses)), self.responses))), unused


class SampledResponses:
    """On-policy responses that the policy writes when they are needed.

    Attributes:
        sampler: The policy.
        responses: Responses a prompt, m.
        ledger: Where responses are kept as they arrive and taken from; None to keep none.
        refused: What a server refused to answer so far.
        costs: As fields of `Stage`, so far: "tokens" of prompts and responses; "cut_responses",
            which hit the token limit; "cut_thoughts", which ended within their thought;
            "refused_responses", which a server refused to give.
    """

    def __init__(self, sampler: Sampler, responses: int) -> None:
        self.sampler, self.responses = sampler, responses
        self.name, self.fingerprint = sampler.name, sampler.fingerprint
        self.ledger: Ledger | None = None
        self.refused: list[Sample] = []
        self.costs: dict[str, Any] = {
            "tokens": {"prompt": 0, "response": 0},
            "cut_responses": 0,
            "cut_thoughts": 0,
            "refused_responses": 0,
        }

    def count(self, prompt_id: str) -> int:
        """How many responses to a prompt take part: the policy answers what it is asked."""
        return self.responses

    def respond(self, prompts: Sequence[Candidates], tell: Callable[[str], None]) -> list[Drawn]:
        """Sample responses to each prompt; prompts that a server refuses are left out, and counted.

        Raises:
            ServiceError: If the sampler leaves a request without an answer.
        """
        requests = requests_for(prompts, responses=self.responses)
        answers: dict[tuple[str, int], Sample] = {}
        for sample in (
            self.sampler.sample(requests)
            if self.ledger is None
            else collect(self.sampler, requests, self.ledger)
        ):
            answers[sample.prompt_id, sample.index] = sample
            tell(f"sampling {len(answers)}/{len(requests)}")
        missing = [r for r in requests if (r.prompt_id, r.index) not in answers]
        if missing:
            raise ServiceError.of(
                saw=f"{self.name} left {len(missing)} of {len(requests)} requests unanswered,"
                f" the first: prompt {missing[0].prompt_id}, response {missing[0].index}",
                expected="an answer to every request",
                cure="repeat the command; what was answered is kept",
            )
        samples = list(answers.values())
        self.costs["tokens"]["prompt"] += sum(sample.prompt_tokens for sample in samples)
        self.costs["tokens"]["response"] += sum(sample.response_tokens for sample in samples)
        self.costs["cut_responses"] += sum(sample.finish_reason == "length" for sample in samples)
        self.costs["cut_thoughts"] += sum(sample.thought_cut for sample in samples)
        refused = [sample for sample in samples if sample.refusal]
        self.costs["refused_responses"] += len(refused)
        self.refused += refused
        return [(row, 0) for row in to_candidates(prompts, samples, source=self.name)]


def drawn_one(options: Sequence[T], prompt_id: str, *, seed: int) -> T:
    """One of a prompt's responses, or pairs, at random.

    Args:
        options: At least one.
        prompt_id: The prompt, which with the seed alone decides.
        seed: Of the draw.

    Returns:
        The one drawn.
    """
    return random.Random(seed_for(seed, "answer-quality", prompt_id)).choice(options)
