"""`advise` as a command and a function: a run folder, the answer, and what more would cost."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefstage.aligning.advice import DEPTHS, Advice, advice_rows
from prefstage.aligning.loop import CONFIG, Tell, Walk, bought, open_workspace
from prefstage.aligning.planning import Plan, PlannedStep
from prefstage.aligning.recipe import Depth, Recipe
from prefstage.aligning.steps import Begun, Estimate, StepRecord, Steps, Workspace
from prefstage.core import (
    Outcome,
    RunFolder,
    markdown_table,
    write_config,
    write_json,
    write_result,
)
from prefstage.judging.base import Judge
from prefstage.judging.loading import PreferenceFunction

RESULT = "advise.json"


@dataclass(frozen=True, kw_only=True)
class Advised(Outcome):
    """What to train on next; its `result` has all figures, as in advise.json.

    Attributes:
        choice: The entry of `advise.candidates` to train on.
        steps: What became of each step in this call.
    """

    choice: str
    steps: tuple[StepRecord, ...]


def advise(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
    judge: Judge | PreferenceFunction | str | None = None,
    depth: Depth | None = None,
    tell: Tell | None = None,
    begun: Begun | None = None,
) -> Advised:
    """Tell which of several data sets a policy should be trained on next.

    At the depth "stage" by the boundary score alone; at "forecast" also by gradients, without
    training; at "pilot" also by short trainings, raced. The same call with another depth goes on
    in the same folder: nothing is sampled, judged or trained twice.

    Args:
        recipe: As for `align`; its section `advise` names the candidates and the depth.
        out: The run folder: as of `align`, with ``advise.json`` in place of ``align.json``.
        judge: Another judge than the recipe's: the judge itself, a function, or a spec.
        depth: Where to stop; None: as the recipe says.
        tell: Called with each step when it is done.
        begun: Called with each step, and 0, as it begins; not if it is reused.

    Returns:
        The answer.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If data, policy or judge cannot be used.
        RunFolderError: If `out` holds something else, or another process works in it.
    """
    folder, out = Path(out), Path(out).absolute()
    space = open_workspace(recipe, out, judge)
    with RunFolder.hold(folder, command="advise", inputs={}), space.opened(None):
        write_config(space.recipe, out / CONFIG)
        steps = Steps(space, tell, begun=begun)
        walk = Walk(space, steps)
        start = space.policy("start", space.recipe.policy)
        result = Advice(walk, start, depth=depth).run()
        deeper = DEPTHS[DEPTHS.index(result["depth"]) + 1 :]
        result["next"] = _cost(space, deeper[0]) if deeper else None
        doubt = "" if result["decided"] else " (too close to call)"
        headline = f"train on {result['choice']}{doubt}: {result['reason']}"
        write_json(out / RESULT, result)
        write_result(
            out,
            "advise",
            headline=headline,
            facts={name: result[name] for name in ("policy", "judge", "depth", "choice")},
            parts=[{"kind": "advise", "iteration": 0, "folder": "."}, *steps.parts],
        )
    table = [] if result["depth"] == "stage" else ["", markdown_table(*advice_rows(result)), ""]
    return Advised(
        summary="\n".join(
            [
                headline,
                *table,
                *_notes(result),
                f"bought: {bought(steps.spent()[0])}",
            ]
        ),
        result=result,
        written=(out / RESULT,),
        choice=result["choice"],
        steps=tuple(steps.records),
    )


def plan_advice(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
    judge: Judge | PreferenceFunction | str | None = None,
    depth: Depth | None = None,
) -> tuple[PlannedStep, ...]:
    """Tell what `advise` would do at most, without doing any of it.

    Args:
        recipe: As for `advise`.
        out: As for `advise`; need not exist.
        judge: As for `advise`.
        depth: As for `advise`.

    Returns:
        The steps in order; a race may end before its last heats. For how costs are estimated see
        `prefstage.aligning.planning.BASIS`.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If data, policy or judge cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        space = open_workspace(recipe, Path(out), judge, quarantine=Path(folder))
        return _planned(space, depth or space.recipe.advise.depth)


def _planned(space: Workspace, depth: Depth) -> tuple[PlannedStep, ...]:
    plan = Plan(space)
    Advice(plan, space.policy("start", space.recipe.policy), depth=depth).run()
    return tuple(plan.planned)


# What another depth would take on top of what is done, at most.
def _cost(space: Workspace, depth: Depth) -> dict[str, Any]:
    total = sum((step.estimate for step in _planned(space, depth)), Estimate())
    return {"depth": depth, **asdict(total)}


def _notes(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if result["depth"] == "pilot" and result["candidates"][0]["pilots"][-1]["seeds"] == 1:
        lines.append("this tells of these trainings; advise.seeds: 2 tells of the recipe")
    if result["target_agreement"] is not None:
        lines.append(
            f"the judged answers to {result['target_prompts']} prompts point one way with cosine "
            f"{result['target_agreement']:.2f} between two halves of them"
        )
    if (cost := result["next"]) is not None:
        lines.append(
            f"--depth {cost['depth']} would take at most {cost['answers']:,} answers, "
            f"{cost['judgments']:,} judgments and {cost['seconds']:,.0f} s of arithmetic more"
        )
    return lines
