"""Rows that a chat template cannot render: an error that names them, or set aside."""

import json
import os
from dataclasses import asdict
from typing import Any

from prefstage.core.errors import DataError
from prefstage.data import CandidateSet, ConversationSet, PairSet, UnpairedSet
from prefstage.data.rendering import RenderingError
from prefstage.data.rows import BadRow, RowFault

_SHOWN_ROWS = 3
_SIDES: dict[type, tuple[str, ...]] = {
    PairSet: ("chosen", "rejected"),
    UnpairedSet: ("completion",),
    ConversationSet: ("completion",),
}


class RefusedRows:
    """Collects the rows of one set that cannot be rendered.

    Where the set was loaded with a quarantine file, they are added to it; without one, the
    first few are named in an error that counts them all.

    Args:
        dataset: The rows, as loaded.
    """

    def __init__(self, dataset: PairSet | CandidateSet | UnpairedSet | ConversationSet) -> None:
        self._dataset = dataset
        self._first: list[BadRow] = []
        self._lines: list[str] = []
        self.count = 0

    def add(self, index: int, row: Any, error: RenderingError) -> None:
        """Note a row.

        Args:
            index: Of the row in the set.
            row: The row.
            error: Why it cannot be rendered.
        """
        report = self._dataset.report
        file, number = report.position_of(index, len(self._dataset))
        bad = BadRow.of(file, number, self._named(error.fault))
        self.count += 1
        if len(self._first) < _SHOWN_ROWS:
            self._first.append(bad)
        if report.quarantine_file is not None:
            self._lines.append(json.dumps({**vars(bad), "raw": asdict(row)}, default=str))

    def finish(self) -> None:
        """Write the rows that are set aside.

        Raises:
            DataError: If there are rows and no quarantine file takes them.
        """
        if not self.count:
            return
        report = self._dataset.report
        if report.quarantine_file is None:
            raise self._error()
        if os.environ.get("RANK", "0") == "0":  # one process of a launched training writes
            with open(report.quarantine_file, "a", encoding="utf-8") as stream:
                stream.writelines(line + "\n" for line in self._lines)

    def _named(self, fault: RowFault) -> RowFault:
        """The fault under the name that its column has."""
        field = fault.field
        for place, side in enumerate(_SIDES.get(type(self._dataset), ())):
            field = field.replace(f"responses[{place}]", side)
        return RowFault(field, saw=fault.saw, expected=fault.expected, cure=fault.cure)

    def _error(self) -> DataError:
        listed = "; ".join(map(str, self._first))
        more = self.count - len(self._first)
        return DataError.of(
            saw=f"{self._dataset.report.source}: {self.count} of {len(self._dataset)} rows cannot "
            f"be rendered: {listed}" + (f"; and {more} more" if more else ""),
            expected="rows that the model's chat template can render",
            cure="mend them, or set on_bad_row: quarantine with a quarantine_file",
        )
