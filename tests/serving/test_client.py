import asyncio
import math
from collections import Counter
from datetime import UTC, datetime

import pytest

from prefstage.core.errors import InputError, ServiceError
from prefstage.serving import ServerClient, ask_all
from prefstage.serving.protocol import retry_after_s
from tests.faulty_server import FAULTS, FaultyServer, Scripted


def ask(client, *, path="chat", content="hi", **options):
    async def run():
        async with client:
            if path == "chat":
                return await client.chat([{"role": "user", "content": content}], **options)
            return await client.complete(content, **options)

    return asyncio.run(run())


def fast(url, **options):
    return ServerClient(url, "m", backoff_s=0.005, **{"timeout_s": 1.0, **options})


def test_a_chat_reply_is_read_whole():
    with FaultyServer(lambda body: Scripted("Paris.", "length", 11, 4)) as server:
        client = fast(server.url)
        reply = ask(client, content="Capital?", temperature=0.7, seed=3)
    assert (reply.text, reply.finish_reason) == ("Paris.", "length")
    assert (reply.prompt_tokens, reply.completion_tokens) == (11, 4)
    assert reply.top_logprobs is None
    assert server.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Capital?"}],
            "temperature": 0.7,
            "seed": 3,
        }
    ]
    usage = client.usage
    assert [usage[name] for name in ("requests", "replies", "retries", "failures")] == [1, 1, 0, 0]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (11, 4)


@pytest.mark.parametrize("path", ["chat", "complete"])
def test_log_probs_of_the_first_token_are_read_from_both_endpoints(path):
    top = [{"A": math.log(0.8), "B": math.log(0.2)}, {"x": -0.5}]
    with FaultyServer(lambda body: Scripted("A x", top_logprobs=top)) as server:
        reply = ask(fast(server.url), path=path, logprobs=True)
    assert reply.top_logprobs == tuple(top)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_retried_until_the_server_recovers(fault):
    replies = iter([True, False])
    with FaultyServer(fault_rate=1.0, faults=[fault]) as server:
        server._fault_for = lambda key: fault if next(replies) else None
        client = fast(server.url, timeout_s=0.3)
        assert ask(client).text == "ok"
    assert (client.usage["requests"], client.usage["retries"], client.usage["replies"]) == (2, 1, 1)
    assert sum(server.delivered.values()) == 1


@pytest.mark.parametrize("fault", ["500", "reset", "wrong-type", "truncated-json", "429-seconds"])
def test_a_lasting_fault_ends_in_one_line_that_names_it(fault):
    with FaultyServer(fault_rate=1.0, faults=[fault]) as server:
        client = fast(server.url, retries=2)
        with pytest.raises(
            ServiceError, match=r"chat/completions: .*, 3 times; expected"
        ) as caught:
            ask(client)
    assert "\n" not in str(caught.value)
    # What may be this request's own fault is tried by a tiny one too.
    assert len(server.requests) == (3 if fault == "429-seconds" else 4)
    assert (client.usage["retries"], client.usage["failures"], client.usage["replies"]) == (2, 1, 0)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_retried_and_gives_the_servers_message(status):
    refusal = Scripted(status=status, error="maximum context\nlength is 2048 tokens")
    with FaultyServer(lambda body: refusal) as server:
        client = fast(server.url)
        with pytest.raises(ServiceError, match="maximum context length is 2048 tokens") as caught:
            ask(client)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1
    assert client.usage["failures"] == 1


def test_a_server_that_is_not_there_is_named():
    with FaultyServer() as server:
        url = server.url
    with pytest.raises(ServiceError, match=f"{url}/v1/chat/completions: ConnectError"):
        ask(fast(url, retries=1))


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with FaultyServer(lambda body: Scripted(status=401, error="bad key sk-secret")) as server:
        client = fast(server.url, api_key_env="MY_KEY")
        with pytest.raises(ServiceError, match=r"bad key \*\*\*.*set .* MY_KEY") as caught:
            ask(client)
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(caught.value) + repr(vars(client))


def test_no_key_no_header(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultyServer() as server:
        ask(fast(server.url))
    assert "authorization" not in server.headers[0]


def test_models_and_description_are_read():
    async def look(client):
        async with client:
            return await client.models(), await client.describe()

    with FaultyServer(models=["a", "b"], openapi={"paths": {"/load_model": {}}}) as server:
        assert asyncio.run(look(fast(server.url))) == (["a", "b"], {"paths": {"/load_model": {}}})
    with FaultyServer() as server:
        assert asyncio.run(look(fast(server.url))) == (["scripted"], {})


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("7", 7),
        ("1.5", 1.5),
        ("-3", 0),
        ("soon", 0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(header, seconds):
    now = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s(header, now=now) == seconds


def test_a_wait_beyond_reason_is_refused_instead_of_slept():
    with FaultyServer(fault_rate=1.0, faults=["429-date"]) as server:
        client = fast(server.url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prefstage.serving.protocol.wait_of", lambda headers: 7200.0)
            with pytest.raises(ServiceError, match="to be asked again in 7200 s"):
                ask(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://host/api/v1", "https://host/api/v1"),
    ],
)
def test_the_api_path_is_added_where_it_is_missing(given, whole):
    assert ServerClient(given, "m").base_url == whole


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "", "http://host:port"])
def test_a_bad_url_is_an_input_error(url):
    with pytest.raises(InputError, match="server URL"):
        ServerClient(url, "m")


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"retries": -1}])
def test_bad_numbers_are_input_errors(options):
    with pytest.raises(InputError, match=next(iter(options))):
        ServerClient("http://localhost:1", "m", **options)


def test_many_questions_through_a_faulty_server_are_each_answered_once():
    questions = [f"question {number}" for number in range(80)]
    with FaultyServer(
        lambda body: Scripted(body["messages"][0]["content"].upper(), delay_s=0.005), fault_rate=0.3
    ) as server:
        client = fast(server.url, concurrency=8, retries=20)

        async def ask_one(question):
            reply = await client.chat([{"role": "user", "content": question}])
            return question, reply.text

        answers = list(ask_all(client, questions, ask_one))
    assert Counter(answers) == Counter((question, question.upper()) for question in questions)
    assert sum(server.delivered.values()) == len(questions) == client.usage["replies"]
    assert set(server.delivered.values()) == {1}
    assert sum(server.faults_sent.values()) == client.usage["retries"] > 15
    assert len(server.requests) == client.usage["requests"] == 80 + client.usage["retries"]
    assert 1 < server.most_at_once <= 8


def test_a_refusal_lets_the_requests_in_flight_finish():
    def reply(body):
        number = int(body["messages"][0]["content"])
        return Scripted(status=400) if number == 1 else Scripted("fine", delay_s=0.1)

    with FaultyServer(reply) as server:
        client = fast(server.url, concurrency=4)

        async def ask_one(number):
            await client.chat([{"role": "user", "content": str(number)}])
            return number

        answers = []
        with pytest.raises(ServiceError, match="HTTP 400"):
            answers.extend(ask_all(client, range(50), ask_one))
    assert len(server.requests) <= 5
    assert sum(server.delivered.values()) == client.usage["replies"] == 3


def test_a_consumer_that_leaves_stops_the_asking():
    with FaultyServer(lambda body: Scripted("x", delay_s=0.02)) as server:
        client = fast(server.url, concurrency=2)

        async def ask_one(number):
            return await client.chat([{"role": "user", "content": str(number)}])

        stream = ask_all(client, range(1000), ask_one)
        next(stream)
        stream.close()
        seen = len(server.requests)
    assert seen < 20
