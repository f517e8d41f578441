"""The decision guide: worlds of every truth, judges of known accuracy, how often they are right."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from prefstage.measuring.reliability import ScoreSummary, chance_above_half
from prefstage.sandbox.theory.evidence import (
    Evidence,
    Figure,
    Finding,
    Setting,
    check,
    curve,
    equality,
    rule,
)
from prefstage.sandbox.theory.stage_calls import expected_score, wins_of
from prefstage.sandbox.theory.worlds import (
    HALF,
    ROUNDING,
    draw_responses,
    draw_worlds,
    generator_of,
    normal,
    products,
    uniform,
    verdict,
)

Errors = Literal["any pair", "close pairs"]
"""Where a judge errs: in all comparisons alike, or because it misreads the responses' quality."""

A_KIND = 2  # responses that both sides give, and that one of them gives alone
PROMPTS = 80
UNEVEN = 2.0  # largest spread between prompts of how much better a side is
SIZES = (10, 25, 50, 100, 200, 400)
ACCURACIES = (0.55, 0.6, 0.7, 0.8, 0.9, 1.0)
OVERLAPS = (0.0, 0.5, 0.8)
EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
TOLERANCE = 0.02
_SHIFT_REACH = 20.0
_NOISE_REACH = 1000.0
_HALVINGS = 26


@dataclass(frozen=True)
class GuideWorlds:
    """Worlds with a known true boundary score; the last axis holds common responses, then own.

    Attributes:
        on: π_θ. [worlds, prompts, responses].
        off: π_off. [worlds, prompts, responses].
        on_quality: True quality of the policy's responses. [worlds, prompts, responses].
        off_quality: Of the other side's; equal to the former where the response is common.
    """

    on: Tensor
    off: Tensor
    on_quality: Tensor
    off_quality: Tensor

    @cached_property
    def gap(self) -> Tensor:
        """How much better y_i is than y'_j. [worlds, prompts, responses, responses]."""
        return self.on_quality[..., :, None] - self.off_quality[..., None, :]

    @cached_property
    def truth(self) -> Tensor:
        """The exact boundary score. [worlds]."""
        return (products(self.on, self.off) * verdict(self.gap)).sum((-1, -2)).mean(-1)


@dataclass(frozen=True)
class Judges:
    """A judge for each world.

    Attributes:
        errors: Where they err.
        accuracy: P(right) in a comparison of two different responses. [worlds].
        bias: Half the difference between the accuracies on the two sides; where a judge errs
            in close pairs it has none. [worlds].
        noise: Standard deviation of the misreading, where it errs in close pairs. [worlds].
    """

    errors: Errors
    accuracy: Tensor
    bias: Tensor
    noise: Tensor


def draw_guide_worlds(
    overlap: Tensor, *, generator: torch.Generator, truth: Tensor | None = None
) -> GuideWorlds:
    """Draw worlds in which every true boundary score that the overlap allows is equally likely.

    Args:
        overlap: Share of responses that both sides give. [worlds].
        generator: Of all draws.
        truth: Boundary scores wanted instead. [worlds].

    Returns:
        The worlds; their prompts differ in how much better a side is, by a spread of 0 to 2
        standard deviations of a response's quality.
    """
    count = len(overlap)
    drawn = partial(normal, generator, count, PROMPTS)
    common, ours, theirs = (drawn(A_KIND).softmax(-1) for _ in range(3))
    share = overlap[:, None, None]
    on, off = (torch.cat([share * common, (1 - share) * side], -1) for side in (ours, theirs))
    tilt = UNEVEN * uniform(generator, count, 1, 1) * drawn(1)
    shared, first, second = drawn(3 * A_KIND).chunk(3, -1)
    draw = uniform(generator, count)
    wanted = HALF + (1 - overlap**2) / 2 * (2 * draw - 1) if truth is None else truth

    def world(shift: Tensor) -> GuideWorlds:
        moved = tilt + shift[:, None, None]
        return GuideWorlds(
            on, off, *(torch.cat([shared, side], -1) for side in (first + moved, second - moved))
        )

    reach = torch.full((count,), _SHIFT_REACH, dtype=torch.float64)
    return world(_bisected(-reach, reach, lambda shift: world(shift).truth >= wanted))


