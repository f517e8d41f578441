"""Bad rows of the data: an error that names the setting, or put aside, counted and said."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from prefstage.aligning import align, plan_alignment
from prefstage.cli.main import app
from prefstage.core.errors import ConfigError, DataError
from prefstage.data.reading import Reading
from prefstage.data.records import Record
from tests.aligning.tiny_world import settings


@pytest.fixture
def spoilt(world: Path, tmp_path: Path) -> dict[str, str]:
    """The world's data, with two bad rows among the pairs and one among the held-out prompts."""
    found = {}
    for name, bad in (("pairs", 2), ("held_out", 1)):
        lines = (world / f"{name}.jsonl").read_text().splitlines()
        blank = {**json.loads(lines[0]), "chosen": [{"role": "assistant", "content": " "}]}
        lines[1:1] = [json.dumps(blank), "{not JSON"][:bad]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        found[name] = str(tmp_path / f"{name}.jsonl")
    return found


def recipe(world: Path, data: dict[str, str], **changed: Any) -> dict[str, Any]:
    given = settings(world, schedule=["off", "on"], off_policy=data["pairs"], **changed)
    given["evaluate"] = {**given["evaluate"], "prompts": data["held_out"]}
    return given


def typed(file: Path, out: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["align", str(file), "--out", str(out), *words])


MET_FIRST = {
    "held-out prompts": {},
    "off-policy data, measured against": {"evaluate": None},
    "off-policy data, trained on": {"evaluate": None, "measure": False, "schedule": "off"},
    "prompts": {"evaluate": None, "measure": False, "schedule": "on"},
}


@pytest.mark.parametrize("changed", MET_FIRST.values(), ids=MET_FIRST)
def test_bad_rows_stop_it_and_what_the_error_tells_to_do_helps(
    world: Path, tmp_path: Path, spoilt: dict[str, str], changed: dict[str, Any]
) -> None:
    given = {**recipe(world, spoilt), **changed}
    for do in (align, plan_alignment):
        with pytest.raises(DataError, match=r"bad of .* rows") as told:
            do(given, out=tmp_path / "run")
        assert str(told.value).endswith("mend them, or set on_bad_row: quarantine.")
        assert "quarantine_file" not in str(told.value)
    cured = {**given, **yaml.safe_load(str(told.value).rsplit("set ", 1)[1].rstrip("."))}
    assert plan_alignment(cured, out=tmp_path / "run")


