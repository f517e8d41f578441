import io

import pytest
from rich.console import Console

from prefstage.core.progress import bars, gathered, progress


def test_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sampling", 3) as tick:
        tick()
        tick(2, note="done")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_shown_on_standard_error_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sampling", 3, enabled=True) as tick:
        tick(note="first")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "sampling" in printed.err


def test_total_may_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", None, enabled=True) as tick:
        tick(5)
    assert "5/?" in capsys.readouterr().err


def test_bars_are_gathered_in_one_display() -> None:
    display = bars(Console(file=io.StringIO(), force_terminal=True))
    with gathered(display), progress("prompts judged", 3), progress("scoring", 6) as tick:
        tick(4, note="so far")
        shown = [(task.description, task.completed, task.total) for task in display.tasks]
    assert shown == [("prompts judged", 0, 3), ("scoring", 4, 6)]
    assert not display.tasks


def test_a_bar_within_a_bar_starts_no_second_display(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("prompts judged", 3, enabled=True), progress("scoring", 6, enabled=True):
        pass
    hides_the_cursor = "\x1b[?25l"
    assert capsys.readouterr().err.count(hides_the_cursor) == 1
