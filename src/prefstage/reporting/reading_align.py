"""What an alignment left: every iteration's steps."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from prefstage.aligning.steps import FOLDER, LOG, MANIFEST
from prefstage.aligning.work import ANNOTATIONS, EVALUATION, PAIRS
from prefstage.building.build import RESULT as BUILT
from prefstage.core.files import read_json_lines
from prefstage.reporting.files import read_if_there, read_json, read_manifest
from prefstage.reporting.pairs import PairRows, read_pairs, with_dynamics
from prefstage.reporting.reading_parts import read_decision, read_evaluation, read_training
from prefstage.reporting.results import Built, Decision, Evaluation, Run, StepCost, Training
from prefstage.training.recipe_run import RESULT as TRAINED

TRAIN_SET = "train"


def read_align(folder: Path) -> Run:
    """Read the run folder of `prefstage align`.

    Args:
        folder: The run folder.

    Returns:
        What it holds.
    """
    result = read_json(folder / "align.json")
    costs = tuple(_costs(folder, result))
    decisions, built, trainings = list[Decision](), list[Built](), list[Training]()
    evaluations, pairs = list[Evaluation](), list[PairRows]()
    for row in result["iterations"]:
        number = row["iteration"]
        steps = {role: folder / FOLDER / name for role, name in row["steps"].items()}
        if row["stage"] is not None:
            where = steps.get("measure", folder)
            decisions.append(read_decision(where, row["stage"], iteration=number))
        if _has(steps, "train", TRAINED):
            trainings.append(read_training(steps["train"], iteration=number))
        if _has(steps, "build", BUILT):
            rows = _trained_on(steps["build"] / PAIRS, row, trainings)
            built.append(_built(steps["build"], row, rows))
            pairs += [] if rows is None else [rows]
        if _has(steps, "evaluate", EVALUATION):
            told = read_json(steps["evaluate"] / EVALUATION)
            found = read_evaluation(told, steps["evaluate"] / ANNOTATIONS, iteration=number)
            evaluations.append(found[0])
            pairs += [] if found[1] is None else [found[1]]
    run = Run(
        name=folder.name,
        command="align",
        folder=folder,
        facts=_facts(result),
        iterations=tuple(result["iterations"]),
        decisions=tuple(decisions),
        built=tuple(built),
        trainings=tuple(trainings),
        evaluations=tuple(evaluations),
        costs=costs,
        config=read_if_there(folder / "config.yaml"),
        manifest=read_manifest(folder),
        pairs=tuple(pairs),
    )
    return run


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    bad = [
        f"{each['rows']:,} of {each['of']:,} rows of {name}"
        for name, each in result.get("put_aside", {}).items()
    ]
    return {
        "start": result["start"],
        "judge": result["judge"],
        "schedule": ", ".join(result["schedule"]),
        "reference": "each iteration's start"
        if result["reference"] == "iteration"
        else "fixed: the first iteration's start",
        "ended": result["stopped"],
        "policy": result["policy"],
        **({"put aside as bad": ", ".join(bad)} if bad else {}),
    }


def _has(steps: Mapping[str, Path], role: str, name: str) -> bool:
    return role in steps and (steps[role] / name).is_file()


def _trained_on(path: Path, row: Mapping[str, Any], trainings: list[Training]) -> PairRows | None:
    """An iteration's pairs, with the dynamics of those that were followed."""
    if not path.is_file():
        return None
    rows = read_pairs(path, f"iteration {row['iteration']}: trained on ({row['data']})")
    mine = [each for each in trainings if each.iteration == row["iteration"]]
    dynamics = mine[0].dynamics if mine else None
    if dynamics is None or TRAIN_SET not in dynamics.sets:
        return rows
    table = dynamics.last
    return with_dynamics(rows, table.filter(pc.equal(table["set"], TRAIN_SET)))


def _built(folder: Path, row: Mapping[str, Any], rows: PairRows | None) -> Built:
    gaps = [] if rows is None else [each for each in rows.numbers["gap"] if each is not None]
    return Built(row["iteration"], row["data"], read_json(folder / BUILT), {"": tuple(gaps)})


def _costs(folder: Path, result: Mapping[str, Any]) -> Iterator[StepCost]:
    """What each step of the result took when it was done, each step once."""
    before = [line for line in read_json_lines(folder / LOG) if line["iteration"] == 0]
    names = {line["kind"]: (0, line["step"]) for line in before}  # the last call's
    found = [*names.values()]
    found += [
        (row["iteration"], name) for row in result["iterations"] for name in row["steps"].values()
    ]
    seen = set[str]()
    for iteration, name in found:
        manifest = folder / FOLDER / name / MANIFEST
        if name in seen or not manifest.is_file():
            continue
        seen.add(name)
        told = json.loads(manifest.read_text(encoding="utf-8"))
        yield StepCost(iteration, name, told["kind"], float(told["seconds"]), told["costs"])
