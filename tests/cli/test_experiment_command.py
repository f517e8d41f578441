import json

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app
from tests.aligning.test_experiment import grid
from tests.aligning.tiny_world import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture
def file(world, tmp_path):
    """A grid of two cells, the second of which has no data."""
    asked = grid(
        world,
        axes={"pairs": {"here": {}, "gone": {"off_policy": str(tmp_path / "none.jsonl")}}},
        tables={"all": {"kind": "results", "rows": ["pairs"], "columns": ["true reward"]}},
    )
    asked["recipe"] |= {"iterations": 1, "schedule": "off", "measure": False}
    place = tmp_path / "grid.yaml"
    place.write_text(yaml.safe_dump(asked))
    return place


def call(*arguments):
    return CliRunner().invoke(app, ["experiment", *map(str, arguments)])


def test_tables_are_printed_and_a_failed_cell_is_named(file, tmp_path):
    result = call(file, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "| here | 0." in result.stdout
    assert "cells: 1 done, 1 failed" in result.stdout
    assert "failed pairs=gone: " in result.stdout
    assert f"wrote {tmp_path / 'run' / 'tables' / 'all.tex'}" in result.stdout
    assert "\x1b" not in result.output


def test_machines_read_json_alone(file, tmp_path):
    result = call(file, "--out", tmp_path / "run", "--json")
    found = json.loads(result.stdout)
    assert list(found["failed"]) == ["pairs=gone"]
    assert [each["cell"] for each in found["cells"]] == ["pairs=here"]


def test_a_dry_run_does_nothing(file, world, tmp_path):
    settings = yaml.safe_load(file.read_text())
    settings["axes"] = {"schedule": ["off", "on"]}
    settings["tables"] = {}
    file.write_text(yaml.safe_dump(settings))
    result = call(file, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2 cells, which share these steps:" in result.stdout
    assert result.stdout.count("| run |") >= 6
    assert not (tmp_path / "run").exists()


def test_a_wrong_axis_is_refused_in_one_line(file, tmp_path):
    settings = yaml.safe_load(file.read_text())
    settings["axes"] = {"sead": [1]}
    settings["tables"] = {}
    file.write_text(yaml.safe_dump(settings))
    result = call(file, "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert "'sead'" in line
    assert "seed" in line
