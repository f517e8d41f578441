"""Sets of pairs and of candidates: memory-mapped, canonical, saved whole."""

import hashlib
import json
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter

from prefstage.data.columns import (
    Row,
    candidate_features,
    candidates_to_row,
    message_fields,
    pair_features,
    pair_to_row,
    row_to_candidates,
    row_to_pair,
)
from prefstage.data.faults import LoadReport
from prefstage.data.records import Candidates, Pair


@dataclass(frozen=True)
class PairSet:
    """Preference pairs over a memory-mapped dataset with the canonical columns.

    Attributes:
        dataset: The columns of `Pair`; opens in TRL, pandas and the Hub viewer.
        report: What loading did.
        fingerprint: Hash of the content: equal pairs in equal order give equal hashes,
            whatever file they came from.
    """

    dataset: Dataset
    report: LoadReport
    fingerprint: str

    @classmethod
    def of(cls, pairs: Iterable[Pair], *, report: LoadReport | None = None) -> "PairSet":
        """Build a set from pairs."""
        dataset, fingerprint = build_dataset(map(pair_to_row, pairs), pair_features)
        report = report or LoadReport("memory", "pairs", len(dataset), len(dataset))
        return cls(dataset, report, fingerprint)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        """The pair at a position."""
        return row_to_pair(self.dataset[index])

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in order."""
        return map(row_to_pair, self.dataset)


@dataclass(frozen=True)
class CandidateSet:
    """Prompts with their candidate responses; each prompt stands once.

    Attributes:
        dataset: The columns of `Candidates`.
        report: What loading did.
        fingerprint: As in `PairSet`.
    """

    dataset: Dataset
    report: LoadReport
    fingerprint: str

    @classmethod
    def of(cls, rows: Iterable[Candidates], *, report: LoadReport | None = None) -> "CandidateSet":
        """Build a set from candidates."""
        dataset, fingerprint = build_dataset(map(candidates_to_row, rows), candidate_features)
        report = report or LoadReport("memory", "candidates", len(dataset), len(dataset))
        return cls(dataset, report, fingerprint)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Candidates:
        """The candidates of the prompt at a position."""
        return row_to_candidates(self.dataset[index])

    def __iter__(self) -> Iterator[Candidates]:
        """The prompts with their candidates, in order."""
        return map(row_to_candidates, self.dataset)


def build_dataset(
    rows: Iterable[Row], features_of: Callable[[Iterable[str]], Features]
) -> tuple[Dataset, str]:
    """Write rows to a memory-mapped Arrow file as they come, and hash them.

    The rows wait in a JSON-lines file until all message fields are known, since Arrow
    needs its columns beforehand; memory stays flat. Files go with the dataset object.

    Args:
        rows: Canonical rows.
        features_of: Arrow types, given the message fields besides `role` and `content`.

    Returns:
        The dataset, and the hash of its content.
    """
    folder = tempfile.TemporaryDirectory(prefix="prefstage-")
    waiting, arrow = Path(folder.name) / "rows.jsonl", Path(folder.name) / "data.arrow"
    hasher, fields = hashlib.sha256(), set[str]()
    with waiting.open("wb") as stream:
        for row in rows:
            for column in ("prompt", "chosen", "rejected"):
                fields |= message_fields(row.get(column, ()))
            line = json.dumps(row, sort_keys=True).encode() + b"\n"
            hasher.update(line)
            stream.write(line)
    features = features_of(fields)
    with ArrowWriter(path=str(arrow), features=features) as writer, waiting.open("rb") as stream:
        for line in stream:
            writer.write(json.loads(line))
        writer.finalize()
    waiting.unlink()
    dataset = Dataset.from_file(str(arrow))
    weakref.finalize(dataset, folder.cleanup)
    return dataset, hasher.hexdigest()[:16]


__all__ = ["Any", "CandidateSet", "Mapping", "PairSet", "build_dataset"]
