import json
import math
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import InputError, ServiceError
from prefstage.core.ledger import Ledger
from prefstage.judging import Comparison, load_judge, stored
from prefstage.judging.llm import LLMJudge, LLMJudgeOptions
from prefstage.serving.client import ServerClient
from tests.faulty_server import Body, FaultyServer, Scripted, key_of
from tests.judging.tiny_judges import comparison
from tests.killed_command import PREFSTAGE, run_until_killed


def shown(body: Body) -> tuple[str, str]:
    """The two responses in a request, as the judge sees them."""
    user = body["messages"][-1]["content"]
    fence = r"Response {0}:\n<(\w+)>\n(.*?)\n</\1>"
    a, b = (re.search(fence.format(letter), user, re.DOTALL) for letter in "AB")
    assert a is not None
    assert b is not None
    return a[2], b[2]


def longer(body: Body) -> str:
    a, b = shown(body)
    return "C" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def judge_at(server: FaultyServer, **options: Any) -> LLMJudge:
    client = ServerClient(server.url, "m", timeout_s=0.4, retries=25, backoff_s=0.01)
    return LLMJudge(client, options=LLMJudgeOptions(**options))


def pairs(count: int) -> list[Comparison]:
    return [comparison(f"question {i}", "x" * (i % 5 + 1), "y" * (i % 3 + 1)) for i in range(count)]


def test_both_orders_are_asked_and_averaged() -> None:
    with FaultyServer(longer) as server:
        judge = judge_at(server)
        found = judge.compare([comparison("q", "aaa", "b"), comparison("q", "a", "bb")])
        assert [judgment.probability for judgment in found] == [1.0, 0.0]
        assert sorted(map(shown, server.requests)) == [
            ("a", "bb"),
            ("aaa", "b"),
            ("b", "aaa"),
            ("bb", "a"),
        ]
        assert judge.counts["calls"] == 4
        assert judge.counts["answer_tokens"] == 12


def test_a_position_bias_cancels_and_equal_texts_cost_nothing() -> None:
    with FaultyServer(lambda body: "A") as server:
        judge = judge_at(server)
        biased, equal = judge.compare([comparison("q", "a", "b"), comparison("q", "a", "a")])
        assert (biased.probability, biased.status) == (0.5, "decided")
        assert equal.probability == 0.5
        assert (judge.counts["calls"], judge.counts["order_dependent"]) == (2, 1)


def test_swapped_comparisons_share_their_answers() -> None:
    with FaultyServer(longer) as server:
        judge = judge_at(server)
        both = [comparison("q", "aaa", "b"), comparison("q", "b", "aaa")] * 2
        assert [j.probability for j in judge.compare(both)] == [1.0, 0.0, 1.0, 0.0]
        judge.compare(both)
        assert judge.counts["calls"] == 2


def test_first_token_log_probs_decide_where_the_server_gives_them() -> None:
    def reply(body: Body) -> Scripted:
        p = 0.8 if shown(body)[0] == "good" else 0.3
        top = {"A": math.log(p * 0.9), " B": math.log((1 - p) * 0.9), "C": math.log(0.1)}
        return Scripted("A", top_logprobs=[top, {"!": 0.0}])

    with FaultyServer(reply) as server:
        (judgment,) = judge_at(server).compare([comparison("q", "good", "bad")])
        assert server.requests[0]["logprobs"] is True
        forward, backward = 0.8 * 0.9 + 0.05, 0.3 * 0.9 + 0.05
        assert judgment.probability == pytest.approx(0.5 * (forward + 1 - backward))
        (parsed,) = judge_at(server, logprobs=False).compare([comparison("q", "good", "bad")])
        assert parsed.probability == 0.5  # the text says A in both orders


def test_a_server_that_refuses_log_probs_is_asked_without() -> None:
    def reply(body: Body) -> Scripted:
        if "logprobs" in body:
            return Scripted(status=400, error="logprobs are not supported")
        return Scripted(longer(body))

    with FaultyServer(reply) as server:
        found = judge_at(server, concurrency=1).compare(pairs(3))
        assert len(found) == 3
        assert sum("logprobs" in body for body in server.requests) <= 6


def test_unreadable_answers_are_asked_again_and_then_undecided() -> None:
    def reply(body: Body) -> str:
        a, b = shown(body)
        reminded = body["messages"][-1]["content"].endswith("without any other text)")
        if "never" in a + b:
            return "Both are nice."
        return "A" if reminded and a == "good" else "B" if reminded else "Well ..."

    with FaultyServer(reply) as server:
        judge = judge_at(server)
        late, never = judge.compare([comparison("q", "good", "bad"), comparison("q", "never", "x")])
        assert (late.probability, late.status) == (1.0, "decided")
        assert (never.probability, never.status) == (0.5, "undecided")
        counts = judge.counts
        # Without a verdict in the first order, the second is not asked.
        assert (counts["calls"], counts["unreadable"], counts["undecided"]) == (4 + 3, 2 + 3, 1)


def test_one_readable_order_is_not_enough() -> None:
    with FaultyServer(lambda body: "A" if shown(body)[0] == "good" else "?") as server:
        (judgment,) = judge_at(server, attempts=1).compare([comparison("q", "good", "bad")])
        assert (judgment.probability, judgment.status) == (0.5, "undecided")


