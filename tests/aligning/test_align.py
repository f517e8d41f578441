"""The loop: what runs, what is used again, and what each schedule trains on."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefstage.aligning import Aligned, align, load_recipe
from prefstage.aligning.loop import choose
from prefstage.aligning.recipe import Rule
from prefstage.core.errors import RunFolderError
from prefstage.core.runs import locked
from prefstage.measuring import Stage
from tests.aligning.tiny_world import settings


def did(aligned: Aligned) -> dict[str, set[str]]:
    """Kinds of steps by what became of them."""
    found: dict[str, set[str]] = {}
    for record in aligned.steps:
        found.setdefault(record.did, set()).add(record.kind)
    return found


@pytest.fixture(scope="module")
def once(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations: off, then on."""
    out = tmp_path_factory.mktemp("runs") / "run"
    aligned = align(settings(world, schedule=["off", "on"]), out=out)
    assert did(aligned) == {"ran": {"sample", "measure", "build", "train", "evaluate"}}
    return out


@pytest.fixture
def run(once: Path, tmp_path: Path) -> Path:
    """A copy of that run, to change."""
    return Path(shutil.copytree(once, tmp_path / "run"))


def test_results_say_what_happened(once: Path) -> None:
    result = json.loads((once / "align.json").read_text())
    assert [row["data"] for row in result["iterations"]] == ["off", "on"]
    assert result["stopped"] == "all iterations done"
    for row in result["iterations"]:
        assert row["training"]["steps"] == 3
        assert row["evaluation"]["prompts"] == 6
        assert row["stage"]["prompts_used"] <= 8
        assert 0 < row["pairs"] <= 12
    assert (Path(result["policy"]) / "model.safetensors").exists()
    assert not list((once / "steps").glob(".*"))
    assert not list((once / "steps").glob("*/checkpoints"))


def test_the_same_call_does_nothing_again(run: Path, world: Path) -> None:
    before = (run / "align.json").read_bytes()
    again = align(settings(world, schedule=["off", "on"]), out=run)
    assert set(did(again)) == {"reused"}
    names = ("iterations", "costs", "stopped")
    old = json.loads(before)
    assert {name: again.result[name] for name in names} == {name: old[name] for name in names}


def test_another_beta_trains_and_evaluates_again(run: Path, world: Path) -> None:
    changed = settings(world, schedule="off", iterations=1)
    changed["train"]["loss"]["beta"] = 0.5
    again = did(align(changed, out=run))
    assert again["ran"] == {"train", "sample", "evaluate"}  # its own held-out answers
    assert again["reused"] == {"measure", "build", "sample"}


def test_another_judge_does_again_what_it_judged(run: Path, world: Path) -> None:
    judge = "python:tests.aligning.judges:shorter"
    again = align(settings(world, schedule=["on"], iterations=1, judge=judge), out=run)
    assert {"measure", "build", "train", "evaluate"} <= did(again)["ran"]
    assert did(again)["reused"] == {"sample"}


def test_a_shorter_run_uses_a_longer_one(run: Path, world: Path) -> None:
    again = align(settings(world, schedule="off", iterations=1), out=run)
    assert set(did(again)) == {"reused"}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("kind", "file", "harm", "why"),
    [
        ("build", "pairs.parquet", Path.unlink, "pairs.parquet is missing"),
        ("train", "model/model.safetensors", alter, "model.safetensors has changed since"),
        ("measure", "stage.json", cut_short, "bytes instead of"),
        ("evaluate", "step.json", Path.unlink, "step.json is missing"),
    ],
)
def test_a_damaged_result_is_made_anew_and_said(
    run: Path, world: Path, *, kind: str, file: str, harm: Callable[[Path], Any], why: str
) -> None:
    before = json.loads((run / "align.json").read_text())
    harm(run / "steps" / before["iterations"][0]["steps"][kind] / file)
    again = align(settings(world, schedule=["off", "on"]), out=run)
    assert Counter(record.did for record in again.steps)["remade"] == 1
    (remade,) = [record for record in again.steps if record.did == "remade"]
    assert remade.kind == kind
    assert why in str(remade.why)
    assert set(did(again)) == {"remade", "reused"}
    assert again.result["iterations"] == before["iterations"]


