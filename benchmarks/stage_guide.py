"""How likely is a stage call right: the guide's table, and the printed reliability on fresh worlds.

The guide. Worlds of every true boundary score that the overlap allows, judges that are right in
a share of the comparisons (in any pair alike, or erring in close pairs because they misread each
response's quality), 2 x 2 responses to every prompt. A cell is the mean reliability of the plain
verdict after so many prompts, and the share of right verdicts.

Calibration. Fresh worlds, each measured once as `prefstage measure` does it, with a random judge
accuracy, overlap, size of the dataset and budget, stopped early or not; the printed reliability
against whether the stage is the true one. What the measurement is told is then made wrong on
purpose, to see what that does.

Run: python benchmarks/stage_guide.py [--worlds 160000] [--seeds 11 12] [--processes 2]
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from multiprocessing import get_context

import torch
from stage_calls import (
    KINDS,
    LARGEST,
    PORTION,
    Calls,
    Case,
    measure_portion,
)

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
ERRORS: tuple[Errors, ...] = tuple(KINDS)
GROUPS = (0.55, 0.65, 0.75, 0.85, 0.95)  # of accuracies
ENOUGH = 500  # calls of a bin that is quoted

CASE_HEAD = (
    "| worlds | judge errs in | calls | decided | mean printed | right | mean difference |"
    " worst bin |\n|---|---|---|---|---|---|---|---|"
)
CASES = (
    Case("as told"),
    Case("a biased judge, bias told", biased=True),
    Case("a biased judge, bias not told", biased=True, bias_told=False),
    Case("accuracy told 10 points too high", accuracy_off_by=0.1),
    Case("accuracy told 10 points too low", accuracy_off_by=-0.1),
    Case("true scores as in TwoStage's tables", usual_truths=True),
)


def measure_all(
    case: Case, kinds: Sequence[Errors], worlds: int, seed: int, processes: int
) -> Iterator[Calls]:
    """The calls of each kind of judge, an equal part of the worlds each."""
    place = CASES.index(case)
    with get_context("spawn").Pool(processes) as pool:
        for kind in kinds:
            number = ERRORS.index(kind)
            portions = range(worlds // len(kinds) // PORTION)
            jobs = [(case, kind, (seed, place, number, i)) for i in portions]
            yield Calls.joined(list(pool.imap(measure_portion, jobs)))


def bins_of(calls: Calls, *, told: bool = False) -> list[Bin]:
    """The calls by their printed reliability, or by that printed where the kind is told."""
    printed = calls.printed_told if told else calls.printed
    return binned(torch.from_numpy(printed), torch.from_numpy(calls.right))


def quoted(one: Bin) -> str:
    """Printed minus found, with its standard error; a dash where there are too few calls."""
    if one.calls < ENOUGH:
        return "–"
    return f"{one.difference:+.1%} ± {(one.right * (1 - one.right) / one.calls) ** 0.5:.1%}"


def bin_table(calls: Calls) -> str:
    """Printed against found, as Markdown."""
    lines = ["| printed | calls | mean printed | right | difference |", "|---|---|---|---|---|"]
    lines += [
        f"| {b.low:.0%} to {b.high:.0%} | {b.calls:,} | {b.printed:.1%} | {b.right:.1%} |"
        f" {quoted(b)} |"
        for b in bins_of(calls)
    ]
    return "\n".join(lines)


def part_table(kinds: dict[Errors, Calls]) -> str:
    """Printed minus found by kind of judge, told or not, by accuracy, overlap and prompts."""
    calls = Calls.joined(list(kinds.values()))
    parts = [
        (f"errs in {kind}, {'told' if told else 'not told'}", bins_of(some, told=told))
        for told in (False, True)
        for kind, some in kinds.items()
    ]
    for low, high in pairwise(GROUPS):
        here = (calls.accuracy >= low - 1e-6) & (
            calls.accuracy < high + 0.01 * (high == GROUPS[-1])
        )
        parts.append((f"right in {low:.0%} to {high:.0%}", bins_of(calls.where(here))))
    parts += [
        (f"overlap {overlap:.0%}", bins_of(calls.where(calls.overlap == overlap)))
        for overlap in OVERLAPS
    ]
    for low, high in ((0, 25), (25, 50), (50, 100), (100, LARGEST)):
        here = (calls.prompts > low) & (calls.prompts <= high)
        parts.append((f"{low + 1} to {high} prompts", bins_of(calls.where(here))))
    lows = {b.low: f"{b.low:.0%} to {b.high:.0%}" for _, bins in parts for b in bins}
    names = [lows[low] for low in sorted(lows)]
    lines = ["| judges | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for name, bins in parts:
        cells = {b.low: quoted(b) for b in bins}
        lines.append(f"| {name} | {' | '.join(cells.get(low, '–') for low in sorted(lows))} |")
    return "\n".join(lines)


def case_line(case: Case, errors: Errors, calls: Calls) -> str:
    """One case: printed and right over all, the mean difference and the worst bin."""
    bins = bins_of(calls)
    mean = sum(b.calls * abs(b.difference) for b in bins) / len(calls.right)
    worst = max(bins, key=lambda b: abs(b.difference) * (b.calls >= ENOUGH))
    return (
        f"| {case.name} | {errors} | {len(calls.right):,} | {calls.decided.mean():.0%} |"
        f" {calls.printed.mean():.1%} | {calls.right.mean():.1%} | {mean:.1%} | {quoted(worst)} |"
    )


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
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", type=int, default=160_000)
    parser.add_argument("--guide-worlds", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    print("Mean reliability of the verdict (share of right verdicts)\n")
    print(guide_table(options.guide_worlds, options.seeds[0]))
    print(f"\n{time.monotonic() - started:.0f} s", flush=True)
    kinds: dict[Errors, Calls] = {}
    for seed in options.seeds:
        drawn = measure_all(CASES[0], ERRORS, options.worlds, seed, options.processes)
        of_seed = dict(zip(ERRORS, drawn, strict=True))
        print(f"\nPrinted reliability on fresh worlds, both kinds of judges, seed {seed}\n")
        print(bin_table(Calls.joined(list(of_seed.values()))))
        print(f"\n{time.monotonic() - started:.0f} s", flush=True)
        kinds = {
            kind: Calls.joined([kinds[kind], calls] if kind in kinds else [calls])
            for kind, calls in of_seed.items()
        }
    print("\nPrinted less found, all seeds\n")
    print(part_table(kinds))
    print("\nTold wrongly\n\n" + CASE_HEAD, flush=True)
    for case in CASES[1:]:
        some = ERRORS[:1] if case.biased else ERRORS
        calls_of = measure_all(case, some, options.worlds // 16, seed, options.processes)
        for kind, calls in zip(some, calls_of, strict=True):
            print(case_line(case, kind, calls), flush=True)
    print(f"\n{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
