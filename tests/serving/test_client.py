import asyncio
import math
from collections import Counter
from datetime import UTC, datetime

import pytest

from prefstage.core.errors import InputError, PrefstageError, ServiceError
from prefstage.serving import ServerClient, ask_all
from prefstage.serving.protocol import retry_after_s, wait_of
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
        ("2026-11-21T12:00:30Z", 30),
        ("1795262430", 30),  # a moment in seconds since 1970, and in milliseconds
        ("1795262430000", 30),
        ("1m30s", 90),
        ("250ms", 0.25),
        ("1e99", 1e9),
        ("nan", 0),
        ("2026-13-45", 0),
        ("9" * 400, 1e9),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(header, seconds):
    now = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s(header, now=now) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "2", "x-ratelimit-reset": "9"}, 2),
        ({"x-ratelimit-reset": "9"}, 9),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 0),  # some remain: not what was exceeded
        ({"x-ratelimit-reset-tokens": "12s", "x-ratelimit-remaining-tokens": "0"}, 12),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0"}, 60),
    ],
)
def test_the_headers_that_tell_a_wait(headers, seconds):
    assert wait_of(headers) == seconds


def test_a_lone_surrogate_of_a_text_is_sent_as_the_mark_of_a_lost_character():
    with FaultyServer() as server:
        assert ask(fast(server.url), content="a\ud800b").text == "ok"
    assert server.requests[0]["messages"][0]["content"] == "a\ufffdb"


@pytest.mark.parametrize("names", ["top_k, seed", ["top_k", "seed"]])
def test_fields_can_be_left_out_from_the_first_request_on(names):
    with FaultyServer() as server:
        ask(fast(server.url, without=names), top_k=3, seed=1, temperature=0.5)
    assert server.requests == [
        {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "model": "m"}
    ]
    with pytest.raises(InputError, match="without=model"):
        fast("http://127.0.0.1:1", without="model")


def test_alternatives_go_with_the_log_probs_that_a_server_does_not_give():
    def reply(body):
        if "logprobs" in body:
            return Scripted(status=400, error="You are not allowed to request logprobs")
        return Scripted(status=400, error="no") if "top_logprobs" in body else Scripted("A")

    with FaultyServer(reply) as server:
        assert ask(fast(server.url), logprobs=True, top_logprobs=5).text == "A"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENAI_API_KEY": "sk-ü"},
        {"OPENAI_API_KEY": "sk a"},
        {"HTTP_PROXY": "socks5://127.0.0.1:1"},
        {"HTTP_PROXY": "ftp://x:1"},
        {"HTTP_PROXY": "http://[::1"},
        {"HTTP_PROXY": "http://127.0.0.1:99999"},
        {"SSL_CERT_FILE": "/nonexistent"},
        {"SSL_CERT_FILE": "/"},
    ],
    ids=str,
)
def test_an_environment_that_is_wrong_ends_in_one_line(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower() if "PROXY" in name else name, value)
    with pytest.raises(PrefstageError) as caught:
        ask(fast("http://192.0.2.1/v1", retries=0))
    assert "\n" not in str(caught.value)
    assert next(iter(environment)) in str(caught.value)


def test_a_probe_that_hangs_stops_nothing(monkeypatch):
    monkeypatch.setattr("prefstage.serving.client._PROBE_S", 0.05)

    async def hanging(*_, **__):
        await asyncio.sleep(60)

    async def look(client):
        client._send = hanging
        return await client.describe()

    assert asyncio.run(look(fast("http://127.0.0.1:1"))) == {}


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
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/v1/chat/completions/", "https://host/v1"),
        ("https://host/v1/models", "https://host/v1"),
        ("https://host/d/x?api-version=1", "https://host/d/x?api-version=1"),
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