def test_bad_rows_are_put_aside_and_the_rest_is_as_without_them(
    world: Path, tmp_path: Path, spoilt: dict[str, str]
) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(recipe(world, spoilt, on_bad_row="quarantine")))
    planned = typed(file, out, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert not out.exists()
    done = typed(file, out)
    assert done.exit_code == 0, done.output
    assert f"put aside as bad: 2 of 14 rows of off_policy ({out}/quarantine/" in done.stdout
    assert "put aside as bad: 1 of 7 rows of held_out" in done.stdout
    kept = (out / "quarantine" / "off_policy.jsonl").read_text()
    assert [json.loads(line)["row"] for line in kept.splitlines()] == [2, 3]
    cards = [card.read_text() for card in out.glob("steps/build-*/README.md")]
    assert sum("on_bad_row: quarantine" in card for card in cards) == 1
    assert not any("quarantine_file" in card for card in cards)
    again = json.loads(typed(file, out, "--json").stdout)
    assert {each["did"] for each in again["log"]} == {"reused"}
    assert again["put_aside"] == {
        "off_policy": {"rows": 2, "of": 14, "file": "quarantine/off_policy.jsonl"},
        "held_out": {"rows": 1, "of": 7, "file": "quarantine/held_out.jsonl"},
    }
    clean = settings(world, schedule=["off", "on"])
    whole = align(clean, out=tmp_path / "clean").result
    assert whole["put_aside"] == {}
    for ours, theirs in zip(again["iterations"], whole["iterations"], strict=True):
        assert ours["stage"] == theirs["stage"]
        assert ours["evaluation"] == theirs["evaluation"]
        assert ours["pairs"] == theirs["pairs"]


def test_bad_rows_are_errors_again_where_they_were_put_aside_before(
    world: Path, tmp_path: Path, spoilt: dict[str, str]
) -> None:
    out, given = tmp_path / "run", {**recipe(world, spoilt), "schedule": "off", "iterations": 1}
    aside = {**given, "on_bad_row": "quarantine"}
    assert align(aside, out=out).result["put_aside"]
    with pytest.raises(DataError, match="bad of"):
        align({**given, "on_bad_row": "error"}, out=out)
    assert {each.did for each in align(aside, out=out).steps} == {"reused"}


@pytest.mark.parametrize("schedule", ["off", "on", {"mix": 0.5}, "per-prompt"], ids=str)
def test_every_step_that_reads_data_is_named_by_what_becomes_of_bad_rows(
    world: Path, tmp_path: Path, schedule: Any
) -> None:
    given = settings(world, schedule=schedule, iterations=1)
    keys = [
        {each.step for each in plan_alignment({**given, "on_bad_row": asked}, out=tmp_path / "new")}
        for asked in ("error", "quarantine")
    ]
    assert None not in keys[0] | keys[1]
    assert not keys[0] & keys[1]
    default = {each.step for each in plan_alignment(given, out=tmp_path / "new")}
    assert default == keys[0]


def test_prompts_of_their_own_are_covered(
    world: Path, tmp_path: Path, spoilt: dict[str, str]
) -> None:
    given = settings(world, schedule="on", iterations=1, measure=False, evaluate=None)
    given |= {"off_policy": None, "prompts": spoilt["pairs"], "on_bad_row": "quarantine"}
    aligned = align(given, out=tmp_path / "run")
    assert aligned.result["put_aside"]["prompts"]["rows"] == 2


def test_data_are_parsed_once_a_run_and_once_more_by_the_building(
    world: Path, tmp_path: Path, spoilt: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, records = Counter[str](), Reading.__iter__

    def counted(reading: Reading[Any]) -> Iterator[Record]:
        passes[Path(reading.source.name).name] += 1
        return records(reading)

    monkeypatch.setattr(Reading, "__iter__", counted)
    given = {**recipe(world, spoilt, on_bad_row="quarantine"), "schedule": ["off", "off"]}
    align(given, out=tmp_path / "run")
    assert (passes["held_out.jsonl"], passes["pairs.jsonl"]) == (1, 2)
    align(given, out=tmp_path / "run")
    assert (passes["held_out.jsonl"], passes["pairs.jsonl"]) == (2, 3)


def test_an_experiment_says_what_its_cells_put_aside(
    world: Path, tmp_path: Path, spoilt: dict[str, str]
) -> None:
    """And a cell in which bad rows are errors reuses nothing of one that put them aside."""
    given = {**recipe(world, spoilt), "measure": False, "iterations": 1}
    given.pop("schedule")
    axes = {"on_bad_row": ["quarantine", "error"], "schedule": ["off", "on"]}
    grid, out = tmp_path / "grid.yaml", tmp_path / "grid"
    grid.write_text(yaml.safe_dump({"recipe": given, "axes": axes, "tables": {}}))
    done = CliRunner().invoke(app, ["experiment", str(grid), "--out", str(out)])
    assert done.exit_code == 1, done.output
    assert (
        "put aside as bad: 2 of 14 rows of off_policy (in 2 of 2 cells), "
        f"1 of 7 rows of held_out (in 2 of 2 cells); see {out}/cells/CELL/quarantine"
    ) in done.stdout
    result = json.loads((out / "experiment.json").read_text())
    assert [each["put_aside"]["off_policy"]["rows"] for each in result["cells"]] == [2, 2]
    assert len(result["failed"]) == 2
    for cell, why in result["failed"].items():
        assert cell.startswith("on-bad-row=error")
        assert "bad of" in why
        assert "quarantine_file" not in why


def test_a_file_for_bad_rows_cannot_be_named(world: Path, tmp_path: Path) -> None:
    given = settings(world, on_bad_row="quarantine", quarantine_file="bad.jsonl")
    with pytest.raises(ConfigError, match="leave quarantine_file out"):
        align(given, out=tmp_path / "run")
