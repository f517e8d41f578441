"""A world whose truth is known: a program's grades, instructions, demonstrations and a pool."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from prefstage.core import InputError, digest, seed_for
from prefstage.data import Candidates, CandidateSet, Pair, PairSet, Prompt, prompt_id_of
from prefstage.sandbox.language import (
    EXPERT,
    ITEMS,
    NUMBERS,
    OPENINGS,
    SEPARATORS,
    WRITERS,
    Instruction,
    Writer,
    draw_instruction,
    parse_instruction,
)

Split = Literal["demonstrations", "pool", "test"]

_SPLITS: tuple[Split, ...] = ("demonstrations", "pool", "test")
_MOST_ROUNDS = 100
WEIGHTS = {"correctness": 0.6, "format": 0.15, "manners": 0.15, "brevity": 0.1}
CHATTER_LIMIT = 6  # words of chatter that use up the whole of brevity
TEMPERATURE = 0.1  # τ of the Bradley-Terry preference

_TOKEN = re.compile(r"\w+|[^\w\s]")
_ANSWER_WORDS = frozenset([*ITEMS, *NUMBERS])


@dataclass(frozen=True)
class Grade:
    """How good a response is, in parts, each in [0, 1].

    Attributes:
        correctness: 1 - (edit distance to the right words) / (length of the longer list).
        format: Share of the marks between and after the answer's words that are right.
        manners: 1 if it opens politely exactly when asked to, else 0.
        brevity: 1 without chatter, falling to 0 at `CHATTER_LIMIT` words of it.
    """

    correctness: float
    format: float
    manners: float
    brevity: float

    @property
    def reward(self) -> float:
        """Weighted mean of the parts (`WEIGHTS`), in [0, 1].

        Rounded to 9 decimals, so that equally good responses have equal rewards.
        """
        return float(round(sum(getattr(self, part) * w for part, w in WEIGHTS.items()), 9))


def grade_response(instruction: Instruction, response: str) -> Grade:
    """Grade any text as a response to an instruction.

    Args:
        instruction: The task.
        response: The response's text. One without a single answer word is worth nothing,
            however polite and brief.

    Returns:
        The grade; its `reward` is the sandbox's ground truth.
    """
    tokens = _TOKEN.findall(response)
    polite = bool(tokens) and tokens[0] in OPENINGS
    positions = [i for i, token in enumerate(tokens) if token in _ANSWER_WORDS]
    if not positions:
        return Grade(correctness=0.0, format=0.0, manners=0.0, brevity=0.0)
    words = tuple(tokens[i] for i in positions)
    # Of the gaps after each answer word: the share that holds the required mark alone.
    marks = [SEPARATORS[instruction.separator]] * (len(words) - 1) + ["."]
    right = sum(
        tokens[i + 1 : end] == [m]
        for i, end, m in zip(positions, [*positions[1:], len(tokens)], marks, strict=True)
    )
    chatter = sum(token.isalnum() and token not in _ANSWER_WORDS for token in tokens) - polite
    return Grade(
        correctness=1
        - edit_distance(words, instruction.answer) / max(len(words), len(instruction.answer)),
        format=right / len(words),
        manners=float(polite == instruction.polite),
        brevity=max(0.0, 1 - chatter / CHATTER_LIMIT),
    )


def true_reward(prompt: Prompt, response: str) -> float:
    """The ground truth r(x, y): the grade's reward of a response to a prompt.

    Args:
        prompt: Messages; the last one is an instruction of the language.
        response: The response's text.

    Returns:
        Reward in [0, 1].

    Raises:
        InputError: If the last message is no instruction of the language.
    """
    return grade_response(parse_instruction(prompt[-1]["content"]), response).reward


def true_preference(a: str, b: str, prompt: Prompt) -> float:
    """The ground truth P(a ≻ b | x) = σ((r(x, a) - r(x, b)) / τ), with τ = `TEMPERATURE`.

    On the command line this is the judge ``python:prefstage.sandbox:true_preference``.

    Args:
        a: Text of the first response.
        b: Text of the second response.
        prompt: As in `true_reward`.

    Returns:
        Probability in (0, 1); ½ where the rewards are equal.

    Raises:
        InputError: As in `true_reward`.

    Source:
        Bradley and Terry 1952; the model of Sun et al. 2025, arXiv:2508.10530, Eq. 2.
    """
    return 1 / (1 + math.exp(-(true_reward(prompt, a) - true_reward(prompt, b)) / TEMPERATURE))


def edit_distance(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions of words."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right)),
            )
    return row[-1]


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
        source = self._source("instructions", split)
        # A dictionary's keys: a set that keeps the order, on which the writers' texts depend.
        distinct: dict[Instruction, None] = {}
        while len(distinct) < n:
            instruction = draw_instruction(source)
            if split_of(instruction) == split:
                distinct[instruction] = None
        return list(distinct)

    def demonstrations(self, n: int, *, writer: Writer = EXPERT) -> list[tuple[Prompt, str]]:
        """Give instructions with one writer's response, to learn from.

        Args:
            n: How many; fewer are the beginning of more.
            writer: Who responds.

        Returns:
            Prompt and response. [n].
        """
        return [
            # A source of its own for each text: it depends on no other text, nor on their number.
            (prompt_of(task), writer.write(task, self._source("writer", writer.name, task.text)))
            for task in self.instructions(n, split="demonstrations")
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
                self._candidates(task, writers, responses)
                for task in self.instructions(n, split=split)
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
                _pair(self._candidates(task, writers, 2))
                for task in self.instructions(n, split=split)
            ]
        )

    def _candidates(
        self, instruction: Instruction, writers: Sequence[Writer], responses: int
    ) -> Candidates:
        source, written = self._source("pool", instruction.text), dict[str, str]()
        # By all writers in random order, then by all once more, and so on.
        for writer in chain.from_iterable(
            source.sample(writers, len(writers)) for _ in range(_MOST_ROUNDS)
        ):
            if len(written) == responses:
                break
            written.setdefault(writer.write(instruction, source), writer.name)
        InputError.unless(
            len(written) == responses,
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

    def _source(self, *names: str) -> random.Random:
        return random.Random(seed_for(self.seed, *names))


def prompt_of(instruction: Instruction) -> Prompt:
    """The instruction as a chat prompt of one user turn."""
    return ({"role": "user", "content": instruction.text},)


def split_of(instruction: Instruction) -> Split:
    """The one split that an instruction belongs to, by a hash of its text."""
    return _SPLITS[int(digest(instruction.text), 16) % len(_SPLITS)]


def _pair(candidates: Candidates) -> Pair:
    first, second = (score or 0.0 for score in candidates.scores)
    chosen, rejected = (1, 0) if second > first else (0, 1)
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
