"""The demo in several worlds: advice beside the truth, and `auto` beside fixed schedules.

Every world has its own instructions, writers' mistakes, policy and random numbers. The true
reward is the mean grade of the policy's answers to held-out instructions. Worlds that are in
the folder are taken from there.

Run: python benchmarks/schedules.py [--seeds 5] [--out schedules]
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from transformers.utils.logging import disable_progress_bar

from prefstage.aligning import align
from prefstage.core.files import write_json
from prefstage.sandbox.demo import (
    DemoConfig,
    DemoReport,
    recipe_of,
    rewards_of,
    run_demo,
    true_judge,
)

FIXED = ("off,off", "on,on", "on,off", "off,on")
"""Schedules that do not look: off-policy or on-policy pairs in each of two iterations."""


def main() -> None:
    """Read the command line, run the worlds, print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5, help="worlds [5]")
    parser.add_argument("--out", type=Path, default=Path("schedules"), help="folder [schedules]")
    given = parser.parse_args()
    disable_progress_bar()  # of loading and saving weights
    reports, rewards = [], []
    for seed in range(given.seeds):
        config, folder = DemoConfig(seed=seed), given.out / f"seed-{seed}"
        reports.append(run_demo(folder, config=config))
        auto = [reports[-1].iterations[0].before, *(x.after for x in reports[-1].iterations)]
        fixed = {schedule: _means(folder, config, schedule) for schedule in FIXED}
        rewards.append({"auto": auto, **fixed})
    for title, rows in (
        (("seed", *reports[0].checked.gains, *reports[0].checked.behind), map(_advice, reports)),
        (("seed", "boundary score", "in truth", "auto", "true reward"), map(_world, reports)),
        (
            ("schedule", "start", "after iteration 1", "after iteration 2", "auto - it"),
            (_schedule(name, rewards) for name in rewards[0]),
        ),
    ):
        print("\n| " + " | ".join(title) + " |\n|" + "---|" * len(title))
        print("\n".join(f"| {' | '.join(cells)} |" for cells in rows), flush=True)
    worlds = [
        {**report.as_dict(), "schedules": found}
        for report, found in zip(reports, rewards, strict=True)
    ]
    write_json(given.out / "schedules.json", {"worlds": worlds})


def _means(folder: Path, config: DemoConfig, schedule: str) -> list[float]:
    out = folder / "runs" / schedule.replace(",", "-")
    recipe = recipe_of(folder, config, schedule, iterations=2)
    result = align(recipe, out=out, judge=true_judge(), store=folder / "store").result
    return [mean(rewards) for rewards in rewards_of(folder, result)]


# What every candidate gained, and what every depth named.
def _advice(report: DemoReport) -> list[str]:
    gains = [report.checked.truth[name] for name in report.checked.gains]
    named = [
        advised.choice + ("" if advised.result["decided"] else " (close)")
        for advised in report.checked.advice
    ]
    return [str(report.config.seed), *map(str, gains), *named]


def _world(report: DemoReport) -> list[str]:
    rows = [done.row for done in report.iterations]
    scores = [f"{row['stage']['boundary_score']:.2f} {row['stage']['stage']}" for row in rows]
    truths = [f"{done.boundary:.2f}" for done in report.iterations]
    rewards = [report.iterations[0].before, *(done.after for done in report.iterations)]
    parts = (scores, truths, [row["data"] for row in rows], [f"{x:.3f}" for x in rewards])
    return [str(report.config.seed), *(" → ".join(part) for part in parts)]


def _schedule(name: str, rewards: list[dict[str, list[float]]]) -> list[str]:
    ahead = [world["auto"][-1] - world[name][-1] for world in rewards]
    means = [_with_error(values) for values in zip(*(w[name] for w in rewards), strict=True)]
    return [name.replace(",", "→"), *means, _with_error(ahead) if any(ahead) else "-"]


def _with_error(values: Sequence[float]) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
