"""What the scores of built pairs are like: Avg.Chs, Avg.Diff, and each side's distribution."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from prefstage.data.disk_numbers import DiskNumbers, Numbers, count_different, text_number
from prefstage.diagnosing.numbers import Distribution, describe_sorted

NUMBERS = ("mean", "std", "min", "q25", "median", "q75", "max")
_BATCH = 1 << 12


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


def pair_statistics(*datasets: Dataset) -> PairStatistics:
    """The figures of one or several datasets of pairs together, from their columns alone.

    Memory does not grow with the pairs: the scores and hashes of prompts wait on disk.

    Args:
        datasets: With the canonical columns.

    Returns:
        The figures; quantiles are exact.

    Source:
        arXiv:2508.18312, Table 3 (Avg.Chs, Avg.Diff) and Table 5.
    """
    with ExitStack() as stack:
        chosen, rejected, gap = (stack.enter_context(DiskNumbers()) for _ in range(3))
        prompts = stack.enter_context(DiskNumbers("uint64"))
        for batch in _batches(datasets):
            sides = [_numbers(batch[f"score_{side}"]) for side in ("chosen", "rejected")]
            chosen.extend(sides[0])
            rejected.extend(sides[1])
            gap.extend(sides[0] - sides[1])
            prompts.extend([text_number(each.as_py()) for each in batch["prompt_id"]])
        first, second, apart = (describe_sorted(each.sort()) for each in (chosen, rejected, gap))
        return PairStatistics(
            pairs=len(prompts),
            prompts=count_different(prompts),
            average_chosen=first.mean,
            average_difference=apart.mean,
            chosen=first,
            rejected=second,
            gap=apart,
        )


def has_scores(parts: Mapping[str, PairStatistics]) -> bool:
    """Whether any set has a score."""
    return any(each.chosen.count or each.rejected.count for each in parts.values())


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


def _numbers(column: Any) -> Numbers:
    """A column as floats, NaN where it is null."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _batches(datasets: Iterable[Dataset]) -> Iterator[Any]:
    for dataset in datasets:
        if len(dataset):
            yield from dataset.with_format("arrow").iter(batch_size=_BATCH)
