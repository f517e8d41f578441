"""`result.json`: one form for what every command leaves."""

import json
from pathlib import Path

import pytest

from prefstage.core.errors import InputError
from prefstage.core.runs import RESULT, read_result, run_folder, write_result


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    step = {"kind": "train", "iteration": 2, "folder": "steps/train-ab", "seconds": 1.5}
    facts = {"policy": Path("a/b"), "judge": None, "put aside": ""}
    write_result(tmp_path, "align", headline="Two iterations.", facts=facts, parts=[step])
    assert read_result(tmp_path) == {
        "command": "align",
        "headline": "Two iterations.",
        "facts": {"policy": "a/b"},
        "parts": [step],
    }


def test_a_folder_is_its_own_part(tmp_path: Path) -> None:
    write_result(tmp_path, "measure", headline="Injection stage.")
    assert read_result(tmp_path)["parts"] == [{"kind": "measure", "iteration": 1, "folder": "."}]


def test_a_run_without_results_or_with_damaged_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder or file"):
        read_result(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no results: no"):
        read_result(tmp_path)
    with run_folder(tmp_path, command="train", inputs={}):
        pass
    with pytest.raises(InputError, match="its train has not ended"):
        read_result(tmp_path)
    for damaged in ('{"command": "tra', "[]", json.dumps({"command": "train"}), '"\udcff"'):
        (tmp_path / RESULT).write_text(damaged, "utf-8", "surrogateescape")
        with pytest.raises(InputError, match="is not as it was written"):
            read_result(tmp_path)
