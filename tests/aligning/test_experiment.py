import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from prefstage.aligning import Grid, load_grid, plan_experiment, run_experiment
from prefstage.building import build_pairs
from prefstage.core.config import load_config
from prefstage.core.errors import ConfigError, InputError, RunFolderError
from prefstage.core.runs import run_folder
from prefstage.data import load_pairs
from tests.aligning.tiny_world import settings

TABLE = {"kind": "stages", "by": ["loss"], "columns": ["true reward", "win_rate", "avg_length"]}
METRICS = {"true reward": "python:prefstage.sandbox:true_reward"}


def grid(world, **changed):
    return {
        "recipe": settings(world, iterations=2),
        "axes": {
            "loss": {
                "DPO": {"train.loss": {"name": "sigmoid", "beta": 0.1}},
                "SLiC-HF": {"train.loss": {"name": "slic"}},
            },
            "schedule": ["off,off", "off,on", "on,off", "on,on"],
        },
        "metrics": METRICS,
        "tables": {"full": TABLE},
        **changed,
    }


@pytest.fixture(scope="module")
def ran(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("experiment") / "run"
    steps = []
    return out, run_experiment(grid(world), out=out, step=steps.append), steps


def test_equal_steps_are_done_once(ran):
    out, found, steps = ran
    did = Counter((each.kind, each.did) for each in steps)
    assert did["train", "ran"] == 2 * (2 + 4)  # a loss: off, on; then both from both
    assert did["train", "reused"] == 2 * 2
    assert did["measure", "ran"] == 1 + 2 * 2  # the start once for both losses
    assert len({each.step for each in steps if each.did == "ran"}) == sum(
        count for (_, kind), count in did.items() if kind == "ran"
    )
    assert not found.failed
    assert len(list((out / "cells").iterdir())) == 8


def test_the_tables_hold_what_the_cells_found(ran):
    out, found, _ = ran
    lines = found.tables["full"].splitlines()
    assert lines[0] == (
        "| Iter-1 | Iter-2 | true reward | Win Rate | Avg. Len | BS (initial) | Δ(×) |"
    )
    assert len(lines) == 2 + 2 * (1 + 7)
    cells = {each["cell"]: each for each in found.result["cells"]}
    cell = cells["loss=DPO,schedule=off-on"]
    aligned = json.loads((out / "cells" / cell["cell"] / "align.json").read_text())
    first, second = aligned["iterations"]
    start, after, last = cell["policies"]
    assert start["figures"]["boundary_score"] == first["stage"]["boundary_score"]
    assert after["figures"]["boundary_score"] == second["stage"]["boundary_score"]
    assert last["figures"]["win_rate"] == second["evaluation"]["win_rate"]
    assert last["path"] == ["off", "on"]
    assert 0 <= last["figures"]["true reward"] <= 1
    for ending in ("md", "tex", "csv"):
        assert (out / "tables" / f"full.{ending}").stat().st_size
    starts = found.result["agreement"]["full"]["means"]["starts"]
    assert [each["where"] for each in starts] == [
        f"{loss}, {path}" for loss in ("DPO", "SLiC-HF") for path in ("start", "off", "on")
    ]


def test_the_same_call_again_does_nothing_and_finds_the_same(ran, world):
    out, found, _ = ran
    steps = []
    again = run_experiment(grid(world), out=out, step=steps.append)
    assert {each.did for each in steps} == {"reused"}
    assert again.result == found.result
    assert all(each.ran == 0 for each in again.cells)


def test_the_plan_names_every_step_once_and_what_is_there(ran, world, tmp_path):
    out, _, steps = ran
    planned = plan_experiment(grid(world), out=tmp_path / "new")
    assert {each.step for each in planned} == {each.step for each in steps}
    assert {each.will for each in planned} == {"run"}
    assert not (tmp_path / "new").exists()
    assert {each.will for each in plan_experiment(grid(world), out=out)} == {"reuse"}


def test_a_cell_that_fails_leaves_the_others(world, tmp_path):
    asked = grid(
        world,
        axes={
            "pairs": {"bad": {"off_policy": str(tmp_path / "none.jsonl")}, "good": {}},
            "schedule": ["off"],
        },
        tables={"all": {"kind": "results", "rows": ["pairs"], "columns": ["win_rate"]}},
    )
    asked["recipe"] |= {"iterations": 1, "measure": False}
    told = []
    found = run_experiment(asked, out=tmp_path / "run", tell=told.append)
    (failed,) = found.failed
    assert failed.cell == "pairs=bad,schedule=off"
    assert "none.jsonl" in str(failed.error)
    assert [each.cell for each in told] == ["pairs=bad,schedule=off", "pairs=good,schedule=off"]
    assert "| good |" in found.tables["all"]
    assert "| bad |" not in found.tables["all"]
    assert list(found.result["failed"]) == ["pairs=bad,schedule=off"]


COLUMNS = (
    *("training.rankings/accuracy", "training.eval_rankings/accuracy", "training.runtime"),
    *("training.weight_distance", "training.exported_step", "training.eval_loss"),
)


def test_data_of_one_kind_stay_rows_of_their_own_and_trainings_have_figures(world, tmp_path):
    other = str(world / "policy")
    asked = grid(
        world,
        axes={
            "schedule": [False, {"mix": 0.25}, {"mix": 0.5}, {"other": other}],
            "loss": {"DPO": {"train.loss": "sigmoid"}, "SFT": {"train.loss": "sft"}},
        },
        tables={
            "data": {"kind": "stages", "by": ["loss"], "columns": ["win_rate", "pairs"]},
            "losses": {"kind": "results", "rows": ["loss"], "columns": [*COLUMNS]},
        },
    )
    asked["recipe"] |= {"iterations": 1, "measure": False}
    held_out = asked["recipe"]["evaluate"]["prompts"]
    asked["recipe"]["train"] = {**asked["recipe"]["train"], "eval": held_out}
    ran = run_experiment(asked, out=tmp_path / "run")
    assert not ran.failed
    rows = [line.split("|")[1].strip() for line in ran.tables["data"].splitlines()[3:8]]
    assert rows == ["-", "PC_mix: 0.25", "PC_mix: 0.5", "PC_off", f"PC_other: {other}"]
    assert "schedule=mix-0.25,loss=DPO" in [cell.cell for cell in ran.cells]
    head, _, start, dpo, sft = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in ran.tables["losses"].splitlines()
    )
    assert head[1:] == [name.removeprefix("training.") for name in COLUMNS]
    assert "-" not in (*dpo, *sft)
    assert [cell != "-" for cell in start[1:]] == [False, True, False, False, False, False]
    assert "no cell has" not in ran.summary


