"""Off-policy labels that the judge reverses: an alignment stops before it trains, or has a yes."""

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from prefstage.aligning import align, plan_alignment
from prefstage.aligning.runs import plan_outcome
from prefstage.cli.main import app
from prefstage.core.errors import ConfigError, InputError
from prefstage.data import load_pairs
from prefstage.data.records import Prompt
from prefstage.data.sets import PairSet
from prefstage.reporting import write_report
from prefstage.sandbox import true_preference
from tests.aligning.tiny_world import settings

CONTRARY = "python:tests.aligning.test_align_reversal:contrary"
TOLD = "12 of 12 labels reversed by the judge: 100.0 % (95 % interval 75.8 % to 100.0 %)"


def contrary(a: str, b: str, prompt: Prompt) -> float:
    """P(a ≻ b): the opposite of the truth, by which the pairs are labelled."""
    return 1.0 - true_preference(a, b, prompt)


def off(world: Path, **changed: Any) -> dict[str, Any]:
    plain = {"schedule": "off", "iterations": 1, "measure": False, "evaluate": None}
    return settings(world, **plain | changed)


def kinds(folder: Path) -> list[str]:
    steps = folder / "steps"
    return sorted(each.name.split("-")[0] for each in steps.iterdir() if each.name[0] != ".")


def test_refused_before_it_trains_and_confirmed_without_buying_again(
    world: Path, tmp_path: Path
) -> None:
    out, given = tmp_path / "run", off(world, judge=CONTRARY)
    with pytest.raises(InputError, match="12 of 12 labels reversed") as why:
        align(given, out=out)
    assert "build.accept_reversal: true" in str(why.value)
    assert kinds(out) == ["build"]
    with pytest.raises(InputError, match="12 of 12 labels reversed"):  # from the step at hand
        align(given, out=out)
    told = plan_outcome(plan_alignment(given, out=out)).summary
    assert f"iteration 1: {TOLD}; the run stops here before it trains" in told

    yes = {**given, "build": {"accept_reversal": True}}
    assert (
        "accepted whatever it is (build.accept_reversal)"
        in plan_outcome(plan_alignment(yes, out=out)).summary
    )
    done = align(yes, out=out)
    assert [(each.kind, each.did) for each in done.steps] == [("build", "reused"), ("train", "ran")]
    assert done.result["iterations"][0]["reversal"]["reversed"] == 12
    page = write_report(out, out=tmp_path / "page.html").read_text("utf-8")
    assert TOLD in page


@pytest.mark.parametrize("schedule", [{"mix": 0.5}, "per-prompt"])
def test_every_schedule_that_trains_on_off_policy_labels_asks(
    world: Path, tmp_path: Path, schedule: Any
) -> None:
    given = off(world, judge=CONTRARY, schedule=schedule)
    given["measure"] = settings(world)["measure"]
    with pytest.raises(InputError, match="12 of 12 labels reversed"):
        align(given, out=tmp_path)
    assert "train" not in kinds(tmp_path)
    done = align({**given, "build": {"accept_reversal": True}}, out=tmp_path)
    assert done.result["iterations"][0]["reversal"]["reversed"] == 12


def test_a_judge_that_agrees_is_said_and_lets_pass(world: Path, tmp_path: Path) -> None:
    done = typed(tmp_path, off(world))
    assert done.exit_code == 0, done.output
    assert "iteration 1: 0 of 12 labels reversed by the judge: 0.0 %" in done.stdout


def test_a_dry_run_asks_the_judge_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFSTAGE_NOTED", str(tmp_path / "asked"))
    given = off(world, judge="python:tests.aligning.judges:noted")
    planned = typed(tmp_path, given, "--dry-run")
    assert "how often the judge reverses labels is measured before it replaces" in planned.stdout
    assert "above 40 % the run stops before it trains" in planned.stdout
    assert not (tmp_path / "asked").exists()
    several = typed(tmp_path, {**given, "schedule": ["off", "off"], "iterations": 2}, "--dry-run")
    assert several.stdout.count("how often the judge reverses labels") == 1
    assert "\niteration 1: how often" in several.stdout
    unknown = typed(tmp_path, {**settings(world), "judge": given["judge"]}, "--dry-run", "--json")
    (told,) = {each["reversal"] for each in json.loads(unknown.stdout)["steps"]} - {""}
    assert "measured before" in told
    assert not (tmp_path / "asked").exists()