def draw_judges(
    worlds: GuideWorlds, accuracy: Tensor, *, errors: Errors, bias: Tensor | None = None
) -> Judges:
    """Judges of these accuracies in the comparisons of these worlds.

    Args:
        worlds: What they judge.
        accuracy: Wanted. [worlds], in (½, 1].
        errors: Where they err.
        bias: For judges that err in any pair; none if None. [worlds].

    Returns:
        The judges.
    """
    none = torch.zeros_like(accuracy)
    if errors == "any pair":
        return Judges(errors, accuracy, none if bias is None else bias, none)
    weight = products(worlds.on, worlds.off) * (worlds.gap != 0)
    weight = weight / weight.sum((-1, -2, -3), keepdim=True)

    def too_noisy(noise: Tensor) -> Tensor:
        # The difference of two misreadings has √2 times the spread of one.
        share: Tensor = (
            weight * torch.special.ndtr(worlds.gap.abs() / (2**0.5 * noise[:, None, None, None]))
        ).sum((-1, -2, -3))
        return share <= accuracy

    noise = _bisected(none, none + _NOISE_REACH, too_noisy)
    return Judges(errors, accuracy, none, torch.where(accuracy == 1, 0.0, noise))


def draw_verdicts(
    worlds: GuideWorlds, judges: Judges, *, prompts: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh prompts, 2 responses of each side, and what the judge says to each comparison.

    Args:
        worlds: Drawn from with replacement.
        judges: One a world.
        prompts: How many prompts of each world.
        generator: Of all draws.

    Returns:
        The verdicts, 1 for the policy's response, 0 for the other, ½ for the same response.
        [worlds, prompts, 2, 2]. And which responses these were: of the policy and of the
        other side. [worlds, prompts, 2]; below 2 a common one.
    """
    rows = torch.arange(len(worlds.on))[:, None]
    asked = torch.randint(PROMPTS, (len(rows), prompts), generator=generator)
    ours, theirs = (draw_responses(side, asked, generator) for side in (worlds.on, worlds.off))
    first, second = (
        quality[rows[..., None], asked[..., None], drawn]
        for quality, drawn in ((worlds.on_quality, ours), (worlds.off_quality, theirs))
    )
    gap = first[..., :, None] - second[..., None, :]
    if judges.errors == "any pair":
        a, b = (value[:, None, None, None] for value in (judges.accuracy, judges.bias))
        judged = torch.where(gap > 0, a + b, 1 - a + b).bernoulli(generator=generator)
    else:
        first, second = (
            quality + judges.noise[:, None, None] * normal(generator, *quality.shape)
            for quality in (first, second)
        )
        judged = verdict(first[..., :, None] - second[..., None, :])
    return torch.where(gap == 0, HALF, judged), ours, theirs


def _bisected(low: Tensor, high: Tensor, enough: Callable[[Tensor], Tensor]) -> Tensor:
    # The least value of each world at which `enough` says so.
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = enough(middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high


@dataclass(frozen=True)
class Bin:
    """Calls of about the same printed reliability.

    Attributes:
        low: Of the printed reliability.
        high: Likewise; the last bin includes it.
        calls: How many.
        printed: Mean printed reliability.
        right: Share of right calls.
    """

    low: float
    high: float
    calls: int
    printed: float
    right: float

    @property
    def difference(self) -> float:
        """Printed minus right."""
        return self.printed - self.right


def binned(printed: Tensor, right: Tensor) -> list[Bin]:
    """Compare printed reliabilities with how often the calls were right.

    Args:
        printed: Of each call; below ½ counts in the first bin. [calls].
        right: Whether it was. [calls].

    Returns:
        The bins that hold a call.
    """
    number = torch.bucketize(printed, torch.tensor(EDGES[1:-1], dtype=printed.dtype), right=True)
    bins = []
    for i, edges in enumerate(pairwise(EDGES)):
        inside = number == i
        if inside.any():
            bins.append(
                Bin(
                    *edges,
                    int(inside.sum()),
                    *(float(values[inside].double().mean()) for values in (printed, right)),
                )
            )
    return bins


def called(
    verdicts: Tensor, accuracy: Tensor, *, overlap: Tensor, bias: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """The call by all verdicts and its printed reliability.

    Args:
        verdicts: Of `draw_verdicts`.
        accuracy: Of the judges, as the measurement is told. [worlds].
        overlap: Likewise.
        bias: Likewise, its largest value.

    Returns:
        Whether the call is fine-tuning, and its reliability. [worlds] each.
    """
    scores = verdicts.mean((-1, -2))
    mean = scores.mean(-1)
    above = torch.from_numpy(
        chance_above_half(
            ScoreSummary(
                scores.shape[-1], mean.numpy(), (scores - mean[:, None]).square().sum(-1).numpy()
            ),
            accuracy=accuracy.numpy(),
            overlap=overlap.numpy(),
            bias=bias.numpy() if isinstance(bias, Tensor) else bias,
        )
    )
    return mean >= HALF, torch.where(mean >= HALF, above, 1 - above)


@check(
    "stage-guide",
    "TwoStage, arXiv:2508.10530, Algorithm 1; the reliability is ours",
    "The reliability that a measurement prints is the chance that its call is right.",
    "Where every true boundary score that the overlap allows is equally likely beforehand, "
    "the judge's accuracy in these comparisons is as told, its errors favour neither side "
    "beyond the bias told, and of such judges one half errs in all comparisons alike and "
    "the other in close ones, as long as it is not told which.",
    draw=Setting,
)
def _guide(setting: Setting) -> Evidence:
    generator = generator_of(setting.seed)
    accuracy = torch.tensor(ACCURACIES, dtype=torch.float64)
    accuracy = accuracy.repeat(setting.worlds // len(ACCURACIES) + 1)[: setting.worlds]
    overlap = uniform(generator, setting.worlds)
    worlds = draw_guide_worlds(overlap, generator=generator)
    printed, right = [], []
    for errors in ("any pair", "close pairs"):
        verdicts, *_ = draw_verdicts(
            worlds,
            draw_judges(worlds, accuracy, errors=errors),
            prompts=SIZES[-1],
            generator=generator,
        )
        for size in SIZES:
            tuning, reliability = called(verdicts[:, :size], accuracy, overlap=overlap)
            printed.append(reliability)
            right.append(tuning == (worlds.truth > HALF))
    curves = [
        curve(
            f"judge right in {wanted:.0%}",
            list(SIZES),
            [values[accuracy == wanted].mean() for values in printed[: len(SIZES)]],
        )
        for wanted in ACCURACIES
    ]
    bins = binned(torch.cat(printed), torch.cat(right))
    error = sum(b.calls * abs(b.difference) for b in bins) / sum(b.calls for b in bins)
    return Evidence(
        [
            *_bounds(setting, generator),
            Finding("printed reliability against the share of right calls, mean difference",
                    "calibration", error, f"<= {TOLERANCE}", setting.worlds, error <= TOLERANCE),
        ],
        Figure("Expected reliability of a stage call", "prompts", "right calls", curves, log="x"),
    )  # fmt: skip


def _bounds(setting: Setting, generator: torch.Generator) -> list[Finding]:
    table = draw_worlds(setting.worlds, seed=setting.seed + 1, prompts=1, responses=6)
    policy, off, wins = table.log_policy, table.log_reference, wins_of(table)
    a = HALF + uniform(generator, setting.worlds) / 2
    b = (1 - a) * (2 * uniform(generator, setting.worlds) - 1)
    # One response against itself is a tie, whoever judges.
    better, worse = (v[:, None, None, None] for v in (a + b, 1 - a + b))
    for_on = torch.where(wins > HALF, better, worse)
    seen = expected_score(
        for_on.masked_fill(torch.eye(wins.shape[-1], dtype=torch.bool), HALF), policy, off
    )
    shared = torch.minimum(policy.exp(), off.exp()).sum(-1).mean(-1)
    from_half = expected_score(wins, policy, off) - HALF
    return [
        rule("|BS - ½| <= (1 - overlap²)/2", from_half.abs() - (1 - shared**2) / 2 > ROUNDING),
        equality("a judge of accuracies a ± b on the sides sees ½ + (2a-1)(BS-½) + b(1-same)",
                 seen - (HALF + (2 * a - 1) * from_half
                         + b * (1 - (policy + off).exp().sum(-1).mean(-1)))),
    ]  # fmt: skip


CHECKS = (_guide,)