def test_two_processes_in_one_folder_are_refused(run: Path, world: Path) -> None:
    with locked(run), pytest.raises(RunFolderError, match="in use by another process"):
        align(settings(world, schedule=["off", "on"]), out=run)


def test_another_folder_is_left_alone(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not a run folder"):
        align(settings(world), out=tmp_path)


@pytest.mark.parametrize(
    "schedule", ["auto", "per-prompt", {"mix": 0.5}, {"other": "policy"}], ids=str
)
def test_every_schedule_trains(world: Path, tmp_path: Path, schedule: Any) -> None:
    if isinstance(schedule, dict) and "other" in schedule:
        schedule = {"other": str(world / "policy")}
    given = settings(world, schedule=schedule, iterations=1, evaluate=None)
    (row,) = align(given, out=tmp_path / "run").result["iterations"]
    assert row["training"]["steps"] == 3
    assert row["pairs"] > 0


def test_candidates_sft_lora_and_a_fixed_reference(world: Path, tmp_path: Path) -> None:
    given = settings(world, off_policy=str(world / "candidates.jsonl"), schedule="off")
    given |= {"measure": False, "reference": "fixed"}
    given["train"] |= {"lora": {"r": 2}}
    training = given["train"]["training"]
    given["sft"] = {"data": str(world / "pairs.jsonl"), "training": training}
    aligned = align(given, out=tmp_path / "run")
    assert Path(aligned.policy).name == "merged"
    assert Counter(record.kind for record in aligned.steps)["sft"] == 1
    assert [row["stage"] for row in aligned.result["iterations"]] == [None, None]


@pytest.mark.parametrize(
    ("rules", "told", "iterations"),
    [
        ({"judgments": 1}, "budget of 1 judgments reached in iteration 1", 1),
        ({"tokens": 1}, "budget of 1 tokens reached before iteration 1", 0),
        ({"hours": 1e-9}, "hours reached before iteration 1", 0),
    ],
)
def test_stop_rules_end_the_run(
    run: Path, world: Path, rules: dict[str, Any], told: str, iterations: int
) -> None:
    result = align(settings(world, schedule=["off", "on"], stop=rules), out=run).result
    assert told in result["stopped"]
    assert len(result["iterations"]) == iterations


def test_no_gain_ends_the_run(world: Path, tmp_path: Path) -> None:
    given = settings(world, schedule="off", iterations=3, stop={"no_gain": True})
    given["train"]["training"] |= {"learning_rate": 1e-12}  # nothing changes, so nothing is won
    result = align(given, out=tmp_path / "run").result
    assert result["iterations"][0]["evaluation"]["win_rate"] == 50
    assert result["stopped"] == "no gain in iteration 1"


def stage_of(run: Path, **changed: Any) -> Stage:
    values = json.loads((run / "align.json").read_text())["iterations"][0]["stage"]
    return Stage.from_dict({**values, **changed})


@pytest.mark.parametrize(
    ("stage", "plain", "data"),
    [
        ("injection", "injection", "off"),
        ("fine-tuning", "fine-tuning", "on"),
        ("undecided", "injection", "off"),
        ("undecided", "fine-tuning", "on"),
    ],
)
def test_auto_follows_the_stage(once: Path, stage: str, plain: str, data: str) -> None:
    found = stage_of(once, stage=stage, algorithm_1=plain)
    assert choose(Rule("auto"), found)[0].kind == data
    assert choose(Rule("on"), found) == (Rule("on"), "fixed by the schedule")


def test_seeds_reach_every_part(world: Path) -> None:
    recipe = load_recipe(settings(world, seed=7))
    assert recipe.seeded(recipe.sampling).seed == 7
    own = load_recipe(settings(world, seed=7, sampling={"seed": 3}))
    assert own.seeded(own.sampling).seed == 3
