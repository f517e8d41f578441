"""Where the two sides' responses come from: given with the prompts, or sampled on demand."""

import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prefstage.core.errors import InputError, ServiceError
from prefstage.core.hashing import digest
from prefstage.core.seeds import seed_for
from prefstage.data.grouping import pairs_to_candidates
from prefstage.data.records import Candidates, Generation, generations_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.sampling.base import Sample, Sampler, SampleRequest, requests_for
from prefstage.sampling.store import CandidateStore, collect

Responses = PairSet | CandidateSet | Sequence[Candidates]
"""Prompts with responses, as measuring takes them; pairs count as two responses."""


Tell = Callable[[str], None]
"""Told what goes on, a few words."""


@dataclass(frozen=True)
class Drawn:
    """Responses of one prompt that take part.

    Attributes:
        texts: The responses.
        unused: How many more there were.
        generations: How a policy wrote each, as in `Candidates`.
    """

    texts: tuple[str, ...]
    unused: int = 0
    generations: tuple[Generation | None, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Prompts with given responses, found by prompt.

    Attributes:
        rows: The prompts with their responses; rows are read when they are asked for.
        places: The row of each prompt that has a response.
        fingerprint: Hash of the content.
    """

    rows: Sequence[Candidates] | CandidateSet
    places: dict[str, int]
    fingerprint: str

    @classmethod
    def of(cls, responses: Responses, *, side: str) -> "Pool":
        """Index responses by prompt.

        Args:
            responses: Pairs or candidates.
            side: "on-policy" or "off-policy", for messages.

        Raises:
            InputError: If a prompt stands twice.
        """
        if isinstance(responses, PairSet):
            responses = pairs_to_candidates(responses)
        if isinstance(responses, CandidateSet):
            ids = list(responses.dataset["prompt_id"])  # every row has responses
            fingerprint = responses.fingerprint
        else:
            ids = [row.prompt_id if row.responses else "" for row in responses]
            fingerprint = digest([[row.prompt_id, list(row.responses)] for row in responses])
        places: dict[str, int] = {}
        for place, prompt_id in enumerate(ids):
            if prompt_id in places:
                raise InputError.of(
                    saw=f"the {side} prompt {prompt_id} in rows {places[prompt_id]} and {place}",
                    expected="each prompt once, with all its responses",
                    cure="load the data by load_candidates, which groups by prompt",
                )
            if prompt_id:
                places[prompt_id] = place
        return cls(responses, places, fingerprint)

    def row(self, prompt_id: str) -> Candidates:
        """The prompt with all its responses."""
        return self.rows[self.places[prompt_id]]

    def draw(self, prompt_id: str, count: int, *, seed: int) -> Drawn:
        """Choose responses of one prompt: all, or `count` of them by the seed."""
        row = self.row(prompt_id)
        available = len(row.responses)
        if available > count:
            draw = random.Random(seed_for(seed, "responses", prompt_id))
            row = row.only(sorted(draw.sample(range(available), count)))
        return Drawn(row.responses, available - len(row.responses), row.generations)


class OnPolicy(Protocol):
    """The policy's side: gives responses to the prompts it is asked for."""

    @property
    def name(self) -> str:
        """The policy's name."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything the responses depend on."""

    def has(self, prompt_id: str) -> bool:
        """Whether there are, or can be, responses to this prompt."""

    def count(self, prompt_id: str) -> int:
        """How many responses `respond` will give to this prompt."""

    def prompts_beyond(self, prompt_ids: Container[str]) -> int:
        """Prompts that only this side has responses to."""

    def respond(self, prompts: Sequence[Candidates], tell: Tell) -> list[Drawn]:
        """Responses to each prompt, in order; `tell` is told how far it is."""


@dataclass(frozen=True)
class GivenResponses:
    """On-policy responses that were written before."""

    pool: Pool
    responses: int
    seed: int
    name: str = "given responses"

    @property
    def fingerprint(self) -> str:
        """Hash of the responses."""
        return self.pool.fingerprint

    def has(self, prompt_id: str) -> bool:
        """Whether responses to this prompt were given."""
        return prompt_id in self.pool.places

    def count(self, prompt_id: str) -> int:
        """As many as wanted, or as there are."""
        return min(self.responses, len(self.pool.row(prompt_id).responses))

    def prompts_beyond(self, prompt_ids: Container[str]) -> int:
        """Prompts with given responses that are not among these."""
        return sum(prompt_id not in prompt_ids for prompt_id in self.pool.places)

    def respond(self, prompts: Sequence[Candidates], tell: Tell) -> list[Drawn]:
        """The given responses, chosen by the seed where there are more than wanted."""
        tell("reading responses")
        return [self.pool.draw(each.prompt_id, self.responses, seed=self.seed) for each in prompts]


@dataclass
class SampledResponses:
    """On-policy responses that the policy writes when they are needed.

    Attributes:
        sampler: The policy.
        responses: Responses a prompt, m.
        tokens: What was used so far.
        cut: Responses that hit the token limit.
        cut_thoughts: Responses that ended within their thought.
    """

    sampler: Sampler
    responses: int
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "response": 0})
    cut: int = 0
    cut_thoughts: int = 0
    _store: CandidateStore | None = None

    def keep_in(self, store: CandidateStore) -> None:
        """Take responses from this store where it has them, and put new ones there."""
        self._store = store

    @property
    def name(self) -> str:
        """The sampler's name."""
        return self.sampler.name

    @property
    def fingerprint(self) -> str:
        """The sampler's fingerprint."""
        return self.sampler.fingerprint

    def has(self, prompt_id: str) -> bool:
        """Always: it can be asked."""
        return bool(prompt_id)

    def count(self, prompt_id: str) -> int:
        """As many as wanted."""
        return self.responses if prompt_id else 0

    def prompts_beyond(self, prompt_ids: Container[str]) -> int:
        """None: it answers what it is asked."""
        return 0

    def respond(self, prompts: Sequence[Candidates], tell: Tell) -> list[Drawn]:
        """Sample responses to each prompt.

        Raises:
            ServiceError: If the sampler leaves a request without an answer.
        """
        requests = requests_for(prompts, responses=self.responses)
        found: dict[tuple[str, int], Sample] = {}
        for sample in self._ask(requests):
            found[sample.prompt_id, sample.index] = sample
            tell(f"sampling {len(found)}/{len(requests)}")
        missing = [r for r in requests if (r.prompt_id, r.index) not in found]
        if missing:
            raise ServiceError.of(
                saw=f"{self.name} left {len(missing)} of {len(requests)} requests unanswered,"
                f" the first: prompt {missing[0].prompt_id}, response {missing[0].index}",
                expected="an answer to every request",
                cure="repeat the command; what was answered is kept",
            )
        samples = [found[request.prompt_id, request.index] for request in requests]
        self.tokens["prompt"] += sum(sample.prompt_tokens for sample in samples)
        self.tokens["response"] += sum(sample.response_tokens for sample in samples)
        self.cut += sum(sample.finish_reason == "length" for sample in samples)
        self.cut_thoughts += sum(sample.thought_cut for sample in samples)
        rest = iter(samples)
        return [_drawn([next(rest) for _ in range(self.responses)]) for _ in prompts]

    def _ask(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        if self._store is None:
            return self.sampler.sample(requests)
        return collect(self.sampler, requests, self._store)


def _drawn(samples: Sequence[Sample]) -> Drawn:
    """All of a prompt's samples."""
    generations = generations_of(sample.generation for sample in samples)
    return Drawn(tuple(sample.text for sample in samples), generations=generations)