def test_columns_that_stayed_empty_are_named(world, tmp_path):
    columns = ["win_rate", "length_controlled_win_rate", "training.win_rate"]
    asked = grid(
        world,
        axes={"schedule": ["off"]},
        tables={"all": {"kind": "results", "rows": ["schedule"], "columns": columns}},
    )
    asked["recipe"] |= {"iterations": 1, "measure": False}
    asked["recipe"]["evaluate"] = {
        **asked["recipe"]["evaluate"],
        "win_rate": {"length_controlled": True},
    }
    ran = run_experiment(asked, out=tmp_path / "run")
    assert "all: no cell has length_controlled_win_rate: too few verdicts" in ran.summary
    assert "all: no cell has training.win_rate" in ran.summary
    assert "no cell has win_rate" not in ran.summary


def without(world, **changed):
    return grid(world) | {"recipe": grid(world)["recipe"] | changed}


@pytest.mark.parametrize(
    ("column", "changed", "words"),
    [
        ("training.eval_rankings/accuracy", {}, "runtime, .*set train.eval"),
        ("training.eval_small_loss", {}, "runtime, .*set train.eval"),
        ("training.step", {}, "runtime, .*did you mean 'steps'"),
        ("win_rate", {"evaluate": None}, "set evaluate"),
        ("true reward", {"evaluate": None}, "set evaluate"),
        ("length_controlled_win_rate", {}, "length_controlled: true"),
        ("boundary_score", {"measure": False}, "remove measure: false"),
    ],
)
def test_a_column_that_no_cell_can_fill_is_refused(world, column, changed, words):
    asked = without(world, **changed)
    asked["tables"] = {"t": {**TABLE, "columns": ["pairs", column]}}
    with pytest.raises(ConfigError, match=f"column '{re.escape(column)}'.*{words}"):
        load_grid(asked)


