"""Quality tiers: best, high, medium, low and worst of a prompt's responses."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from prefstage.building.account import Account
from prefstage.building.built import Group
from prefstage.building.choosing import Scored, built_of, usable_responses
from prefstage.core.errors import InputError
from prefstage.data.records import Candidates

Tier = Literal["best", "high", "medium", "low", "worst"]
TIERS: tuple[Tier, ...] = ("best", "high", "medium", "low", "worst")
COMBINATIONS = (
    *("best/worst", "best/low", "best/medium", "best/high"),
    *("low/worst", "medium/worst", "high/worst"),
)
"""Chosen/rejected of Table 1: the best chosen fixed, then the worst rejected fixed."""


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
    if len(responses) < len(TIERS):
        raise InputError.of(
            saw=f"{len(responses)} responses",
            expected=f"at least {len(TIERS)}, one a tier",
            cure="add responses (more samples, other sources), or use best-vs-worst",
        )
    last = len(responses) - 1
    steps = len(TIERS) - 1
    return {
        tier: responses[(number * last + steps // 2) // steps] for number, tier in enumerate(TIERS)
    }


def parse_combination(text: str) -> tuple[Tier, Tier]:
    """Read "chosen/rejected".

    Args:
        text: Two tiers, the better one first.

    Returns:
        The tiers.

    Raises:
        InputError: If it names no two tiers in this order.
    """
    names = {str(tier): tier for tier in TIERS}
    parts = [names.get(part.strip().lower()) for part in text.split("/")]
    first, second = parts if len(parts) == 2 else (None, None)  # noqa: PLR2004 - two sides
    if first is None or second is None or TIERS.index(first) >= TIERS.index(second):
        raise InputError.of(
            saw=f"combination {text!r}",
            expected=f"CHOSEN/REJECTED, the better of {', '.join(TIERS)} first",
            cure="write it as best/worst",
        )
    return first, second


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
            built_of(row, *pair, method="tiers", part=text.replace("/", "-"), judge=judge_name)
            for text, pair in pairs.items()
        ]
