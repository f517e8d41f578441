"""The demo in several worlds: `auto` beside the four fixed schedules, and how many worlds cross.

Every world has its own instructions, writers' mistakes, policy and random numbers. The true
reward is the mean grade of the policy's answers to held-out instructions. Worlds that are in
the folder are taken from there.

Run: python benchmarks/schedules.py [--seeds 5] [--out schedules]
"""

import argparse
import math
from pathlib import Path
from statistics import mean, stdev

from transformers.utils.logging import disable_progress_bar

from prefstage.core.files import write_json
from prefstage.sandbox.demo import DemoConfig, DemoReport, ScheduleDone, run_demo


def main() -> None:
    """Read the command line, run the worlds, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5, help="worlds [5]")
    parser.add_argument("--out", type=Path, default=Path("schedules"), help="folder [schedules]")
    given = parser.parse_args()
    disable_progress_bar()  # of loading and saving weights
    print("| seed | " + " | ".join(("boundary score", "crossing", "auto", "true reward")) + " |")
    print("|---|---|---|---|---|")
    reports = []
    for seed in range(given.seeds):
        reports.append(run_demo(given.out / f"seed-{seed}", config=DemoConfig(seed=seed)))
        print(_world(reports[-1]), flush=True)
    crossed = sum(each.crossing == "crossed" for each in reports)
    print(f"\n{crossed} of {len(reports)} worlds crossed the boundary\n")
    print("| schedule | start | after iteration 1 | after iteration 2 | auto - it |")
    print("|---|---|---|---|---|")
    for schedules in zip(*(each.schedules for each in reports), strict=True):
        print(_schedule(schedules, [each.schedules[0] for each in reports]))
    write_json(given.out / "schedules.json", {"worlds": [each.as_dict() for each in reports]})


def _world(report: DemoReport) -> str:
    scores = [f"{each.stage.boundary_score:.2f} {each.stage.stage}" for each in report.iterations]
    auto = report.schedules[0]
    cells = [" → ".join(scores), report.crossing, " → ".join(auto.data)]
    rewards = " → ".join(f"{reward:.3f}" for reward in auto.rewards)
    return f"| {report.config.seed} | {' | '.join(cells)} | {rewards} |"


def _schedule(runs: tuple[ScheduleDone, ...], auto: list[ScheduleDone]) -> str:
    cells = [_told([each.rewards[k] for each in runs]) for k in range(len(runs[0].rewards))]
    ahead = [one.rewards[-1] - other.rewards[-1] for one, other in zip(auto, runs, strict=True)]
    name = runs[0].schedule.replace(",", "→")
    return f"| {name} | {' | '.join(cells)} | {_told(ahead) if any(ahead) else '-'} |"


def _told(values: list[float]) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
