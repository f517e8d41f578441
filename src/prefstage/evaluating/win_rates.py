"""Win rate of a model's answers over a baseline's, by any judge."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from prefstage.core import InputError, progress
from prefstage.evaluating.answers import Annotation, Answers, instruction_of, load_answers
from prefstage.evaluating.settings import WinRateConfig
from prefstage.judging import Comparison, Judge, load_judge
from prefstage.judging.base import check_decided
from prefstage.judging.judged import compare_all
from prefstage.measuring.boundary import ConfidenceSequence, chunk_sizes, prompt_order
from prefstage.measuring.length_controlled import (
    FEWEST_CONTROLLED,
    LengthControlledWinRate,
    LengthWeights,
    leaderboard_row,
    length_controlled_win_rate,
)
from prefstage.measuring.length_interval import (
    controlled_rate,
    estimate_difficulty,
    length_controlled_interval,
    widened,
)
from prefstage.measuring.rates import Rates, rates_of

# Public in this package, for whoever has verdicts; they stand below, where a diagnosis needs them.
__all__ = [
    "LengthControlledWinRate",
    "LengthWeights",
    "Rates",
    "estimate_difficulty",
    "leaderboard_row",
    "length_controlled_interval",
    "length_controlled_win_rate",
    "rates_of",
    "widened",
]
LEFT_OUT = "difficulty left out"
_FIRST_CHUNK = 16

_BETTER: dict[str | None, Literal["model", "baseline"]] = {"above": "model", "below": "baseline"}

Stopped = Literal["decided", "prompt budget", "all prompts used"]


@dataclass(frozen=True)
class WinRate:
    """A model's win rate over a baseline; rates in percent, lengths in characters.

    Attributes:
        model: The model's name.
        baseline: The baseline's.
        judge: The judge's.
        rates: Win rate, discrete win rate, errors and intervals.
        avg_length: Mean length of the model's answers that were judged.
        avg_length_baseline: Likewise of the baseline's.
        controlled: The length-controlled win rate, where it was asked for and possible.
        controlled_interval: Its interval (see `length_controlled_interval`).
        better: "model" or "baseline" where the anytime-valid interval decides it.
        anytime_interval: That interval: it holds at every moment at once, so that stopping
            when one is ahead is no cheat.
        stopped: Why judging ended.
        prompts_available: Prompts that both answered.
        only_model: Prompts that only the model answered; not used.
        only_baseline: Prompts that only the baseline answered; not used.
        verdicts: Each judged prompt, as a row of AlpacaEval's ``annotations.json``: the mean of
            both orders, NaN where the judge could not decide.
        notes: What a reader should know.
        looks: Moments at which judging might have stopped; all intervals allow for them, and the
            anytime-valid one needs not.
    """

    model: str
    baseline: str
    judge: str
    rates: Rates
    avg_length: float
    avg_length_baseline: float
    controlled: LengthControlledWinRate | None
    controlled_interval: tuple[float, float] | None
    better: Literal["model", "baseline"] | None
    anytime_interval: tuple[float, float]
    stopped: Stopped
    prompts_available: int
    only_model: int
    only_baseline: int
    verdicts: tuple[Annotation, ...]
    notes: tuple[str, ...]
    looks: int = 1

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-serialisable values, without the texts."""
        return {name: value for name, value in vars(self).items() if name != "verdicts"} | {
            "rates": asdict(self.rates),
            "controlled": self.controlled.as_dict() if self.controlled else None,
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """The result in a few lines, its model first."""
        rates, interval = self.rates, self.controlled_interval
        better = {"model": self.model, "baseline": self.baseline, None: "undecided"}
        return "\n".join(
            [
                f"{self.model} over {self.baseline} by {self.judge}: "
                f"{len(self.verdicts)} of {self.prompts_available} prompts ({self.stopped})",
                f"win rate {rates.win_rate:.2f} % ± {rates.standard_error:.2f} "
                f"[{rates.interval[0]:.2f}, {rates.interval[1]:.2f}], "
                f"discrete {rates.discrete_win_rate:.2f} %: {rates.wins} won, {rates.draws} "
                f"drawn, {rates.losses} lost, {rates.n_missing} undecided",
                *([self.controlled.as_text(interval)] if self.controlled and interval else []),
                f"mean length {self.avg_length:.0f} characters, "
                f"the baseline's {self.avg_length_baseline:.0f}",
                f"better on the prompts at hand: {better[self.better]}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def win_rate(
    model: "str | Path | Answers",
    baseline: "str | Path | Answers",
    *,
    judge: "str | Path | Judge",
    config: WinRateConfig | None = None,
    prompt_numbers: Mapping[str, int] | None = None,
) -> WinRate:
    """Measure how often a judge prefers a model's answers to a baseline's.

    Answers are matched by prompt, never by place, and judged in both orders (probabilities
    for (a, b) and (b, a) sum to one). Prompts come in a random order given by the seed, with
    ``stop_early`` only until the anytime-valid interval of the win rate leaves ½.

    Args:
        model: The model's answers, or a file with them (see `load_answers`).
        baseline: The baseline's.
        judge: Gives P(a ≻ b | x), or a specification that `load_judge` reads. With a
            `Ledger` (`stored`) nothing is judged twice.
        config: How to measure; None for the defaults.
        prompt_numbers: instruction → number of AlpacaEval's prompts, if these are they (see
            `read_prompt_numbers`): length control then uses the official difficulty.

    Returns:
        The win rate, with every verdict.

    Raises:
        InputError: If the two share fewer than two prompts.
        DataError: If a file cannot be read as answers.

    Source:
        Li et al. 2023, AlpacaEval; length control: Dubois et al. 2024, arXiv:2404.04475;
        stopping: Waudby-Smith and Ramdas 2024, arXiv:2010.09686.
    """
    config = config or WinRateConfig()
    ours, theirs = (load_answers(side, seed=config.seed) for side in (model, baseline))
    who = load_judge(judge)
    common = _common_prompts(ours, theirs)
    limit = min(len(common), config.max_prompts or len(common))
    sizes = list(chunk_sizes(limit, first=_FIRST_CHUNK)) if config.stop_early else [limit]
    verdicts, sequence = _judge(common, ours, theirs, who, config, sizes=sizes)
    used, looks = len(verdicts), len(sizes)
    stopped: Stopped = "prompt budget" if used == config.max_prompts else "decided"
    if used == len(common):
        stopped = "all prompts used"
    # Looking again and again is paid for in every interval, whether or not it stopped early.
    at_stop = partial(confidence_at_stop, looks=looks, early=stopped == "decided")
    rates = rates_of(
        [verdict.preference for verdict in verdicts],
        confidence=at_stop(config.confidence),
        resamples=config.resamples,
        seed=config.seed,
    )
    notes = _notes(ours, theirs, len(common), looks)
    known = [(prompt_numbers or {}).get(verdict.instruction) for verdict in verdicts]
    few = rates.n_total < FEWEST_CONTROLLED
    if config.length_controlled and few:
        notes.append(f"{rates.n_total} verdicts are too few to control for length")
    elif config.length_controlled and prompt_numbers is not None and None in known:
        notes.append(f"{known.count(None)} prompts are none of AlpacaEval's: {LEFT_OUT}")
    low, high = sequence.interval
    result = WinRate(
        model=ours.name,
        baseline=theirs.name,
        judge=who.name,
        rates=replace(rates, confidence=config.confidence),  # what it holds as, not computed at
        avg_length=fmean(len(verdict.output_2) for verdict in verdicts),
        avg_length_baseline=fmean(len(verdict.output_1) for verdict in verdicts),
        controlled=None,
        controlled_interval=None,
        better=_BETTER.get(sequence.side),
        anytime_interval=(100 * low, 100 * high),
        stopped=stopped,
        prompts_available=len(common),
        only_model=len(ours) - len(common),
        only_baseline=len(theirs) - len(common),
        verdicts=tuple(replace(row, error_share=1 - at_stop(0.0)) for row in verdicts),
        notes=tuple(notes),
        looks=looks,
    )
    if not config.length_controlled or few:
        return result
    # The gamed rows are AlpacaEval's; on other prompts a judge may have another taste for length.
    return control_length(
        result, config, instruction=None if None in known else known, regularise=None not in known
    )


def _common_prompts(ours: Answers, theirs: Answers) -> list[str]:
    common = [prompt_id for prompt_id in ours.by_prompt if prompt_id in theirs.by_prompt]
    InputError.unless(
        len(common) >= 2,  # noqa: PLR2004 - a standard error needs two
        saw=f"{len(common)} prompts answered by both {ours.name} ({len(ours)} prompts) and "
        f"{theirs.name} ({len(theirs)})",
        expected="at least two; prompts match by their exact text",
        cure="give answers to the same prompts",
    )
    return common


# Chunk by chunk, until the prompts, the budget or the doubt is used up.
def _judge(
    common: Sequence[str],
    ours: Answers,
    theirs: Answers,
    judge: Judge,
    config: WinRateConfig,
    *,
    sizes: Sequence[int],
) -> tuple[list[Annotation], ConfidenceSequence]:
    order = prompt_order(common, seed=config.seed)
    sequence = ConfidenceSequence(available=len(order), confidence=config.confidence)
    verdicts: list[Annotation] = []
    with progress("prompts judged", sum(sizes)) as tick:
        for size in sizes:
            comparisons = [
                Comparison(
                    key,
                    ours.by_prompt[key].prompt,
                    ours.by_prompt[key].text,
                    theirs.by_prompt[key].text,
                )
                for key in order[len(verdicts) :][:size]
            ]
            judgments = compare_all(judge, comparisons, part=True)
            verdicts += [
                Annotation(
                    instruction=instruction_of(asked.prompt),
                    output_1=asked.b,
                    output_2=asked.a,
                    generator_1=theirs.name,
                    generator_2=ours.name,
                    annotator=judge.name,
                    preference=math.nan if judgment.status == "undecided" else judgment.probability,
                    prompt_id=asked.prompt_id,
                )
                for asked, judgment in zip(comparisons, judgments, strict=True)
            ]
            sequence.update(judgment.probability for judgment in judgments)
            tick(len(comparisons))
            if config.stop_early and sequence.side is not None:
                break
    asked = [verdict.preference for verdict in verdicts if verdict.output_1 != verdict.output_2]
    known = sum(not math.isnan(preference) for preference in asked)
    check_decided(judge, decided=known, asked=len(asked))
    return verdicts, sequence


def confidence_at_stop(confidence: float, looks: int, *, early: bool) -> float:
    """Of an interval at one look, so that those at the look that stops hold as promised.

    Half of the chance to miss is left for the end, the other half shared by the looks before.

    Args:
        confidence: That is promised, in (0, 1).
        looks: Moments at which judging may stop, >= 1.
        early: Whether it stopped before the last one.

    Returns:
        At least `confidence`.

    Source:
        Bonferroni's inequality, over the looks.
    """
    if looks == 1:
        return confidence
    return 1 - (1 - confidence) / 2 / (looks - 1 if early else 1)


def columns_of(rows: Sequence[Annotation]) -> dict[str, Any]:
    """Preferences and lengths of verdicts, as arguments of `length_controlled_win_rate`."""
    return {
        "preference": [row.preference for row in rows],
        "len_model": [len(row.output_2) for row in rows],
        "len_baseline": [len(row.output_1) for row in rows],
    }


def control_length(
    result: WinRate, config: WinRateConfig, *, absorbed: float = 0.0, **how: Any
) -> WinRate:
    """Control a win rate for length.

    Args:
        result: With at least `FEWEST_CONTROLLED` verdicts.
        config: Confidence, resamples and seed of the interval.
        absorbed: How much of a verdict an estimated difficulty absorbs: see `estimate_difficulty`.
        how: Further arguments of `length_controlled_win_rate`.

    Returns:
        The same with the length-controlled win rate, its interval and its notes.
    """
    controlled, interval = controlled_rate(
        **columns_of(result.verdicts),
        confidence=confidence_at_stop(
            config.confidence, result.looks, early=result.stopped == "decided"
        ),
        resamples=config.resamples,
        seed=config.seed,
        **how,
    )
    if absorbed:
        interval = widened(interval, controlled.length_controlled_win_rate, absorbed=absorbed)
    return replace(
        result,
        controlled=controlled,
        controlled_interval=interval,
        notes=(*result.notes, *controlled.notes),
    )


def control_jointly(results: Mapping[str, WinRate], config: WinRateConfig) -> dict[str, WinRate]:
    """Control the length of several models' win rates with one difficulty of their prompts.

    Args:
        results: By name, over one baseline.
        config: Of the intervals.

    Returns:
        The same, length-controlled anew; a note says by how many models. A model with too few
        verdicts stays as it is.

    Raises:
        InputError: As `estimate_difficulty`.
    """
    baseline = {
        verdict.prompt_id: len(verdict.output_1)
        for result in results.values()
        for verdict in result.verdicts
    }
    column = {prompt_id: number for number, prompt_id in enumerate(baseline)}
    rows = [{verdict.prompt_id: verdict for verdict in r.verdicts} for r in results.values()]
    d, shares = estimate_difficulty(
        [[row[key].preference if key in row else math.nan for key in baseline] for row in rows],
        [[len(row[key].output_2) if key in row else 1 for key in baseline] for row in rows],
        list(baseline.values()),
    )
    controlled = dict(results)
    for (name, result), share in zip(results.items(), shares, strict=True):
        if result.rates.n_total >= FEWEST_CONTROLLED:
            # Notes on the fit without difficulty no longer hold.
            before = result.controlled.notes if result.controlled else ()
            new = control_length(
                replace(
                    result,
                    notes=tuple(
                        note
                        for note in result.notes
                        if note not in before and not note.endswith(LEFT_OUT)
                    ),
                ),
                config,
                absorbed=float(share),
                difficulty=d[[column[verdict.prompt_id] for verdict in result.verdicts]],
                regularise=False,
            )
            controlled[name] = replace(
                new,
                notes=(
                    *new.notes,
                    f"difficulty estimated from the verdicts on these {len(results)} models",
                ),
            )
    return controlled


def _notes(ours: Answers, theirs: Answers, common: int, looks: int) -> list[str]:
    sides = (ours, theirs)
    return [
        *(
            f"{len(side) - common} prompts answered by {side.name} alone were not used"
            for side in sides
            if len(side) > common
        ),
        *(f"{s.repeated} repeated rows of {s.name} dropped" for s in sides if s.repeated),
        *(
            f"one answer a prompt of {s.name} was drawn; {s.left_aside} others were not used"
            for s in sides
            if s.left_aside
        ),
        *(
            [f"judging may stop at {looks} moments: intervals are wider, and hold there"]
            if looks > 1
            else []
        ),
    ]
