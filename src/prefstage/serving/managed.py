"""Starting a server from a command, waiting until it answers, and never leaving it running."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx2

from prefstage.core import (
    InputError,
    ServiceError,
    check_code_may_run,
    known_secrets,
    redacted,
    remember_secrets,
)

_GUARD = Path(__file__).with_name("guard.py")
_FIRST_POLL_S, _LONGEST_POLL_S = 0.1, 2.0
_TAIL_LINES, _TAIL_CHARS = 8, 600


@contextmanager
def managed_server(
    command: str,
    *,
    log_file: Path,
    start_timeout_s: float = 1800.0,
    stop_grace_s: float = 15.0,
) -> Iterator[str]:
    """Run a server while the block lasts.

    The server is stopped (SIGTERM, then SIGKILL, to all its processes) when the block ends,
    by whatever way, and also when this process is killed.

    Args:
        command: How to start it, with `{port}` where the port goes, a free one, such as
            ``vllm serve Qwen/Qwen3-8B --host 127.0.0.1 --port {port}``. Split as a shell
            would, but run without one.
        log_file: Its output, `redacted`, is appended to this file.
        start_timeout_s: Seconds it may take until it answers.
        stop_grace_s: Seconds between SIGTERM and SIGKILL.

    Yields:
        The server's base URL.

    Raises:
        InputError: If the command names no port or no known program.
        ServiceError: If the server ends before it answers, or takes too long.
    """
    words = check_command(command)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with _guarded(
        [word.replace("{port}", port) for word in words], log_file, stop_grace_s
    ) as guard:
        _wait_until_healthy(url, guard, log_file, start_timeout_s)
        yield url


def run_program(
    words: Sequence[str],
    *,
    log_file: Path,
    environment: Mapping[str, str] | None = None,
    stop_grace_s: float = 15.0,
) -> None:
    """Run a program to its end; it and all its processes end with this process at the latest.

    Args:
        words: The program and its arguments.
        log_file: Its output, `redacted`, is appended to this file.
        environment: Variables that it has besides this process's.
        stop_grace_s: Seconds between SIGTERM and SIGKILL, where it is stopped.

    Raises:
        InputError: If there is no such program.
        ServiceError: If it ends with another status than 0.
    """
    command = [_program(words[0], f"command {shlex.join(words)!r}"), *words[1:]]
    with _guarded(command, log_file, stop_grace_s, environment or {}) as guard:
        status = guard.wait()
    ServiceError.unless(
        status == 0,
        saw=f"`{shlex.join(words)}` ended with exit status {status}; {_tail(log_file)}",
        expected="a program that ends well",
        cure="see its log, and call again: what was done is kept",
    )


# Run a program under the guard, which ends it after the block, and when this process is gone.
@contextmanager
def _guarded(
    words: Sequence[str],
    log_file: Path,
    stop_grace_s: float,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator["subprocess.Popen[bytes]"]:
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        guard = subprocess.Popen(
            # -P keeps the guard's folder off the path, whose files have names of other packages.
            [sys.executable, "-P", str(_GUARD), str(os.getpid()), str(stop_grace_s), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                **environment,
                "PATH": _search_path(),
                "PYTHONUNBUFFERED": "1",
                "PREFSTAGE_SECRETS": json.dumps(known_secrets()),  # which its log is not to hold
            },
        )
    try:
        yield guard
    finally:
        guard.terminate()
        guard.wait()


def check_command(command: str) -> list[str]:
    """Check a server command without running it.

    Args:
        command: As in `managed_server`.

    Returns:
        Its words, the program's whole path first, `{port}` still in them.

    Raises:
        InputError: If the command names no port or no known program.
    """
    remember_secrets(command)
    check_code_may_run(f"serve:{command}")
    InputError.unless(
        "{port}" in command,
        saw=f"server command {command!r}",
        expected="{port} where the port goes",
        cure="write, for example, --port {port}",
    )
    with InputError.instead_of(
        ValueError,
        saw=f"server command {command!r}: {{error}}",
        expected="a command as a shell reads it",
        cure="close the quotes",
    ):
        words = shlex.split(command)
    return [_program(words[0], f"server command {command!r}"), *words[1:]]


def _program(name: str, shown: str) -> str:
    program = shutil.which(name, path=_search_path())
    if program is None:
        raise InputError.of(
            saw=f"{shown}: no program {name!r}",
            expected="an installed program",
            cure=f"install {name}, or write its whole path",
        )
    return program


# PATH, and the folder of this Python, whose programs need no activated environment.
def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


def _wait_until_healthy(
    url: str, guard: "subprocess.Popen[bytes]", log_file: Path, timeout_s: float
) -> None:
    deadline, poll_s = time.monotonic() + timeout_s, _FIRST_POLL_S
    with httpx2.Client(base_url=url, trust_env=False, timeout=10.0) as http:
        while not _is_healthy(http):
            if guard.poll() is not None:
                raise ServiceError.of(
                    saw=f"the server ended with exit status {guard.returncode} before it "
                    f"answered; {_tail(log_file)}",
                    expected=f"a server at {url}",
                    cure="mend its command",
                )
            if time.monotonic() > deadline:
                raise ServiceError.of(
                    saw=f"no healthy answer from {url} within {timeout_s:g} s; {_tail(log_file)}",
                    expected="a server that becomes ready",
                    cure="mend its command, or allow it more time",
                )
            time.sleep(poll_s)
            poll_s = min(1.5 * poll_s, _LONGEST_POLL_S)


# Whether /health answers; or /v1/models, with servers that have no /health.
def _is_healthy(http: httpx2.Client) -> bool:
    try:
        status = http.get("/health").status_code
        if status == httpx2.codes.NOT_FOUND:
            status = http.get("/v1/models").status_code
    except httpx2.TransportError:
        return False
    return status < httpx2.codes.INTERNAL_SERVER_ERROR


def _tail(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    last = redacted(" | ".join(filter(None, map(str.strip, lines))))[-_TAIL_CHARS:]
    return f"its log {log_file} ends: {last or '(empty)'}"
