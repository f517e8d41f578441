"""The records that travel: pairs, candidates, labelled responses, conversations."""

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Unpaired:
    """One response to a prompt, and whether it is wanted.

    Attributes:
        prompt_id: As in `Pair`.
        prompt: As in `Pair`.
        completion: The response, as the assistant message that follows the prompt.
        label: Whether it is desirable.
        score: Its score where the dataset has one.
        source: Who wrote it, where known.
    """

    prompt_id: str
    prompt: Prompt
    completion: tuple[Message, ...]
    label: bool
    score: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Conversation:
    """A demonstration: what came before, and turns of which every assistant's is to be learnt.

    Attributes:
        prompt_id: As in `Pair`.
        prompt: Messages before the first turn to be learnt; as in `Pair`.
        completion: What follows: assistant turns, and the users' (or tools') between them.
    """

    prompt_id: str
    prompt: Prompt
    completion: tuple[Message, ...]

    def turns(self) -> Iterator[tuple[Prompt, Message]]:
        """Each assistant turn of the completion, with everything before it."""
        messages = (*self.prompt, *self.completion)
        for place in range(len(self.prompt), len(messages)):
            if messages[place]["role"] == "assistant":
                yield messages[:place], messages[place]


Record = Pair | Candidates | Unpaired | Conversation


def prompt_id_of(prompt: Sequence[Message]) -> str:
    """Name a prompt by its content: equal messages give equal ids on every machine."""
    return digest([_without_nulls(message) for message in prompt])


def _without_nulls(message: Message) -> Message:
    """Drop empty fields, which Arrow adds to messages that lack them."""
    return {key: value for key, value in message.items() if value is not None}