def test_a_second_process_is_refused(world, tmp_path):
    out = tmp_path / "run"
    asked = grid(world, axes={"schedule": ["off,off"]}, tables={})
    with (
        run_folder(out, command="experiment", inputs={}),
        pytest.raises(RunFolderError, match="in use by another process"),
    ):
        run_experiment(asked, out=out)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"axes": {"schedule": ["off,offf"]}}, "schedule"),
        ({"axes": {"schedule": []}}, "axis schedule is empty"),
        ({"axes": {"seed": [1, 1]}}, "axis seed has a value twice"),
        ({"axes": {"sead": [1]}, "tables": {}}, "'sead'"),
        ({"tables": {"t": {**TABLE, "by": ["policy"]}}}, "names axis 'policy'"),
        ({"tables": {"t": {**TABLE, "columns": ["reward"]}}}, "column 'reward'.*win_rate, .*true"),
        ({"tables": {"t": {**TABLE, "columns": ["winrate"]}}}, "column 'winrate'.*'win_rate'"),
        ({"tables": {"t": {**TABLE, "rows": ["loss"]}}}, "expected none in stages"),
        ({"tables": {"t": {**TABLE, "kind": "contrasts", "rows": ["loss"]}}}, "parts has 0"),
    ],
)
def test_a_wrong_grid_is_told_before_anything_runs(world, changed, words):
    with pytest.raises(ConfigError, match=words):
        load_grid(grid(world, **changed))


def test_a_metric_must_be_a_function(world, tmp_path):
    asked = grid(world, metrics={"true reward": "python:prefstage.sandbox:none"})
    with pytest.raises(InputError, match=r"metric 'python:prefstage\.sandbox:none'"):
        run_experiment(asked, out=tmp_path / "run")


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GRIDS = sorted(EXAMPLES.glob("experiment*.yaml"))


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_examples_are_grids(file):
    found = load_grid(file)
    assert found.cells
    assert found.tables
    assert len(found.axes["seed"]) == 3


def command_of_the_world(file):
    """The command that a grid's header tells to make its data and policies with."""
    text = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    other = re.search(r"[Dd]ata and policies: as for examples/([\w.]+\w)", text)
    if other is not None:
        return command_of_the_world(EXAMPLES / other[1])
    found = re.search(r"python examples/make_world\.py((?:\\\n#|[^\n,])*)", text)
    return found[1].replace("\\\n#", " ").split()


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_header_of_an_example_makes_the_policies_that_it_names(file):
    words = command_of_the_world(file)
    assert words[0] == "world"
    kept = words[words.index("--kept") + 1 :] if "--kept" in words else []
    named = set(re.findall(r"world/policy-(\d+)", file.read_text()))
    assert named <= set(kept)
    assert named or not file.stem.endswith(("experiment", "rates"))


@pytest.mark.slow
@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_examples_run_in_the_small_world(file, tmp_path, monkeypatch):
    """One seed, three training steps a cell."""
    spec = importlib.util.spec_from_file_location("make_world", EXAMPLES / "make_world.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.make_world(tmp_path / "world", pairs=48, steps=100, seed=0, kept=[100])
    monkeypatch.chdir(tmp_path)
    if file.stem == "experiment_gaps":
        build_pairs(EXAMPLES / "build_gaps_world.yaml", out=tmp_path / "gaps")
    settings = load_config(Grid, file).model_dump()
    settings["axes"]["seed"] = [0]
    if file.stem == "experiment":  # the other policies are the same, trained longer
        first, *_ = settings["axes"]["policy"].items()
        settings["axes"]["policy"] = dict([first])
    if file.stem == "experiment_rates":
        settings["recipe"]["policy"] = "world/policy-100"
        settings["axes"]["rate"] = dict([*settings["axes"]["rate"].items()][:2])
    settings["recipe"]["train"]["training"] |= {"max_steps": 3}
    found = run_experiment(settings, out=tmp_path / "run")
    assert [each.error for each in found.failed] == []
    assert all(len(table.splitlines()) > 4 for table in found.tables.values())


def test_models_with_long_names_have_cells_of_their_own(world):
    schedules = [[{"other": f"/models/{'deep/' * 60}{name}"}, "off"] for name in "ab"]
    asked = grid(world, axes={"schedule": schedules}, tables={})
    cells = load_grid(asked).cells
    assert len({cell.name for cell in cells}) == len(cells) == 2
    assert all(len(cell.name) < 100 for cell in cells)
    assert cells[0].values["schedule"].startswith("other: /models/deep/")


def test_labels_of_the_data_may_be_kept(world, tmp_path):
    asked = grid(world, axes={"schedule": ["off"]}, tables={})
    asked["recipe"] |= {"iterations": 1, "measure": False, "evaluate": None}
    asked["recipe"] |= {"build": {"off": "keep"}}
    run_experiment(asked, out=tmp_path / "run")
    (file,) = (tmp_path / "run" / "store").glob("**/pairs.parquet")
    theirs = load_pairs(str(world / "pairs.jsonl"))
    kept = [(pair.chosen, pair.rejected) for pair in load_pairs(str(file))]
    assert kept == [(pair.chosen, pair.rejected) for pair in theirs if not pair.tied]
    built = json.loads(file.with_name("build.json").read_text())
    assert (built["method"], built["judge"]) == ("keep", None)
