"""The records that travel: a pair, and a prompt with its candidate responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefstage.core.hashing import digest

Message = dict[str, Any]
"""One chat message: at least `role` and `content`; tool fields are kept as they came."""

Prompt = tuple[Message, ...]
"""The messages before the response; the last one is a user's (or a tool's) turn."""


@dataclass(frozen=True)
class Pair:
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
    """

    prompt_id: str
    prompt: Prompt
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    score_chosen: float | None = None
    score_rejected: float | None = None
    source_chosen: str | None = None
    source_rejected: str | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Candidates:
    """One prompt and the responses it has so far.

    Attributes:
        prompt_id: As in `Pair`.
        prompt: As in `Pair`.
        responses: Text of each response, in order.
        sources: Who wrote each response, or None where unknown. Same length.
        scores: Each response's score, or None where unknown. Same length.
    """

    prompt_id: str
    prompt: Prompt
    responses: tuple[str, ...]
    sources: tuple[str | None, ...]
    scores: tuple[float | None, ...]

    def __post_init__(self) -> None:
        """Check that the three columns go together."""
        if not len(self.responses) == len(self.sources) == len(self.scores):
            raise ValueError(
                f"prompt {self.prompt_id}: {len(self.responses)} responses, "
                f"{len(self.sources)} sources, {len(self.scores)} scores; expected equal lengths."
            )


def prompt_id_of(prompt: Sequence[Message]) -> str:
    """Name a prompt by its content: equal messages give equal ids on every machine."""
    return digest([_without_nulls(message) for message in prompt])


def _without_nulls(message: Message) -> Message:
    """Drop empty fields, which Arrow adds to messages that lack them."""
    return {key: value for key, value in message.items() if value is not None}
