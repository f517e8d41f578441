"""Gap x quality: sets that differ in how good the chosen response is, or in how far apart."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from prefstage.building.account import Account
from prefstage.building.built import Group
from prefstage.building.choosing import Scored, built_of, usable_responses
from prefstage.core.errors import InputError
from prefstage.data.records import Candidates

PARTS = ("LG-HQ", "LG-LQ", "SG-HQ", "SG-LQ", "LG-HQ-inv", "SG-HQ-inv")
SMALL_TO_LARGE = 0.4
"""Default small gap over large gap; 1.34 over 3.54 in the paper's Table 3."""
TOLERANCE = 0.05
"""Default tolerance of matched gap means, of the large gap."""

_LEVELS = {"large": (0, 1), "small": (2, 3)}
_MINIMUM = 4
_ROUNDS = 50


@dataclass(frozen=True)
class GapTargets:
    """What gaps are aimed at.

    Attributes:
        large: Gap of LG pairs, > 0, in units of the score.
        small: Gap of SG pairs, in (0, large).
        tolerance: How far the gap means of the two sets of a level may be apart, > 0.
    """

    large: float
    small: float
    tolerance: float


_Choice = tuple[Scored, Scored]


def gap_quality_pairs(
    rows: Callable[[], Iterable[Candidates]],
    *,
    account: Account,
    large_gap: float | None = None,
    small_gap: float | None = None,
    tolerance: float | None = None,
    judge_name: str | None = None,
) -> Iterator[Group]:
    """Build LG-HQ, LG-LQ, SG-HQ, SG-LQ and both counterfactuals on the same prompts.

    High quality takes its chosen response from the better half of the prompt's responses,
    low quality from the worse half; in each the pair whose gap is nearest to the target is
    taken. Then prompts are left out, counted, until within each level the two gap means are
    at most `tolerance` apart. LG-HQ-inv has LG-HQ's chosen and SG-HQ's rejected responses,
    SG-HQ-inv has SG-HQ's chosen and SG-LQ's rejected ones.

    Args:
        rows: Gives the prompts with their scored responses; called three times at most.
        account: Counts what was read, built and left out; its figures get the targets and
            the gap means that were reached.
        large_gap: Target of LG, in units of the score; None for the median over prompts of
            the largest gap that low quality allows.
        small_gap: Target of SG; None for 0.4 of the large one.
        tolerance: None for 0.05 of the large gap.
        judge_name: Whose scores they are.

    Yields:
        Six pairs a prompt, in the order of `PARTS`.

    Raises:
        InputError: If the targets are not in order, no prompt has four usable responses of
            different scores, or the means cannot be matched.

    Source:
        arXiv:2508.18312, §5.2, Table 3, and the caption of Table 5. How gaps are matched is
        not published; this way is ours.
    """
    targets = _targets(rows, large_gap, small_gap, tolerance)
    gaps = _gaps(rows, targets)
    kept = match_means(gaps, targets.tolerance)
    account.figures |= _figures(targets, gaps[kept])
    keeps = iter(kept)
    for row in rows():
        account.prompts += 1
        choices = _choices(usable_responses(row, account), targets)
        if choices is None:
            account.skip("prompt without pairs for all six sets", row.prompt_id)
            continue
        if not next(keeps):
            account.skip("prompt left out to match the gap means", row.prompt_id)
            continue
        account.pairs += len(PARTS)
        yield _group(row, choices, judge_name)


def match_means(gaps: np.ndarray[Any, Any], tolerance: float) -> np.ndarray[Any, Any]:
    """Which prompts to keep so that the gap means of each level agree.

    Where a level's means are apart, the prompts that pull them apart most are left out,
    as few as are needed.

    Args:
        gaps: Gap of the LG-HQ, LG-LQ, SG-HQ and SG-LQ pair of each prompt. [prompts, 4].
        tolerance: How far the means of a level may be apart, > 0.

    Returns:
        Whether each prompt is kept. [prompts].

    Raises:
        InputError: If no prompt would be left.
    """
    kept = np.ones(len(gaps), dtype=bool)
    apart = np.stack([gaps[:, first] - gaps[:, second] for first, second in _LEVELS.values()], 1)
    for _ in range(_ROUNDS):
        means = apart[kept].mean(0)
        worst = int(np.abs(means).argmax())
        if abs(means[worst]) <= tolerance:
            return kept
        places = np.flatnonzero(kept)
        pull = np.sign(means[worst]) * apart[places, worst]
        order = np.argsort(-pull, kind="stable")
        left = pull.sum() - np.concatenate([[0.0], np.cumsum(pull[order])[:-1]])
        fine = np.flatnonzero(left / np.arange(len(pull), 0, -1) <= tolerance)
        if not len(fine):
            break
        kept[places[order[: fine[0]]]] = False
    raise InputError.of(
        saw=f"gap means {abs(means[worst]):.3g} apart, which leaving prompts out cannot bring "
        f"within {tolerance:.3g}",
        expected="prompts whose better and worse halves allow like gaps",
        cure="raise tolerance, or choose large_gap and small_gap nearer to what the scores allow",
    )


