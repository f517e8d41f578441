"""What is kept of built pairs, by length, gap, votes and so on, and how it is parted and split."""

import hashlib
import math
import re
import sqlite3
from array import array
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate, chain, count
from typing import Any

from datasets import Dataset, Features, Value

from prefstage.building.account import PROVENANCE, Account, Built, Group, first_of
from prefstage.building.recipe import (
    TRAIN,
    DecontaminationFilter,
    Filters,
    GapFilter,
    LengthFilter,
    NearDuplicateFilter,
)
from prefstage.core import InputError, MissingDependencyError
from prefstage.data.formats.fields import PROMPT_NAMES
from prefstage.data.loading import load_prompts
from prefstage.data.records import Pair
from prefstage.data.sets import open_source
from prefstage.data.storage import build_dataset, features_of, scratch_file, text_number, to_row
from prefstage.judging.base import content_of

# Why a pair is left out, in a few words; None to keep it.
Drops = Callable[[Built], str | None]

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

    def passes(built: Built) -> bool:
        why = next((why for drop in drops if (why := drop(built))), None)
        return account.passes(built.pair.prompt_id, {f"filter: {why}": why})

    for group in groups:
        kept = list(filter(passes, group))
        if len(kept) < len(group) and len({built.part for built in group}) > 1:
            why = "filter: another part's pair of the prompt went"
            account.skip(why, group[0].pair.prompt_id, len(kept))
        elif kept:
            yield kept


def without_ties(groups: Iterable[Group], *, account: Account) -> Iterator[Group]:
    """Leave out pairs whose raters are evenly split, counted.

    Args:
        groups: Built pairs, prompt by prompt.
        account: Where it is counted.

    Yields:
        What is left.
    """
    why = "tie of the raters (ties: keep keeps it)"
    for group in groups:
        kept = [b for b in group if account.passes(b.pair.prompt_id, {why: b.pair.tied})]
        if kept:
            yield kept


def texts_of(built: Built) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text.

    Args:
        built: The pair.

    Returns:
        The three texts; messages are joined by newlines.
    """
    prompt, chosen, rejected = (
        "\n".join(map(content_of, side))
        for side in (built.pair.prompt, built.pair.chosen, built.pair.rejected)
    )
    return prompt, chosen, rejected


def _by_length(limits: LengthFilter, built: Built) -> str | None:
    prompt, *responses = map(len, texts_of(built))
    short, long = min(responses), max(responses)
    ratio = limits.max_ratio or math.inf
    return first_of(
        {
            "response too short": short < (limits.min_response or 0),
            "response too long": long > (limits.max_response or math.inf),
            "prompt too long": prompt > (limits.max_prompt or math.inf),
            "responses of too different lengths": long > ratio * max(short, 1),
        }
    )


def _by_gap(limits: GapFilter, built: Built) -> str | None:
    gap = math.nan if built.gap is None else built.gap
    return first_of(
        {
            "gap unknown (no scores)": not math.isfinite(gap),
            "gap too small": limits.minimum is not None and gap < limits.minimum,
            "gap too large": limits.maximum is not None and gap > limits.maximum,
        }
    )


def _by_agreement(minimum: float, built: Built) -> str | None:
    share = built.pair.agreement
    return first_of(
        {
            "agreement unknown (no votes)": share is None,
            "raters agree too little": share is not None and share < minimum,
        }
    )


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
    with MissingDependencyError.instead_of(
        ImportError,
        saw="no package py3langid, which recognises languages",
        expected="it installed",
        cure="pip install 'prefstage[build]'",
    ):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for unknown in sorted(set(wanted) - set(identifier.labels)):
        raise InputError.of(
            saw=f"language {unknown!r}",
            expected="ISO 639-1 codes that can be recognised, such as en, de or zh",
            cure="mend the code",
        )

    def drop(built: Built) -> str | None:
        for text in (t for t in texts_of(built)[1:] if sum(map(str.isalpha, t)) >= _SHORTEST):
            chances = dict(identifier.rank(text))  # the likeliest first
            language = next(iter(chances))
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
    seen = sqlite3.connect(scratch_file("sqlite"))
    seen.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
        "CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID;"
    )

    def drop(built: Built) -> str | None:
        key = hashlib.blake2b(
            "\0".join([built.part, built.pair.prompt_id, *texts_of(built)[1:]]).encode(),
            digest_size=16,
        ).digest()
        new = seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount
        return None if new else "exact duplicate"

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
    with MissingDependencyError.instead_of(
        ImportError,
        saw="no package datasketch, which finds near duplicates",
        expected="it installed",
        cure="pip install 'prefstage[build]'",
    ):
        from datasketch import MinHash, MinHashLSH
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
    InputError.unless(
        known or whole,
        saw="an evaluation set without a word",
        expected="prompts to look for",
        cure="name another",
    )

    def shares(words: list[str]) -> bool:
        return any(gram in known for gram in _grams(words, settings.words))

    def drop(built: Built) -> str | None:
        prompt, *responses = map(_words_of, texts_of(built))
        return first_of(
            {
                "prompt shares text with the evaluation set": _key(prompt) in whole
                or shares(prompt),
                "response shares text with the evaluation set": settings.responses
                and any(map(shares, responses)),
            }
        )

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


# --- The dataset, in parts and splits -------------------------------------------------------------


def built_dataset(rows: Iterable[Built]) -> Dataset:
    """Write built pairs to a memory-mapped dataset as they come; memory stays flat.

    Args:
        rows: The pairs, read once.

    Returns:
        The dataset, with the canonical columns and `PROVENANCE`.
    """
    kinds = {name: Value(kind) for name, kind in PROVENANCE.items()}
    flat = ({**to_row(row.pair), **{name: getattr(row, name) for name in kinds}} for row in rows)
    return build_dataset(flat, lambda fields: Features({**features_of(Pair, fields), **kinds}))[0]


def parted(
    dataset: Dataset, shares: Mapping[str, float], *, seed: int
) -> dict[str, dict[str, Dataset]]:
    """Send every row to its part and its prompt's split.

    A prompt's split depends on the prompt and the seed alone. So a prompt stays where it is when
    the dataset grows, and all parts of a build agree.

    Args:
        dataset: As `built_dataset` wrote it.
        shares: Expected share of prompts of the splits besides "train", by name.
        seed: Of the splits.

    Returns:
        Datasets by part and split, over the same memory-mapped file, in the order of the rows;
        every part has every split, empty ones too.
    """
    # Eight bytes a row in memory, as views of a file need them; the rows stay where they are.
    rows: dict[str, dict[str, array[int]]] = {}
    names, borders = (*shares, TRAIN), [*accumulate(shares.values())]
    columns = (dataset[name] for name in ("part", "origin_prompt_id", "prompt_id"))
    for row, (part, origin, prompt) in enumerate(zip(*columns, strict=True)):
        splits = rows.setdefault(part, {name: array("Q") for name in (TRAIN, *shares)})
        position = text_number(f"{seed}\0split\0{origin or prompt}") / 2.0**64
        splits[names[bisect(borders, position)]].append(row)
    return {
        part: {split: dataset.select(numbers) for split, numbers in splits.items()}
        for part, splits in rows.items()
    }
