"""What others wrote is text wherever it goes: terminals, JSON, tables of CSV and of Markdown."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rich.console import Console
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core import bars, csv_text, json_text, markdown_table, printable, progress
from prefstage.evaluating.leaderboards import read_leaderboard, write_leaderboard

HOSTILE = "\x1b]8;;http://a\x07b\x1b[2J\r\x9b31m\u202ec\u2066d\x08\x00\ud800"
TERMINAL = set("\x1b\x07\r\x9b\u202e\u2066\x08\x00\ud800")


def test_no_control_character_reaches_a_terminal() -> None:
    assert not TERMINAL & set(printable(HOSTILE))
    assert printable("\x1b[2J") == "\\u001b[2J"


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_what_is_written_in_any_language_stays(text: str) -> None:
    assert printable(text + "\n\t👩‍👩‍👧") == text + "\n\t👩‍👩‍👧"


def test_json_is_exact_and_plain() -> None:
    text = json_text({HOSTILE: [HOSTILE, "ü"]})
    assert json.loads(text) == {HOSTILE: [HOSTILE, "ü"]}
    assert "ü" in text
    assert not TERMINAL & set(text)


def test_errors_are_plain(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({"\x1b[31mprompt": HOSTILE, "b\x9b": "\u202e"}))
    for words in (["diagnose", "--pairs", str(data)], [HOSTILE[:-1]], ["judge", "--x\x1b[0m"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert not TERMINAL & set(result.output)


def test_progress_and_logs_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    from prefstage.cli.main import _PlainFormatter

    console = Console(width=200, record=True)
    with progress("[red]x[/red]\x1b]8;\u202ec", 2, enabled=True) as tick:
        tick(note="\x07")
    shown = capsys.readouterr().err
    assert "\\u202ec" in shown
    assert "[red]x[/red]" in shown
    assert "\x1b]8" not in shown
    with bars(console):
        pass
    record = logging.makeLogRecord({"msg": "%s", "args": (HOSTILE,)})
    assert not TERMINAL & set(_PlainFormatter().format(record))


def test_no_cell_of_csv_is_a_formula() -> None:
    rows = [
        ["=1+1", "+a", "-b", "@c", "\td", "\re", "-"],
        ["-1.5", "+2e3", "a=b", -3, None, "x\ny"],
    ]
    assert csv_text(rows) == ("'=1+1,'+a,'-b,'@c,'\td,\"'\ne\",-\n" + '-1.5,+2e3,a=b,-3,,"x\ny"\n')


def test_names_like_formulas_come_back_from_a_leaderboard(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "@me", "'quoted", "plain"]
    path = tmp_path / "leaderboard.csv"
    write_leaderboard(path, {name: {"win_rate": 1.0} for name in names})
    assert set(read_leaderboard(path)) == set(names)
    assert not any(line.startswith(("=", "@", '"=')) for line in path.read_text().splitlines())


def test_cells_of_markdown_are_text() -> None:
    table = markdown_table(
        ["a|b"], [["<img src=x>"], ["[a](javascript:b)"], ["c\n| d |"], ["1 < 2"]]
    )
    assert table.splitlines()[0] == "| a\\|b |"
    assert table.splitlines()[2:] == [
        "| \\<img src=x> |",
        "| \\[a](javascript:b) |",
        "| c \\| d \\| |",
        "| 1 < 2 |",
    ]
