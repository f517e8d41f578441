"""Commands killed or interrupted at moments drawn from a seed: nothing lost, soon over."""

from pathlib import Path

import pytest

from tests.cli.stops import COMMANDS, prepare, trial


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "interrupts"), [(len(COMMANDS), 0), (0, len(COMMANDS))])
def test_every_command_goes_on_after_a_stop(tmp_path: Path, kills: int, interrupts: int) -> None:
    prepare(tmp_path)
    tallies = trial(tmp_path, list(COMMANDS), kills=kills, interrupts=interrupts, seed=1)
    assert len(tallies) == len(COMMANDS)
    assert [fault for tally in tallies.values() for fault in tally.faults] == []


def test_an_interrupted_command_says_so_and_goes_on(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tally,) = trial(tmp_path, ["judge"], kills=0, interrupts=1, seed=0).values()
    assert tally.faults == []
    assert tally.counts["stopped"] == tally.counts["same result"] == 1
