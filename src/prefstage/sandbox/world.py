"""A world whose truth is known: instructions, demonstrations and the off-policy pool."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from prefstage.core.errors import InputError
from prefstage.core.hashing import digest, seed_for
from prefstage.data import Candidates, CandidateSet, Message, Pair, PairSet, Prompt, prompt_id_of
from prefstage.sandbox.language import Instruction, draw_instruction
from prefstage.sandbox.reward import true_preference, true_reward
from prefstage.sandbox.writers import EXPERT, WRITERS, Writer

Split = Literal["demonstrations", "pool", "test"]

_SPLITS: tuple[Split, ...] = ("demonstrations", "pool", "test")
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class World:
    """All that a seed settles. Every method is pure: equal arguments, equal results.

    Attributes:
        seed: Of the instructions and of the writers' mistakes.
    """

    seed: int = 0

    def instructions(self, n: int, *, split: Split = "pool") -> list[Instruction]:
        """Draw different instructions.

        Args:
            n: How many; fewer are the beginning of more.
            split: The splits have no instruction in common, in any world.

        Returns:
            The instructions. [n].
        """
        source = random.Random(seed_for(self.seed, "instructions", split))
        found: dict[Instruction, None] = {}
        while len(found) < n:
            instruction = draw_instruction(source)
            if split_of(instruction) == split:
                found[instruction] = None
        return list(found)

    def demonstrations(self, n: int, *, writer: Writer = EXPERT) -> list[tuple[Prompt, str]]:
        """Give instructions with one writer's response, to learn from.

        Args:
            n: How many; fewer are the beginning of more.
            writer: Who responds.

        Returns:
            Prompt and response. [n].
        """
        instructions = self.instructions(n, split="demonstrations")
        return [
            (prompt_of(instruction), writer.write(instruction, self._source(writer, instruction)))
            for instruction in instructions
        ]

    def candidates(
        self,
        n: int,
        *,
        writers: Sequence[Writer] = WRITERS,
        responses: int = 2,
        split: Split = "pool",
    ) -> CandidateSet:
        """The off-policy pool: prompts with different responses of writers drawn at random.

        Args:
            n: Prompts.
            writers: Who may write; the writers of one prompt are different while they last.
            responses: Responses a prompt, all different.
            split: Where the prompts come from.

        Returns:
            The candidates, with writers' names as sources and true rewards as scores.

        Raises:
            InputError: If the writers do not find so many different responses.
        """
        return CandidateSet.of(
            [
                self._candidates(instruction, writers, responses)
                for instruction in self.instructions(n, split=split)
            ]
        )

    def pairs(
        self, n: int, *, writers: Sequence[Writer] = WRITERS, split: Split = "pool"
    ) -> PairSet:
        """The off-policy pool as preference pairs: the first two of `candidates`, in order.

        Args:
            n: Prompts.
            writers: As in `candidates`.
            split: As in `candidates`.

        Returns:
            The pairs: the response of larger true reward is chosen (of equals, the first),
            and `agreement` is the true P(chosen ≻ rejected).

        Raises:
            InputError: As in `candidates`.
        """
        return PairSet.of(
            [
                _pair(self._candidates(instruction, writers, 2))
                for instruction in self.instructions(n, split=split)
            ]
        )

    def _candidates(
        self, instruction: Instruction, writers: Sequence[Writer], responses: int
    ) -> Candidates:
        written: dict[str, str] = {}
        for writer, text in self._texts(instruction, writers):
            if len(written) == responses:
                break
            written.setdefault(text, writer.name)
        if len(written) < responses:
            raise InputError.of(
                saw=f"{len(written)} different responses to {instruction.text!r} by "
                + ", ".join(writer.name for writer in writers),
                expected=f"{responses}",
                cure="add writers that make mistakes, or ask for fewer responses",
            )
        prompt = prompt_of(instruction)
        return Candidates(
            prompt_id=prompt_id_of(prompt),
            prompt=prompt,
            responses=tuple(written),
            sources=tuple(written.values()),
            scores=tuple(true_reward(prompt, text) for text in written),
        )

    def _texts(
        self, instruction: Instruction, writers: Sequence[Writer]
    ) -> Iterator[tuple[Writer, str]]:
        """Texts by all writers in random order, then by all again, and so on."""
        source = random.Random(seed_for(self.seed, "pool", instruction.text))
        for _ in range(_MOST_ROUNDS):
            for writer in source.sample(writers, len(writers)):
                yield writer, writer.write(instruction, source)

    def _source(self, writer: Writer, instruction: Instruction) -> random.Random:
        return random.Random(seed_for(self.seed, "writer", writer.name, instruction.text))


def prompt_of(instruction: Instruction) -> Prompt:
    """The instruction as a chat prompt of one user turn."""
    message: Message = {"role": "user", "content": instruction.text}
    return (message,)


def split_of(instruction: Instruction) -> Split:
    """The one split that an instruction belongs to, by a hash of its text."""
    return _SPLITS[int(digest(instruction.text), 16) % len(_SPLITS)]


def _pair(candidates: Candidates) -> Pair:
    """The better of two responses as chosen (of equals, the first)."""
    chosen, rejected = (0, 1)
    if (candidates.scores[1] or 0.0) > (candidates.scores[0] or 0.0):
        chosen, rejected = (1, 0)
    texts = candidates.responses
    return Pair(
        prompt_id=candidates.prompt_id,
        prompt=candidates.prompt,
        chosen=(candidates.message(chosen),),
        rejected=(candidates.message(rejected),),
        score_chosen=candidates.scores[chosen],
        score_rejected=candidates.scores[rejected],
        source_chosen=candidates.sources[chosen],
        source_rejected=candidates.sources[rejected],
        agreement=true_preference(texts[chosen], texts[rejected], candidates.prompt),
    )
