"""Commands killed or interrupted at moments drawn from a seed: nothing lost, soon over."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.stops import COMMANDS, ENDS_WITHIN_S, INTERRUPTED, prepare, run, trial
from tests.faulty_server import FaultyServer, Scripted


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


def test_ctrl_c_again_and_again_ends_as_the_first_one_does(tmp_path: Path) -> None:
    prepare(tmp_path)
    with FaultyServer(lambda body: Scripted("A", delay_s=0.1)) as server:
        words = (
            f"judge --judge openai:m@{server.url}?concurrency=1 --pairs many.jsonl --out j.jsonl"
        )
        process = run(words.split(), tmp_path)
        while len(server.requests) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            for _ in range(20):
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.01)
        _, errors = process.communicate(timeout=ENDS_WITHIN_S)
        asked = len(server.requests)
        assert process.returncode == INTERRUPTED
        assert errors.strip().endswith("The same command goes on from there.")
        assert "Traceback" not in errors
        process = run(words.split(), tmp_path)
        process.communicate()
        assert process.returncode == 0
        assert len(server.requests) <= 2 * 60 + 2, "an order of a pair is asked for once"
        assert len(server.requests) > asked