def test_a_faulty_server_is_asked_until_each_question_is_answered_once(tmp_path: Path) -> None:
    questions = pairs(40)
    with (
        FaultyServer(longer, fault_rate=0.3) as server,
        Ledger(tmp_path / "store.db") as store,
    ):
        judge = stored(judge_at(server), store)
        found = judge.compare(questions)
        expected = [0.5 + 0.5 * ((len(c.a) > len(c.b)) - (len(c.a) < len(c.b))) for c in questions]
        assert [judgment.probability for judgment in found] == expected
        assert len(server.faults_sent) >= 6
        assert set(server.delivered.values()) == {1}
        assert server.delivered.total() == store.count("replies") == 80
        sent = len(server.requests)
        again = stored(judge_at(server), store)
        assert again.compare(questions) == found
        assert again.compare([comparison("question 0", "y", "x")])[0].probability == 0.5
        assert len(server.requests) == sent
        assert again.counts["calls"] == 0  # type: ignore[attr-defined]  # of the LLM judge


def test_unreadable_answers_are_stored_and_not_bought_again(tmp_path: Path) -> None:
    with FaultyServer(lambda body: "hm") as server, Ledger(tmp_path / "s.db") as store:
        for _ in range(2):
            judge = stored(judge_at(server), store)
            assert judge.compare(pairs(2))[1].status == "undecided"
        assert server.delivered.total() == store.count("replies") == 2 * 3


def test_a_dead_server_ends_in_one_error_and_keeps_what_was_answered(tmp_path: Path) -> None:
    def reply(body: Body) -> Scripted:
        broken = "question 7" in body["messages"][-1]["content"]
        return Scripted(status=401, error="no key") if broken else Scripted(longer(body))

    with FaultyServer(reply) as server, Ledger(tmp_path / "s.db") as store:
        judge = stored(judge_at(server, concurrency=2), store)
        with pytest.raises(ServiceError, match="OPENAI_API_KEY"):
            judge.compare(pairs(10))
        assert store.count("replies") == server.delivered.total() >= 10


def judging(server: FaultyServer, folder: Path) -> list[str]:
    spec = f"openai:m@{server.url}?concurrency=4"
    files = ["--pairs", str(folder / "pairs.jsonl"), "--store", str(folder / "store.db")]
    return ["judge", "--judge", spec, *files, "--json"]


def write_pairs(folder: Path, count: int) -> None:
    rows = [
        {
            "prompt": f"question {i}",
            "response 1": "long answer",
            "response 2": f"no {i}",
            "label": 0,
        }
        for i in range(count)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_kill_9_in_the_middle_then_the_same_command_buys_nothing_twice(tmp_path: Path) -> None:
    write_pairs(tmp_path, 30)
    with FaultyServer(lambda body: Scripted(longer(body), delay_s=0.02)) as server:
        words = judging(server, tmp_path)
        status = run_until_killed(words, until=lambda: server.delivered.total() >= 20)
        assert status == -signal.SIGKILL
        with Ledger(tmp_path / "store.db") as store:
            kept = store.count("replies")
        assert 20 - 4 <= kept < 60
        second = subprocess.run(
            [*PREFSTAGE, *words], stdout=subprocess.PIPE, text=True, check=False
        )
        result = json.loads(second.stdout)
        assert second.returncode == 0
        assert result["agreement"] == 1.0
        assert result["counts"]["reused"] == kept
        assert result["counts"]["calls"] == 60 - kept
        # Asked twice: at most the answers that were on the wire when the process was killed.
        twice = [key for key, count in server.delivered.items() if count > 1]
        assert len(twice) <= 4
        with Ledger(tmp_path / "store.db") as store:
            assert store.count("replies") == 60 == len(server.delivered)


@pytest.mark.parametrize("target", ["model", "model@localhost:8000", "@ftp://x"])
def test_targets_of_another_form_are_refused(target: str) -> None:
    with pytest.raises(InputError, match="expected openai:MODEL@URL"):
        load_judge(f"openai:{target}")


def test_the_fingerprint_follows_model_and_wording_but_not_the_address(tmp_path: Path) -> None:
    wording = tmp_path / "w.yaml"
    wording.write_text("user: '{conversation} {response_a} {response_b}'\n")
    prints = {
        load_judge(f"openai:{spec}").fingerprint
        for spec in (
            "m@http://127.0.0.1:1",
            "m@http://127.0.0.1:2?concurrency=3&retries=1",
        )
    }
    assert len(prints) == 1
    for spec in ("n@http://127.0.0.1:1", f"m@http://127.0.0.1:1?prompt={wording}"):
        prints.add(load_judge(f"openai:{spec}").fingerprint)
    assert len(prints) == 3


@pytest.mark.slow
def test_a_real_server_on_loopback_judges(chat_model: Path, tmp_path: Path) -> None:
    from prefstage.serving.managed import managed_server

    questions = [
        comparison("What is the capital of France?", "Paris.", "I like trains."),
        comparison("Add 2 and 3.", "5", "The sum of 2 and 3 is 23."),
        comparison("Name a colour.", "Blue is a colour.", "blue blue blue blue"),
    ]
    command = f"transformers serve {chat_model} --port {{port}}"
    with (
        managed_server(command, log_file=tmp_path / "serve.log") as url,
        Ledger(tmp_path / "store.db") as store,
    ):
        judge = stored(load_judge(f"openai:{chat_model}@{url}?concurrency=2"), store)
        found = judge.compare(questions)
        assert {judgment.status for judgment in found} == {"decided"}
        assert store.count("replies") == judge.counts["calls"] >= 6  # type: ignore[attr-defined]
        again = stored(load_judge(f"openai:{chat_model}@{url}"), store)
        assert again.compare(questions) == found
        assert again.counts["calls"] == 0  # type: ignore[attr-defined]


def test_requests_carry_the_model_and_no_sampling() -> None:
    with FaultyServer(longer) as server:
        judge_at(server).compare([comparison("q", "aa", "b")])
        body = server.requests[0]
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 16)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert server.delivered[key_of(body)] == 1
