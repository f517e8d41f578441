"""The sandbox's formal language: instructions over short lists of words, and their answers.

An instruction reads ``Sort then reverse: fox, ant, bee. Use semicolons. Be polite.``; its right
answer is ``Sure! fox; bee; ant.``. Every instruction has one right list of words, one required
separator, and asks for manners or does not, so a program can say how good any response is.
Scripted writers of different skill answer them, with mistakes.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from prefstage.core import InputError

ITEMS = (
    *("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"),
    *("ibis", "jay", "kiwi", "lark", "mole", "newt", "owl", "pig"),
)
NUMBERS = ("one", "two", "three", "four", "five", "six")
OPENINGS = ("Sure", "Gladly", "Certainly")
SEPARATORS = {"commas": ",", "semicolons": ";"}
LIST_OPERATIONS = ("reverse", "sort", "rotate")
OPERATIONS = ("repeat", *LIST_OPERATIONS, "count")
MIN_ITEMS, MAX_ITEMS = 3, 5
CHATTER = "Here you go, I hope this helps:"

_OPERATIONS: dict[str, Callable[[tuple[str, ...]], tuple[str, ...]]] = {
    "repeat": lambda words: words,
    "reverse": lambda words: words[::-1],
    "sort": lambda words: tuple(sorted(words)),
    "rotate": lambda words: (*words[1:], *words[:1]),
    "count": lambda words: (NUMBERS[len(words) - 1],),
}
_COMPOSED_SHARE = 0.25
_SHAPE = re.compile(
    r"(?P<first>[A-Z][a-z]+)(?: then (?P<second>[a-z]+))?: (?P<items>[a-z]+(?:, [a-z]+)*)\."
    r" Use (?P<separator>[a-z]+)\.(?P<polite> Be polite\.)?"
)


@dataclass(frozen=True)
class Instruction:
    """One task of the language.

    Attributes:
        operations: One or two of `OPERATIONS`, done in this order.
        items: The words to work on, all different, each of `ITEMS`.
        separator: A key of `SEPARATORS`: what shall stand between the answer's words.
        polite: Whether the response shall open with one of `OPENINGS`.
    """

    operations: tuple[str, ...]
    items: tuple[str, ...]
    separator: str
    polite: bool

    @property
    def text(self) -> str:
        """The instruction as the user writes it."""
        task = f"{' then '.join(self.operations).capitalize()}: {', '.join(self.items)}."
        return f"{task} Use {self.separator}.{' Be polite.' if self.polite else ''}"

    @property
    def answer(self) -> tuple[str, ...]:
        """The words of the right answer."""
        words = self.items
        for operation in self.operations:
            words = apply_operation(operation, words)
        return words


def apply_operation(operation: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Do one operation on a list of words.

    Args:
        operation: One of `OPERATIONS`: ``repeat`` gives the list as it is, ``rotate`` moves
            the first word to the end, ``count`` gives the number of words as a word.
        words: At most six words.

    Returns:
        The new list.

    Raises:
        InputError: If there is no such operation.
    """
    InputError.unless(
        operation in _OPERATIONS,
        saw=f"operation {operation!r}",
        expected="one of " + ", ".join(OPERATIONS),
        cure="use an operation of the sandbox's language",
    )
    return _OPERATIONS[operation](words)


def parse_instruction(text: str) -> Instruction:
    """Read an instruction from its text; the inverse of `Instruction.text`.

    Args:
        text: What the user wrote.

    Returns:
        The instruction.

    Raises:
        InputError: If the text is no sentence of the language.
    """
    shape = _SHAPE.fullmatch(text)
    if shape:
        operations = tuple(name for name in (shape["first"].lower(), shape["second"]) if name)
        items = tuple(shape["items"].split(", "))
        if (
            {*operations} <= {*OPERATIONS}
            and {*items} <= {*ITEMS}
            and shape["separator"] in SEPARATORS
            and len(items) <= len(NUMBERS)
        ):
            return Instruction(operations, items, shape["separator"], bool(shape["polite"]))
    raise InputError.of(
        saw=f"prompt {text[:80]!r}",
        expected="an instruction such as 'Sort: fox, ant, bee. Use commas. Be polite.'",
        cure="take prompts from World.instructions",
    )


def draw_instruction(random_source: random.Random) -> Instruction:
    """Draw an instruction: a quarter of them composed of two operations, half polite."""
    return Instruction(
        operations=tuple(random_source.sample(LIST_OPERATIONS, 2))
        if random_source.random() < _COMPOSED_SHARE
        else (random_source.choice(OPERATIONS),),
        items=tuple(random_source.sample(ITEMS, random_source.randint(MIN_ITEMS, MAX_ITEMS))),
        separator=random_source.choice(list(SEPARATORS)),
        polite=random_source.random() < 0.5,  # noqa: PLR2004 - an even coin
    )


def render_response(
    words: tuple[str, ...], *, separator: str, opening: str | None = None, preface: str = ""
) -> str:
    """Write a response, such as ``Sure! Here you go: fox; bee; ant.`` (as text).

    Args:
        words: The answer's words.
        separator: A key of `SEPARATORS`.
        opening: One of `OPENINGS`, or None for no opening.
        preface: Chatter before the answer.

    Returns:
        The response's text.
    """
    answer = f"{SEPARATORS[separator]} ".join(words) + "."
    return " ".join(part for part in (f"{opening}!" if opening else "", preface, answer) if part)


@dataclass(frozen=True)
class Writer:
    """Someone who answers instructions, with known rates of mistakes.

    Attributes:
        name: Goes into the `sources` column.
        confusion: Probability of doing another operation than the one asked for.
        slip: Probability of one slip of the pen: two neighbours swapped, a word left out,
            or a word repeated.
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
            # The result of one operation on the list that gives a wrong answer.
            results = [apply_operation(name, instruction.items) for name in OPERATIONS[:-1]]
            words = random_source.choice([wrong for wrong in results if wrong != words])
        if random_source.random() < self.slip:
            words = _slip(words, random_source)
        separator = instruction.separator
        if random_source.random() < self.mark:
            separator = next(name for name in SEPARATORS if name != separator)
        polite = instruction.polite != (random_source.random() < self.manners)
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


def _slip(words: tuple[str, ...], random_source: random.Random) -> tuple[str, ...]:
    """One slip of the pen; a single word (a number) becomes another one."""
    if len(words) == 1:
        return (random_source.choice([word for word in NUMBERS if word != words[0]]),)
    position = random_source.randrange(len(words) - 1)
    first, second = words[position : position + 2]
    # Swapped, the second left out, or the first repeated.
    return (
        *words[:position],
        *random_source.choice(((second, first), (first,), (first, first, second))),
        *words[position + 2 :],
    )