def _targets(
    rows: Callable[[], Iterable[Candidates]],
    large: float | None,
    small: float | None,
    tolerance: float | None,
) -> GapTargets:
    if large is None:
        reach = array("d")
        for row in rows():
            responses = usable_responses(row, Account())
            if len(responses) >= _MINIMUM:
                reach.append(responses[_half(responses)].score - responses[-1].score)
        large = float(np.median(reach)) if reach else 0.0
        if large <= 0:
            raise _nothing()
    small = SMALL_TO_LARGE * large if small is None else small
    tolerance = TOLERANCE * large if tolerance is None else tolerance
    if not 0 < small < large or tolerance <= 0:
        raise InputError.of(
            saw=f"large_gap={large:g}, small_gap={small:g}, tolerance={tolerance:g}",
            expected="0 < small_gap < large_gap, and a tolerance above 0",
            cure="leave them out to take them from the scores",
        )
    return GapTargets(large, small, tolerance)


def _gaps(rows: Callable[[], Iterable[Candidates]], targets: GapTargets) -> np.ndarray[Any, Any]:
    """Gap of the LG-HQ, LG-LQ, SG-HQ and SG-LQ pair of each prompt that has them. [prompts, 4]."""
    found = array("d")  # eight bytes a number, however many prompts
    for row in rows():
        choices = _choices(usable_responses(row, Account()), targets)
        found.extend(a.score - b.score for a, b in choices or ())
    if not found:
        raise _nothing()
    return np.frombuffer(found).reshape(-1, 4)


def _half(responses: Sequence[Scored]) -> int:
    """Place of the first response of the worse half."""
    return (len(responses) + 1) // 2


def _choices(responses: Sequence[Scored], targets: GapTargets) -> list[_Choice] | None:
    """The pairs of LG-HQ, LG-LQ, SG-HQ and SG-LQ, or None if the prompt lacks one."""
    if len(responses) < _MINIMUM:
        return None
    half = _half(responses)
    pairs = [
        (place, a, b)
        for (place, a), (_, b) in combinations(enumerate(responses), 2)
        if a.score > b.score
    ]
    high = [(a, b) for place, a, b in pairs if place < half]
    low = [(a, b) for place, a, b in pairs if place >= half]
    if not high or not low:
        return None
    large_high, large_low = _nearest(high, targets.large), _nearest(low, targets.large)
    below = [pair for pair in high if pair[1].score < large_high[0].score]
    small_low = _nearest(low, targets.small)
    below = [pair for pair in below if pair[0].score > small_low[1].score]
    if not below:
        return None
    return [large_high, large_low, _nearest(below, targets.small), small_low]


def _group(row: Candidates, choices: Sequence[_Choice], judge_name: str | None) -> Group:
    """The four pairs and the two counterfactuals made of their responses."""
    six = [*choices, (choices[0][0], choices[2][1]), (choices[2][0], choices[3][1])]
    return [
        built_of(row, *pair, method="gap-quality", part=part, judge=judge_name)
        for part, pair in zip(PARTS, six, strict=True)
    ]


def _nearest(pairs: Sequence[_Choice], gap: float) -> _Choice:
    return min(pairs, key=lambda pair: abs(pair[0].score - pair[1].score - gap))


def _figures(targets: GapTargets, gaps: np.ndarray[Any, Any]) -> dict[str, Any]:
    means = gaps.mean(0)
    return {
        "large_gap_target": targets.large,
        "small_gap_target": targets.small,
        "gap_tolerance": targets.tolerance,
        "large_gap_means": [float(means[0]), float(means[1])],
        "small_gap_means": [float(means[2]), float(means[3])],
    }


def _nothing() -> InputError:
    return InputError.of(
        saw="no prompt with four usable responses of different scores",
        expected="prompts with at least four scored responses",
        cure="add responses, or score those that are there with --judge",
    )
