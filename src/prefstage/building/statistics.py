"""What the scores of built pairs are like: Avg.Chs, Avg.Diff, and each side's distribution."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from prefstage.building.selecting import number_of
from prefstage.measuring.diagnosis_numbers import Distribution, describe

NUMBERS = ("mean", "std", "min", "q25", "median", "q75", "max")


@dataclass(frozen=True)
class PairStatistics:
    """The figures of a dataset of pairs.

    Attributes:
        pairs: Rows.
        prompts: Different prompts.
        average_chosen: Avg.Chs, mean score of chosen responses; None without scores.
        average_difference: Avg.Diff, mean of chosen less rejected, of pairs with both.
        chosen: Distribution of the chosen scores.
        rejected: Of the rejected ones.
        gap: Of the differences.
    """

    pairs: int
    prompts: int
    average_chosen: float | None
    average_difference: float | None
    chosen: Distribution
    rejected: Distribution
    gap: Distribution

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)


def pair_statistics(dataset: Dataset) -> PairStatistics:
    """The figures of a dataset of pairs, from its columns alone.

    Memory: 8 bytes a row and column looked at.

    Args:
        dataset: With the canonical columns.

    Returns:
        The figures.

    Source:
        arXiv:2508.18312, Table 3 (Avg.Chs, Avg.Diff) and Table 5.
    """
    chosen, rejected = (_numbers(dataset, f"score_{side}") for side in ("chosen", "rejected"))
    gap = chosen - rejected
    both = {"chosen": describe(chosen), "rejected": describe(rejected), "gap": describe(gap)}
    return PairStatistics(
        pairs=len(dataset),
        prompts=_different(dataset, "prompt_id"),
        average_chosen=both["chosen"].mean,
        average_difference=both["gap"].mean,
        **both,
    )


def quality_table(parts: Mapping[str, PairStatistics]) -> str:
    """Avg.Chs and Avg.Diff of several sets, as the left of Table 3 has them, in Markdown.

    Args:
        parts: The figures of each set.

    Returns:
        The table.
    """
    lines = ["| set | pairs | Avg.Chs | Avg.Diff |", "|---|---|---|---|"]
    for name, each in parts.items():
        values = (each.average_chosen, each.average_difference)
        lines.append(f"| {name} | {each.pairs} | {' | '.join(map(_shown, values))} |")
    return "\n".join(lines)


def distribution_table(parts: Mapping[str, PairStatistics]) -> str:
    """Each side's distribution, as Table 5 has it, in Markdown.

    Args:
        parts: The figures of each set.

    Returns:
        The table: a row a set and side (C chosen, R rejected).
    """
    header = " | ".join(["Mean", "Std", "Min", "25%", "Med", "75%", "Max"])
    lines = [f"| set | side | {header} |", "|---|---|" + "---|" * len(NUMBERS)]
    for name, each in parts.items():
        for side, values in (("C", each.chosen), ("R", each.rejected)):
            cells = " | ".join(_shown(getattr(values, number)) for number in NUMBERS)
            lines.append(f"| {name} | {side} | {cells} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _numbers(dataset: Dataset, column: str) -> np.ndarray[Any, Any]:
    """A column as floats, NaN where it is null."""
    found, start = np.empty(len(dataset)), 0
    for batch in _batches(dataset):
        part = batch[column].to_numpy(zero_copy_only=False)
        found[start : start + len(part)] = part
        start += len(part)
    return found


def _different(dataset: Dataset, column: str) -> int:
    """How many different texts a column has, remembering 8 bytes of each."""
    found, start = np.empty(len(dataset), dtype=np.uint64), 0
    for batch in _batches(dataset):
        for each in batch[column]:
            found[start] = number_of(0, "", each.as_py())
            start += 1
    found.sort()
    return int((found[1:] != found[:-1]).sum()) + 1 if len(found) else 0


def _batches(dataset: Dataset) -> Any:
    return dataset.with_format("arrow").iter(batch_size=1 << 12)
