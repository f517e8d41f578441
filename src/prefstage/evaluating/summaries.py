"""Results of evaluations in words."""

from collections.abc import Iterator, Sequence

from prefstage.evaluating.benchmarks import BenchmarkScore
from prefstage.evaluating.comparing import CheckpointTable, Difference
from prefstage.evaluating.mt_bench import MtBench
from prefstage.evaluating.win_rates import WinRate


def win_rate_text(result: WinRate) -> str:
    """A win rate in a few lines, its model first."""
    rates = result.rates
    lines = [
        f"{result.model} over {result.baseline} by {result.judge}: "
        f"{len(result.verdicts)} of {result.prompts_available} prompts ({result.stopped})",
        f"win rate {rates.win_rate:.2f} % ± {rates.standard_error:.2f} "
        f"[{rates.interval[0]:.2f}, {rates.interval[1]:.2f}], "
        f"discrete {rates.discrete_win_rate:.2f} %: {rates.wins} won, {rates.draws} drawn, "
        f"{rates.losses} lost, {rates.n_missing} undecided",
    ]
    if result.controlled is not None and result.controlled_interval is not None:
        low, high = result.controlled_interval
        lines.append(
            f"length-controlled {result.controlled.length_controlled_win_rate:.2f} % "
            f"[{low:.2f}, {high:.2f}] (difficulty: {result.controlled.difficulty})"
        )
    lines.append(
        f"mean length {result.avg_length:.0f} characters, "
        f"the baseline's {result.avg_length_baseline:.0f}"
    )
    better = {"model": result.model, "baseline": result.baseline, None: "undecided"}
    lines.append(f"better on the prompts at hand: {better[result.better]}")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def differences_text(table: Sequence[Difference]) -> list[str]:
    """The differences between models, a line each; nothing for a single model."""
    lines = ["", "differences (all intervals and p-values hold at once):"] if table else []
    return lines + [
        f"{line.first} - {line.second}: {line.difference:+.2f} points "
        f"[{line.interval[0]:+.2f}, {line.interval[1]:+.2f}], p = {line.p_value:.4f}, "
        f"better: {line.better or 'undecided'}"
        for line in table
    ]


def rankings_text(table: CheckpointTable | None) -> Iterator[str]:
    """Rankings beside win rates, a line a checkpoint; nothing without a table."""
    if table is None:
        return
    yield from ("", f"rankings of the {table.pairs} pairs beside win rates:")
    for line in table.checkpoints:
        distance = "" if line.weight_distance is None else f", distance {line.weight_distance:.4g}"
        yield (
            f"  step {line.step}: ranking accuracy {100 * line.ranking_accuracy:.1f} %, "
            f"win rate {line.win_rate:.2f} %{_between(line.interval)}{distance}"
        )
    if table.correlation is not None:
        yield f"  correlation over the checkpoints {table.correlation:+.2f}"


def ratings_text(graded: MtBench) -> str:
    """Ratings of MT-bench in a few lines."""
    lines = [
        f"{graded.model} on MT-bench by {graded.judge}: {len(graded.grades)} gradings,"
        f" {graded.missing} without a readable rating",
        f"score {score_text(graded.score, graded.interval)}, "
        + ", ".join(f"turn {k} {score_text(score)}" for k, score in enumerate(graded.by_turn, 1)),
        *(f"  {name:<12} {score_text(score)}" for name, score in graded.by_category.items()),
    ]
    if graded.repeat_deviation is not None:
        lines.append(f"standard deviation over repeated gradings {graded.repeat_deviation:.2f}")
    lines.append(", ".join(f"{count} {what}" for what, count in graded.counts.items()))
    return "\n".join(lines)


def score_text(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A score, with its interval if there is one."""
    return ("none" if value is None else f"{value:.2f}") + _between(interval)


def _between(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"


def benchmark_text(score: BenchmarkScore) -> str:
    """A benchmark's score in one line."""
    error = "" if score.standard_error is None else f" ± {score.standard_error:.4f}"
    return (
        f"{score.task} {score.metric}: {score.score:.4f}{error} "
        f"({score.rows} rows, {score.shots} shots)"
    )
