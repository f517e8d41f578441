"""What a stage is measured on: data trained on before, which is said, or held-out data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prefstage import report
from prefstage.aligning import align, load_recipe, plan_alignment
from prefstage.core.errors import ConfigError
from prefstage.data import load_pairs, load_prompts
from tests.aligning.tiny_world import settings

IN_SAMPLE = "the boundary score is in-sample"


def measured(world: Path, **changed: Any) -> dict[str, Any]:
    """A recipe that measures and evaluates nothing else."""
    return settings(world, evaluate=None, **changed)


def test_after_off_policy_pairs_the_score_on_the_same_data_is_in_sample(
    world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    aligned = align(measured(world, schedule="off"), out=out)
    first, second = json.loads((out / "align.json").read_text())["iterations"]
    assert first["in_sample"] is None
    assert second["in_sample"] == {
        "prompts": second["stage"]["prompts_used"],
        "of": second["stage"]["prompts_used"],
    }
    lines = [line for line in aligned.summary.splitlines() if IN_SAMPLE in line]
    assert len(lines) == 1
    assert lines[0].startswith("iteration 2: ")
    assert "measure.off_policy" in lines[0]
    report([out], out=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert IN_SAMPLE in page
    assert "prompts trained on before" in page


def test_held_out_pairs_are_measured_on_where_they_are_named(world: Path, tmp_path: Path) -> None:
    given = measured(world, schedule="off")
    given["measure"] = given["measure"] | {"off_policy": str(world / "held_out.jsonl")}
    aligned = align(given, out=tmp_path / "run")
    held_out = {row.prompt_id for row in load_prompts(world / "held_out.jsonl")}
    assert held_out.isdisjoint(row.prompt_id for row in load_pairs(world / "pairs.jsonl"))
    for row in aligned.result["iterations"]:
        file = tmp_path / "run" / "steps" / row["steps"]["measure"] / "prompts.parquet"
        assert {*pq.read_table(file)["prompt_id"].to_pylist()} <= held_out
    second = aligned.result["iterations"][1]
    assert second["in_sample"] == {"prompts": 0, "of": second["stage"]["prompts_used"]}
    assert IN_SAMPLE not in aligned.summary


def test_held_out_pairs_are_known_by_their_content(world: Path, tmp_path: Path) -> None:
    def step(file: Path) -> str | None:
        given = measured(world, schedule="off", iterations=1)
        given["measure"] = {"max_prompts": 4, "off_policy": str(file)}
        planned = plan_alignment(given, out=tmp_path / "run")
        return next(step.step for step in planned if step.kind == "measure")

    here = step(world / "held_out.jsonl")
    moved = Path(shutil.copy(world / "held_out.jsonl", tmp_path / "moved.jsonl"))
    assert step(moved) == here is not None
    assert step(world / "pairs.jsonl") != here


def test_a_supervised_training_on_the_same_prompts_counts_too(world: Path, tmp_path: Path) -> None:
    sft = {"data": str(world / "pairs.jsonl"), "training": {"max_steps": 1}}
    given = measured(world, schedule="off", iterations=1, sft=sft)
    aligned = align(given, out=tmp_path / "run")
    (row,) = aligned.result["iterations"]
    assert row["in_sample"] == {"prompts": row["stage"]["prompts_used"]} | {
        "of": row["stage"]["prompts_used"]
    }


def test_own_answers_alone_are_measured_against_held_out_pairs(world: Path, tmp_path: Path) -> None:
    given = measured(world, schedule="on", iterations=1, off_policy=None)
    given |= {"prompts": str(world / "pairs.jsonl")}
    with pytest.raises(ConfigError, match="off_policy is missing"):
        load_recipe(given)
    given["measure"] = {"max_prompts": 4, "off_policy": str(world / "held_out.jsonl")}
    (row,) = align(given, out=tmp_path / "run").result["iterations"]
    assert row["stage"]["prompts_available"] == 6


def test_a_choice_by_prompt_needs_the_prompts_that_are_trained_on(world: Path) -> None:
    given = measured(world, schedule="per-prompt")
    given["measure"] = {"off_policy": str(world / "held_out.jsonl")}
    with pytest.raises(ConfigError, match=r"measure\.off_policy is set with schedule per-prompt"):
        load_recipe(given)


def test_bad_rows_of_held_out_pairs_are_put_aside(world: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text((world / "held_out.jsonl").read_text() + '{"prompt": "Q", "chosen": ""}\n')
    given = measured(world, schedule="off", iterations=1, on_bad_row="quarantine")
    given["measure"] = {"max_prompts": 4, "off_policy": str(spoilt)}
    aligned = align(given, out=tmp_path / "run")
    assert aligned.result["put_aside"]["measured"]["rows"] == 1
