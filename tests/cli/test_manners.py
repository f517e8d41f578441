import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.cli.manners import mannered, say
from prefstage.core.errors import InputError
from prefstage.core.runs import Outcome

RUNNER = CliRunner()


def app_of(command) -> typer.Typer:
    small = typer.Typer()

    @small.command()
    def run() -> None:
        with mannered(kept=True):
            command()

    return small


def python(script: str, *arguments: str, **options) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_users_error_is_one_line_and_exit_2() -> None:
    def command() -> None:
        raise InputError.of(saw="a\nb", expected="c", cure="d")

    result = RUNNER.invoke(app_of(command))
    assert result.exit_code == 2
    assert result.stderr == "prefstage: error: a b; expected c; d.\n"
    assert result.stdout == ""


def test_fault_of_ours_keeps_its_traceback() -> None:
    def command() -> None:
        raise KeyError("mine")

    result = RUNNER.invoke(app_of(command))
    assert isinstance(result.exception, KeyError)
    assert result.exit_code == 1


def wrapped() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/where")
    raise KeyError("generation failed") from full


def full_ledger() -> None:
    with InputError.instead_of(
        sqlite3.Error, saw="x.sqlite: {error}", expected="a ledger", cure="name another"
    ):
        raise sqlite3.OperationalError("database or disk is full")


def full_archive() -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")


@pytest.mark.parametrize("command", [wrapped, full_ledger, full_archive])
def test_a_full_disk_is_called_so_whoever_met_it(command: Callable[[], None]) -> None:
    result = RUNNER.invoke(app_of(command))
    assert result.exit_code == 2, result.output
    assert "expected room on the disk; make room there; the same command goes on" in result.stderr
    assert result.stderr.count("\n") == 1


def test_data_that_speaks_of_a_full_disk_is_no_full_disk() -> None:
    def command() -> None:
        raise ValueError("row 3: 'no space left on device'")

    assert isinstance(RUNNER.invoke(app_of(command)).exception, ValueError)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EISDIR])
def test_what_the_system_refuses_is_the_users_error(number: int) -> None:
    def command() -> None:
        raise OSError(number, os.strerror(number), "some/where")

    result = RUNNER.invoke(app_of(command))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"prefstage: error: some/where: {os.strerror(number)}; expec")


def test_other_system_errors_are_ours() -> None:
    def command() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    assert isinstance(RUNNER.invoke(app_of(command)).exception, ConnectionResetError)


def test_ctrl_c_exits_130_and_says_that_nothing_is_lost() -> None:
    def command() -> None:
        raise KeyboardInterrupt

    result = RUNNER.invoke(app_of(command))
    assert result.exit_code == 130
    assert result.stderr.startswith("prefstage: interrupted; everything so far is kept.")
    assert result.stderr.count("\n") == 1


SLEEPING = "print('ready', flush=True); time.sleep(60)"
AWAITING = "asyncio.run(wait())"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", [SLEEPING, AWAITING])
def test_signals_end_a_command_politely(sent: signal.Signals, work: str) -> None:
    script = (
        "import asyncio, time, typer\n"
        "from prefstage.cli.manners import mannered\n"
        "async def wait() -> None:\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "def command() -> None:\n"
        "    with mannered(kept=True):\n"
        "        try:\n"
        f"            {work}\n"
        "        finally:\n"
        "            print('cleaned up', flush=True)\n"
        "typer.run(command)\n"
    )
    with python(script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == "cleaned up\n"
    assert err.startswith("prefstage: interrupted")
    assert err.count("\n") == 1


def test_a_closed_pipe_is_quiet() -> None:
    script = (
        "import sys, typer\n"
        "from prefstage.cli.manners import mannered, say\n"
        "from prefstage.core.runs import Outcome\n"
        "def command() -> None:\n"
        "    with mannered(kept=True):\n"
        "        sys.stdin.readline()\n"
        "        say(Outcome('x' * 100_000, {}), as_json=False)\n"
        "typer.run(command)\n"
    )
    with python(script, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        err = process.stderr.read()
        process.wait(timeout=30)
    assert err == ""
    assert process.returncode == 141


def test_commands_run_outside_the_main_thread_too() -> None:
    codes: list[int] = []

    def command() -> None:
        say(Outcome("fine", {}), as_json=False)

    thread = threading.Thread(target=lambda: codes.append(RUNNER.invoke(app_of(command)).exit_code))
    thread.start()
    thread.join()
    assert codes == [0]


def test_summary_or_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome("3 rows", {"rows": 3, "mean": float("nan")}, [tmp_path / "a"])
    say(outcome, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "3 rows",
        f"wrote {tmp_path / 'a'}",
    ]
    say(outcome, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"rows": 3, "mean": None}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["mesure"], "No such command 'mesure'"),
        (["judge", "--pears", "x"], "--pairs"),
        (["sample"], "Missing option '--out'"),
        (["judge", "--judge"], "requires an argument"),
        (["judge", "--judge", "x", "left over"], "left over"),
        (["--verzion"], "--version"),
        (["doctor", "--batch", "many"], "(typed: 'many')"),
        (["doctor", "--batch=3.5"], "(typed: '3.5')"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], named: str) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("prefstage: error: ")
    assert named in result.stderr
    assert "--help" in result.stderr


def test_version_and_help() -> None:
    assert RUNNER.invoke(app, ["--version"]).stdout.startswith("prefstage 0.")
    for arguments in ([], ["--help"]):
        result = RUNNER.invoke(app, arguments)
        assert result.exit_code == 0
        assert "judge" in result.stdout
