import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import RunFolderError
from prefstage.core.runs import MANIFEST, run_folder

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
    (tmp_path / ".manifest-x1.json").write_text("{")
    opened(tmp_path, command="measure", inputs=INPUTS)
    assert (tmp_path / MANIFEST).exists()
