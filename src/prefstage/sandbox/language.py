"""The sandbox's formal language: instructions over short lists of words, and their answers.

An instruction reads ``Sort then reverse: fox, ant, bee. Use semicolons. Be polite.``; its right
answer is ``Sure! fox; bee; ant.``. Every instruction has one right list of words, one required
separator, and asks for manners or does not, so a program can say how good any response is.
"""

import random
import re
from dataclasses import dataclass

from prefstage.core.errors import InputError

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
        manners = " Be polite." if self.polite else ""
        task = " then ".join(self.operations).capitalize()
        return f"{task}: {', '.join(self.items)}. Use {self.separator}.{manners}"

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
    match operation:
        case "repeat":
            return words
        case "reverse":
            return words[::-1]
        case "sort":
            return tuple(sorted(words))
        case "rotate":
            return (*words[1:], *words[:1])
        case "count":
            return (NUMBERS[len(words) - 1],)
    raise InputError.of(
        saw=f"operation {operation!r}",
        expected="one of " + ", ".join(OPERATIONS),
        cure="use an operation of the sandbox's language",
    )


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
        known = {*operations} <= {*OPERATIONS} and {*items} <= {*ITEMS}
        if known and shape["separator"] in SEPARATORS and len(items) <= len(NUMBERS):
            return Instruction(operations, items, shape["separator"], bool(shape["polite"]))
    raise InputError.of(
        saw=f"prompt {text[:80]!r}",
        expected="an instruction such as 'Sort: fox, ant, bee. Use commas. Be polite.'",
        cure="take prompts from World.instructions",
    )


def draw_instruction(random_source: random.Random) -> Instruction:
    """Draw an instruction: a quarter of them composed of two operations, half polite."""
    if random_source.random() < _COMPOSED_SHARE:
        operations = tuple(random_source.sample(LIST_OPERATIONS, 2))
    else:
        operations = (random_source.choice(OPERATIONS),)
    return Instruction(
        operations=operations,
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
