"""A pair that was built, with where it comes from; and a dataset of such pairs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value

from prefstage.data.records import Pair
from prefstage.data.sets import features_of, from_row, to_row
from prefstage.data.storage import CanonicalRows, build_dataset

PROVENANCE = {
    "method": "string",
    "part": "string",
    "origin_prompt_id": "string",
    "place_chosen": "int64",
    "place_rejected": "int64",
    "gap": "float64",
    "judge": "string",
    "label_flipped": "bool",
}
"""Columns that a built pair has besides the canonical ones, and their Arrow types."""


@dataclass(frozen=True)
class Built:
    """A pair and its provenance.

    Attributes:
        pair: The pair.
        method: How it was built, such as "best-vs-worst".
        part: Which dataset of the method it belongs to ("LG-HQ"); equal to `method` where
            the method makes one.
        origin_prompt_id: The prompt that this one was made from (by adding a target score);
            None where it is the pair's own. Splits keep both together.
        place_chosen: Place of the chosen response among the prompt's candidates, or None.
        place_rejected: Likewise.
        gap: Score of chosen less score of rejected, or None without scores.
        judge: Whose scores or judgments decided, or None for scores of the dataset.
        label_flipped: Whether a judge turned the dataset's label round; None if not asked.
    """

    pair: Pair
    method: str
    part: str
    origin_prompt_id: str | None = None
    place_chosen: int | None = None
    place_rejected: int | None = None
    gap: float | None = None
    judge: str | None = None
    label_flipped: bool | None = None

    @property
    def split_key(self) -> str:
        """What splits go by: the prompt that it comes from."""
        return self.origin_prompt_id or self.pair.prompt_id


Group = list[Built]
"""Pairs that stand or fall together: those of one prompt."""


def built_dataset(rows: Iterable[Built]) -> Dataset:
    """Write built pairs to a memory-mapped dataset as they come; memory stays flat.

    Args:
        rows: The pairs, read once.

    Returns:
        The dataset, with the canonical columns and `PROVENANCE`.
    """
    return build_dataset(map(_row, rows), _features)[0]


def built_pairs(dataset: Dataset) -> Iterator[Built]:
    """Read back what `built_dataset` wrote.

    Args:
        dataset: Such a dataset.

    Yields:
        Each pair with its provenance.
    """
    for row in CanonicalRows(dataset):
        yield Built(from_row(Pair, row), **{name: row[name] for name in PROVENANCE})


def _row(built: Built) -> dict[str, Any]:
    provenance = {name: getattr(built, name) for name in PROVENANCE}
    return {**to_row(built.pair), **provenance}


def _features(fields: Mapping[str, bool]) -> Features:
    added = {name: Value(kind) for name, kind in PROVENANCE.items()}
    return Features({**features_of(Pair, fields), **added})
