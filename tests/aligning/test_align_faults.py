"""When the disk or the user gets in the way: one error, and everything so far kept."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from prefstage.aligning.steps import answers
from prefstage.cli.main import app
from prefstage.core.files import write_json
from tests.aligning.tiny_world import settings
from tests.held_folder import held


def typed(folder: Path, world: Path) -> Result:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings(world, schedule="off", iterations=1)))
    return CliRunner().invoke(app, ["align", str(recipe), "--out", str(folder / "run")])


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "No space left"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), 2, "Permission denied"),
        (KeyboardInterrupt(), 130, "everything so far is kept"),
    ],
    ids=["disk full", "not writable", "Ctrl-C"],
)
def test_a_step_that_fails_leaves_the_others(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fault: BaseException,
    code: int,
    said: str,
) -> None:
    def refuse(path: Path, value: Any) -> None:
        if path.name == answers.BUILT:
            raise fault
        write_json(path, value)

    monkeypatch.setattr(answers, "write_json", refuse)
    failed = typed(tmp_path, world)
    assert failed.exit_code == code, failed.output
    assert said in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    kept = {path.name for path in (tmp_path / "run" / "steps").iterdir() if path.name[0] != "."}
    assert {name.split("-")[0] for name in kept} == {"sample", "measure"}
    monkeypatch.undo()
    done = typed(tmp_path, world)
    assert done.exit_code == 0, done.output
    assert kept <= {path.name for path in (tmp_path / "run" / "steps").iterdir()}
    assert "4 ran, 2 reused" in done.stdout


def test_an_unfinished_step_of_another_place_is_begun_anew(world: Path, tmp_path: Path) -> None:
    """A run folder that was moved while a training was under way."""
    assert typed(tmp_path, world).exit_code == 0
    run = tmp_path / "run"
    (trained,) = (run / "steps").glob("train-*")
    trained.rename(run / "steps" / f".unfinished-{trained.name}")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    run.rename(moved / "run")
    done = typed(moved, world)
    assert done.exit_code == 0, done.output
    assert "1 ran, 5 reused" in done.stdout


def test_a_second_process_is_refused_while_the_first_works(world: Path, tmp_path: Path) -> None:
    """Two real processes; the first holds the folder until it is killed."""
    assert typed(tmp_path, world).exit_code == 0
    with held(tmp_path / "run") as number:
        before = sorted((tmp_path / "run").rglob("*"))
        refused = typed(tmp_path, world)
    assert refused.exit_code == 2
    assert f"in use by another process (process {number})" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert sorted((tmp_path / "run").rglob("*")) == before
    assert typed(tmp_path, world).exit_code == 0
