"""Filters of built pairs: length, gap, votes, language, duplicates, contamination."""

import hashlib
import math
import re
import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count
from typing import Any

from prefstage.building.account import Account, Built, Group
from prefstage.building.recipe import (
    DecontaminationFilter,
    Filters,
    GapFilter,
    LengthFilter,
    NearDuplicateFilter,
)
from prefstage.core import InputError, MissingDependencyError
from prefstage.data.formats.fields import PROMPT_NAMES
from prefstage.data.loading import load_prompts
from prefstage.data.sources import open_source
from prefstage.data.storage import scratch_folder
from prefstage.judging.base import content_of

Drops = Callable[[Built], str | None]
"""Why a pair is left out, in a few words; None to keep it."""

_WORDS = re.compile(r"\w+")
_COLUMNS = (*PROMPT_NAMES, "turns", "problem")
_SHORTEST = 40
_TIMES_LIKELIER = 100.0


def filtered(groups: Iterable[Group], filters: Filters, *, account: Account) -> Iterator[Group]:
    """Apply the filters; every pair that goes is counted under the first that drops it.

    Pairs of one prompt that several parts share stand or fall together: a prompt that loses
    a pair in one part loses it in all, so that the parts keep the same prompts.

    Args:
        groups: Built pairs, prompt by prompt.
        filters: What to apply.
        account: Where it is counted.

    Yields:
        What is left.
    """
    makers: tuple[tuple[Any, Callable[[Any], Drops]], ...] = (  # those that are cheap first
        (filters.length, lambda limits: partial(_by_length, limits)),
        (filters.gap, lambda limits: partial(_by_gap, limits)),
        (filters.agreement, lambda minimum: partial(_by_agreement, minimum)),
        (filters.language, other_language),
        (filters.duplicates or None, lambda _: exact_duplicates()),
        (filters.decontaminate, contamination),
        (filters.near_duplicates, near_duplicates),
    )
    drops = [make(settings) for settings, make in makers if settings is not None]
    for group in groups:
        kept = []
        for built in group:
            why = next((why for drop in drops if (why := drop(built))), None)
            if why is None:
                kept.append(built)
            else:
                account.skip(f"filter: {why}", built.pair.prompt_id)
        if len(kept) < len(group) and len({built.part for built in group}) > 1:
            why = "filter: another part's pair of the prompt went"
            account.skip(why, group[0].pair.prompt_id, len(kept))
        elif kept:
            yield kept


def texts_of(built: Built) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text.

    Args:
        built: The pair.

    Returns:
        The three texts; messages are joined by newlines.
    """
    sides = (built.pair.prompt, built.pair.chosen, built.pair.rejected)
    prompt, chosen, rejected = ("\n".join(map(content_of, side)) for side in sides)
    return prompt, chosen, rejected


def _by_length(limits: LengthFilter, built: Built) -> str | None:
    prompt, *responses = map(len, texts_of(built))
    short, long = min(responses), max(responses)
    faults = {
        "response too short": short < (limits.min_response or 0),
        "response too long": long > (limits.max_response or math.inf),
        "prompt too long": prompt > (limits.max_prompt or math.inf),
        "responses of too different lengths": long > (limits.max_ratio or math.inf) * max(short, 1),
    }
    return next((why for why, fault in faults.items() if fault), None)


def _by_gap(limits: GapFilter, built: Built) -> str | None:
    if built.gap is None or not math.isfinite(built.gap):
        return "gap unknown (no scores)"
    if limits.minimum is not None and built.gap < limits.minimum:
        return "gap too small"
    too_large = limits.maximum is not None and built.gap > limits.maximum
    return "gap too large" if too_large else None


def _by_agreement(minimum: float, built: Built) -> str | None:
    if built.pair.agreement is None:
        return "agreement unknown (no votes)"
    return "raters agree too little" if built.pair.agreement < minimum else None


def other_language(wanted: tuple[str, ...]) -> Drops:
    """Leave out pairs with a response that is in another language.

    Another language must be at least a hundred times as likely as each wanted one, so that lists
    of names, code and tables stay. Responses of fewer than 40 letters are kept: too short to tell.

    Args:
        wanted: ISO 639-1 codes, such as ``("en", "de")``.

    Returns:
        The filter.

    Raises:
        MissingDependencyError: If py3langid is not installed.
        InputError: If a code is unknown to it.

    Source:
        Lui and Baldwin 2012, "langid.py"; the library py3langid.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingDependencyError.of(
            saw="no package py3langid, which recognises languages",
            expected="it installed",
            cure="pip install 'prefstage[build]'",
        ) from None
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(wanted) - set(identifier.labels))
    if unknown:
        raise InputError.of(
            saw=f"language {unknown[0]!r}",
            expected="ISO 639-1 codes that can be recognised, such as en, de or zh",
            cure="mend the code",
        )

    def drop(built: Built) -> str | None:
        for text in (t for t in texts_of(built)[1:] if sum(map(str.isalpha, t)) >= _SHORTEST):
            chances = dict(identifier.rank(text))
            language = max(chances, key=chances.__getitem__)
            if chances[language] > _TIMES_LIKELIER * max(chances[code] for code in wanted):
                return f"response in another language ({language})"
        return None

    return drop


