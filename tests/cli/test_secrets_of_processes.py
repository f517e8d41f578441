"""Keys in real processes: that crash, are killed, are redirected, start servers and launchers."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.aligning.tiny_world import make_world, settings
from tests.cli.test_secrets import KEY, PASSWORD, QUERY, SECRETS, TOKEN, leaks, run, world
from tests.faulty_server import FaultyServer, Scripted
from tests.killed_command import PREFSTAGE, run_until_killed

__all__ = ["world"]  # a fixture

BROKEN = """
import os, sys, threading, warnings
def better(prompt, a, b):
    key = os.environ["OPENAI_API_KEY"]
    print("key", key, file=sys.stderr)
    sys.stderr.writelines(["key ", key])
    warnings.warn("key " + key)
    thread = threading.Thread(target=lambda: 1 / len(key[:0]) + int(key))
    thread.start()
    thread.join()
    raise RuntimeError("no room for " + key)
"""
SERVER = """
import http.server, json, os, sys
print(sys.argv, os.environ["HF_TOKEN"], "ready", flush=True)
if "fail" in sys.argv:
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer({"data": [{"id": "m"}]})
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        message = {"role": "assistant", "content": "hello"}
        self.answer({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]})
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def typed(words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(folder), *sys.path]))
    return subprocess.run(
        [*PREFSTAGE, *shlex.split(words)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_crash_shows_its_traceback_without_the_key(world: Path) -> None:
    (world / "broken.py").write_text(BROKEN)
    done = typed("judge --judge python:broken:better --pairs pairs.jsonl --out j.jsonl", world)
    (world / "broken.py").unlink()
    assert done.returncode not in (0, 2)
    assert "RuntimeError: no room for ***" in done.stderr
    assert "UserWarning: key ***" in done.stderr
    assert "invalid literal" not in done.stderr or "***" in done.stderr
    assert leaks(world, done.stdout, done.stderr) == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_its_target_shows_no_key(world: Path, status: int) -> None:
    with FaultyServer() as other:
        target = f"{other.url.replace('://', f'://user:{PASSWORD}@')}/v1/x?api_key={QUERY}"
        moved = Scripted(status=status, raw="", headers={"location": target})
        with FaultyServer(lambda body: moved) as server:
            printed = [
                run(f"judge --judge openai:m@{server.url}?retries=0 --pairs pairs.jsonl"),
                run(
                    f"sample --policy openai:m@{server.url} --prompts pairs.jsonl --retries 0"
                    " --max-new-tokens 4 --out s.jsonl"
                ),
            ]
            assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        assert other.requests == []
    assert all(f"HTTP {status}" in text and "api_key=***" in text for text in printed)
    assert leaks(world, *printed) == []


def test_a_key_in_a_variable_of_another_name(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OTHER_NAME", KEY)
    wrong = Scripted(status=401, error=f"wrong key {KEY}")
    with FaultyServer(lambda body: wrong) as server:
        printed = run(
            f"sample --policy openai:m@{server.url} --api-key-env OTHER_NAME --retries 0"
            " --prompts pairs.jsonl --max-new-tokens 4 --out s.jsonl",
            fails=True,
        )
        assert {sent["authorization"] for sent in server.headers} == {f"Bearer {KEY}"}
    assert "OTHER_NAME" in printed
    assert leaks(world, printed) == []


@pytest.mark.parametrize(
    "text",
    [
        "training:\n  hub_token: {}: x\n",
        "training:\n  hub_token: *{}\n",
        "training:\n  hub_token: !{} 1\n",
        "training: [hub_token: {}\n",
        "training: 'hub_token={}'\n",
        "training:\n  hub_token: {0}\n  {0}: 1\n",
        "training:\n  hub_token: [{}]\n",
        "training:\n  hub_token: '{}\n",
        "training:\n  hub_token: \"{0}\"\n  hub_token: '{0}'\n",
        "hub_token: {}\n",
        "policy: {{api-key: {}}}\n",
        "policy: p\ndata: d.jsonl\ntraining:\n  hub_token: {0}\n  run_name: {0}\n  x: {0}\n",
        "policy: openai:m@http://a:{0}@h?api_key={0}\ndata: {0}\nhub_token: {0}\n",
    ],
)
@pytest.mark.parametrize("command", ["train", "align", "build", "measure", "experiment"])
def test_recipes_that_cannot_be_read_or_are_wrong(world: Path, text: str, command: str) -> None:
    recipe = world / "recipe.yaml"
    recipe.write_text(text.format(TOKEN))
    words = [command, *(["--config"] if command == "measure" else []), "recipe.yaml", "--out", "o"]
    printed = run(words, fails=True)
    assert "prefstage: error: " in printed
    recipe.unlink()
    assert leaks(world, printed) == []


@pytest.mark.parametrize(
    "words",
    [
        "train x.yaml --out o --set training.hub_token={}: --set data={}",
        "train x.yaml hub_token={}",
        "train x.yaml --out o --hub-token={}",
        "train x.yaml --out o --hub-token {}",
        "sample --policy 'serve:vllm serve m --api-key {} --port 1' --prompts p --out s.jsonl",
        "sample --policy 'serve:nothing --api-key={} --port {{port}}' --prompts pairs.jsonl"
        " --max-new-tokens 4 --out s.jsonl",
        "doctor --server http://user:{}@127.0.0.1:1/v1?api_key={}",
        "doctor --judge openai:m@http://user:{}@127.0.0.1:1/v1?api_key={} --out d.json",
    ],
)
def test_command_lines_that_are_wrong(world: Path, words: str) -> None:
    printed = run(shlex.split(words.format(TOKEN, TOKEN)))
    assert leaks(world, printed) == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_server_of_ours_shows_its_key_in_no_log(world: Path, fails: bool) -> None:
    (world / "server.py").write_text(SERVER)
    command = f"{sys.executable} server.py {{port}} --api-key {KEY} {'fail' if fails else ''}"
    printed = run(
        [
            *("sample", "--policy", f"serve:{command}", "--prompts", "pairs.jsonl"),
            *("--max-new-tokens", "4", "--out", "s.jsonl", "--json"),
        ],
        fails=fails,
    )
    assert "'--api-key', '***'" in (world / "s.jsonl.server.log").read_text()
    assert "ready" in (world / "s.jsonl.server.log").read_text()
    assert leaks(world, printed) == []


def until(condition: Callable[[], object]) -> Callable[[], bool]:
    """The condition, and then a moment for what follows."""

    def met() -> bool:
        if condition():
            time.sleep(0.1)
            return True
        return False

    return met


@pytest.mark.parametrize("command", ["judge", "sample", "measure"])
def test_killed_commands_leave_no_key_behind(world: Path, command: str) -> None:
    with FaultyServer(lambda body: Scripted("A", delay_s=0.05)) as server:
        place = server.url.removeprefix("http://")
        judge = f"openai:m@http://user:{PASSWORD}@{place}/v1?concurrency=1"
        who = f"openai:m@http://user:{PASSWORD}@{place}/v1?api_key={QUERY}"
        words = {
            "judge": f"judge --judge {judge} --pairs pairs.jsonl --out j.jsonl",
            "sample": f"sample --policy {who} --prompts pairs.jsonl --concurrency 1"
            " --responses 9 --max-new-tokens 4 --out s.jsonl",
            "measure": f"measure --off-policy pairs.jsonl --policy {who} --concurrency 1"
            f" --judge {judge} --responses 9 --max-new-tokens 4 --out m",
        }[command]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        run_until_killed(
            words.split(), until=until(lambda: len(server.requests) > 2), environment=environment
        )
    assert leaks(world) == []
    assert [p for p in world.rglob("*.sqlite*") if p.stat().st_size]


@pytest.mark.parametrize("launch", [None, f"env X={KEY}"])
def test_a_killed_alignment_leaves_no_token_behind(
    tmp_path: Path, launch: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(tmp_path)
    recipe = settings(tmp_path, schedule="off", iterations=1, evaluate=None, measure=False)
    training = {**recipe["train"]["training"], "max_steps": 400, "hub_token": TOKEN}
    recipe["train"] = {**recipe["train"], "training": training}
    given = tmp_path / "recipe.yaml"
    given.write_text(yaml.safe_dump({**recipe, "launch": launch and launch.replace(KEY, "1")}))
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run_until_killed(
        ["align", str(given), "--out", str(out)],
        until=until(lambda: list(out.rglob("checkpoint-*"))),
        environment=environment,
    )
    given.unlink()
    assert leaks(tmp_path) == []
    if launch:
        (log,) = out.rglob("*.log")
        assert TOKEN not in log.read_text()


def test_what_is_searched_for_would_be_found(world: Path) -> None:
    for number, secret in enumerate(SECRETS):
        (world / f"{number}.json").write_text(json.dumps({"x": secret}))
    assert len(leaks(world, f"x{KEY}")) == len(SECRETS) + 1
