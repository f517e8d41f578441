"""Runs one server, and ends all of it when its parent is gone. A script, not to be imported.

    python guard.py PARENT_PID GRACE_S COMMAND [ARGUMENT ...]

The guard and the server each lead a session of their own, so that a Ctrl-C at the terminal
reaches neither; the guard ends the server on SIGTERM and when PARENT_PID is no longer its
parent, which also covers a parent that was killed with -9.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import reduce
from threading import Event, Thread
from typing import IO

import psutil

_POLL_S, _LOG_ENDS_S = 0.2, 5.0
SECRETS = "PREFSTAGE_SECRETS"


def main(parent: int, grace_s: float, command: list[str]) -> int:
    """Run the command until it ends, SIGTERM arrives, or the parent is gone."""
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    secrets = [secret.encode() for secret in json.loads(os.environ.pop(SECRETS, "[]"))]
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log = Thread(target=copy_log, args=(server.stdout, secrets), daemon=True)
    log.start()
    while server.poll() is None and not stopped.is_set() and os.getppid() == parent:
        stopped.wait(_POLL_S)
    ended_by_itself = server.poll()
    end_all(server, grace_s)
    log.join(_LOG_ENDS_S)
    return 0 if ended_by_itself is None else ended_by_itself & 0xFF


def copy_log(lines: IO[bytes], secrets: list[bytes]) -> None:
    """Write the server's output to our own, line by line, without the keys in it."""
    for line in lines:
        sys.stdout.buffer.write(reduce(lambda text, s: text.replace(s, b"***"), secrets, line))
        sys.stdout.buffer.flush()


def end_all(server: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Ask the server, its process group and its descendants to end; then make them end."""
    # Before any of them ends: a child whose parent is gone can no longer be found as its child.
    family = psutil.Process().children(recursive=True)
    _signal_all(server.pid, family, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(map(_is_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_all(server.pid, family, signal.SIGKILL)


# Whether it still runs; a zombie that nobody collects does not.
def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal_all(group: int, family: list[psutil.Process], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