def test_a_dry_run_says_what_was_bought_before(world: Path, tmp_path: Path) -> None:
    """The judgments of a part of the pairs, bought by a run on fewer of them."""
    few = PairSet.of(list(load_pairs(world / "pairs.jsonl"))[:5])
    few.save(tmp_path / "few.jsonl")
    out = tmp_path / "run"
    with pytest.raises(InputError, match="5 of 5 labels reversed"):
        align(off(world, judge=CONTRARY, off_policy=str(tmp_path / "few.jsonl")), out=out)
    told = plan_outcome(plan_alignment(off(world, judge=CONTRARY), out=out)).summary
    assert "of 5 of 12 pairs judged so far, 5 of 5 labels reversed by the judge" in told


@pytest.mark.parametrize("schedule", ["on", ["on", "on"]])
def test_a_yes_without_off_policy_labels_is_refused(world: Path, schedule: Any) -> None:
    given = settings(world, schedule=schedule, build={"accept_reversal": True})
    with pytest.raises(ConfigError, match="accept_reversal is set with a schedule without"):
        plan_alignment(given, out=Path("none"))


def test_an_experiment_reports_the_cell_that_is_refused(world: Path, tmp_path: Path) -> None:
    grid = {
        "recipe": off(world),
        "axes": {"judge": [settings(world)["judge"], CONTRARY]},
        "tables": {"pairs": {"kind": "results", "rows": ["judge"], "columns": ["pairs"]}},
    }
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(grid))
    done = CliRunner().invoke(app, ["experiment", str(file), "--out", str(tmp_path / "run")])
    assert "cells: 1 done, 1 failed" in done.stdout
    assert "12 of 12 labels reversed" in done.stdout
    assert "0 of 12 labels reversed by the judge: 0.0 %" in done.stdout
    assert "(in 1 of 1 cells)" in done.stdout
    page = write_report(tmp_path / "run", out=tmp_path / "page.html").read_text("utf-8")
    assert "iteration 1: 0 of 12 labels reversed by the judge: 0.0 %" in page


def typed(folder: Path, given: dict[str, Any], *words: str) -> Result:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(given))
    return CliRunner().invoke(app, ["align", str(recipe), "--out", str(folder / "run"), *words])


def test_forty_harmlessness_pairs_whose_judge_disagrees(
    world: Path, shared: Path, tmp_path: Path
) -> None:
    """Real labels and a real judge, which reverses 24 of these 40."""
    data, judge = shared / "data" / "hh_rlhf_harmless_test.jsonl.gz", shared / "models/small-judge"
    if not (data.exists() and judge.exists()):
        pytest.skip("no HH pairs, or no small judge")
    with gzip.open(data, "rt", encoding="utf-8") as rows:
        (tmp_path / "hh.jsonl").write_text("".join(islice(rows, 40)))
    given = off(world, judge=str(judge), off_policy=str(tmp_path / "hh.jsonl"))
    given["train"] |= {"tokens": {"max_prompt_tokens": 32, "max_response_tokens": 32}}
    refused = typed(tmp_path, given)
    assert refused.exit_code == 2, refused.output
    (line,) = refused.stderr.strip().splitlines()
    assert "24 of 40 labels reversed by the judge: 60.0 % (95 % interval 44.6 % to 73.7 %)" in line
    assert kinds(tmp_path / "run") == ["build"]
    confirmed = typed(tmp_path, given, "--set", "build.accept_reversal=true")
    assert confirmed.exit_code == 0, confirmed.output
    assert "iteration 1: 24 of 40 labels reversed by the judge: 60.0 %" in confirmed.stdout
    assert "1 ran, 1 reused" in confirmed.stdout
