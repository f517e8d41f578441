"""The sandbox's truth: how good a response is, computed by a program, in parts."""

import math
import re
from dataclasses import dataclass

from prefstage.data import Prompt
from prefstage.sandbox.language import (
    ITEMS,
    NUMBERS,
    OPENINGS,
    SEPARATORS,
    Instruction,
    parse_instruction,
)

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
        parts = (weight * float(getattr(self, part)) for part, weight in WEIGHTS.items())
        return round(sum(parts), 9)


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
    places = [place for place, token in enumerate(tokens) if token in _ANSWER_WORDS]
    if not places:
        return Grade(correctness=0.0, format=0.0, manners=0.0, brevity=0.0)
    words = tuple(tokens[place] for place in places)
    others = [token for token in tokens if token.isalnum() and token not in _ANSWER_WORDS]
    chatter = len(others) - polite
    distance = edit_distance(words, instruction.answer)
    return Grade(
        correctness=1 - distance / max(len(words), len(instruction.answer)),
        format=_share_of_right_marks(tokens, places, SEPARATORS[instruction.separator]),
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
    difference = true_reward(prompt, a) - true_reward(prompt, b)
    return 1 / (1 + math.exp(-difference / TEMPERATURE))


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


def _share_of_right_marks(tokens: list[str], places: list[int], separator: str) -> float:
    """Of the gaps after each answer word: the share that holds the required mark alone."""
    ends = [*places[1:], len(tokens)]
    gaps = [tokens[place + 1 : end] for place, end in zip(places, ends, strict=True)]
    wanted = [[separator]] * (len(gaps) - 1) + [["."]]
    return sum(gap == mark for gap, mark in zip(gaps, wanted, strict=True)) / len(gaps)
