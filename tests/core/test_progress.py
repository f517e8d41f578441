import pytest

from prefstage.core.progress import progress


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
