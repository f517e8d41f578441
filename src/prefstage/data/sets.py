"""Sets and streams of pairs and candidates: memory-mapped or row by row, canonical either way."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

from datasets import Dataset

from prefstage.data.columns import (
    candidate_features,
    candidates_to_row,
    pair_features,
    pair_to_row,
    row_to_candidates,
    row_to_pair,
)
from prefstage.data.faults import LoadReport
from prefstage.data.reading import Reading
from prefstage.data.records import Candidates, Pair
from prefstage.data.storage import CanonicalRows, build_dataset, save_dataset


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
        """Build a set from pairs as they come; memory stays flat.

        Args:
            pairs: The records, in order; read once.
            report: Where they come from; None for records made in memory.

        Returns:
            The set.
        """
        dataset, fingerprint = build_dataset(map(pair_to_row, pairs), pair_features)
        report = report or LoadReport("memory", "pairs", len(dataset), len(dataset))
        return cls(dataset, report, fingerprint)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        """The pair at a position."""
        return row_to_pair(self._rows[index])

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in order."""
        return map(row_to_pair, self._rows)

    def save(self, path: str | Path) -> None:
        """Write the canonical columns; see `storage.save_dataset`."""
        save_dataset(self.dataset, path)

    @cached_property
    def _rows(self) -> CanonicalRows:
        return CanonicalRows(self.dataset)


@dataclass(frozen=True)
class CandidateSet:
    """Prompts with their candidate responses; as loaded, each prompt stands once.

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
        """Build a set from candidates as they come; memory stays flat.

        Args:
            rows: The records, in order; read once.
            report: Where they come from; None for records made in memory.

        Returns:
            The set.
        """
        dataset, fingerprint = build_dataset(map(candidates_to_row, rows), candidate_features)
        report = report or LoadReport("memory", "candidates", len(dataset), len(dataset))
        return cls(dataset, report, fingerprint)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Candidates:
        """The candidates of the prompt at a position."""
        return row_to_candidates(self._rows[index])

    def __iter__(self) -> Iterator[Candidates]:
        """The prompts with their candidates, in order."""
        return map(row_to_candidates, self._rows)

    def save(self, path: str | Path) -> None:
        """Write the canonical columns; see `storage.save_dataset`."""
        save_dataset(self.dataset, path)

    @cached_property
    def _rows(self) -> CanonicalRows:
        return CanonicalRows(self.dataset)


@dataclass
class PairStream:
    """Pairs read row by row from their source, in flat memory; every iteration reads anew.

    Attributes:
        reading: The source and how it is read.
        report: The account of the current (or last) iteration.
    """

    reading: Reading
    report: LoadReport = field(init=False)

    def __post_init__(self) -> None:
        """Start with an empty account."""
        self.report = self.reading.new_report()

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in order."""
        self.report = self.reading.new_report()
        return cast("Iterator[Pair]", self.reading.records(self.report))

    def save(self, path: str | Path) -> None:
        """Read all pairs and write their canonical columns; see `storage.save_dataset`."""
        PairSet.of(self).save(path)


@dataclass
class CandidateStream:
    """As `PairStream`, for candidates; a prompt that stands in two rows comes twice."""

    reading: Reading
    report: LoadReport = field(init=False)

    def __post_init__(self) -> None:
        """Start with an empty account."""
        self.report = self.reading.new_report()

    def __iter__(self) -> Iterator[Candidates]:
        """The prompts with their candidates, in order."""
        self.report = self.reading.new_report()
        return cast("Iterator[Candidates]", self.reading.records(self.report))

    def save(self, path: str | Path) -> None:
        """Read all rows and write their canonical columns; see `storage.save_dataset`."""
        CandidateSet.of(self).save(path)
