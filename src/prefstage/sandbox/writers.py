"""Scripted writers of different skill, each with mistakes of its own."""

import random
from dataclasses import dataclass

from prefstage.sandbox.language import (
    LIST_OPERATIONS,
    NUMBERS,
    OPENINGS,
    SEPARATORS,
    Instruction,
    apply_operation,
    render_response,
)

CHATTER = "Here you go, I hope this helps:"


@dataclass(frozen=True)
class Writer:
    """Someone who answers instructions, with known rates of mistakes.

    Attributes:
        name: Goes into the `sources` column.
        confusion: Probability of doing another operation than the one asked for.
        slip: Probability of one slip of the pen: two neighbours swapped, a word left out,
            or a word said twice.
        mark: Probability of using the wrong separator throughout.
        manners: Probability of opening politely when not asked to, or not when asked to.
        chatter: Probability of chatter before the answer.
    """

    name: str
    confusion: float = 0.0
    slip: float = 0.0
    mark: float = 0.0
    manners: float = 0.0
    chatter: float = 0.0

    def write(self, instruction: Instruction, random_source: random.Random) -> str:
        """Answer an instruction.

        Args:
            instruction: The task.
            random_source: Decides the mistakes; equal states give equal responses.

        Returns:
            The response's text.
        """
        words = instruction.answer
        if random_source.random() < self.confusion:
            words = _confuse(instruction, random_source)
        if random_source.random() < self.slip:
            words = _slip(words, random_source)
        separator, polite = instruction.separator, instruction.polite
        if random_source.random() < self.mark:
            separator = next(name for name in SEPARATORS if name != separator)
        if random_source.random() < self.manners:
            polite = not polite
        return render_response(
            words,
            separator=separator,
            opening=random_source.choice(OPENINGS) if polite else None,
            preface=CHATTER if random_source.random() < self.chatter else "",
        )


EXPERT = Writer("expert", slip=0.02)
CHATTY = Writer("chatty", slip=0.1, chatter=0.8)
GRUFF = Writer("gruff", slip=0.1, mark=0.5, manners=0.7)
HASTY = Writer("hasty", confusion=0.1, slip=0.7, mark=0.1)
GUESSER = Writer("guesser", confusion=0.8, slip=0.4, mark=0.3, manners=0.3, chatter=0.3)

WRITERS = (EXPERT, CHATTY, GRUFF, HASTY, GUESSER)
"""The off-policy pool's writers, best first (in expected true reward)."""


def _confuse(instruction: Instruction, random_source: random.Random) -> tuple[str, ...]:
    """The result of one operation on the list that gives a wrong answer."""
    results = [apply_operation(name, instruction.items) for name in ("repeat", *LIST_OPERATIONS)]
    return random_source.choice([words for words in results if words != instruction.answer])


def _slip(words: tuple[str, ...], random_source: random.Random) -> tuple[str, ...]:
    """One slip of the pen; a single word (a number) becomes another one."""
    if len(words) == 1:
        return (random_source.choice([word for word in NUMBERS if word != words[0]]),)
    place = random_source.randrange(len(words) - 1)
    before, after = words[:place], words[place + 2 :]
    first, second = words[place], words[place + 1]
    kind = random_source.choice(("swap", "omit", "stutter"))
    middle = {"swap": (second, first), "omit": (first,), "stutter": (first, first, second)}[kind]
    return (*before, *middle, *after)
