"""All checks together: run them, tell what was found."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prefstage.core.errors import InputError
from prefstage.core.files import write_json
from prefstage.sandbox.theory import (
    data_dpo,
    guide,
    iterating,
    rankings,
    sgdpo,
    shared_features,
    stage_call,
    two_stage,
)
from prefstage.sandbox.theory.evidence import Check, Evidence, Setting
from prefstage.sandbox.theory.figures import draw_figure, figure_name

CHECKS: dict[str, Check] = {
    check.name: check
    for module in (
        two_stage,
        stage_call,
        shared_features,
        guide,
        data_dpo,
        rankings,
        sgdpo,
        iterating,
    )
    for check in module.CHECKS
}
RESULT = "theory.json"


@dataclass(frozen=True)
class Checked:
    """A check that was run.

    Attributes:
        check: The statement.
        evidence: What was found.
        seconds: How long it took.
        picture: Its figure's file, if it was drawn.
    """

    check: Check
    evidence: Evidence
    seconds: float
    picture: Path | None

    @property
    def holds(self) -> bool:
        """Whether every finding is as it should be."""
        return all(finding.holds for finding in self.evidence.findings)

    def as_dict(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "name": self.check.name,
            "source": self.check.source,
            "statement": self.check.statement,
            "valid": self.check.valid,
            "holds": self.holds,
            "findings": [asdict(finding) for finding in self.evidence.findings],
            "figure": asdict(self.evidence.figure),
            "picture": self.picture.name if self.picture else None,
            "seconds": round(self.seconds, 2),
        }


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
        if not any(each.startswith(name) for each in CHECKS):
            near = get_close_matches(name, CHECKS, n=1, cutoff=0.0)[0]
            raise InputError.of(
                saw=f"check {name!r}",
                expected=f"one of {', '.join(CHECKS)}, or the beginning of some",
                cure=f"the nearest is {near!r}; leave the name out for all",
            )
    chosen = [each for each in CHECKS if not names or each.startswith(tuple(names))]
    return [CHECKS[name] for name in chosen]


def run_checks(
    checks: Sequence[Check],
    setting: Setting,
    *,
    out: Path | None = None,
    figures: bool = True,
    tell: Callable[[Checked], None] = lambda checked: None,
) -> list[Checked]:
    """Run checks, draw their figures, write the result.

    Args:
        checks: Which.
        setting: Number of worlds, and the seed.
        out: Folder for figures and `theory.json`; None writes nothing.
        figures: Whether to draw.
        tell: Called after each check.

    Returns:
        What was found, in order.

    Raises:
        MissingDependencyError: If figures are wanted without matplotlib.
    """
    done = []
    for check in checks:
        started = time.monotonic()
        evidence = check.run(setting)
        picture = None
        if out is not None and figures:
            out.mkdir(parents=True, exist_ok=True)
            picture = draw_figure(evidence.figure, out / figure_name(check.name))
        checked = Checked(check, evidence, time.monotonic() - started, picture)
        done.append(checked)
        tell(checked)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / RESULT, result_of(done, setting))
    return done


def result_of(done: Sequence[Checked], setting: Setting) -> dict[str, Any]:
    """The chapter for machines.

    Args:
        done: The checks that were run.
        setting: How.

    Returns:
        JSON-serialisable.
    """
    return {
        "worlds": setting.worlds,
        "seed": setting.seed,
        "holds": all(each.holds for each in done),
        "seconds": round(sum(each.seconds for each in done), 1),
        "checks": [each.as_dict() for each in done],
    }


def as_table(done: Sequence[Checked]) -> str:
    """A Markdown table of all findings, as in the documentation.

    Args:
        done: The checks that were run.

    Returns:
        The table.
    """
    rows = ["| check | claim | kind | found | wanted |", "|---|---|---|---|---|"]
    rows += [
        f"| {each.check.name} | {finding.claim.replace('|', chr(92) + '|')} | {finding.kind} | "
        f"{finding.value:.3g}{'' if finding.holds else ' (FAILS)'} | {finding.wanted} |"
        for each in done
        for finding in each.evidence.findings
    ]
    return "\n".join(rows)
