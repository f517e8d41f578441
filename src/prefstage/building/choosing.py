"""From a prompt's scored responses to pairs: which two meet, by choice, by tier or by gap."""

import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any

import numpy as np

from prefstage.building.account import Account, Choice, Group, Scored, built_of
from prefstage.building.recipe import ACCEPTED, BETA, COMBINATIONS, TIERS, Tier, parse_combination
from prefstage.building.statistics import PairStatistics
from prefstage.core import InputError, seed_for
from prefstage.data.records import Candidates

# Picks (chosen, rejected) from a prompt's responses, best first; none to leave it out.
Choose = Callable[[Candidates, Sequence[Scored]], list[Choice]]


def usable_responses(row: Candidates, account: Account) -> list[Scored]:
    """The prompt's responses that can be compared by score, best first.

    Responses without a score, with one that is no finite number, without text, or with the
    text of a better-scored one are left out and counted. Equal scores keep their order.

    Args:
        row: The prompt with its candidates.
        account: Where what is left out is counted.

    Returns:
        The responses, best first.
    """
    by_text: dict[str, Scored] = {}
    for position, (text, source, score) in enumerate(
        zip(row.responses, row.sources, row.scores, strict=True)
    ):
        number = math.nan if score is None else float(score)
        faults = {
            "empty response": not text.strip(),
            "response without a score": score is None,
            "response whose score is no finite number": not math.isfinite(number),
        }
        if account.passes(row.prompt_id, faults):
            if text in by_text:
                account.skip("response with the text of another of the prompt", row.prompt_id)
            if text not in by_text or by_text[text].score < number:
                by_text[text] = Scored(text, number, source, position)
    return sorted(by_text.values(), key=lambda response: (-response.score, response.position))


def pairs_by_choice(
    rows: Iterable[Candidates],
    choose: Choose,
    *,
    method: str,
    account: Account,
    judge_name: str | None = None,
    minimum_gap: float = 0.0,
) -> Iterator[Group]:
    """Build the pairs of each prompt by one way of choosing.

    Args:
        rows: Prompts with scored responses.
        choose: Which responses meet.
        method: Its name, for the provenance.
        account: Counts what was read, built and left out.
        judge_name: Whose scores they are; None for the dataset's.
        minimum_gap: Score of chosen less score of rejected at least, >= 0; equal scores
            never make a pair, whatever it is.

    Yields:
        The pairs of each prompt that has some.
    """
    for row in rows:
        account.prompts += 1
        responses = usable_responses(row, account)
        faults = {
            "prompt without a usable response": not responses,
            "prompt with one usable response": len(responses) == 1,
            "prompt whose scores are all equal": len({r.score for r in responses}) == 1,
        }
        if not account.passes(row.prompt_id, faults):
            continue
        chosen = choose(row, responses)
        wide = [(a, b) for a, b in chosen if a.score > b.score and a.score - b.score >= minimum_gap]
        account.skip("pair with too small a gap", row.prompt_id, len(chosen) - len(wide))
        account.pairs += len(wide)
        if wide:
            yield [built_of(row, pair, method=method, judge=judge_name) for pair in wide]


def best_vs_worst(row: Candidates, responses: Sequence[Scored]) -> list[Choice]:
    """The best response against the worst: the largest gap that the prompt has."""
    return [(responses[0], responses[-1])]


def best_vs_second(row: Candidates, responses: Sequence[Scored]) -> list[Choice]:
    """The best response against the next one that scores less."""
    return [(responses[0], next(r for r in responses if r.score < responses[0].score))]


def best_vs_random(row: Candidates, responses: Sequence[Scored], *, seed: int) -> list[Choice]:
    """The best response against a random one of those that score less.

    Args:
        row: The prompt.
        responses: Its responses, best first.
        seed: Of the choice, which depends on it and the prompt alone.

    Returns:
        The two.
    """
    lower = [response for response in responses if response.score < responses[0].score]
    draw = random.Random(seed_for(seed, "best-vs-random", row.prompt_id))
    return [(responses[0], draw.choice(lower))]


