"""Several datasets on the same prompts: quality tiers, and gap x quality."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from prefstage.building.account import Account, Group
from prefstage.building.choosing import Choice, Scored, built_of, usable_responses
from prefstage.building.recipe import COMBINATIONS, TIERS, Tier, parse_combination
from prefstage.core import InputError
from prefstage.data.records import Candidates

PARTS = ("LG-HQ", "LG-LQ", "SG-HQ", "SG-LQ", "LG-HQ-inv", "SG-HQ-inv")
# Default small gap over large gap; 1.34 over 3.54 in the paper's Table 3.
SMALL_TO_LARGE = 0.4
# Default tolerance of matched gap means, of the large gap.
TOLERANCE = 0.05

_MINIMUM = 4
_ROUNDS = 50
_NO_PROMPT = {
    "saw": "no prompt with four usable responses of different scores",
    "expected": "prompts with at least four scored responses",
    "cure": "add responses, or score those that are there with --judge",
}


def quality_tiers(responses: Sequence[Scored]) -> dict[Tier, Scored]:
    """The response of each tier: those at ranks 0, ¼, ½, ¾ and 1 of the way down.

    Args:
        responses: At least five, best first.

    Returns:
        One response a tier; they are five different ones.

    Raises:
        InputError: If there are fewer than five.

    Source:
        arXiv:2508.18312, §5.1 (five responses of varying quality a prompt); evenly spread
        ranks where there are more are ours.
    """
    InputError.unless(
        len(responses) >= len(TIERS),
        saw=f"{len(responses)} responses",
        expected=f"at least {len(TIERS)}, one a tier",
        cure="add responses (more samples, other sources), or use best-vs-worst",
    )
    last, steps = len(responses) - 1, len(TIERS) - 1
    return {
        tier: responses[(number * last + steps // 2) // steps] for number, tier in enumerate(TIERS)
    }


def tier_pairs(
    rows: Iterable[Candidates],
    combinations: Sequence[str] = COMBINATIONS,
    *,
    account: Account,
    judge_name: str | None = None,
) -> Iterator[Group]:
    """Build one dataset a combination of tiers, all on the same prompts.

    Args:
        rows: Prompts with at least five responses each; others are counted and left out.
        combinations: As `parse_combination` reads them; each becomes a part.
        account: Counts what was read, built and left out.
        judge_name: Whose scores they are.

    Yields:
        The pairs of each prompt, one a combination. A prompt is in every part or in none:
        one whose tiers tie in some combination is left out.

    Source:
        arXiv:2508.18312, §5.1, Table 1.
    """
    wanted = {text: parse_combination(text) for text in combinations}
    for row in rows:
        account.prompts += 1
        responses = usable_responses(row, account)
        if len(responses) < len(TIERS):
            account.skip("prompt with fewer than 5 usable responses", row.prompt_id)
            continue
        tiers = quality_tiers(responses)
        pairs = {text: (tiers[better], tiers[worse]) for text, (better, worse) in wanted.items()}
        if any(better.score == worse.score for better, worse in pairs.values()):
            account.skip("prompt whose tiers have equal scores", row.prompt_id)
            continue
        account.pairs += len(pairs)
        yield [
            built_of(row, pair, method="tiers", part=text.replace("/", "-"), judge=judge_name)
            for text, pair in pairs.items()
        ]


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
    large, small, tolerance = _targets(rows, large_gap, small_gap, tolerance)
    # Two passes over the rows instead of a list of choices: of millions of prompts, four gaps
    # each are kept (eight bytes a number), not their texts.
    numbers = array("d")
    for row in rows():
        choices = _choices(usable_responses(row, Account()), large, small)
        numbers.extend(a.score - b.score for a, b in choices or ())
    InputError.unless(numbers, **_NO_PROMPT)
    gaps = np.frombuffer(numbers).reshape(-1, 4)
    kept = match_means(gaps, tolerance)
    means = gaps[kept].mean(0).tolist()
    account.figures |= {
        "large_gap_target": large,
        "small_gap_target": small,
        "gap_tolerance": tolerance,
        "large_gap_means": means[:2],
        "small_gap_means": means[2:],
    }
    keeps = iter(kept)
    for row in rows():
        account.prompts += 1
        choices = _choices(usable_responses(row, account), large, small)
        if choices is None:
            account.skip("prompt without pairs for all six sets", row.prompt_id)
        elif not next(keeps):
            account.skip("prompt left out to match the gap means", row.prompt_id)
        else:
            account.pairs += len(PARTS)
            six = [*choices, (choices[0][0], choices[2][1]), (choices[2][0], choices[3][1])]
            yield [
                built_of(row, pair, method="gap-quality", part=part, judge=judge_name)
                for part, pair in zip(PARTS, six, strict=True)
            ]


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
    apart = gaps[:, ::2] - gaps[:, 1::2]  # HQ less LQ, of LG and of SG
    # Leaving a prompt out for one level moves the means of the other, hence the rounds.
    for _ in range(_ROUNDS):
        means = apart[kept].mean(0)
        worst = int(np.abs(means).argmax())
        if abs(means[worst]) <= tolerance:
            return kept
        rows = np.flatnonzero(kept)
        pull = np.sign(means[worst]) * apart[rows, worst]
        order = np.argsort(-pull, kind="stable")
        # left[k] is the sum without the k prompts that pull most: one cumulative sum tries every k.
        left = pull.sum() - np.concatenate([[0.0], np.cumsum(pull[order])[:-1]])
        fine = np.flatnonzero(left / np.arange(len(pull), 0, -1) <= tolerance)
        if not len(fine):
            break
        kept[rows[order[: fine[0]]]] = False
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
) -> tuple[float, float, float]:
    """Gap of LG pairs, gap of SG pairs, and how far the gap means of a level may be apart."""
    if large is None:
        usable = (usable_responses(row, Account()) for row in rows())
        reach = array("d", (r[_half(r)].score - r[-1].score for r in usable if len(r) >= _MINIMUM))
        large = float(np.median(reach)) if reach else 0.0
        InputError.unless(large > 0, **_NO_PROMPT)
    small = SMALL_TO_LARGE * large if small is None else small
    tolerance = TOLERANCE * large if tolerance is None else tolerance
    InputError.unless(
        0 < small < large and tolerance > 0,
        saw=f"large_gap={large:g}, small_gap={small:g}, tolerance={tolerance:g}",
        expected="0 < small_gap < large_gap, and a tolerance above 0",
        cure="leave them out to take them from the scores",
    )
    return large, small, tolerance


def _half(responses: Sequence[Scored]) -> int:
    return (len(responses) + 1) // 2  # where the worse half begins


def _choices(responses: Sequence[Scored], large: float, small: float) -> list[Choice] | None:
    """The pairs of LG-HQ, LG-LQ, SG-HQ and SG-LQ, or None if the prompt lacks one."""
    pairs = [
        (position, a, b)
        for (position, a), (_, b) in combinations(enumerate(responses), 2)
        if a.score > b.score
    ]
    high = [(a, b) for position, a, b in pairs if position < _half(responses)]
    low = [(a, b) for position, a, b in pairs if position >= _half(responses)]
    if len(responses) < _MINIMUM or not high or not low:
        return None
    large_high, large_low = _nearest(high, large), _nearest(low, large)
    small_low = _nearest(low, small)
    # The counterfactuals need a gap of their own: LG-HQ's chosen above SG-HQ's rejected, and
    # SG-HQ's chosen above SG-LQ's rejected.
    below = [
        (a, b) for a, b in high if b.score < large_high[0].score and a.score > small_low[1].score
    ]
    if not below:
        return None
    return [large_high, large_low, _nearest(below, small), small_low]


def _nearest(pairs: Sequence[Choice], gap: float) -> Choice:
    return min(pairs, key=lambda pair: abs(pair[0].score - pair[1].score - gap))
