"""What the scores of built pairs are like, and the dataset card."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from datasets import Dataset

from prefstage.building.account import Account, describe_reversal
from prefstage.core import markdown_table, shown
from prefstage.data.storage import DiskNumbers, count_different, text_number
from prefstage.diagnosing.numbers import Distribution, describe_sorted

NUMBERS = ("mean", "std", "min", "q25", "median", "q75", "max")
_BATCH = 1 << 12
_COLUMNS = """\
Columns: `prompt_id`, `prompt`, `chosen`, `rejected` (messages), `score_chosen`,
`score_rejected`, `source_chosen`, `source_rejected`, `agreement`, `judge_probability` (P(chosen
better than rejected) by the judge), and where each pair comes
from: `method`, `part`, `origin_prompt_id` (the prompt that an augmented one was made from),
`place_chosen`, `place_rejected` (among the prompt's candidates), `gap` (score of chosen less
rejected), `judge` (empty: the dataset's own scores) and `label_flipped`.
"""


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
        columns = [stack.enter_context(DiskNumbers()) for _ in range(3)]
        prompts = stack.enter_context(DiskNumbers("uint64"))
        # An empty dataset cannot be iterated in the Arrow format.
        for dataset in filter(len, datasets):
            for batch in dataset.with_format("arrow").iter(batch_size=_BATCH):
                chosen, rejected = (
                    np.asarray(  # NaN where it is null
                        batch[f"score_{side}"].to_numpy(zero_copy_only=False), dtype=np.float64
                    )
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
            [name, str(part.pairs), _shown(part.average_chosen), _shown(part.average_difference)]
            for name, part in parts.items()
        ],
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def dataset_card(
    *,
    result: Mapping[str, Any],
    statistics: Mapping[str, PairStatistics],
    recipe: Mapping[str, Any],
) -> str:
    """Write the card, whose head the Hub reads.

    Args:
        result: Counts and names, as in build.json.
        statistics: Figures of each part.
        recipe: The resolved recipe.

    Returns:
        Markdown with a YAML head.
    """
    licence = recipe.get("license")
    head = {
        "license": licence or "unknown",
        "tags": ["preference", "prefstage"],
        "configs": [
            {
                "config_name": part,
                "data_files": [
                    {"split": split, "path": f"{part}/{split}.parquet"} for split in splits
                ],
            }
            for part, splits in result["parts"].items()
        ],
    }
    by, tables = "without scores", ["The pairs have no scores.\n"]
    if has_scores(statistics):
        # Each side's distribution, as Table 5 has it.
        distributions = markdown_table(
            ["set", "side", "Mean", "Std", "Min", "25%", "Med", "75%", "Max"],
            [
                [name, side, *(_shown(values[number]) for number in NUMBERS)]
                for name, part in statistics.items()
                for side, values in (("C", part.chosen), ("R", part.rejected))
            ],
        )
        sides = "\nC is the chosen side, R the rejected one.\n"
        tables = [quality_table(statistics), "", distributions, sides]
        by = "with the scores of the data"
    by = f"judged by {result['judge']}" if result["judge"] else by
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# Preference pairs: {result['method']}\n",
        f"Built by prefstage from {result['source']}, {by}"
        + (f", answered by {result['policy']}" if result["policy"] else "")
        + ".\n",
        f"Licence: {licence}.\n" if licence else "Licence: not stated in the recipe.\n",
        "## Counts\n",
        _counts(result),
        "\n## Scores\n",
        *tables,
        _COLUMNS,
        "## Recipe\n",
        f"```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```",
    ]
    return "\n".join(parts) + "\n"


def gap_warnings(account: Account, statistics: Mapping[str, PairStatistics]) -> list[str]:
    """What filters may have undone of matched gap means.

    Args:
        account: Of the build, with the tolerance.
        statistics: Figures of each part, after the filters.

    Returns:
        A note a level whose means are apart.
    """
    tolerance = account.figures.get("gap_tolerance", math.inf)
    means = {part: figures.average_difference or 0.0 for part, figures in statistics.items()}
    apart = {
        level: abs(means.get(f"{level}-HQ", 0.0) - means.get(f"{level}-LQ", 0.0))
        for level in ("LG", "SG")
    }
    return [
        f"after filters the {level} gap means are {value:.3g} apart, more than the tolerance "
        f"of {tolerance:.3g}"
        for level, value in apart.items()
        if value > tolerance
    ]


def summary_of(result: Mapping[str, Any], statistics: Mapping[str, PairStatistics]) -> str:
    """Say what a build made, for people.

    Args:
        result: Counts and names, as in build.json.
        statistics: Figures of each part.

    Returns:
        Lines, the headline first.
    """
    judge = f", judged by {result['judge']}" if result["judge"] else ""
    lines = [
        f"{result['pairs_built']} pairs by {result['method']} from {result['prompts_read']} rows"
        f" of {result['source']}{judge}"
    ]
    left_out = sorted(result["left_out"].items(), key=lambda reason: -reason[1])
    lines += [f"left out: {count} x {why}" for why, count in left_out]
    if result["reversal"] is not None:
        lines.append(describe_reversal(result["reversal"]))
    figures = result["figures"].items()
    lines += [f"{name.replace('_', ' ')}: {shown(value)}" for name, value in figures]
    for part, splits in result["parts"].items():
        lines.append(f"{part}: {', '.join(f'{name} {count}' for name, count in splits.items())}")
    if has_scores(statistics):
        lines += ["", quality_table(statistics)]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _counts(result: Mapping[str, Any]) -> str:
    rows = {"read": result["prompts_read"], "pairs built": result["pairs_built"]}
    rows |= {f"left out: {why}": count for why, count in result["left_out"].items()}
    for part, splits in result["parts"].items():
        rows |= {f"pairs in {part}, {split}": count for split, count in splits.items()}
    rows |= {name.replace("_", " "): shown(v) for name, v in result["figures"].items()}
    lines = [markdown_table(["what", "count"], list(rows.items()))]
    if result["reversal"] is not None:
        lines.append(f"\nLabels replaced: {describe_reversal(result['reversal'])}.")
    return "\n".join(lines + [f"\nNote: {note}." for note in result["notes"]])
