"""The dataset card: what was built, from what, by whom judged, and what was left out."""

from collections.abc import Mapping
from typing import Any

import yaml

from prefstage.building.reversal import reversal_told
from prefstage.building.statistics import (
    PairStatistics,
    distribution_table,
    has_scores,
    quality_table,
)

_COLUMNS = """\
Columns: `prompt_id`, `prompt`, `chosen`, `rejected` (messages), `score_chosen`,
`score_rejected`, `source_chosen`, `source_rejected`, `agreement`, `judge_probability` (P(chosen
better than rejected) by the judge), and where each pair comes
from: `method`, `part`, `origin_prompt_id` (the prompt that an augmented one was made from),
`place_chosen`, `place_rejected` (among the prompt's candidates), `gap` (score of chosen less
rejected), `judge` (empty: the dataset's own scores) and `label_flipped`.
"""


def dataset_card(
    *,
    files: Mapping[str, Mapping[str, str]],
    result: Mapping[str, Any],
    statistics: Mapping[str, PairStatistics],
    recipe: Mapping[str, Any],
) -> str:
    """Write the card, whose head the Hub reads.

    Args:
        files: Path of each split of each part.
        result: Counts and names, as in build.json.
        statistics: Figures of each part.
        recipe: The resolved recipe.

    Returns:
        Markdown with a YAML head.
    """
    head = {
        "license": recipe.get("license") or "unknown",
        "tags": ["preference", "prefstage"],
        "configs": [
            {
                "config_name": part,
                "data_files": [{"split": split, "path": path} for split, path in splits.items()],
            }
            for part, splits in files.items()
        ],
    }
    licence = recipe.get("license")
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# Preference pairs: {result['method']}\n",
        f"Built by prefstage from {result['source']}, {_scored_by(result, statistics)}"
        + (f", answered by {result['policy']}" if result["policy"] else "")
        + ".\n",
        f"Licence: {licence}.\n" if licence else "Licence: not stated in the recipe.\n",
        "## Counts\n",
        _counts(result),
        "\n## Scores\n",
        *_scores(statistics),
        _COLUMNS,
        "## Recipe\n",
        f"```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```",
    ]
    return "\n".join(parts) + "\n"


def _scored_by(result: Mapping[str, Any], statistics: Mapping[str, PairStatistics]) -> str:
    if result["judge"]:
        return f"judged by {result['judge']}"
    return "with the scores of the data" if has_scores(statistics) else "without scores"


def _scores(statistics: Mapping[str, PairStatistics]) -> list[str]:
    if not has_scores(statistics):
        return ["The pairs have no scores.\n"]
    sides = "\nC is the chosen side, R the rejected one.\n"
    return [quality_table(statistics), "", distribution_table(statistics), sides]


def _counts(result: Mapping[str, Any]) -> str:
    lines = ["| what | count |", "|---|---|", f"| read | {result['prompts_read']} |"]
    lines.append(f"| pairs built | {result['pairs_built']} |")
    lines += [f"| left out: {why} | {count} |" for why, count in result["left_out"].items()]
    for part, splits in result["parts"].items():
        lines += [f"| pairs in {part}, {split} | {count} |" for split, count in splits.items()]
    lines += [f"| {name.replace('_', ' ')} | {_text(v)} |" for name, v in result["figures"].items()]
    if result["reversal"] is not None:
        lines.append(f"\nLabels replaced: {reversal_told(result['reversal'])}.")
    return "\n".join(lines + [f"\nNote: {note}." for note in result["notes"]])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)
