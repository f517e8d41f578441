"""Ten models in turn as the policy, by recorded answers and recorded judgments.

Each of the ten models of the shared AlpacaEval file is the policy once (its answers are given,
m = 1), against two off-policy pairs: the weakest two and the strongest two of the other nine,
by their mean recorded preference. The judge is the record itself: two responses are compared
by their graded preferences over the common baseline. Nothing is sampled and nothing is
judged, so the table takes seconds.

Run: python benchmarks/recorded_boundary.py [--out FILE.json]
The data are found through PREFSTAGE_SHARED, or in ../shared.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from prefstage.data import CandidateSet, keep_sources, load_candidates
from prefstage.judging import Judge, load_judge
from prefstage.measuring import MeasureConfig, Stage, measure_stage

SHARED = Path(os.environ.get("PREFSTAGE_SHARED", Path(__file__).parents[2] / "shared"))
FILE = SHARED / "data" / "alpacaeval_small.jsonl.gz"


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        policy: The model in the policy's place.
        strength: "weak" or "strong".
        pair: Who wrote the off-policy responses.
        early: The sequential measurement.
        whole: The fixed-size measurement over all prompts.
    """

    policy: str
    strength: str
    pair: tuple[str, ...]
    early: Stage
    whole: Stage


def by_strength(rows: CandidateSet) -> list[str]:
    """The models, from the lowest to the highest mean recorded preference."""
    preferences: dict[str, list[float]] = {}
    for row in rows:
        for source, score in zip(row.sources, row.scores, strict=True):
            if source is not None and score is not None:
                preferences.setdefault(source, []).append(score)
    return sorted(preferences, key=lambda model: fmean(preferences[model]))


def measure_all(rows: CandidateSet, judge: Judge) -> list[Line]:
    """Measure every model against both pairs, both ways."""
    lines = []
    models = by_strength(rows)
    for policy in models:
        others = [model for model in models if model != policy]
        for strength, pair in (("weak", tuple(others[:2])), ("strong", tuple(others[-2:]))):
            off, on = keep_sources(rows, pair), keep_sources(rows, (policy,))
            early, whole = (
                measure_stage(off, judge=judge, on_policy=on, policy_name=policy, config=config)
                for config in (MeasureConfig(), MeasureConfig(all_prompts=True))
            )
            lines.append(Line(policy, strength, pair, early, whole))
    return lines


def as_table(lines: list[Line]) -> str:
    """The lines as Markdown."""
    rows = [
        "| policy | off-policy pair | stage | BS | 95 % interval | prompts used |"
        " all prompts: stage | BS | prompts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        low, high = line.early.interval
        rows.append(
            f"| {line.policy} | {line.strength}: {' + '.join(line.pair)} | {line.early.stage} |"
            f" {line.early.boundary_score:.2f} | [{low:.2f}, {high:.2f}] |"
            f" {line.early.prompts_used} | {line.whole.stage} |"
            f" {line.whole.boundary_score:.3f} | {line.whole.prompts_used} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table; write the stages as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        aside = Path(folder) / "unusable.jsonl"
        rows = load_candidates(FILE, on_bad_row="quarantine", quarantine_file=aside)
    print(f"{len(rows)} prompts; {rows.report.quarantined} rows unusable (empty answers)\n")
    lines = measure_all(rows, load_judge(f"table:{FILE}"))
    print(as_table(lines))
    agree = sum(line.early.stage == line.whole.stage for line in lines)
    print(f"\nStopping early agrees with all prompts in {agree} of {len(lines)} cases", end="; ")
    print(f"prompts used: {fmean(line.early.prompts_used for line in lines):.0f} on average")
    if options.out is not None:
        result = [
            {"strength": line.strength, "pair": line.pair}
            | {"sequential": line.early.as_dict(), "all_prompts": line.whole.as_dict()}
            for line in lines
        ]
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
