import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from prefstage.core.errors import InputError, ServiceError
from prefstage.serving import managed_server

# A server whose worker, like its leader, can ignore SIGTERM; pids go to a file.
SERVER = """
import http.server, os, signal, subprocess, sys, time
port, pids, stubborn, health = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "stubborn", sys.argv[4]
ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" if stubborn else ""
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", ignore + "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == health else 404)
        self.end_headers()
    def log_message(self, *_): print("asked for", self.path)
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
with open(pids, "w") as stream:
    stream.write(f"{os.getpid()} {worker.pid}")
print("ready")
server.serve_forever()
"""


def command(folder: Path, *, stubborn: bool = False, health: str = "/health") -> str:
    script = folder / "server.py"
    script.write_text(SERVER)
    words = [sys.executable, str(script), "{port}", str(folder / "pids")]
    return shlex.join([*words, "stubborn" if stubborn else "gentle", health])


def running(folder: Path) -> list[int]:
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    alive = [pid for pid in pids if psutil.pid_exists(pid)]
    return [pid for pid in alive if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("health", ["/health", "/v1/models"])
def test_a_server_runs_while_the_block_lasts_and_leaves_its_log(tmp_path, health):
    log = tmp_path / "logs" / "server.log"
    with managed_server(command(tmp_path, health=health), log_file=log) as url:
        assert url.startswith("http://127.0.0.1:")
        assert httpx2.get(url + health, trust_env=False).status_code == 200
        assert len(running(tmp_path)) == 2
    assert running(tmp_path) == []
    assert "ready" in log.read_text()


def test_all_its_processes_end_even_if_they_ignore_sigterm(tmp_path):
    def interrupted():
        words = command(tmp_path, stubborn=True)
        with managed_server(words, log_file=tmp_path / "log", stop_grace_s=0.2):
            assert len(running(tmp_path)) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    wait_until(lambda: running(tmp_path) == [])  # a killed process takes a moment to be gone


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_our_process(tmp_path, how):
    script = (
        "import sys, time, pathlib; from prefstage.serving import managed_server\n"
        "with managed_server(sys.argv[1], log_file=pathlib.Path(sys.argv[2])):\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", script, command(tmp_path), str(tmp_path / "log")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert len(running(tmp_path)) == 2
        os.kill(parent.pid, how)
    wait_until(lambda: running(tmp_path) == [])


def test_a_server_that_ends_early_is_reported_with_its_last_words(tmp_path):
    words = shlex.join([sys.executable, "-c", "import sys; sys.exit('no such model {port}')"])
    with (
        pytest.raises(ServiceError, match=r"exit status 1 .* ends: no such model \d+;") as caught,
        managed_server(words, log_file=tmp_path / "log"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up_and_stopped(tmp_path):
    words = shlex.join([sys.executable, "-c", "import time; time.sleep(600)", "{port}"])
    before = set(psutil.Process().children())
    with (
        pytest.raises(ServiceError, match=r"within 0\.3 s; its log .* ends: \(empty\)"),
        managed_server(words, log_file=tmp_path / "log", start_timeout_s=0.3),
    ):
        pass
    assert set(psutil.Process().children()) == before


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("vllm serve model", "write, for example, --port"),
        ("no-such-program-here --port {port}", "install no-such-program-here"),
        ("python 'serve --port {port}", "close the quotes"),
    ],
)
def test_a_bad_command_is_an_input_error(tmp_path, words, cure):
    with (
        pytest.raises(InputError, match=cure),
        managed_server(words, log_file=tmp_path / "log"),
    ):
        pass
