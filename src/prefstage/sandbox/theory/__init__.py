"""Statements of the papers, each as a check that runs on random tabular worlds."""

from collections.abc import Sequence
from difflib import get_close_matches

from prefstage.core import InputError
from prefstage.sandbox.theory import (
    first_order,
    guide,
    optima,
    rankings,
    stage_calls,
    two_stage,
)
from prefstage.sandbox.theory.evidence import (
    Check,
    Checked,
    Evidence,
    Finding,
    Setting,
    outcome_of,
    run_checks,
)
from prefstage.sandbox.theory.two_stage import consistency, general_policy
from prefstage.sandbox.theory.worlds import Worlds, draw_worlds, preference_of

CHECKS: dict[str, Check] = {
    check.name: check
    for checks in (
        two_stage.CHECKS,
        stage_calls.CHECKS,
        guide.CHECKS,
        optima.DATA_CHECKS,
        rankings.CHECKS,
        optima.SAMPLING_CHECKS,
        first_order.CHECKS,
    )
    for check in checks
}
"""Every check by its name, in the chapter's order."""

__all__ = [
    "CHECKS",
    "Check",
    "Checked",
    "Evidence",
    "Finding",
    "Setting",
    "Worlds",
    "choose_checks",
    "consistency",
    "draw_worlds",
    "general_policy",
    "outcome_of",
    "preference_of",
    "run_checks",
]


def choose_checks(names: Sequence[str]) -> list[Check]:
    """The checks of these names, or all.

    Args:
        names: Names of checks, or beginnings of names; none means all.

    Returns:
        The checks in the chapter's order.

    Raises:
        InputError: If a name is the beginning of none.
    """
    for name in names:
        InputError.unless(
            any(known.startswith(name) for known in CHECKS),
            saw=f"check {name!r}",
            expected=f"one of {', '.join(CHECKS)}, or the beginning of some",
            cure=f"the nearest is {get_close_matches(name, CHECKS, cutoff=0.0)[0]!r}; "
            "leave the name out for all",
        )
    return [c for name, c in CHECKS.items() if not names or name.startswith(tuple(names))]
