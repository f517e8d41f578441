"""What a sampler is: who writes answers, one per (prompt, sample index)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from prefstage.core.config import Config
from prefstage.core.seeds import seed_for
from prefstage.data.records import Candidates, Generation, Prompt


class SamplingConfig(Config):
    """How answers are sampled. Defaults: Sun et al. 2025, arXiv:2508.10530, Table 5."""

    responses: int = Field(default=2, ge=1, description="Responses per prompt.")
    temperature: float = Field(default=0.7, ge=0, description="0 is greedy decoding.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus mass; 1 is off.")
    top_k: int = Field(default=50, ge=0, description="Tokens kept; 0 is off.")
    max_new_tokens: int = Field(default=1024, ge=1, description="Tokens per response at most.")
    beams: int = Field(
        default=1, ge=1, description="Beam search over so many; 1 is off. Not with servers."
    )
    seed: int = Field(default=0, ge=0, description="Run seed; each response derives its own.")

    @model_serializer(mode="wrap")
    def _without_idle(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Beam search that is off is not named: nothing depends on it."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("beams", 1)}


@dataclass(frozen=True)
class SampleRequest:
    """One answer that is wanted.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt: Messages up to and with the last user turn.
        index: Which of the prompt's responses this is, from 0.
    """

    prompt_id: str
    prompt: Prompt
    index: int


@dataclass(frozen=True)
class Sample:
    """One answer.

    Attributes:
        prompt_id: As in the request.
        index: As in the request.
        text: The answer, without the end-of-turn token and without what was thought before it;
            empty where the response was cut within its thought.
        finish_reason: "stop" (end of turn), "length" (cut at max_new_tokens or at the end of
            the context), or "other" (a server withheld or ended it: content filter, tool call).
        prompt_tokens: Tokens of the prompt.
        response_tokens: Tokens generated, thought and end-of-turn included.
        thought: What was thought before the answer; None if nothing was.
        thought_cut: Whether the response ended within its thought.
        token_ids: The tokens generated, thought and end-of-turn included; empty where a server
            does not say.
        tokenizer: Fingerprint of the tokenizer that they belong to; empty where there are none.
    """

    prompt_id: str
    index: int
    text: str
    finish_reason: Literal["stop", "length", "other"]
    prompt_tokens: int
    response_tokens: int
    thought: str | None = None
    thought_cut: bool = False
    token_ids: tuple[int, ...] = ()
    tokenizer: str = ""

    @property
    def generation(self) -> Generation | None:
        """How the policy wrote it: what training has to see. None if the text says it all."""
        if self.thought is None and not self.token_ids:
            return None
        return Generation(self.thought, self.token_ids, self.tokenizer)


def cut_thoughts(samples: Iterable[Sample], *, max_new_tokens: int | None = None) -> list[str]:
    """Say how many responses ended within their thought, and what to do.

    Args:
        samples: Answers.
        max_new_tokens: The limit that they had, where one is known.

    Returns:
        A line for those that were cut, and one for those that the policy ended itself.
    """
    reasons = [sample.finish_reason for sample in samples if sample.thought_cut]
    cut = reasons.count("length")
    limit = "max_new_tokens" if max_new_tokens is None else f"max_new_tokens={max_new_tokens}"
    lines = {
        f"cut in the thought at {limit}: raise it, or switch thinking off": cut,
        "ended in the thought by the policy itself: nothing was answered": len(reasons) - cut,
    }
    return [
        f"{count} {'answer' if count == 1 else 'answers'} {what}"
        for what, count in lines.items()
        if count
    ]


@runtime_checkable
class Sampler(Protocol):
    """Writes answers. Each depends on its (prompt, index) and the seed alone."""

    @property
    def name(self) -> str:
        """Short name for people and for the `sources` column."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything the answers depend on: weights or server model, settings, seed."""

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        """Answer every request once, in any order, each as soon as it is ready."""


@runtime_checkable
class BuyingSampler(Sampler, Protocol):
    """A sampler whose answers cost money or minutes elsewhere: each is kept on arrival."""

    def sample_into(
        self, requests: Sequence[SampleRequest], keep: Callable[[Sample], None]
    ) -> Iterator[Sample]:
        """As `sample`, but call `keep` with each answer before anything else happens to it.

        Args:
            requests: What is wanted.
            keep: Writes an answer to disk; may be called on another thread, while the
                consumer does something else.

        Yields:
            Each answer, after it was kept.
        """


@runtime_checkable
class DescribedSampler(Sampler, Protocol):
    """A sampler that says what its fingerprint is made of."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that the answers depend on, by name; JSON-serialisable."""


def requests_for(
    prompts: Iterable[Candidates], *, responses: int, first: int = 0
) -> list[SampleRequest]:
    """Ask for some responses to each prompt.

    Args:
        prompts: Each prompt stands once; its present responses play no part.
        responses: Responses per prompt, >= 1.
        first: Index of the first.

    Returns:
        The requests, prompt by prompt.
    """
    return [
        SampleRequest(prompt.prompt_id, prompt.prompt, index)
        for prompt in prompts
        for index in range(first, first + responses)
    ]


def sample_seed(config: SamplingConfig, request: SampleRequest) -> int:
    """Seed of one response: depends on the run's seed, the prompt and the index alone.

    Returns:
        An integer in [0, 2**31), which every server takes.
    """
    return seed_for(config.seed, "sample", request.prompt_id, request.index) >> 32


def shared_settings(config: SamplingConfig) -> dict[str, Any]:
    """The settings that each answer depends on: all but the number of responses."""
    return config.model_dump(exclude={"responses"})
