"""What a dry run knows of the labels that a judge would replace; it asks the judge nothing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefstage.aligning.inputs import Inputs
from prefstage.aligning.results import REVERSAL_SETTING
from prefstage.building.account import REVERSAL_LIMIT, Account, describe_reversal, is_excessive
from prefstage.building.relabelling import reversal_of, whole_pairs
from prefstage.core.ledger import Ledger
from prefstage.data.records import Pair
from prefstage.judging.base import (
    Comparison,
    Judge,
    Judgment,
    judgment_of_rewards,
)
from prefstage.judging.judged import comparison_of, stored_judgment, stored_reward


def planned_reversal(
    built: Mapping[str, Any] | None, *, inputs: Inputs, judge: Judge, store: Path
) -> str:
    """Say how often a judge reverses labels, as far as that was bought before.

    Args:
        built: What the step found that replaced the labels, as of `Reversal.as_dict`; None
            if it has not run.
        inputs: The recipe's data.
        judge: Who would be asked.
        store: The run's judgments; need not exist.

    Returns:
        The figure, of all pairs or of those judged so far, and what follows from it; or that
        it will be measured.
    """
    accepted = inputs.recipe.build.accept_reversal
    rule = (
        f"accepted whatever it is ({REVERSAL_SETTING})"
        if accepted
        else f"above {100 * REVERSAL_LIMIT:.0f} % the run stops before it trains, unless "
        f"{REVERSAL_SETTING} is true"
    )
    found, seen = built, ""
    if found is None and store.exists():
        found = reversal_of(_known(inputs, judge, store)).as_dict()
        judged = sum(found[name] for name in ("kept", "reversed", "equal", "unreadable"))
        seen = f"of {judged} of {len(inputs.off_pairs)} pairs judged so far, "
    if found is None or found["share"] is None:
        return f"how often the judge reverses labels is measured before it replaces them; {rule}"
    if is_excessive(found) and not accepted and not seen:
        rule = f"the run stops here before it trains; set {REVERSAL_SETTING}: true to go on"
    return f"{seen}{describe_reversal(found)}; {rule}"


def _known(inputs: Inputs, judge: Judge, path: Path) -> Iterator[tuple[Pair, Judgment]]:
    with Ledger(path) as ledger:
        for pair in whole_pairs(inputs.off_pairs, Account()):
            known = _lookup(ledger, judge, comparison_of(pair))
            if known is not None:
                yield pair, known


def _lookup(ledger: Ledger, judge: Judge, asked: Comparison) -> Judgment | None:
    """A judgment that is on file; a judge that is paid by the reply has none but replies."""
    if not judge.pointwise:
        return stored_judgment(judge.fingerprint, asked, ledger)
    items = [(asked.prompt, text) for text in (asked.a, asked.b)]
    first, second = (stored_reward(judge.fingerprint, item, ledger) for item in items)
    return None if first is None or second is None else judgment_of_rewards(first, second)
