"""Win rate of a model's answers over a baseline's, by any judge."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from pydantic import Field

from prefstage.core.config import Config
from prefstage.core.errors import InputError
from prefstage.core.progress import progress
from prefstage.evaluating.alpaca_files import Annotation
from prefstage.evaluating.answers import Answers, instruction_of, load_answers
from prefstage.evaluating.length_controlled import (
    LengthControlledWinRate,
    length_controlled_win_rate,
)
from prefstage.evaluating.length_interval import length_controlled_interval
from prefstage.evaluating.rates import Rates, rates_of
from prefstage.judging import Comparison, Judge, Judgment, load_judge
from prefstage.judging.judged import compare_all
from prefstage.measuring.sequential import ConfidenceSequence, chunk_sizes, prompt_order

LEFT_OUT = "difficulty left out"
_HALF = 0.5
_FIRST_CHUNK = 16
FEWEST_CONTROLLED = 30


class WinRateConfig(Config):
    """How a win rate is measured."""

    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of every interval.")
    stop_early: bool = Field(
        default=False, description="Stop when it is decided which of the two is better."
    )
    max_prompts: int | None = Field(default=None, ge=2, description="Prompts judged at most.")
    length_controlled: bool = Field(default=True, description="Also control for length.")
    resamples: int = Field(default=1000, ge=1, description="Of the bootstrap.")
    seed: int = Field(default=0, ge=0, description="Of the prompts' order and the bootstrap.")


@dataclass(frozen=True)
class JudgedAnswer:
    """One prompt's verdict.

    Attributes:
        prompt_id: Names the prompt's content.
        instruction: The prompt as text.
        preference: P(model's answer better), mean of both orders, in [0, 1]; NaN where the
            judge could not decide.
        model_answer: The model's answer.
        baseline_answer: The baseline's.
    """

    prompt_id: str
    instruction: str
    preference: float
    model_answer: str
    baseline_answer: str


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
        verdicts: Each judged prompt.
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
    stopped: Literal["decided", "prompt budget", "all prompts used"]
    prompts_available: int
    only_model: int
    only_baseline: int
    verdicts: tuple[JudgedAnswer, ...]
    notes: tuple[str, ...]
    looks: int = 1

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-serialisable values, without the texts."""
        found = {name: value for name, value in vars(self).items() if name != "verdicts"}
        return found | {
            "rates": asdict(self.rates),
            "controlled": self.controlled.as_dict() if self.controlled else None,
            "notes": list(self.notes),
        }

    def annotations(self) -> list[Annotation]:
        """The verdicts as rows of AlpacaEval's ``annotations.json``."""
        early = self.stopped == "decided"
        error_share = 1 - confidence_at_stop(0.0, self.looks, early=early)
        return [
            Annotation(
                instruction=each.instruction,
                output_1=each.baseline_answer,
                output_2=each.model_answer,
                generator_1=self.baseline,
                generator_2=self.model,
                annotator=self.judge,
                preference=each.preference,
                error_share=error_share,
            )
            for each in self.verdicts
        ]


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
    ours, theirs, who = load_answers(model), load_answers(baseline), load_judge(judge)
    common = _common_prompts(ours, theirs)
    verdicts, sequence = _judge(common, ours, theirs, who, config)
    low, high = sequence.interval
    stop = _stop(len(verdicts), len(common), config)
    controlled, interval, notes = _control(verdicts, config, stop.confidence, prompt_numbers)
    return WinRate(
        model=ours.name,
        baseline=theirs.name,
        judge=who.name,
        rates=_rates(verdicts, config, stop.confidence),
        avg_length=fmean(len(each.model_answer) for each in verdicts),
        avg_length_baseline=fmean(len(each.baseline_answer) for each in verdicts),
        controlled=controlled,
        controlled_interval=interval,
        better=_better(sequence),
        anytime_interval=(100 * low, 100 * high),
        stopped=stop.why,
        prompts_available=len(common),
        only_model=len(ours) - len(common),
        only_baseline=len(theirs) - len(common),
        verdicts=tuple(verdicts),
        notes=(*_notes(ours, theirs, len(common), stop.looks), *notes),
        looks=stop.looks,
    )


def _common_prompts(ours: Answers, theirs: Answers) -> list[str]:
    """Prompts that both answered, in the order of ours."""
    common = [prompt_id for prompt_id in ours.by_prompt if prompt_id in theirs.by_prompt]
    if len(common) < 2:  # noqa: PLR2004 - a standard error needs two
        raise InputError.of(
            saw=f"{len(common)} prompts answered by both {ours.name} ({len(ours)} prompts) and "
            f"{theirs.name} ({len(theirs)})",
            expected="at least two; prompts match by their exact text",
            cure="give answers to the same prompts",
        )
    return common


def _judge(
    common: Sequence[str], ours: Answers, theirs: Answers, judge: Judge, config: WinRateConfig
) -> tuple[list[JudgedAnswer], ConfidenceSequence]:
    """Judge chunk by chunk until the prompts, the budget or the doubt is used up."""
    order = prompt_order(common, seed=config.seed)
    limit = min(len(order), config.max_prompts or len(order))
    sequence = ConfidenceSequence(available=len(order), confidence=config.confidence)
    verdicts: list[JudgedAnswer] = []
    sizes = chunk_sizes(limit, first=_FIRST_CHUNK) if config.stop_early else iter([limit])
    with progress("prompts judged", limit) as tick:
        for size in sizes:
            chunk = order[len(verdicts) :][:size]
            comparisons = [
                Comparison(
                    each,
                    ours.by_prompt[each].prompt,
                    *(s.by_prompt[each].text for s in (ours, theirs)),
                )
                for each in chunk
            ]
            judgments = compare_all(judge, comparisons)
            verdicts += map(_verdict, comparisons, judgments)
            sequence.update(judgment.probability for judgment in judgments)
            for _ in chunk:
                tick()
            if config.stop_early and sequence.side is not None:
                break
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


class _Stop(NamedTuple):
    """The end of judging: why, at how many looks it might have come, and what intervals need.

    Attributes:
        why: As `WinRate.stopped`.
        looks: As `WinRate.looks`.
        confidence: At which intervals are computed so as to hold as the config promises.
    """

    why: Literal["decided", "prompt budget", "all prompts used"]
    looks: int
    confidence: float


def _stop(used: int, available: int, config: WinRateConfig) -> _Stop:
    why, looks = _why(used, available, config), _looks(available, config)
    early = why == "decided"
    return _Stop(why, looks, confidence_at_stop(config.confidence, looks, early=early))


def _looks(available: int, config: WinRateConfig) -> int:
    if not config.stop_early:
        return 1
    limit = min(available, config.max_prompts or available)
    return len(list(chunk_sizes(limit, first=_FIRST_CHUNK)))


def _verdict(comparison: Comparison, judgment: Judgment) -> JudgedAnswer:
    return JudgedAnswer(
        comparison.prompt_id,
        instruction_of(comparison.prompt),
        math.nan if judgment.status == "undecided" else judgment.probability,
        comparison.a,
        comparison.b,
    )


def _better(sequence: ConfidenceSequence) -> Literal["model", "baseline"] | None:
    if sequence.side is None:
        return None
    return "model" if sequence.side == "above" else "baseline"


def _why(
    used: int, available: int, config: WinRateConfig
) -> Literal["decided", "prompt budget", "all prompts used"]:
    if used == available:
        return "all prompts used"
    return "prompt budget" if used == config.max_prompts else "decided"


def _rates(verdicts: Sequence[JudgedAnswer], config: WinRateConfig, at_stop: float) -> Rates:
    """The rates, their intervals computed at `at_stop`, their confidence as promised."""
    y = [each.preference for each in verdicts]
    found = rates_of(y, confidence=at_stop, resamples=config.resamples, seed=config.seed)
    return replace(found, confidence=config.confidence)


def _control(
    verdicts: Sequence[JudgedAnswer],
    config: WinRateConfig,
    at_stop: float,
    numbers: Mapping[str, int] | None,
) -> tuple[LengthControlledWinRate | None, tuple[float, float] | None, tuple[str, ...]]:
    """The length-controlled win rate, its interval at the confidence `at_stop`, and notes."""
    if not config.length_controlled:
        return None, None, ()
    told = sum(not math.isnan(each.preference) for each in verdicts)
    if told < FEWEST_CONTROLLED:
        return None, None, (f"{told} verdicts are too few to control for length",)
    known = [None if numbers is None else numbers.get(each.instruction) for each in verdicts]
    official = None not in known
    notes: tuple[str, ...] = ()
    if numbers is not None and not official:
        notes = (f"{known.count(None)} prompts are none of AlpacaEval's: {LEFT_OUT}",)
    rows: dict[str, Any] = {
        "preference": [each.preference for each in verdicts],
        "len_model": [len(each.model_answer) for each in verdicts],
        "len_baseline": [len(each.baseline_answer) for each in verdicts],
        "instruction": known if official else None,
        "regularise": official,
    }
    found = length_controlled_win_rate(**rows)
    interval = length_controlled_interval(
        **rows,
        C=found.C if found.C > 0 else None,
        confidence=at_stop,
        resamples=config.resamples,
        seed=config.seed,
    )
    return found, interval, (*notes, *found.notes)


def _notes(ours: Answers, theirs: Answers, common: int, looks: int) -> tuple[str, ...]:
    notes = [
        f"{len(side) - common} prompts answered by {side.name} alone were not used"
        for side in (ours, theirs)
        if len(side) > common
    ]
    notes += [
        f"{side.repeated} repeated rows of {side.name} dropped"
        for side in (ours, theirs)
        if side.repeated
    ]
    if looks > 1:
        notes.append(f"judging may stop at {looks} moments: intervals are wider, and hold there")
    return tuple(notes)
