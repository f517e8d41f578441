"""Pairs that can teach something: both sides there, different, and with readable scores."""

import math
from collections.abc import Iterable, Iterator

from prefstage.building.account import Account
from prefstage.data.records import Pair
from prefstage.judging.texts import content_of


def whole_pairs(pairs: Iterable[Pair], account: Account) -> Iterator[Pair]:
    """Leave out pairs that no method can use, each counted.

    Args:
        pairs: The pairs; those that are read from files have both sides.
        account: Where what is left out is counted, also as read.

    Yields:
        Pairs with text or a tool call on both sides, not twice the same, whose scores (if
        any) are finite numbers.
    """
    for pair in pairs:
        reason = _why_not(pair)
        if reason is None:
            yield pair
        else:
            account.prompts += 1
            account.skip(reason, pair.prompt_id)


def _why_not(pair: Pair) -> str | None:
    if not all(any(map(_says, side)) for side in (pair.chosen, pair.rejected)):
        return "pair without one of its sides"
    if pair.chosen == pair.rejected:
        return "pair with the same text on both sides"
    scores = (pair.score_chosen, pair.score_rejected)
    if any(score is not None and not math.isfinite(score) for score in scores):
        return "pair whose score is no finite number"
    return None


def _says(message: object) -> bool:
    """Whether a message has text, or calls a tool."""
    return isinstance(message, dict) and bool(
        content_of(message).strip() or message.get("tool_calls")
    )