def all_pairs(row: Candidates, responses: Sequence[Scored], *, k: int | None) -> list[Choice]:
    """Every pair of the k best responses: k(k - 1)/2 pairs.

    Args:
        row: The prompt.
        responses: Its responses, best first.
        k: How many responses, >= 2; None for all.

    Returns:
        The pairs; equal scores make none, as `pairs_by_choice` counts.
    """
    return list(combinations(responses[:k], 2))


def rejection_sample(
    scores: Sequence[float], *, count: int = ACCEPTED, beta: float = BETA, draw: random.Random
) -> list[int]:
    """Accept responses by reward until there are enough.

    Round by round over those that are left: y is accepted if ``u < exp((r(y) - r_max)/β)``,
    u uniform in [0, 1) and r_max the greatest reward left, so that every round accepts.

    Args:
        scores: r of each response. [responses], finite.
        count: How many to accept, >= 1; all if there are fewer.
        beta: β > 0; small prefers the best, large takes any.
        draw: Random numbers.

    Returns:
        Positions of the accepted responses, in the order of acceptance.

    Raises:
        InputError: If a setting is out of range.

    Source:
        Liu et al. 2024, arXiv:2309.06657, §3.2 and Algorithm 1 (App. A.1).
    """
    InputError.unless(
        count >= 1 and beta > 0,
        saw=f"count={count}, beta={beta}",
        expected="count >= 1 and beta > 0",
        cure="raise them",
    )
    left, accepted = list(range(len(scores))), list[int]()
    while left and len(accepted) < count:
        greatest = max(scores[index] for index in left)
        passing = (i for i in left if draw.random() < math.exp((scores[i] - greatest) / beta))
        accepted += islice(passing, count - len(accepted))  # no number is drawn beyond the last
        left = [index for index in left if index not in accepted]
    return accepted


def rejection_pairs(
    row: Candidates,
    responses: Sequence[Scored],
    *,
    accepted: int = ACCEPTED,
    beta: float = BETA,
    seed: int = 0,
) -> list[Choice]:
    """Pairs of accepted responses: paired at random, each response once, the better chosen.

    Args:
        row: The prompt.
        responses: Its responses, best first.
        accepted: Responses accepted a prompt (the paper: 8 of 64).
        beta: As for `rejection_sample`.
        seed: Of acceptance and pairing, with the prompt.

    Returns:
        The pairs.

    Source:
        arXiv:2309.06657, §3.3, "first-round-rank".
    """
    draw = random.Random(seed_for(seed, "rejection-sampling", row.prompt_id))
    order = rejection_sample(
        [response.score for response in responses], count=accepted, beta=beta, draw=draw
    )
    draw.shuffle(order)
    return [
        (responses[min(pair)], responses[max(pair)])
        for pair in zip(order[::2], order[1::2], strict=False)
    ]


# --- Several datasets on the same prompts: quality tiers, and gap x quality -----------------------

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
        equal = any(better.score == worse.score for better, worse in pairs.values())
        if account.passes(row.prompt_id, {"prompt whose tiers have equal scores": equal}):
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


# Gap of LG pairs, gap of SG pairs, and how far the gap means of a level may be apart.
def _targets(
    rows: Callable[[], Iterable[Candidates]],
    large: float | None,
    small: float | None,
    tolerance: float | None,
) -> tuple[float, float, float]:
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


# The pairs of LG-HQ, LG-LQ, SG-HQ and SG-LQ, or None if the prompt lacks one.
def _choices(responses: Sequence[Scored], large: float, small: float) -> list[Choice] | None:
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


def gap_warnings(account: Account, statistics: Mapping[str, PairStatistics]) -> list[str]:
    """What filters may have undone of matched gap means.

    Args:
        account: Of the build, with the tolerance.
        statistics: Figures of each part, after the filters.

    Returns:
        A note a level whose means are apart.
    """
    tolerance = account.figures.get("gap_tolerance", math.inf)
    means = {part: figures.average_difference or 0.0 for part, figures in statistics.items()}
    apart = {
        level: abs(means.get(f"{level}-HQ", 0.0) - means.get(f"{level}-LQ", 0.0))
        for level in ("LG", "SG")
    }
    return [
        f"after filters the {level} gap means are {value:.3g} apart, more than the tolerance "
        f"of {tolerance:.3g}"
        for level, value in apart.items()
        if value > tolerance
    ]
