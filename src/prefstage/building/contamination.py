"""Decontamination: pairs that share n-grams of words with an evaluation set."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Self

from prefstage.building.built import Built
from prefstage.building.filters import DecontaminationFilter, texts_of
from prefstage.core.errors import InputError
from prefstage.data.formats.fields import PROMPT_NAMES
from prefstage.data.loading import load_prompts
from prefstage.data.sources import open_source
from prefstage.judging.texts import content_of

_WORDS = re.compile(r"\w+")
_COLUMNS = (*PROMPT_NAMES, "turns", "problem")


class Contamination:
    """Finds pairs with an n-gram of an evaluation set's texts.

    An evaluation text of fewer than n words counts as a whole: a prompt that equals it is
    found as well.

    Args:
        texts: Of the evaluation set.
        words: n, >= 2.
        responses: Whether responses are looked at besides prompts.

    Raises:
        InputError: If there is no text.

    Source:
        Brown et al. 2020, arXiv:2005.14165, App. C (13-grams).
    """

    def __init__(self, texts: Iterable[str], *, words: int = 13, responses: bool = True) -> None:
        self._words, self._responses = words, responses
        self._grams, self._whole = set[bytes](), set[bytes]()
        for text in texts:
            found = _words_of(text)
            if 0 < len(found) < words:
                self._whole.add(_key(found))
            self._grams.update(_grams(found, words))
        if not self._grams and not self._whole:
            raise InputError.of(
                saw="an evaluation set without a word",
                expected="prompts to look for",
                cure="name another",
            )

    @classmethod
    def of(cls, settings: DecontaminationFilter) -> Self:
        """Read the evaluation sets.

        Args:
            settings: Where they are, and n.

        Returns:
            The filter.

        Raises:
            DataError: If one cannot be read, or its questions are not found.
            InputError: If there is no text.
        """
        texts = (text for source in settings.evaluation for text in evaluation_texts(source))
        return cls(texts, words=settings.words, responses=settings.responses)

    def __call__(self, built: Built) -> str | None:
        """Why the pair goes, or None.

        Args:
            built: The pair.

        Returns:
            The reason.
        """
        prompt, *responses = texts_of(built)
        words = _words_of(prompt)
        if _key(words) in self._whole or self._shares(words):
            return "prompt shares text with the evaluation set"
        if self._responses and any(self._shares(_words_of(text)) for text in responses):
            return "response shares text with the evaluation set"
        return None

    def _shares(self, words: list[str]) -> bool:
        return any(gram in self._grams for gram in _grams(words, self._words))


def evaluation_texts(source: str) -> Iterator[str]:
    """The questions of an evaluation set: of its own columns, or of a form that training data have.

    A benchmark's rows need not be whole as training data: an empty answer does not matter here.

    Args:
        source: File, folder or Hub id.

    Yields:
        Texts of the columns prompt, instruction, question, query, input, context, turns,
        problem; where a row has none of them, the set's prompts as `load_prompts` finds them.

    Raises:
        DataError: If it cannot be read, or its questions are not found.
    """
    for raw in open_source(source).rows():
        row = raw.values if isinstance(raw.values, dict) else {}
        named = [name for name in _COLUMNS if name in row]
        if not named:
            yield from ("\n".join(map(content_of, each.prompt)) for each in load_prompts(source))
            return
        for name in named:
            yield from _strings(row[name])


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name in ("content", "value"):
            yield from _strings(value.get(name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _words_of(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _grams(words: list[str], size: int) -> Iterator[bytes]:
    return (_key(words[start : start + size]) for start in range(len(words) - size + 1))


def _key(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
