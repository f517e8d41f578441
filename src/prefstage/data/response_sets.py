"""Sets of labelled responses and of conversations, canonical as those of pairs are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from prefstage.data.columns import (
    conversation_features,
    conversation_to_row,
    row_to_conversation,
    row_to_unpaired,
    unpaired_features,
    unpaired_to_row,
)
from prefstage.data.faults import LoadReport
from prefstage.data.records import Conversation, Unpaired
from prefstage.data.storage import CanonicalRows, build_dataset, save_dataset


@dataclass(frozen=True)
class UnpairedSet:
    """Labelled responses over a memory-mapped dataset with the canonical columns.

    Attributes:
        dataset: The columns of `Unpaired`: TRL's unpaired preference format.
        report: What loading did.
        fingerprint: As in `PairSet`.
    """

    dataset: Dataset
    report: LoadReport
    fingerprint: str

    @classmethod
    def of(cls, rows: Iterable[Unpaired], *, report: LoadReport | None = None) -> "UnpairedSet":
        """Build a set from labelled responses as they come; memory stays flat.

        Args:
            rows: The records, in order; read once.
            report: Where they come from; None for records made in memory.

        Returns:
            The set.
        """
        dataset, fingerprint = build_dataset(map(unpaired_to_row, rows), unpaired_features)
        report = report or LoadReport("memory", "unpaired", len(dataset), len(dataset))
        return cls(dataset, report, fingerprint)

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Unpaired:
        """The labelled response at a position."""
        return row_to_unpaired(self._rows[index])

    def __iter__(self) -> Iterator[Unpaired]:
        """The labelled responses in order."""
        return map(row_to_unpaired, self._rows)

    def save(self, path: str | Path) -> None:
        """Write the canonical columns; see `storage.save_dataset`."""
        save_dataset(self.dataset, path)

    @cached_property
    def _rows(self) -> CanonicalRows:
        return CanonicalRows(self.dataset)


@dataclass(frozen=True)
class ConversationSet:
    """Conversations over a memory-mapped dataset with the canonical columns.

    Attributes:
        dataset: The columns of `Conversation`: TRL's prompt-completion format.
        report: What loading did.
        fingerprint: As in `PairSet`.
    """

    dataset: Dataset
    report: LoadReport
    fingerprint: str

    @classmethod
    def of(
        cls, rows: Iterable[Conversation], *, report: LoadReport | None = None
    ) -> "ConversationSet":
        """Build a set from conversations as they come; memory stays flat.

        Args:
            rows: The records, in order; read once.
            report: Where they come from; None for records made in memory.

        Returns:
            The set.
        """
        dataset, fingerprint = build_dataset(map(conversation_to_row, rows), conversation_features)
        report = report or LoadReport("memory", "conversations", len(dataset), len(dataset))
        return cls(dataset, report, fingerprint)

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at a position."""
        return row_to_conversation(self._rows[index])

    def __iter__(self) -> Iterator[Conversation]:
        """The conversations in order."""
        return map(row_to_conversation, self._rows)

    def save(self, path: str | Path) -> None:
        """Write the canonical columns; see `storage.save_dataset`."""
        save_dataset(self.dataset, path)

    @cached_property
    def _rows(self) -> CanonicalRows:
        return CanonicalRows(self.dataset)
