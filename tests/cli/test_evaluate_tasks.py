"""`prefstage evaluate --mt-bench` and `--task`: ratings, benchmarks, and a stop gone on from."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core.ledger import LEDGER, Ledger
from tests.evaluating.harness import splitter_and_languages
from tests.faulty_server import FaultyServer, Scripted
from tests.killed_command import run_until_killed

RUNNER = CliRunner()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "question.jsonl"
    rows = [
        {"question_id": k, "category": ("math", "writing")[k % 2], "turns": [f"q{k}", "again"]}
        for k in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(body: dict[str, Any]) -> Scripted:
    """A policy that echoes, a judge that rates; one reply in six is a refusal."""
    shown = body["messages"][-1]["content"]
    if "Grade answer" not in shown:
        return Scripted(f"answer to {shown}", delay_s=0.01)
    if "q3" in shown:
        return Scripted("I would rather not.", delay_s=0.01)
    return Scripted("Fine. Rating: 7/10" if "Grade answer 2" in shown else "[[5]]", delay_s=0.01)


def words(server: FaultyServer, questions: Path, *more: str) -> list[str]:
    at = server.url
    return [
        *("evaluate", "--mt-bench", str(questions), "--policy", f"openai:p@{at}"),
        *("--judge", f"openai:j@{at}?concurrency=1", "--out", str(questions.parent / "out")),
        *more,
    ]


def test_ratings_are_told_by_turn_and_category(questions: Path) -> None:
    with FaultyServer(answer) as server:
        done = RUNNER.invoke(app, words(server, questions, "--json"))
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["by_turn"] == [5, 7]
        assert found["score"] == 6
        assert found["by_category"] == {"math": 6, "writing": 6}
        assert found["interval"][0] <= 6 <= found["interval"][1]
        assert (found["missing"], found["counts"]["calls"]) == (2, 14 + 2 * 3)
        told = RUNNER.invoke(app, words(server, questions))
    assert "score 6.00 [" in told.stdout
    assert "16 gradings, 2 without a readable rating" in told.stdout
    assert "0 calls, 20 reused" in told.stdout


def test_a_killed_mt_bench_buys_nothing_twice(questions: Path) -> None:
    with FaultyServer(answer) as server:
        typed = words(server, questions, "--json")
        # 16 answers, then gradings
        run_until_killed(typed, until=lambda: sum(server.delivered.values()) >= 25)
        done = RUNNER.invoke(app, typed)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        with Ledger(questions.parent / "out" / LEDGER) as ledger:
            keys = [(key, attempt) for key, attempt, *_ in ledger.rows("gradings")]
        assert found["counts"]["reused"] >= 7
        assert len(keys) == len(set(keys)) == 20
        # only what was under way when the kill came may have been sent again
        again = Counter(server.delivered) - Counter(list(server.delivered))
        assert sum(again.values()) <= 1
        assert sum(server.delivered.values()) <= 16 + 20 + 1


WRONG = [
    (["--mt-bench", "q", "--annotations", "a"], "--mt-bench"),
    (["--mt-bench", "q", "--baseline", "b.json"], "--baseline"),
    (["--repeats", "2"], "--repeats without --mt-bench"),
    (["--task-data", "gsm8k=x"], "--task-data without --task"),
    (["--apply-chat-template"], "--apply-chat-template without --task"),
    (["--mt-bench", "q", "--policy", "p", "--out", "o"], "--judge"),
    (["--task", "gsm8k"], "--policy"),
    (["--task", "gsm8k:many", "--policy", "p"], "TASK:SHOTS"),
    (["--task", "gsm8k", "--policy", "p", "--task-data", "x"], "TASK=FILE"),
    (["--task", "gsm8k", "--policy", "p", "--policy", "q"], "two policies"),
    (["--mt-bench", "q", "--policy", "p", "--out", "o", "--judge", "reward:x"], "ratings"),
]


@pytest.mark.parametrize(("typed", "message"), WRONG)
def test_wrong_commands_are_one_line(
    typed: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = RUNNER.invoke(app, ["evaluate", *typed])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_served_model_judges(chat_model: Path, shared: Path, tmp_path: Path) -> None:
    """Ten prompts as pairwise judge, four questions of MT-bench, through `transformers serve`."""
    from prefstage.serving import managed_server

    policy = ["--policy", str(chat_model), "--max-new-tokens", "48"]
    writer = f"{shared / 'data' / 'alpacaeval_small.jsonl.gz'}#alpaca-7b"
    data = shared / "data"
    command = f"transformers serve {chat_model} --host 127.0.0.1 --port {{port}}"
    with managed_server(command, log_file=tmp_path / "serve.log") as url:
        judge = ["--judge", f"openai:{chat_model}@{url}?concurrency=1"]
        words = ["--baseline", writer, *policy, *judge, "--max-prompts", "10", "--json"]
        done = RUNNER.invoke(app, ["evaluate", *words, "--out", str(tmp_path / "pairwise")])
        assert done.exit_code == 0, done.output
        (found,) = json.loads(done.stdout)["results"].values()
        assert found["rates"]["n_total"] + found["rates"]["n_missing"] == 10
        words = [
            *("--mt-bench", str(data / "mt_bench_questions.jsonl"), "--max-prompts", "4"),
            *("--references", str(data / "mt_bench_reference_gpt4.jsonl")),
            *(*policy, *judge, "--rating-tokens", "48", "--json"),
            *("--out", str(tmp_path / "mt-bench")),
        ]
        first, again = (RUNNER.invoke(app, ["evaluate", *words]) for _ in range(2))
    assert first.exit_code == again.exit_code == 0, first.output + again.output
    told, kept = json.loads(first.stdout), json.loads(again.stdout)
    assert len(told["grades"]) == 8
    assert kept["grades"] == told["grades"]
    assert (kept["counts"]["calls"], kept["counts"]["reused"]) == (0, told["counts"]["calls"])


@pytest.mark.slow
@pytest.mark.parametrize("template", [False, True], ids=["plain", "chat template"])
def test_benchmarks_equal_a_direct_call(
    chat_model: Path, shared: Path, tmp_path: Path, *, template: bool
) -> None:
    """GSM8K and IFEval on twenty shared rows, offline, against the harness's own call."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    import torch
    from lm_eval.tasks import TaskManager

    rows = {"gsm8k": "gsm8k_test.jsonl.gz", "ifeval": "ifeval_input.jsonl.gz"}
    files = {task: shared / "data" / name for task, name in rows.items()}
    words = ["--policy", str(chat_model), "--max-prompts", "20", "--max-new-tokens", "16"]
    words += ["--apply-chat-template"] if template else []
    for task, file in files.items():
        words += ["--task", f"{task}:0", "--task-data", f"{task}={file}"]
    done = RUNNER.invoke(app, ["evaluate", *words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    manager = TaskManager()
    for task, file in files.items():
        definition = manager.task_index[task].yaml_path
        local = {"include": str(definition), "task": f"direct_{task}", "dataset_path": "json"}
        local |= {"dataset_name": None, "test_split": "test", "training_split": None}
        local |= {"dataset_kwargs": {"data_files": {"test": str(file)}}, "fewshot_split": None}
        (tmp_path / f"{task}.yaml").write_text(json.dumps(local))
    with splitter_and_languages(tmp_path):
        direct = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={chat_model}",
            tasks=[f"direct_{task}" for task in files],
            num_fewshot=0,
            limit=20,
            apply_chat_template=template,
            gen_kwargs={"max_gen_toks": 16},
            device="cuda" if torch.cuda.is_available() else "cpu",
            task_manager=TaskManager(include_path=str(tmp_path)),
        )
    expected = {
        (task, metric): value
        for task in files
        for metric, value in direct["results"][f"direct_{task}"].items()
        if "," in metric and "_stderr" not in metric
    }
    assert {(each["task"], each["metric"]): each["score"] for each in told["scores"]} == expected
    assert {each["rows"] for each in told["scores"]} == {20}
