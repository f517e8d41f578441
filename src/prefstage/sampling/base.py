"""What a sampler is: who writes answers, one per (prompt, sample index)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from pydantic import Field

from prefstage.core.config import Config
from prefstage.data.records import Prompt


class SamplingConfig(Config):
    """How answers are sampled. Defaults: Xu et al. 2025, arXiv:2508.10530, Table 5."""

    responses: int = Field(default=2, ge=1, description="Responses per prompt.")
    temperature: float = Field(default=0.7, ge=0, description="0 is greedy decoding.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="Nucleus mass; 1 is off.")
    top_k: int = Field(default=50, ge=0, description="Tokens kept; 0 is off.")
    max_new_tokens: int = Field(default=1024, ge=1, description="Tokens per response at most.")
    seed: int = Field(default=0, ge=0, description="Run seed; each response derives its own.")


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
        text: The response without the end-of-turn token.
        finish_reason: "stop" (end of turn) or "length" (cut at max_new_tokens).
        prompt_tokens: Tokens of the prompt.
        response_tokens: Tokens generated, end-of-turn included.
    """

    prompt_id: str
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    response_tokens: int


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
