"""Run folders that somebody edited by hand: whatever stands there, a command ends as it should."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app
from tests.cli.stops import COMMANDS, prepare

EDITS = 2  # a file
VALUES = (None, 3, -1.5, "x", [], {}, [[]], {"a": 1}, True, float("nan"), 1e308)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    prepare(folder)
    return folder


def edited(text: str, dice: random.Random) -> str:
    """JSON text with another value, or none, in one place, however deep inside."""
    holder = [json.loads(text)]
    places = list(places_in(holder))
    inside, key = dice.choice(places)
    if isinstance(inside, dict) and dice.random() < 1 / (1 + len(VALUES)):
        del inside[key]
    else:
        inside[key] = dice.choice(VALUES)
    return json.dumps(holder[0])


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield value, key
        yield from places_in(inner)


@pytest.mark.parametrize("name", ["measure", "build", "evaluate", "diagnose"])
def test_edited_results_end_in_no_traceback(
    world: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    whole, out, dice = world / f"whole-{name}", world / name, random.Random(name)
    words = COMMANDS[name].words.replace("OUT", name).split()
    assert CliRunner().invoke(app, words).exit_code == 0
    out.rename(whole)
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*.json")):
        for _ in range(EDITS):
            shutil.copytree(whole, out)
            text = edited((whole / file).read_text(), dice)
            (out / file).write_text(text)
            for command in (["report", name, "--out", "page.html"], words):
                done = CliRunner().invoke(app, command)
                seen = f"{command[0]} with {file} as {text}: {done.exception!r}"
                assert done.exit_code in (0, 2), seen
                if done.exit_code == 2:
                    *_, line = done.stderr.strip().splitlines()
                    assert line.startswith("prefstage: error: "), seen
                    assert "; expected " in line, seen
            shutil.rmtree(out)
