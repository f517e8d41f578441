"""Score figures of pairs that were built, as DataDPO tabulates them."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from prefstage.core import markdown_table
from prefstage.data.storage import DiskNumbers, count_different, text_number
from prefstage.diagnosing.numbers import Distribution, describe_sorted
from prefstage.judging.base import Judge

_BATCH = 1 << 12
# Of methods whose pairs are partly labelled and partly chosen among answers: a comparing judge
# gives the former P(chosen wins), and the latter their mean P(wins).
_TWO_KINDS = ("mixing", "per-prompt")
_NO_MEAN = (
    "no mean score: pairs that were labelled have P(chosen wins), pairs of own answers the mean "
    "P(wins) among them, and these are two scales"
)


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


def pair_statistics(*datasets: Dataset, one_scale: bool = True) -> PairStatistics:
    """The figures of one or several datasets of pairs together, from their columns alone.

    Memory does not grow with the pairs: the scores and hashes of prompts wait on disk.

    Args:
        datasets: With the canonical columns.
        one_scale: Whether all scores are of one kind; if not, they have no mean.

    Returns:
        The figures; quantiles are exact.

    Source:
        arXiv:2508.18312, Table 3 (Avg.Chs, Avg.Diff) and Table 5.
    """
    with ExitStack() as stack:
        columns = [stack.enter_context(DiskNumbers()) for _ in range(3)]
        prompts = stack.enter_context(DiskNumbers("uint64"))
        # An empty dataset cannot be iterated in the Arrow format.
        for dataset in filter(len, datasets):
            for batch in dataset.with_format("arrow").iter(batch_size=_BATCH):
                chosen, rejected = (
                    np.asarray(  # NaN where it is null
                        batch[f"score_{side}"].to_numpy(zero_copy_only=False), dtype=np.float64
                    )
                    * (1.0 if one_scale else np.nan)
                    for side in ("chosen", "rejected")
                )
                for column, values in zip(
                    columns, (chosen, rejected, chosen - rejected), strict=True
                ):
                    column.extend(values)
                prompts.extend([text_number(prompt.as_py()) for prompt in batch["prompt_id"]])
        first, second, gap = (describe_sorted(column.sort()) for column in columns)
        return PairStatistics(
            pairs=len(prompts),
            prompts=count_different(prompts),
            average_chosen=first["mean"],
            average_difference=gap["mean"],
            chosen=first,
            rejected=second,
            gap=gap,
        )


def part_statistics(
    parts: Mapping[str, Mapping[str, Dataset]],
    method: str,
    judge: Judge | None,
    *,
    notes: list[str],
) -> dict[str, PairStatistics]:
    """The figures of every part of a build.

    Args:
        parts: Its splits, by part and name.
        method: How they were built.
        judge: Who scored.
        notes: Gets why there is no mean, if there is none.

    Returns:
        The figures by part.
    """
    one_scale = method not in _TWO_KINDS or (judge is not None and judge.pointwise)
    notes += [] if one_scale else [_NO_MEAN]
    return {
        part: pair_statistics(*splits.values(), one_scale=one_scale)
        for part, splits in parts.items()
    }


def has_scores(parts: Mapping[str, PairStatistics]) -> bool:
    """Whether any set has a score."""
    return any(part.chosen["count"] or part.rejected["count"] for part in parts.values())


def quality_table(parts: Mapping[str, PairStatistics]) -> str:
    """Avg.Chs and Avg.Diff of several sets, as the left of Table 3 has them, in Markdown.

    Args:
        parts: The figures of each set.

    Returns:
        The table.
    """
    return markdown_table(
        ["set", "pairs", "Avg.Chs", "Avg.Diff"],
        [
            [
                name,
                str(part.pairs),
                shown_score(part.average_chosen),
                shown_score(part.average_difference),
            ]
            for name, part in parts.items()
        ],
    )


def shown_score(value: float | None) -> str:
    """A score as tables show it."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
