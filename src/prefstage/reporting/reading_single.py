"""What the other commands left: train, measure, build, evaluate, diagnose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from prefstage.core.errors import PrefstageError
from prefstage.data.loading import load_pairs
from prefstage.judging.base import plain_prompt
from prefstage.reporting.files import read_if_there, read_json, read_manifest
from prefstage.reporting.pairs import PairRows, answer_text, read_pairs, with_dynamics
from prefstage.reporting.reading_parts import read_decision, read_evaluation, read_training
from prefstage.reporting.results import Built, Evaluation, Run


def read_train(folder: Path) -> Run:
    """Read the run folder of `prefstage train`; its pairs too, if they are where they were.

    Args:
        folder: The run folder.

    Returns:
        What it holds.
    """
    training = read_training(folder, iteration=1)
    result, config = training.result, read_if_there(folder / "config.yaml")
    pairs, lacks = list[PairRows](), list[tuple[str, str]]()
    settings = yaml.safe_load(config) or {}
    named = {"train": settings.get("data"), **(settings.get("eval") or {})}
    if training.dynamics is not None:
        for name, source in named.items():
            table = training.dynamics.last
            mine = table.filter(pc.equal(table["set"], name))
            if not mine.num_rows or not source:
                continue
            found = _followed(source, mine, f"{name}: followed pairs")
            if isinstance(found, str):
                lacks.append((f"the texts of the followed pairs ({name})", found))
            else:
                pairs.append(found)
    return Run(
        name=folder.name,
        command="train",
        folder=folder,
        facts={"policy": str(result["policy"]), "loss": _loss(result), "data": _path(settings)},
        trainings=(training,),
        config=config,
        manifest=read_manifest(folder),
        pairs=tuple(pairs),
        lacks=tuple(lacks),
    )


def _followed(source: Mapping[str, Any], dynamics: pa.Table, part: str) -> PairRows | str:
    """The pairs whose dynamics were recorded, or why they cannot be shown."""
    try:
        rows = load_pairs(**{"source": source["path"], **_reading(source)})
    except PrefstageError as error:
        return f"{source['path']} cannot be read any more: {error}"
    places, ids = dynamics["pair"].to_pylist(), dynamics["prompt_id"].to_pylist()
    if any(each >= len(rows) for each in places) or any(
        rows[place].prompt_id != name for place, name in zip(places, ids, strict=True)
    ):
        return f"{source['path']} holds other pairs than those that were trained on"
    pairs = [rows[place] for place in places]
    scores = [(each.score_chosen, each.score_rejected) for each in pairs]
    gaps = [None if a is None or b is None else a - b for a, b in scores]
    votes = [None if each.agreement is None else 1.0 - each.agreement for each in pairs]
    texts = {
        "prompt": [plain_prompt(each.prompt) for each in pairs],
        "chosen": [answer_text(each.chosen) for each in pairs],
        "rejected": [answer_text(each.rejected) for each in pairs],
    }
    names = {
        "source_chosen": [each.source_chosen for each in pairs],
        "source_rejected": [each.source_rejected for each in pairs],
    }
    found = PairRows(part, texts, {"gap": gaps, "disagreement": votes}, names)
    renumbered = dynamics.set_column(
        dynamics.column_names.index("pair"), "pair", pa.array(range(len(pairs)))
    )
    return with_dynamics(found, renumbered)


def _reading(source: Mapping[str, Any]) -> dict[str, Any]:
    names = ("format", "columns", "labels", "split", "on_bad_row", "quarantine_file")
    return {name: source[name] for name in names if source.get(name)}


def _loss(result: Mapping[str, Any]) -> str:
    loss = result["loss"]
    terms = loss if isinstance(loss, list) else [loss]
    return " + ".join(_term(each) if isinstance(each, Mapping) else str(each) for each in terms)


def _term(term: Mapping[str, Any]) -> str:
    beta = term.get("beta")
    return f"{term['name']}{'' if beta is None else f' (β {beta:g})'}"


def _path(settings: Mapping[str, Any]) -> str:
    data = settings.get("data") or {}
    return str(data.get("path", data) if isinstance(data, Mapping) else data)


def read_measure(folder: Path) -> Run:
    """Read the run folder of `prefstage measure`, or where its stage.json stands.

    Args:
        folder: The folder.

    Returns:
        What it holds.
    """
    stage = read_json(folder / "stage.json")
    return Run(
        name=folder.name,
        command="measure",
        folder=folder,
        facts={"policy": stage["policy"], "judge": stage["judge"]},
        decisions=(read_decision(folder, stage, iteration=1),),
        config=read_if_there(folder / "config.yaml"),
        manifest=read_manifest(folder),
    )


def read_build(folder: Path) -> Run:
    """Read the run folder of `prefstage build`.

    Args:
        folder: The run folder.

    Returns:
        What it holds.
    """
    result = read_json(folder / "build.json")
    pairs, gaps = list[PairRows](), dict[str, tuple[float, ...]]()
    for part, splits in result["parts"].items():
        for split in splits:
            path = folder / part / f"{split}.parquet"
            if not path.is_file():
                continue
            rows = read_pairs(path, f"{part}, {split}")
            pairs.append(rows)
            known = tuple(each for each in rows.numbers["gap"] if each is not None)
            gaps[part] = gaps.get(part, ()) + known
    facts = {"method": result["method"], "source": result["source"], "judge": result["judge"]}
    return Run(
        name=folder.name,
        command="build",
        folder=folder,
        facts={name: str(value) for name, value in facts.items() if value},
        built=(Built(1, result["method"], result, gaps),),
        config=read_if_there(folder / "config.yaml"),
        manifest=read_manifest(folder),
        pairs=tuple(pairs),
    )


def read_evaluate(folder: Path) -> Run:
    """Read the run folder of `prefstage evaluate`.

    Args:
        folder: The run folder.

    Returns:
        What it holds.
    """
    results = read_json(folder / "results.json")["results"]
    evaluations, pairs = list[Evaluation](), list[PairRows]()
    for place, result in enumerate(results.values()):
        annotations = folder / f"model-{place}" / "annotations.json"
        found = read_evaluation(result, annotations, iteration=place + 1)
        evaluations.append(found[0])
        pairs += [] if found[1] is None else [found[1]]
    first = evaluations[0].result
    return Run(
        name=folder.name,
        command="evaluate",
        folder=folder,
        facts={"baseline": first["baseline"], "judge": first["judge"]},
        evaluations=tuple(evaluations),
        manifest=read_manifest(folder),
        pairs=tuple(pairs),
    )


def read_diagnose(folder: Path) -> Run:
    """Read the folder of `prefstage diagnose`.

    Args:
        folder: The folder.

    Returns:
        What it holds.
    """
    report = read_json(folder / "report.json")
    return Run(
        name=folder.name,
        command="diagnose",
        folder=folder,
        facts={"datasets": ", ".join(each["dataset"] for each in report["diagnoses"])},
        diagnoses=tuple(report["diagnoses"]),
        manifest=read_manifest(folder),
    )
