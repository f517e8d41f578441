"""`prefstage theory`: the papers' statements, checked on random worlds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefstage.cli.manners import Outcome, mannered, say

if TYPE_CHECKING:
    from prefstage.sandbox.theory import Checked


@mannered
def theory(
    checks: Annotated[
        list[str] | None,
        typer.Argument(help="Checks, or beginnings of their names: `data`, `stage-5.4`. [all]"),
    ] = None,
    *,
    worlds: Annotated[int, typer.Option(min=100, help="Random worlds a check.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other worlds.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for `theory.json` and the figures.")
    ] = None,
    figures: Annotated[bool, typer.Option(help="Draw a figure for each check, with --out.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Check the papers' theorems, exactly, on random worlds.

    Prompts and responses are few, policies and preferences explicit, and every expectation is
    a sum. An equality must hold to 1e-10, an inequality without exception, an approximation
    with its order; where a statement is false as printed, its counterexamples are counted.
    """
    from prefstage.sandbox.theory.chapter import choose_checks, result_of, run_checks
    from prefstage.sandbox.theory.evidence import Setting

    setting = Setting(worlds, seed)
    done = run_checks(choose_checks(checks or []), setting, out=out, figures=figures)
    result = result_of(done, setting)
    failed = [each.check.name for each in done if not each.holds]
    text = "\n".join(_told(each) for each in done)
    verdict = f"not as expected: {', '.join(failed)}" if failed else "all as expected"
    end = f"\n{len(done)} checks on {worlds:,} worlds: {verdict}. {result['seconds']:.0f} seconds."
    written = [each.picture for each in done if each.picture]
    written += [out / "theory.json"] if out else []
    say(Outcome(f"{text}\n{end}", result, written), as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _told(checked: "Checked") -> str:
    words = {
        "equality": "equal to {:.1e}",
        "rule": "{:.0f} exceptions",
        "order": "order {:.2f}",
        "calibration": "within {:.1%}",
        "counterexample": "FALSE in {:.0%} of the worlds",
    }
    lines = [f"{checked.check.name}  {checked.check.statement}"]
    for finding in checked.evidence.findings:
        told = words[finding.kind].format(finding.value)
        mark = "" if finding.holds else f"  NOT as expected ({finding.wanted})"
        lines.append(f"  {told:<32} {finding.claim}{mark}")
    return "\n".join(lines)
