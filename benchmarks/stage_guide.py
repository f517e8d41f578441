"""How likely is a stage call right: the guide's table, and the printed reliability on fresh worlds.

The guide. Worlds of every true boundary score that the overlap allows, judges that are right in
a share of the comparisons (in any pair alike, or erring in close pairs because they misread each
response's quality), 2 x 2 responses to every prompt. A cell is the mean reliability of the plain
verdict after so many prompts, and the share of right verdicts.

Calibration. Fresh worlds, each measured once by the product itself, `measure_stage`, with a
random judge accuracy, overlap, size of the dataset and budget, stopped early or not; the printed
reliability against whether the stage is the true one. What the measurement is told is then made
wrong on purpose, to see what that does.

Run: python benchmarks/stage_guide.py [--worlds 24000] [--seed 0] [--processes 2] [--out FILE.json]
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from prefstage.data import Candidates, prompt_id_of
from prefstage.judging.base import Comparison, Judgment
from prefstage.measuring import MeasureConfig, measure_stage
from prefstage.sandbox.theory.guide import (
    ACCURACIES,
    OVERLAPS,
    SIZES,
    Bin,
    Errors,
    binned,
    called,
    draw_guide_worlds,
    draw_judges,
    draw_verdicts,
)

HALF = 0.5
ERRORS: tuple[Errors, ...] = ("any pair", "close pairs")
PORTION = 100  # worlds drawn at once
LARGEST = 400  # prompts of a dataset
DATASETS = (50, 100, 200, LARGEST)
BIASES = (0.0, 0.02, 0.05)
CENTRE, WIDTH = 0.42, 0.18  # mean and spread of the boundary scores in TwoStage's Tables 3 and 4


class VerdictTable:
    """A judge that reads its verdicts off a table."""

    name = "table"
    fingerprint = "table"

    def __init__(self, verdicts: np.ndarray) -> None:
        """Keep the verdicts. [prompts, 2, 2]."""
        self._verdicts: list[list[list[float]]] = verdicts.tolist()

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Look up prompt and places, as the texts name them."""
        return [Judgment(self._of(each.a, each.b)) for each in comparisons]

    def _of(self, ours: str, theirs: str) -> float:
        (prompt, i), (_, j) = ours.split(), theirs.split()
        return self._verdicts[int(prompt)][int(i)][int(j)]


@cache
def dataset(prompts: int) -> list[Candidates]:
    """Numbered prompts with two responses each, which name prompt and place."""
    rows = []
    for number in range(prompts):
        prompt = ({"role": "user", "content": str(number)},)
        texts = (f"{number} 0", f"{number} 1")
        rows.append(Candidates(prompt_id_of(prompt), prompt, texts, (None,) * 2, (None,) * 2))
    return rows


@dataclass(frozen=True)
class Told:
    """What the measurement is told beside the truth, and which worlds are drawn."""

    name: str
    accuracy_off_by: float = 0.0
    bias_told: bool = True
    biased: bool = False
    usual_truths: bool = False


CASES = (
    Told("as told"),
    Told("a biased judge, bias told", biased=True),
    Told("a biased judge, bias not told", biased=True, bias_told=False),
    Told("accuracy told 10 points too high", accuracy_off_by=0.1),
    Told("accuracy told 10 points too low", accuracy_off_by=-0.1),
    Told("true scores as in TwoStage's tables", usual_truths=True),
)


@dataclass(frozen=True)
class Call:
    """One measurement.

    Attributes:
        case: Name of what was told.
        errors: Where the judge errs.
        printed: Reliability.
        right: Whether the stage is the true one.
        decided: Whether the measurement decided.
        prompts: Prompts used.
    """

    case: str
    errors: str
    printed: float
    right: bool
    decided: bool
    prompts: int


def measure_portion(job: tuple[Told, Errors, int]) -> list[Call]:
    """Draw 100 fresh worlds and measure each once."""
    case, errors, seed = job
    torch.set_num_threads(1)
    rng = np.random.default_rng([7, seed])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    accuracy = torch.from_numpy(rng.uniform(0.55 + 0.05 * case.biased, 0.95, PORTION))
    limit = rng.choice(BIASES[1:], PORTION) if case.biased else np.zeros(PORTION)
    overlap = torch.from_numpy(rng.choice(OVERLAPS, PORTION))
    reach = ((1 - overlap**2) / 2).numpy()
    usual = np.clip(rng.normal(CENTRE, WIDTH, PORTION), HALF - reach, HALF + reach)
    truth = torch.from_numpy(usual) if case.usual_truths else None
    worlds = draw_guide_worlds(overlap, generator=generator, truth=truth)
    shift = torch.from_numpy(limit * rng.uniform(-1, 1, PORTION))
    judges = draw_judges(worlds, accuracy, errors=errors, bias=shift)
    verdicts = draw_verdicts(worlds, judges, prompts=LARGEST, generator=generator)[0].numpy()
    calls = []
    for i in range(PORTION):
        prompts = int(rng.choice(DATASETS))
        told = min(max(float(accuracy[i]) + case.accuracy_off_by, 0.51), 1.0)
        config = MeasureConfig(
            judge_accuracy=told,
            judge_bias=float(limit[i]) if case.bias_told else 0.0,
            overlap=float(overlap[i]),
            all_prompts=bool(rng.random() < HALF),
            max_prompts=int(rng.choice([25, 50, prompts])),
            new_prompts=bool(rng.random() < HALF),
            seed=i,
        )
        rows = dataset(prompts)
        stage = measure_stage(rows, judge=VerdictTable(verdicts[i]), on_policy=rows, config=config)
        side = stage.algorithm_1 if stage.stage == "undecided" else stage.stage
        right = (side == "fine-tuning") == bool(worlds.truth[i] > HALF)
        decided = stage.stage != "undecided"
        printed = float(stage.reliability or 0.0)
        calls.append(Call(case.name, errors, printed, right, decided, stage.prompts_used))
    return calls


