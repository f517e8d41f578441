"""MT-bench: ratings read exactly, asked again, counted, and never bought twice."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.evaluating.mt_bench import (
    Question,
    grading_messages,
    load_questions,
    run_mt_bench,
)
from prefstage.evaluating.settings import MtBenchConfig
from prefstage.sampling import Sampler
from prefstage.sampling.base import Sample, SampleRequest
from prefstage.serving.client import ServerClient
from tests.faulty_server import FaultyServer


class Echo(Sampler):
    """Answers with the number of messages it saw."""

    name = "echo"
    fingerprint = "echo"

    def __init__(self) -> None:
        self.asked: list[SampleRequest] = []

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        for each in requests:
            self.asked.append(each)
            text = f"answer after {len(each.prompt)} messages"
            yield Sample(each.prompt_id, each.index, text, "stop", 1, 1)


QUESTIONS = [
    Question(1, "math", ("1 + 1?", "times 3?"), ("2", "6")),
    Question(2, "writing", ("a poem", "again")),
    Question(3, "writing", ("refuse me", "again")),
]


def judge(body: dict[str, Any]) -> str:
    shown = body["messages"][1]["content"]
    if "refuse me" in shown:
        return "I cannot rate this."
    if "a poem" in shown and "exactly this form" not in shown:
        return "Nice."
    return "Rating: 6/10" if "Grade answer 2" in shown else "Good. [[8]]"


def test_two_turns_are_answered_graded_and_kept(tmp_path: Path) -> None:
    sampler = Echo()
    with FaultyServer(judge) as server:
        for _ in range(2):
            found = run_mt_bench(
                QUESTIONS,
                sampler=sampler,
                judge=ServerClient(server.url, "judge"),
                folder=tmp_path,
                config=MtBenchConfig(attempts=3),
            )
            # 2 readable at once; 2 at the second attempt; 2 never
            assert len(server.requests) == 2 + 2 * 2 + 2 * 3
    assert len(sampler.asked) == 6
    assert [len(each.prompt) for each in sampler.asked] == [1, 1, 1, 3, 3, 3]
    assert sampler.asked[3].prompt[1]["content"] == "answer after 1 messages"
    assert found.by_turn == (8, 6)
    assert found.score == 7
    assert found.by_category == {"math": 7, "writing": 7}
    assert (found.missing, found.repeat_deviation) == (2, None)
    assert found.counts == {"calls": 0, "reused": 12, "unreadable": 8, "refused": 0}
    assert json.loads(json.dumps(found.as_dict()))["grades"][0]["rating"] == 8


def test_repeated_gradings_show_the_judges_variance(tmp_path: Path) -> None:
    def moody(body: dict[str, Any]) -> str:
        return f"[[{5 + (body.get('seed', 0) > 0)}]]"

    with FaultyServer(moody) as server:
        found = run_mt_bench(
            QUESTIONS[:1],
            sampler=Echo(),
            judge=ServerClient(server.url, "judge"),
            folder=tmp_path,
            config=MtBenchConfig(repeats=2),
        )
    assert [each.rating for each in found.grades] == [5, 5, 6, 6]
    assert found.repeat_deviation == pytest.approx(0.5**0.5)


def test_references_are_shown_where_there_are_some() -> None:
    with_them = grading_messages(["q"], ["a"], ["gold"])
    assert "gold" in with_them[1]["content"]
    assert "reference" in with_them[0]["content"]
    assert "reference" not in grading_messages(["q"], ["a"])[0]["content"]


def test_questions_are_read_with_their_references(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    found = load_questions(
        data / "mt_bench_questions.jsonl", data / "mt_bench_reference_gpt4.jsonl"
    )
    assert len(found) == 80
    assert {each.category for each in found if each.references} == {"math", "coding", "reasoning"}
    broken = tmp_path / "q.jsonl"
    broken.write_text('{"question_id": 1, "category": "math", "turns": ["one"]}\n')
    with pytest.raises(DataError, match="1 of them without two turns"):
        load_questions(broken)
    broken.write_text("{}\n")
    with pytest.raises(DataError, match="question_id"):
        load_questions(broken)


class Thinker(Echo):
    """Thinks first, and does not get to an answer in the second turn."""

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        for each in super().sample(requests):
            cut = len(self.asked[-1].prompt) > 1
            yield replace(each, text="" if cut else each.text, thought="hm", thought_cut=cut)


def test_the_second_turn_and_the_judge_see_answers_without_thoughts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = Thinker()
    with FaultyServer(lambda body: "[[5]]") as server:
        run_mt_bench(
            QUESTIONS, sampler=sampler, judge=ServerClient(server.url, "judge"), folder=tmp_path
        )
        assert not any("hm" in str(request["messages"][1]) for request in server.requests)
    assert sampler.asked[3].prompt[1] == {
        "role": "assistant",
        "content": "answer after 1 messages",
    }
    assert "echo: 3 answers ended in the thought" in caplog.text
