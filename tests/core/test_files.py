import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from prefstage.core.files import (
    append_json_line,
    atomic_path,
    json_text,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_file_is_what_it_was_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".json"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.json"]


def test_exception_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"

    def fail_half_way() -> None:
        with atomic_path(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        fail_half_way()
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from prefstage.core.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_new_file_has_the_usual_rights(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "deep" / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "a.txt").stat().st_mode) == 0o640


@given(value=JSON)
def test_json_text_reads_back(value: object) -> None:
    assert json.loads(json_text(value)) == value


def test_json_has_no_nan_and_keeps_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": float("nan"), "a": [float("inf"), (1.5,)]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": None, "a": [None, [1.5]]}
    assert text.index('"b"') < text.index('"a"')


@settings(max_examples=20)
@given(values=st.lists(JSON, max_size=5))
def test_lines_read_back(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    path = tmp_path_factory.mktemp("lines") / "made" / "lines.jsonl"
    for value in values:
        append_json_line(path, value)
    assert read_json_lines(path) == values
    at_once = path.with_name("at_once.jsonl")
    write_json_lines(at_once, iter(values))
    assert at_once.read_bytes() == (path.read_bytes() if values else b"")


def test_lines_that_cannot_all_be_written_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    write_json_lines(path, [1, 2])
    with pytest.raises(TypeError):
        write_json_lines(path, [3, object()])
    assert read_json_lines(path) == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_lone_surrogate_survives(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"text": "a\ud800b"})
    append_json_line(path, "ä\u2028b\rc")
    assert read_json_lines(path) == [{"text": "a\ud800b"}, "ä\u2028b\rc"]
    path.read_bytes().decode("utf-8")


def test_missing_file_reads_as_empty(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("torn", [b'{"n": 2', b"2", b'{"text": "\xc3'])
def test_torn_last_line_is_left_out(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"n": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)

    assert read_json_lines(path) == [{"n": 1}]
    assert path.read_bytes() == whole + torn


def test_a_whole_line_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\nnot json\n')
    with pytest.raises(json.JSONDecodeError):
        read_json_lines(path)
