"""A page of what each other command left, made by that command; its figures are the run's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.sandbox import World
from tests.aligning.tiny_world import JUDGE, settings
from tests.reporting.reading_pages import Read, read_page


def typed(*words: object, code: int = 0) -> dict[str, Any]:
    """Give a command, and take what it prints as JSON."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def reported(tmp_path: Path) -> Callable[[Path], Read]:
    """`prefstage report` on a folder."""

    def report(folder: Path) -> Read:
        typed("report", folder, "--out", tmp_path / "page.html")
        return read_page(tmp_path / "page.html")

    return report


def recipe_file(folder: Path, given: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def test_train(world: Path, tmp_path: Path, reported: Callable[[Path], Read]) -> None:
    recipe = {
        **{"policy": str(world / "policy"), "data": str(world / "pairs.jsonl")},
        **settings(world)["train"],
        "dynamics": {"every": 1, "distance": False},
    }
    result = typed("train", recipe_file(tmp_path, recipe), "--out", tmp_path / "trained")
    page = reported(tmp_path / "trained")
    assert page.sections() == [
        *("overview", "training", "dynamics", "diversity", "explorer", "configuration")
    ]
    for name in ("train_loss", "first_loss", "last_loss"):
        assert f"{result[name]:.4g}" in page.text
    values = page.charts()["loss"]["data"][0]["values"]
    assert values[0]["loss"] == pytest.approx(result["first_loss"])
    table, texts = page.pairs()
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    assert table["pairs"] == len(rows)
    assert {row["chosen"][-1]["content"] for row in rows} <= set(texts)
    assert all(each is not None for each in table["columns"]["ratio"])


def test_measure(world: Path, tmp_path: Path, reported: Callable[[Path], Read]) -> None:
    stage = typed(
        *("measure", "--policy", world / "policy", "--off-policy", world / "pairs.jsonl"),
        *("--judge", JUDGE, "--max-new-tokens", 12, "--out", tmp_path / "measured"),
    )
    page = reported(tmp_path / "measured")
    assert page.sections() == ["overview", "decision", "configuration", "lacking"]
    assert f"{stage['boundary_score']:.3f}" in page.text
    assert f"[{stage['interval'][0]:.3f}, {stage['interval'][1]:.3f}]" in page.text
    last = page.charts()["interval"]["data"][0]["values"][-1]
    assert last["prompts"] == stage["prompts_used"]
    assert last["score"] == pytest.approx(stage["boundary_score"], abs=1e-6)
    assert "a measurement keeps votes and own answers, not pairs" in page.text


def test_build(world: Path, tmp_path: Path, reported: Callable[[Path], Read]) -> None:
    recipe = {"candidates": str(world / "candidates.jsonl"), "judge": JUDGE}
    recipe |= {"method": "best-vs-worst"}
    result = typed("build", recipe_file(tmp_path, recipe), "--out", tmp_path / "built")
    page = reported(tmp_path / "built")
    assert page.sections() == ["overview", "pairs", "explorer", "configuration"]
    (statistics,) = result["statistics"].values()
    table, _ = page.pairs()
    assert table["pairs"] == statistics["pairs"] == result["pairs_built"]
    gaps = [each for each in table["columns"]["gap"] if each is not None]
    assert sum(gaps) / len(gaps) == pytest.approx(statistics["average_difference"], abs=1e-3)
    assert f"{statistics['average_difference']:.4g}" in page.text


def one_answer_each(path: Path, place: int) -> Path:
    """Candidates with one answer to each prompt, by one writer."""
    rows = [
        {
            "prompt": list(row.prompt),
            "responses": [row.responses[place]],
            "sources": [path.stem],
        }
        for row in World(0).candidates(12, responses=2)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_evaluate(tmp_path: Path, reported: Callable[[Path], Read]) -> None:
    ours, theirs = (one_answer_each(tmp_path / f"{name}.jsonl", k) for k, name in enumerate("ab"))
    found = typed(
        *("evaluate", "--answers", ours, "--baseline", theirs, "--judge", JUDGE),
        *("--out", tmp_path / "evaluated"),
    )
    page = reported(tmp_path / "evaluated")
    assert page.sections()[:3] == ["overview", "evaluation", "diversity"]
    (result,) = found["results"].values()
    rates = result["rates"]
    assert f"{rates['win_rate']:.1f} %" in page.text
    assert f"{rates['wins']} : {rates['losses']} : {rates['draws']}" in page.text
    assert f"[{rates['interval'][0]:.1f}, {rates['interval'][1]:.1f}]" in page.text
    table, texts = page.pairs()
    assert table["pairs"] == rates["n_total"]
    assert {json.loads(line)["responses"][0] for line in ours.read_text().splitlines()} <= {*texts}


def test_diagnose(world: Path, tmp_path: Path, reported: Callable[[Path], Read]) -> None:
    found = typed(
        *("diagnose", "--pairs", f"mine={world / 'pairs.jsonl'}", "--policy", world / "policy"),
        *("--judge", JUDGE, "--out", tmp_path / "diagnosed"),
    )
    page = reported(tmp_path / "diagnosed")
    assert page.sections() == ["overview", "diagnosis-1-1", "configuration", "lacking"]
    (diagnosis,) = found["diagnoses"]
    markdown = (tmp_path / "diagnosed" / "report.md").read_text()
    cells = {
        cell.strip()
        for line in markdown.splitlines()
        if line.startswith("| ")
        for cell in line.strip("|").split(" | ")
        if any(mark.isdigit() for mark in cell)
    }
    assert len(cells) > 10
    missing = [cell for cell in cells if " ".join(cell.split()) not in page.text]
    assert missing == []
    assert diagnosis["dataset"] in page.text
    for warning in diagnosis["warnings"]:
        told = f"Warning: {warning['what']} ({warning['figure']}). Remedy: {warning['remedy']}."
        assert " ".join(told.split()) in page.text


def test_experiment(world: Path, tmp_path: Path, reported: Callable[[Path], Read]) -> None:
    table = {"kind": "stages", "title": "Both", "by": ["loss"], "columns": ["true reward"]}
    data = tmp_path / "pairs.jsonl"
    data.write_text((world / "pairs.jsonl").read_text() + '{"prompt": "Why?"}\n')
    recipe = {**settings(world), "off_policy": str(data), "on_bad_row": "quarantine"}
    grid = {
        "recipe": {**recipe, "iterations": 1},
        "axes": {"loss": {"DPO": {"train.loss": "sigmoid"}}, "schedule": ["off", "on"]},
        "metrics": {"true reward": "python:prefstage.sandbox:true_reward"},
        "tables": {"full": table},
    }
    found = typed("experiment", recipe_file(tmp_path, grid), "--out", tmp_path / "grid")
    page = reported(tmp_path / "grid")
    assert page.sections()[:2] == ["overview", "table-1-full"]
    assert "2 done" in page.text
    assert "1 of 13 rows of off_policy (in 2 of 2 cells)" in page.text
    printed = (tmp_path / "grid" / "tables" / "full.md").read_text()
    rows = [
        line.strip("| \n").split(" | ")
        for line in printed.splitlines()
        if "±" in line or "PC" in line
    ]
    assert rows
    for row in rows:
        assert [cell for cell in row if cell != "-" and cell not in page.text] == []
    agreement = found["agreement"]["full"]["means"]
    values = page.charts()["advantage-table-1-full"]["data"][0]["values"]
    assert [(each["where"], each["score"]) for each in values] == [
        (each["where"], each["boundary_score"]) for each in agreement["starts"]
    ]
    assert f"{agreement['ratio']['p_value']:.3g}" in page.text
    cell = tmp_path / "grid" / "cells" / "loss=DPO,schedule=off"
    assert "iterations" in reported(cell).sections()


def test_advise(world: Path, tmp_path: Path, reported: Callable[[Path], Read]) -> None:
    section = {"target_prompts": 8, "responses": 2, "pairs": 8}
    recipe = settings(world, off_policy=str(world / "many.jsonl"), advise=section)
    words = ("advise", recipe_file(tmp_path, recipe), "--out", tmp_path / "advised")
    result = typed(*words, "--depth", "forecast")
    page = reported(tmp_path / "advised")
    assert page.sections()[:2] == ["overview", "advice"]
    assert result["reason"] in page.text
    assert result["depth"] == "forecast"
    for candidate in result["candidates"]:
        assert f"{100 * candidate['forecast']['gain']:+.3g} [" in page.text
