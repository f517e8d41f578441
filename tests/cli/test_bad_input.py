import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app
from tests.cli.bad_commands import COMMANDS, make_inputs


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("command", "said"), [c[1:] for c in COMMANDS], ids=[c[0] for c in COMMANDS]
)
def test_a_bad_command_is_refused_in_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: list[str]
) -> None:
    make_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = files_in(tmp_path)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 2, result.output
    line, end = result.stderr[:-1], result.stderr[-1]
    assert end == "\n"
    assert "\n" not in line
    assert line.startswith("prefstage: error: ")
    assert "; expected " in line
    for part in said:
        assert part in line
    after = files_in(tmp_path)
    assert {name: after.get(name) for name in before} == before


def test_the_table_covers_every_command_and_has_no_case_twice() -> None:
    names = [name for name, _, _ in COMMANDS]
    assert len(set(names)) == len(names)
    commands = {shlex.split(command)[0] for _, command, _ in COMMANDS}
    assert commands >= {"measure", "sample", "judge", "doctor", "demo"}
    assert len(COMMANDS) >= 60
