import errno
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import RunFolderError
from prefstage.core.runs import LOCK, MANIFEST, run_folder, scratch_folder
from tests.held_folder import held

INPUTS = {"seed": 1, "data": "abc", "shape": (1, 2)}


def opened(path: Path, *, command: str, inputs: dict[str, Any]) -> None:
    with run_folder(path, command=command, inputs=inputs):
        pass


def test_new_folder_gets_a_manifest(tmp_path: Path) -> None:
    with run_folder(tmp_path / "a" / "b", command="measure", inputs=INPUTS) as folder:
        manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["command"] == "measure"
    assert manifest["inputs"] == {"seed": 1, "data": "abc", "shape": [1, 2]}
    assert manifest["versions"]["prefstage"]
    assert folder == tmp_path / "a" / "b"


def test_same_run_goes_on_and_leaves_the_manifest(tmp_path: Path) -> None:
    opened(tmp_path, command="measure", inputs=INPUTS)
    before = (tmp_path / MANIFEST).read_bytes()
    opened(tmp_path, command="measure", inputs=dict(reversed(INPUTS.items())))
    assert (tmp_path / MANIFEST).read_bytes() == before


@pytest.mark.parametrize(
    ("command", "changed", "named"),
    [
        ("measure", {**INPUTS, "seed": 2}, "different: seed"),
        ("measure", {**INPUTS, "new": 2}, "different: new"),
        ("measure", {"seed": 1, "data": "abc"}, "different: shape"),
        ("sample", INPUTS, "different: command"),
    ],
)
def test_another_run_is_refused_with_what_differs(
    tmp_path: Path, command: str, changed: dict[str, object], named: str
) -> None:
    opened(tmp_path, command="measure", inputs=INPUTS)
    with pytest.raises(RunFolderError, match=named):
        opened(tmp_path, command=command, inputs=changed)


def test_a_folder_or_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(RunFolderError, match="not a run folder"):
            opened(path, command="measure", inputs={})
    assert [child.name for child in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1, "command": "x", "inputs": 3}'])
def test_foreign_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(RunFolderError, match="not a manifest of prefstage"):
        opened(tmp_path, command="measure", inputs={})


def test_start_killed_before_its_manifest_does_not_block(tmp_path: Path) -> None:
    (tmp_path / ".partial-manifest-x1.json").write_text("{")
    (tmp_path / LOCK).write_text("123")
    opened(tmp_path, command="measure", inputs=INPUTS)
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, LOCK}


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    opened(tmp_path, command="measure", inputs=INPUTS)
    (tmp_path / "steps" / ".partial-set-1").mkdir(parents=True)
    for name in (".partial-set-1/data", ".partial-a-2.json", ".partial", "b.json"):
        (tmp_path / "steps" / name).write_text("x")
    opened(tmp_path, command="measure", inputs=INPUTS)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {MANIFEST, LOCK, "steps", "steps/.partial", "steps/b.json"}


def test_of_two_that_begin_at_once_the_second_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with held(folder) as number:
        with pytest.raises(
            RunFolderError, match=rf"in use by another process \(process {number}\)"
        ):
            opened(folder, command="measure", inputs=INPUTS)
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_scratch_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, living, others = (tmp_path / f"prefstage-{name}" for name in ("dead", "living", "others"))
    for folder in (dead, living, others):
        folder.mkdir()
    (dead / LOCK).write_text("1")
    with held(living), scratch_folder() as scratch:
        assert {path.name for path in tmp_path.iterdir()} == {
            living.name,
            others.name,
            scratch.name,
        }
        with scratch_folder():
            assert scratch.exists()
    assert not scratch.exists()


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stream: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("prefstage.core.runs._lock", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be locked .No locks available.*local disk"):
        opened(tmp_path, command="measure", inputs=INPUTS)