def measure_all(worlds: int, seed: int, processes: int) -> Iterator[list[Call]]:
    """The calls of each case: the first of `worlds` worlds, the others of an eighth of them."""
    done = 0
    with get_context("spawn").Pool(processes) as pool:
        for case in CASES:
            kinds = ERRORS[:1] if case.biased else ERRORS
            portions = (worlds if case is CASES[0] else worlds // 8) // PORTION
            seeds = range(seed * 100_000 + done, seed * 100_000 + done + portions)
            jobs = [(case, kinds[i % len(kinds)], number) for i, number in enumerate(seeds)]
            done += portions
            yield [call for part in pool.imap(measure_portion, jobs) for call in part]


def bins_of(calls: Sequence[Call]) -> list[Bin]:
    """The calls by their printed reliability."""
    printed = torch.tensor([each.printed for each in calls], dtype=torch.float64)
    return binned(printed, torch.tensor([each.right for each in calls]))


def bin_table(calls: Sequence[Call]) -> str:
    """Printed against found, as Markdown."""
    lines = ["| printed | calls | mean printed | right | difference |", "|---|---|---|---|---|"]
    lines += [
        f"| {b.low:.0%} to {b.high:.0%} | {b.calls:,} | {b.printed:.1%} | {b.found:.1%} |"
        f" {b.difference:+.1%} ± {(b.found * (1 - b.found) / b.calls) ** 0.5:.1%} |"
        for b in bins_of(calls)
    ]
    return "\n".join(lines)


def case_table(calls: Sequence[Call]) -> str:
    """Each case in a line: printed and right over all, and the worst bin of 100 calls."""
    lines = [
        "| worlds | judge errs in | calls | decided | mean printed | right | mean difference |"
        " worst bin |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for errors in ERRORS:
            some = [c for c in calls if (c.case, c.errors) == (case.name, errors)]
            if not some:
                continue
            bins = bins_of(some)
            mean = sum(b.calls * abs(b.difference) for b in bins) / len(some)
            worst = max(bins, key=lambda b: abs(b.difference) * (b.calls >= PORTION))
            printed, right, decided = (
                float(np.mean([getattr(c, name) for c in some]))
                for name in ("printed", "right", "decided")
            )
            lines.append(
                f"| {case.name} | {errors} | {len(some):,} | {decided:.0%} | {printed:.1%} |"
                f" {right:.1%} | {mean:.1%} | {worst.difference:+.1%} |"
            )
    return "\n".join(lines)


def guide_table(worlds: int, seed: int) -> str:
    """Mean reliability and share of right verdicts by accuracy, overlap and prompts."""
    lines = [
        "| judge right in | overlap | " + " | ".join(f"{size} prompts" for size in SIZES) + " |",
        "|---" * (2 + len(SIZES)) + "|",
    ]
    generator = torch.Generator().manual_seed(seed)
    for overlap in OVERLAPS:
        some = torch.full((worlds,), overlap, dtype=torch.float64)
        made = draw_guide_worlds(some, generator=generator)
        for wanted in ACCURACIES:
            accuracy = torch.full((worlds,), wanted, dtype=torch.float64)
            parts = []
            for errors in ERRORS:
                judges = draw_judges(made, accuracy, errors=errors)
                parts.append(draw_verdicts(made, judges, prompts=SIZES[-1], generator=generator)[0])
            cells = []
            for size in SIZES:
                found = [called(part[:, :size], accuracy, overlap=some) for part in parts]
                told = float(torch.cat([each[1] for each in found]).mean())
                right = torch.cat([each[0] == (made.truth > HALF) for each in found])
                cells.append(f"{told:.0%} ({float(right.double().mean()):.0%})")
            lines.append(f"| {wanted:.0%} | {overlap:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print all tables; write the calls as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", type=int, default=24_000)
    parser.add_argument("--guide-worlds", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    print("Mean reliability of the verdict (share of right verdicts)\n")
    print(guide_table(options.guide_worlds, options.seed))
    print(f"\n{time.monotonic() - started:.0f} s", flush=True)
    calls: list[Call] = []
    for of_case in measure_all(options.worlds, options.seed, options.processes):
        if not calls:
            print("\nPrinted reliability on fresh worlds, both kinds of judges\n")
            print(bin_table(of_case), flush=True)
        calls += of_case
    print("\nBy kind of judge, and told wrongly\n")
    print(case_table(calls))
    print(f"\n{len(calls):,} measurements; {time.monotonic() - started:.0f} s in all")
    if options.out is not None:
        text = json.dumps([asdict(each) for each in calls])
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
