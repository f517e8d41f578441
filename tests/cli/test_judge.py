import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.data.records import Prompt
from tests.faulty_server import Body, FaultyServer, Scripted

RUNNER = CliRunner()


def longer(a: str, b: str, prompt: Prompt) -> float:
    return 0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [("aaa", "b", 0), ("a", "bbb", 0), ("a", "bb", 1), ("aa", "b", 2), ("cc", "dd", 0)]
    named = [
        {"prompt": f"question {i}", "response 1": a, "response 2": b, "label": label}
        for i, (a, b, label) in enumerate(rows)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in named))
    return path


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    named = [
        {"instruction": f"question {i}", "output": text, "generator": model}
        for i in range(2)
        for model, text in (("short", "a"), ("long", "a a a"), ("middle", "a a"))
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in named))
    return path


def run(*arguments: object) -> Any:
    return RUNNER.invoke(
        app, ["judge", "--judge", "python:test_judge:longer", *map(str, arguments)]
    )


def test_pairs_are_judged_and_compared_with_their_labels(pairs: Path, tmp_path: Path) -> None:
    done = run("--pairs", pairs, "--out", tmp_path / "judged.jsonl", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["pairs"], result["label_ties"], result["judge_ties"]) == (5, 1, 1)
    assert result["agreement"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert result["interval"][0] < result["agreement"] < result["interval"][1]
    assert result["counts"] == {"calls": 10}
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert [row["judge_probability"] for row in rows] == [1.0, 0.0, 1.0, 1.0, 0.5]
    assert rows[2]["chosen"][0]["content"] == "bb"
    assert {row["judge_status"] for row in rows} == {"decided"}


def test_the_summary_is_for_people(pairs: Path) -> None:
    done = run("--pairs", pairs)
    assert "agrees with the labels of 4 pairs: 62.5%" in done.stdout
    assert '"longer is better" would reach 62.5%' in done.stdout
    assert "ties: 1 in the labels, 1 by the judge; undecided: 0" in done.stdout


def test_candidates_get_their_mean_win_probability(answers: Path, tmp_path: Path) -> None:
    done = run("--candidates", answers, "--out", tmp_path / "scored.parquet", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["mean"] == {"short": 0.0, "long": 1.0, "middle": 0.5}
    assert (result["prompts"], result["responses"]) == (2, 6)
    from prefstage.data import load_candidates

    scored = load_candidates(tmp_path / "scored.parquet")
    assert [each.scores for each in scored] == [(0.0, 1.0, 0.5)] * 2


def test_a_store_spares_the_second_run_all_calls(pairs: Path, tmp_path: Path) -> None:
    first, second = (
        json.loads(run("--pairs", pairs, "--store", tmp_path / "s.db", "--json").stdout)
        for _ in range(2)
    )
    assert first["counts"] == {"calls": 10, "reused": 0}
    assert second["counts"] == {"calls": 0, "reused": 5}
    assert second["agreement"] == first["agreement"]


def test_a_summary_can_be_written_as_json(pairs: Path, tmp_path: Path) -> None:
    done = run("--pairs", pairs, "--out", tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["pairs"] == 5
    assert f"wrote {tmp_path / 'summary.json'}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "neither --pairs nor --candidates"),
        (("--pairs", "x", "--candidates", "y"), "both --pairs and --candidates"),
        (("--pairs", "x", "--out", "x.csv"), "--out x.csv; expected a name that ends in .parquet"),
        (("--pairs", "x", "--on-bad-row", "skip"), "skip"),
        (("--pairs", "no-such-file.jsonl"), "no-such-file.jsonl"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_exit_2(
    arguments: tuple[str, ...], message: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("prefstage: error: ")
    assert done.stderr.count("\n") == 1


def test_a_wrong_judge_ends_in_one_line_and_exit_2(pairs: Path) -> None:
    done = RUNNER.invoke(app, ["judge", "--judge", "oracle:x", "--pairs", str(pairs)])
    assert done.exit_code == 2
    assert "expected reward:PATH, pairrm:PATH" in done.stderr


def paid(server: FaultyServer, *arguments: object) -> Any:
    judge = f"openai:m@{server.url}?concurrency=1"
    return RUNNER.invoke(app, ["judge", "--judge", judge, *map(str, arguments)])


def test_what_a_paid_judge_said_before_a_fault_is_not_asked_again(
    pairs: Path, tmp_path: Path
) -> None:
    out, answered = tmp_path / "judged.json", iter(range(4))

    def reply(body: Body) -> Scripted:
        return Scripted("A") if next(answered, None) is not None else Scripted(status=401)

    with FaultyServer(reply) as server:
        done = paid(server, "--pairs", pairs, "--out", out)
        assert (done.exit_code, len(server.requests)) == (2, 5)
        answered = iter(range(100))
        assert paid(server, "--pairs", pairs, "--out", out).exit_code == 0
        assert len(server.requests) == 5 + 6
        assert paid(server, "--pairs", pairs, "--out", out).exit_code == 0
        assert len(server.requests) == 5 + 6


def test_refused_requests_are_counted_and_told(pairs: Path, tmp_path: Path) -> None:
    def reply(body: Body) -> Scripted:
        refused = "question 2" in str(body)
        return Scripted(status=400, error="too long") if refused else Scripted("A")

    with FaultyServer(reply) as server:
        done = paid(server, "--pairs", pairs, "--out", tmp_path / "judged.jsonl")
    assert done.exit_code == 0
    assert "undecided: 1" in done.output
    assert "refused 1" in done.output
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert [row["judge_status"] for row in rows].count("undecided") == 1
    with FaultyServer(lambda body: Scripted(status=400, error="too long")) as server:
        done = paid(server, "--pairs", pairs)
    assert done.exit_code == 2
    assert "decided none of 5 comparisons" in done.output
    assert "too long" in done.output