def exact_duplicates() -> Drops:
    """Leave out pairs whose prompt and both responses stood before in the same part.

    Returns:
        The filter, which remembers every pair that it sees.
    """
    # A set of keys in memory would grow with the pairs; in a database without journal it does not,
    # and what a killed build leaves there is of no use to anybody.
    seen = sqlite3.connect(scratch_folder() / f"{uuid.uuid4().hex}.sqlite")
    seen.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
        "CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID;"
    )

    def drop(built: Built) -> str | None:
        key = hashlib.blake2b(
            "\0".join([built.part, built.pair.prompt_id, *texts_of(built)[1:]]).encode(),
            digest_size=16,
        ).digest()
        return (
            None
            if seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount
            else "exact duplicate"
        )

    return drop


def near_duplicates(settings: NearDuplicateFilter) -> Drops:
    """Leave out pairs whose words are nearly those of one that was kept before.

    Args:
        settings: Similarity, shingles and hash functions.

    Returns:
        The filter, which remembers every pair that stays.

    Raises:
        MissingDependencyError: If datasketch is not installed.

    Source:
        Broder 1997, "On the resemblance and containment of documents"; the library
        datasketch.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise MissingDependencyError.of(
            saw="no package datasketch, which finds near duplicates",
            expected="it installed",
            cure="pip install 'prefstage[build]'",
        ) from None
    how = {"threshold": settings.threshold, "num_perm": settings.permutations}
    indices: defaultdict[str, Any] = defaultdict(partial(MinHashLSH, **how))
    numbers = count(1)

    def drop(built: Built) -> str | None:
        texts = texts_of(built)
        compared = {"prompt": texts[:1], "chosen": texts[1:2], "pair": texts}[settings.text]
        words, size = _words_of("\n".join(compared)), settings.shingle_words
        starts = range(max(1, len(words) - size + 1))
        shingles = {" ".join(words[start : start + size]).encode() for start in starts}
        signature = MinHash(num_perm=settings.permutations)
        signature.update_batch(list(shingles))
        if indices[built.part].query(signature):
            return "near duplicate"
        indices[built.part].insert(str(next(numbers)), signature)
        return None

    return drop


def contamination(settings: DecontaminationFilter) -> Drops:
    """Leave out pairs that share an n-gram of words with an evaluation set.

    An evaluation text of fewer than n words counts as a whole: a prompt that equals it is left
    out as well.

    Args:
        settings: Where the evaluation sets are, n, and whether responses are looked at too.

    Returns:
        The filter.

    Raises:
        DataError: If a set cannot be read, or its questions are not recognised.
        InputError: If there is no text.

    Source:
        Brown et al. 2020, arXiv:2005.14165, App. C (13-grams).
    """
    # Eight bytes a gram instead of its text: an evaluation set has millions of them, and one
    # chance collision in 2**64 costs a pair, not a wrong result.
    known, whole = set[bytes](), set[bytes]()
    for words in map(_words_of, chain.from_iterable(map(evaluation_texts, settings.evaluation))):
        if 0 < len(words) < settings.words:
            whole.add(_key(words))
        known.update(_grams(words, settings.words))
    if not known and not whole:
        raise InputError.of(
            saw="an evaluation set without a word",
            expected="prompts to look for",
            cure="name another",
        )

    def shares(words: list[str]) -> bool:
        return any(gram in known for gram in _grams(words, settings.words))

    def drop(built: Built) -> str | None:
        prompt, *responses = map(_words_of, texts_of(built))
        if _key(prompt) in whole or shares(prompt):
            return "prompt shares text with the evaluation set"
        if settings.responses and any(map(shares, responses)):
            return "response shares text with the evaluation set"
        return None

    return drop


def evaluation_texts(source: str) -> Iterator[str]:
    """The questions of an evaluation set: of its own columns, or of a form that training data have.

    A benchmark's rows need not be whole as training data: an empty answer does not matter here.

    Args:
        source: File, folder or Hub id.

    Yields:
        Texts of the columns prompt, instruction, question, query, input, context, turns,
        problem; where a row has none of them, the set's prompts as `load_prompts` reads them.

    Raises:
        DataError: If it cannot be read, or its questions are not recognised.
    """
    for raw in open_source(source).rows():
        row = raw.values if isinstance(raw.values, dict) else {}
        questions = [row[name] for name in _COLUMNS if name in row]
        if not questions:
            yield from ("\n".join(map(content_of, p.prompt)) for p in load_prompts(source))
            return
        yield from _strings(questions)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    inner = (value.get("content"), value.get("value")) if isinstance(value, dict) else value
    if isinstance(inner, list | tuple):
        for item in inner:
            yield from _strings(item)


def _words_of(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _grams(words: list[str], size: int) -> Iterator[bytes]:
    return (_key(words[start : start + size]) for start in range(len(words) - size + 1))


def _key(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
