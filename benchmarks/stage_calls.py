"""Fresh worlds of the decision guide, each measured once as `prefstage measure` does it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from prefstage.measuring.boundary import chunk_sizes, rejection_step
from prefstage.measuring.reliability import ScoreSummary, chance_above_half
from prefstage.measuring.settings import JudgeErrors, MeasureConfig
from prefstage.sandbox.theory.guide import (
    OVERLAPS,
    Errors,
    draw_guide_worlds,
    draw_judges,
    draw_verdicts,
)
from prefstage.sandbox.theory.worlds import HALF

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]

KINDS: dict[Errors, JudgeErrors] = {"any pair": "any-pair", "close pairs": "close-pairs"}
PORTION = 200  # worlds drawn at once
LARGEST = 400  # prompts of a dataset
DATASETS = (50, 100, 200, LARGEST)
BUDGETS = (25, 50, LARGEST)
BIASES = (0.02, 0.05)
CENTRE, WIDTH = 0.42, 0.18  # mean and spread of the boundary scores in TwoStage's Tables 3 and 4


@dataclass(frozen=True)
class Case:
    """What the measurement is told beside the truth, and which worlds are drawn.

    Attributes:
        name: In words.
        accuracy_off_by: Accuracy told, less the true one.
        bias_told: Whether the largest bias is told.
        biased: Whether judges have one: up to 0.02 or 0.05 to either side.
        usual_truths: Draw true scores as in TwoStage's Tables 3 and 4, rather than uniform.
    """

    name: str
    accuracy_off_by: float = 0.0
    bias_told: bool = True
    biased: bool = False
    usual_truths: bool = False


@dataclass(frozen=True)
class Portion:
    """Worlds, their judges' verdicts, and how each is to be measured. Arrays of [worlds].

    Attributes:
        verdicts: [worlds, prompts, 2, 2].
        fine_tuning: Whether that is the true stage.
        accuracy: Of the judge.
        told_accuracy: As the measurement is told.
        told_bias: Likewise.
        overlap: Likewise, and true.
        dataset: Prompts at hand.
        budget: Prompts at most.
        new_prompts: As in `MeasureConfig`.
        all_prompts: Likewise.
    """

    verdicts: Floats
    fine_tuning: Flags
    accuracy: Floats
    told_accuracy: Floats
    told_bias: Floats
    overlap: Floats
    dataset: Counts
    budget: Counts
    new_prompts: Flags
    all_prompts: Flags


@dataclass(frozen=True)
class Calls:
    """Measurements. Arrays of [calls].

    Attributes:
        printed: Reliability, the kind of judge not told.
        printed_told: Reliability, the kind of judge told.
        right: Whether the stage is the true one.
        decided: Whether the measurement decided.
        prompts: Prompts used.
        accuracy: Of the judge.
        overlap: Of the sides.
    """

    printed: Floats
    printed_told: Floats
    right: Flags
    decided: Flags
    prompts: Counts
    accuracy: Floats
    overlap: Floats

    def where(self, here: Flags) -> "Calls":
        """Those calls alone."""
        return Calls(**{each.name: getattr(self, each.name)[here] for each in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence["Calls"]) -> "Calls":
        """All calls of the parts."""
        return cls(
            **{
                each.name: np.concatenate([getattr(part, each.name) for part in parts])
                for each in fields(cls)
            }
        )


def draw_portion(case: Case, errors: Errors, seeds: Sequence[int]) -> Portion:
    """Draw fresh worlds, and how each is measured.

    True boundary scores are uniform within what the overlap allows (0, 0.5 or 0.8), judges
    right in 55 to 95 % of the comparisons (60 to 95 % where they are biased; in whole percents),
    datasets of 50 to 400 prompts; half of the measurements have a smaller budget, half use all of
    it however clear it is, and half ask about new prompts.

    Args:
        case: What is told.
        errors: Where the judges err.
        seeds: Of all draws.

    Returns:
        `PORTION` worlds.
    """
    rng = np.random.default_rng(seeds)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    accuracy = rng.integers(55 + 5 * case.biased, 95, PORTION, endpoint=True) / 100
    limit = rng.choice(BIASES, PORTION) if case.biased else np.zeros(PORTION)
    overlap = rng.choice(OVERLAPS, PORTION)
    reach = (1 - overlap**2) / 2
    usual = np.clip(rng.normal(CENTRE, WIDTH, PORTION), HALF - reach, HALF + reach)
    truth = torch.from_numpy(usual) if case.usual_truths else None
    worlds = draw_guide_worlds(torch.from_numpy(overlap), generator=generator, truth=truth)
    shift = torch.from_numpy(limit * rng.uniform(-1, 1, PORTION))
    judges = draw_judges(worlds, torch.from_numpy(accuracy), errors=errors, bias=shift)
    verdicts = draw_verdicts(worlds, judges, prompts=LARGEST, generator=generator)[0].numpy()
    dataset = rng.choice(DATASETS, PORTION)
    return Portion(
        verdicts,
        (worlds.truth > HALF).numpy(),
        accuracy,
        np.clip(accuracy + case.accuracy_off_by, 0.51, 1.0),
        limit if case.bias_told else np.zeros(PORTION),
        overlap,
        dataset,
        np.minimum(dataset, rng.choice(BUDGETS, PORTION)),
        rng.random(PORTION) < HALF,
        rng.random(PORTION) < HALF,
    )


def stops(scores: Floats, config: MeasureConfig, dataset: int) -> tuple[Counts, Counts]:
    """Where measurements stop, as `measure_stage` does it, of many worlds at once.

    Args:
        scores: Of the prompts in the order of use, the whole budget. [worlds, prompts].
        config: Its `new_prompts`, `all_prompts` and `confidence` are read.
        dataset: Prompts at hand.

    Returns:
        How many prompts are used, and on which side of ½ the score is found: 1, -1, or 0 for
        neither. [worlds] each.
    """
    budget = scores.shape[1]
    available = None if config.new_prompts else dataset
    level = (1 - config.confidence) / 2
    above, below = (
        rejection_step(each, HALF, available=available, level=level)
        for each in (scores, 1 - scores)
    )
    looks = np.cumsum(list(chunk_sizes(budget, first=config.first_chunk)))
    used, side = (np.zeros(len(scores), dtype=np.int64) for _ in range(2))
    for look in looks[-1:] if config.all_prompts else looks:
        found = np.where(np.minimum(above, below) > look, 0, np.where(above < below, 1, -1))
        if look == available:  # the mean is known
            found = np.sign(scores.sum(1) - HALF * look).astype(np.int64)
        ends = (used == 0) & ((found != 0) | (look == budget))
        used[ends], side[ends] = look, found[ends]
    return used, side


def measure_portion(job: tuple[Case, Errors, Sequence[int]]) -> Calls:
    """Draw fresh worlds and measure each once.

    Args:
        job: As `draw_portion` takes it.

    Returns:
        The calls of the worlds.
    """
    torch.set_num_threads(1)
    portion = draw_portion(*job)
    scores = portion.verdicts.mean((-1, -2))
    used, side = _ends(scores, portion)
    taken = np.arange(LARGEST) < used[:, None]
    mean = (scores * taken).sum(1) / used
    squares = ((scores - mean[:, None]) ** 2 * taken).sum(1)
    tuning = np.where(side == 0, mean >= HALF, side > 0)

    def printed(kind: JudgeErrors) -> Floats:
        above = chance_above_half(
            ScoreSummary(used, mean, squares),
            accuracy=portion.told_accuracy,
            bias=portion.told_bias,
            overlap=portion.overlap,
            errors=kind,
        )
        return np.where(tuning, above, 1.0 - above)

    return Calls(
        printed=printed("unknown"),
        printed_told=printed(KINDS[job[1]]),
        right=tuning == portion.fine_tuning,
        decided=side != 0,
        prompts=used,
        accuracy=portion.accuracy,
        overlap=portion.overlap,
    )


def _ends(scores: Floats, portion: Portion) -> tuple[Counts, Counts]:
    """`stops` of each world in the way that is its own."""
    used, side = (np.zeros(len(scores), dtype=np.int64) for _ in range(2))
    ways = (portion.dataset, portion.budget, portion.new_prompts, portion.all_prompts)
    for way in set(zip(*(each.tolist() for each in ways), strict=True)):
        here = np.all([each == its for each, its in zip(ways, way, strict=True)], axis=0)
        dataset, budget, new, every = way
        config = MeasureConfig(new_prompts=new, all_prompts=every)
        used[here], side[here] = stops(scores[here, :budget], config, dataset)
    return used, side
