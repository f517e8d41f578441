"""Whatever shape a server's reply has: the right answer, verdict and rating, or one refusal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefstage.core import Ledger, ServiceError
from prefstage.evaluating.mt_bench import Question, run_mt_bench
from prefstage.evaluating.settings import MtBenchConfig
from prefstage.judging import Comparison
from prefstage.judging.judged import compare_all
from prefstage.judging.llm import LLMJudge, LLMJudgeOptions
from prefstage.sampling import SamplingConfig, ServerSampler
from prefstage.sampling.base import Sample, Sampler, SampleRequest
from prefstage.serving import ServerClient
from tests.faulty_server import Body, FaultyServer, Scripted
from tests.serving.reply_shapes import SHAPES, Shape

SERVERS = sorted({shape.server for shape in SHAPES})
PLAIN = "a plain question"


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


def replying(shape: Shape, text: str) -> Any:
    """Replies in this shape, but to a plain question and to what `first` answers once.

    A server that fails whatever is asked fails the tiny question as well that finds out.
    """
    seen = set[str]()
    plain = [PLAIN, *(['"content": "Hi"'] if shape.outcome != "fails" else [])]

    def reply(body: Body) -> Scripted:
        asked = json.dumps(body, sort_keys=True)
        if any(text in asked for text in plain):
            return Scripted(text)
        if shape.first is not None and asked not in seen:
            seen.add(asked)
            status, error, headers = shape.first
            raw = error if isinstance(error, str) else json.dumps(error)
            return Scripted(status=status, raw=raw, headers=headers)
        raw = shape.content(text)
        return Scripted(status=shape.status, raw=raw, kind=shape.kind, headers=shape.headers)

    return reply


def client_of(server: FaultyServer) -> ServerClient:
    return ServerClient(server.url, "m", retries=3, backoff_s=0.001, concurrency=1)


def test_an_answer(shape: Shape) -> None:
    prompts = [user(PLAIN), user("a question"), user(f"{PLAIN}, two")]
    with FaultyServer(replying(shape, "Paris.")) as server:
        config = SamplingConfig(max_new_tokens=16)
        sampler = ServerSampler(client_of(server), config, name="m", concurrency=1)
        requests = [SampleRequest(p[-1]["content"], p, 0) for p in prompts]
        if shape.outcome == "fails":
            with pytest.raises(ServiceError):
                list(sampler.sample(requests))
            return
        first, sample, last = sampler.sample(requests)
    assert (first.text, last.text) == ("Paris.", "Paris.")
    assert bool(sample.refusal) == (shape.outcome == "refused")
    answered = shape.outcome in ("answer", "length")
    assert sample.text.strip() == ("Paris." if answered else "")
    assert sample.thought_cut == (shape.outcome == "cut-thought")
    assert (sample.finish_reason == "length") == (shape.outcome in ("length", "cut-thought"))
    if answered:
        assert sample.thought == shape.thought


def test_a_verdict(shape: Shape) -> None:
    with FaultyServer(replying(shape, "B")) as server, Ledger(None) as ledger:
        options = LLMJudgeOptions(attempts=1, concurrency=1)
        judge = LLMJudge(client_of(server), options=options, ledger=ledger)
        asked = [Comparison(text, user(text), "x", "y") for text in (PLAIN, "a question")]
        if shape.outcome == "fails":
            with pytest.raises(ServiceError):
                judge.compare(asked)
            return
        plain, judgment = judge.compare(asked)
    # Always the letter of the place: both orders together are a tie, decided all the same.
    assert (plain.probability, plain.status) == (0.5, "decided")
    readable = shape.outcome in ("answer", "length")
    assert judgment.status == ("decided" if readable else "undecided")
    assert judge.counts["refused"] == (shape.outcome == "refused")
    assert bool(judge.complaints) == (not readable)


def test_a_rating(shape: Shape, tmp_path: Path) -> None:
    questions = [
        Question(1, "writing", (PLAIN, PLAIN)),
        Question(2, "writing", ("a question", "b")),
    ]
    with FaultyServer(replying(shape, "Rating: [[8]]. Fine.")) as server:
        config = MtBenchConfig(attempts=1)
        asked = {"sampler": Same(), "folder": tmp_path, "config": config}
        if shape.outcome == "fails":
            with pytest.raises(ServiceError):
                run_mt_bench(questions, judge=client_of(server), **asked)  # type: ignore[arg-type]
            return
        found = run_mt_bench(questions, judge=client_of(server), **asked)  # type: ignore[arg-type]
    readable = shape.outcome in ("answer", "length")
    assert found.missing == (0 if readable else 2)
    assert found.score == 8
    assert bool(found.notes) == (not readable)


class Same(Sampler):
    """Answers every question alike."""

    name = fingerprint = "same"

    def sample(self, requests: Any) -> Iterator[Sample]:
        return (Sample(r.prompt_id, r.index, "An answer.", "stop", 1, 1) for r in requests)


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def test_there_are_enough_shapes_and_the_docs_name_their_servers() -> None:
    assert len(SHAPES) >= 80
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    page = (Path(__file__).parents[2] / "docs" / "servers.md").read_text("utf-8")
    assert [
        server for server in SERVERS if server not in ("any", "others") and server not in page
    ] == []


BAD = [shape for shape in SHAPES if shape.outcome in ("refused", "fails")]


@pytest.mark.parametrize("shape", BAD, ids=lambda shape: shape.name)
def test_a_server_that_sends_nothing_else_ends_the_run_in_one_line(shape: Shape) -> None:
    def reply(body: Body) -> Scripted:
        raw = shape.content("A")
        return Scripted(status=shape.status, raw=raw, kind=shape.kind, headers=shape.headers)

    with FaultyServer(reply) as server:
        asked = [Comparison(str(n), user(f"question {n}"), "x", "y") for n in range(3)]
        with pytest.raises(ServiceError) as caught:
            compare_all(LLMJudge(client_of(server)), asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [500, 504])
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("broken", [0, 7])
def test_one_prompt_that_breaks_the_model_is_one_refusal(
    status: int, concurrency: int, broken: int
) -> None:
    def reply(body: Body) -> Scripted:
        bad = f"question {broken}." in json.dumps(body)
        return Scripted(status=status, error="boom") if bad else Scripted("A")

    asked = [Comparison(str(n), user(f"question {n}."), "x", "y") for n in range(8)]
    with FaultyServer(reply) as server, Ledger(None) as ledger:
        client = ServerClient(server.url, "m", retries=2, backoff_s=0.001, concurrency=concurrency)
        found = LLMJudge(client, ledger=ledger).compare(asked)
        before = len(server.requests)
        LLMJudge(client, ledger=ledger).compare(asked)
    statuses = [judgment.status for judgment in found]
    assert statuses == ["undecided" if n == broken else "decided" for n in range(8)]
    # Three times, then whether the server answers at all, and once more.
    assert before == len(server.requests) == 3 + 1 + 1 + 2 * 7


def test_an_outage_is_no_refusal_however_much_was_answered_before() -> None:
    """Nothing is kept as refused that the next run would have got an answer to."""
    count = iter(range(1000))

    def reply(body: Body) -> Scripted:
        return Scripted("A") if next(count) < 6 else Scripted(status=500, error="dead")

    asked = [Comparison(str(n), user(f"question {n}."), "x", "y") for n in range(8)]
    with FaultyServer(reply) as server, Ledger(None) as ledger:
        judge = LLMJudge(client_of(server), ledger=ledger)
        with pytest.raises(ServiceError, match="HTTP 500"):
            judge.compare(asked)
        count = iter(range(-1000, 0))
        again = LLMJudge(client_of(server), ledger=ledger)
        assert [judgment.status for judgment in again.compare(asked)] == ["decided"] * 8
    assert (again.counts["refused"], again.counts["calls"]) == (0, 10)


@pytest.mark.parametrize("refused", [1, 20, 200])
def test_refused_comparisons_are_asked_once_and_kept(refused: int, tmp_path: Path) -> None:
    def reply(body: Body) -> Scripted:
        number = int(body["messages"][-1]["content"].split("question ")[1].split()[0])
        return Scripted(status=400, error="too long") if number < refused else Scripted("A")

    asked = [Comparison(str(n), user(f"question {n} "), "x", "y") for n in range(200)]
    with FaultyServer(reply) as server, Ledger(tmp_path / "ledger.sqlite") as ledger:
        for sent in (refused + 2 * (200 - refused), 0):
            before = len(server.requests)
            judge = LLMJudge(client_of(server), options=LLMJudgeOptions(), ledger=ledger)
            found = judge.compare(asked)
            assert len(server.requests) - before == sent
            assert [j.status for j in found].count("undecided") == refused
            assert judge.counts["refused"] == judge.counts["undecided"] == refused
            (line,) = judge.complaints
            assert line.startswith(f"{refused} of ")
            assert "the first for prompt" in line
            assert "HTTP 400" in line
