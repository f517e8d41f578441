import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core.ledger import Ledger
from prefstage.data import load_candidates
from tests.faulty_server import FaultyServer, Scripted
from tests.killed_command import PREFSTAGE, run_until_killed
from tests.tiny_models import save_tiny_llama, tiny_tokenizer

RUNNER = CliRunner()


def stored_in(store: Path) -> list[tuple[Any, ...]]:
    with Ledger(store) as ledger:
        return ledger.rows("samples")


def run(*arguments: object) -> Any:
    return RUNNER.invoke(app, ["sample", *map(str, arguments)])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(12)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_tiny_llama(folder, tiny_tokenizer("chatml"), max_position_embeddings=128)


def answer(body: dict[str, Any]) -> Scripted:
    return Scripted(f"{body['messages'][0]['content']} {body['seed']}", delay_s=0.03)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_local_policy_answers_and_the_file_loads(
    model: Path, pairs: Path, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"answers.{ending}"
    settings = ("--responses", 3, "--max-new-tokens", 8, "--max-prompts", 5, "--device", "cpu")
    done = run("--policy", model, "--prompts", pairs, "--out", out, *settings)
    assert done.exit_code == 0, done.output
    assert "15 responses to 5 prompts by tiny" in done.stdout
    assert f"wrote {out}" in done.stdout
    rows = list(load_candidates(out))
    assert [row.prompt[0]["content"] for row in rows] == [f"Question {n}?" for n in range(5)]
    assert all(set(row.sources) == {"tiny"} for row in rows)


def test_the_same_command_goes_on_and_json_stands_alone(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    base = ("--policy", model, "--prompts", pairs, "--out", out, "--max-new-tokens", 8, "--json")
    first = json.loads(run(*base, "--max-prompts", 4).stdout)
    second = json.loads(run(*base).stdout)
    assert (first["responses"], first["responses_new"]) == (8, 8)
    assert (second["responses"], second["responses_new"]) == (24, 16)
    assert len(load_candidates(out)) == 12
    whole = run(*base, "--temperature", 0.5)
    assert whole.exit_code == 2
    assert "temperature=0.7, now 0.5" in whole.stderr


def test_a_faulty_server_answers_every_prompt_once(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with FaultyServer(answer, fault_rate=0.3) as server:
        done = run(
            *("--policy", f"openai:some/model@{server.url}", "--prompts", pairs, "--out", out),
            *("--timeout-s", 2, "--retries", 30, "--json"),
        )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["policy"] == "model"
    assert result["responses"] == result["counts"]["replies"] == 24
    assert sum(server.delivered.values()) == 24
    assert set(server.delivered.values()) == {1}
    assert len(stored_in(Path(result["store"]))) == 24


def test_kill_9_in_the_middle_loses_nothing_and_doubles_nothing(
    pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    store = tmp_path / "answers.jsonl.samples.sqlite"
    with FaultyServer(answer, fault_rate=0.1) as server:
        words = [
            "sample",
            *("--policy", f"openai:m@{server.url}", "--prompts", str(pairs), "--out", str(out)),
            *("--concurrency", "2", "--timeout-s", "1", "--retries", "30", "--responses", "4"),
        ]
        run_until_killed(words, until=lambda: store.exists() and len(stored_in(store)) >= 10)
        kept = stored_in(store)
        assert 10 <= len(kept) < 48
        assert not out.exists()
        again = subprocess.run([*PREFSTAGE, *words], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    rows = stored_in(store)
    assert rows[: len(kept)] == kept
    assert len({(prompt, index) for _, prompt, index, *_ in rows}) == len(rows) == 48
    assert sum(len(row.responses) for row in load_candidates(out)) == 48
    # Only what was under way at the kill, two requests, can have been delivered and lost.
    assert 48 <= sum(server.delivered.values()) <= 50


def test_ctrl_c_keeps_what_arrived(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    store = tmp_path / "answers.jsonl.samples.sqlite"
    with FaultyServer(answer) as server:
        words = [
            *PREFSTAGE,
            "sample",
            *("--policy", f"openai:m@{server.url}", "--prompts", str(pairs), "--out", str(out)),
            *("--concurrency", "1", "--responses", "20"),
        ]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            while not store.exists() or len(stored_in(store)) < 4:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            told = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted; everything so far is kept" in told
    assert len(told.splitlines()) == 1
    kept = len(stored_in(store))
    assert kept >= 4
    assert kept <= sum(server.delivered.values()) <= kept + 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--out": "answers.csv"}, "ends in .jsonl or .parquet"),
        ({"--max-prompts": 0}, "'max_prompts' is 0"),
        ({"--prompts": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"--policy": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"--policy": "openai:model"}, "openai:MODEL@URL"),
        ({"--policy": "openai:@http://127.0.0.1:1"}, "openai:MODEL@URL"),
        ({"--policy": "serve:vllm serve m"}, "{port}"),
        ({"--policy": "serve:"}, "{port}"),
        ({"--policy": "serve:no-such-program --port {port}"}, "no-such-program"),
        ({"--policy": "openai:m@http://127.0.0.1:1", "--dtype": "float32"}, "dtype=float32"),
        ({"--concurrency": 3}, "concurrency=3"),
        ({"--responses": 0}, "'responses' is 0"),
        ({"--temperature": -1}, "'temperature' is -1"),
        ({"--chat-format": "no-such"}, "chat_format='no-such'"),
        ({"--batch-tokens": 0}, "batch_tokens=0"),
        ({"--max-prompt-tokens": 0}, "max_prompt_tokens=0"),
        ({"--dtype": "float99"}, "float99"),
        ({"--on-bad-row": "drop"}, "'on_bad_row' is 'drop'"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    model: Path, pairs: Path, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    given = {"--policy": model, "--prompts": pairs, "--out": "answers.jsonl"} | changes
    given["--out"] = tmp_path / str(given["--out"])
    done = run(*(word for option in given.items() for word in option))
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_file_that_is_not_ours_is_not_written_over(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    before = pairs.read_bytes()
    done = run("--policy", model, "--prompts", pairs, "--out", pairs)
    assert done.exit_code == 2
    assert "exists" in done.stderr
    assert pairs.read_bytes() == before
