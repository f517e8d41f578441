"""The steps of an alignment as a terminal shows them."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from prefstage.aligning import StepRecord
from prefstage.aligning.runs import bought
from prefstage.cli.align_view import clock, shown_steps
from prefstage.core.progress import progress


def terminal() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=True, width=100, height=30), written


def test_steps_that_ended_stay_and_the_one_under_way_is_below() -> None:
    console, written = terminal()
    with shown_steps(console) as view:
        step: Any = SimpleNamespace(name="measure-0123456789ab")  # all that the view reads
        view.begun(step, 1)
        with progress("answers of start", 40) as tick:
            tick(16)
            with console.capture() as below:
                console.print(view)
        costs = {"judgments": 1200, "answers": 40, "response_tokens": 567}
        view.tell(StepRecord(step.name, "measure", 1, "ran", None, 3723.0, costs))
        view.tell(StepRecord("build-0", "build", 1, "reused", None, 0.0))
        view.tell(StepRecord("train-0", "train", 1, "remade", "model was altered", 2.0))
        with console.capture() as after:
            console.print(view)
    shown = below.get()
    assert step.name in shown
    assert "answers of start" in shown
    assert "16/40" in shown
    assert "so far" in after.get()
    assert "1,200 judgments, 40 answers of 567 tokens" in after.get()
    assert "answers of start" not in after.get()
    lines = written.getvalue()
    assert "1:02:03" in lines
    assert "remade: model was altered" in lines
    assert lines.count("judgments ") == 1


def test_a_display_ends_with_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    console, _ = terminal()
    with pytest.raises(KeyboardInterrupt), shown_steps(console):
        raise KeyboardInterrupt
    with progress("sampling", 3, enabled=True) as tick:
        tick()
    assert "sampling" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.97, "1:00"), (3600, "1:00:00")]
)
def test_times_are_told_as_people_read_them(seconds: float, told: str) -> None:
    assert clock(seconds) == told


def test_server_replies_count_as_judgments() -> None:
    assert bought({"judgments": 2, "judge_replies": 3}) == "5 judgments, 0 answers of 0 tokens"
