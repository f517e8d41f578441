"""What people pass from Python: paths as text, specs, functions, and nonsense."""

from pathlib import Path
from typing import Any

import pytest

from prefstage.aligning import align, load_recipe, plan_alignment, run_experiment
from prefstage.core.errors import ConfigError, InputError
from prefstage.sandbox import true_preference
from tests.aligning.tiny_world import JUDGE, settings


def short(world: Path) -> dict[str, Any]:
    given = settings(world, schedule="off", iterations=1, measure=False, evaluate=None)
    given["train"]["training"]["max_steps"] = 1
    return given


def test_a_folder_by_its_name_and_a_judge_by_its_spec(world: Path, tmp_path: Path) -> None:
    done = align(short(world), out=str(tmp_path / "run"), judge=JUDGE)
    assert {record.did for record in done.steps} == {"ran"}
    planned = plan_alignment(short(world), out=str(tmp_path / "run"), judge=JUDGE)
    assert {step.will for step in planned} == {"reuse"}


def test_a_function_judges(world: Path, tmp_path: Path) -> None:
    done = align(short(world), out=tmp_path / "run", judge=true_preference)
    assert done.result["iterations"][0]["pairs"] > 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda world, out: align(42, out=out), "settings of type int; expected the path of"),
        (lambda world, out: run_experiment(42, out=out), "settings of type int"),
        (lambda world, out: load_recipe({}), "setting 'policy' is missing"),
        (lambda world, out: align("nowhere.yaml", out=out), "nowhere.yaml: No such file"),
        (lambda world, out: align(short(world), out=out, judge=42), "a judge of type int"),
    ],
)
def test_nonsense_is_one_line(world: Path, tmp_path: Path, call: Any, said: str) -> None:
    with pytest.raises((ConfigError, InputError), match=said):
        call(world, tmp_path / "run")
    assert not (tmp_path / "run").exists()
