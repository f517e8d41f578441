import json
import re
from collections import Counter

import pytest

from prefstage.core.errors import InputError, ServiceError
from prefstage.sampling import (
    Sampler,
    SamplingConfig,
    ServerSampler,
    requests_for,
)
from prefstage.sampling.base import shortfalls, to_candidates
from prefstage.serving import ServerClient
from tests.faulty_server import FaultyServer, Scripted

CONFIG = SamplingConfig(seed=3, max_new_tokens=40)
TRANSFORMERS = {"paths": {"/load_model": {}, "/v1/chat/completions": {}}}


def sampler_of(server, config=CONFIG, **options):
    client = ServerClient(server.url, "m", backoff_s=0.005, timeout_s=1.0, retries=20)
    return ServerSampler(client, config, **{"name": "m", **options})


def echo(body):
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return Scripted(f"{text} #{body['seed']}")


def test_each_response_is_one_request_with_a_seed_of_its_own(prompts):
    with FaultyServer(echo) as server:
        sampler = sampler_of(server)
        samples = list(sampler.sample(requests_for(prompts, responses=2)))
    assert isinstance(sampler, Sampler)
    assert sampler.settings
    assert len(samples) == len({s.text for s in samples}) == 24
    assert len({body["seed"] for body in server.requests}) == 24
    body = dict(server.requests[0])
    assert body.pop("seed") < 2**31
    assert body.pop("messages")[0]["role"] == "user"
    assert body == {"model": "m", "temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_tokens": 40}


def test_answers_do_not_depend_on_order_or_faults(prompts):
    requests = requests_for(prompts, responses=2)

    def answers(asked, rate):
        with FaultyServer(echo, fault_rate=rate) as server:
            return {(s.prompt_id, s.index): s for s in sampler_of(server).sample(asked)}

    assert answers(requests, 0.0) == answers(requests[::-1], 0.3)


def test_every_prompt_is_answered_once_by_a_faulty_server(prompts):
    requests = requests_for(prompts, responses=5)
    kept = []
    with FaultyServer(echo, fault_rate=0.3) as server:
        sampler = sampler_of(server)
        samples = list(sampler.sample_into(requests, kept.append))
    assert Counter((s.prompt_id, s.index) for s in samples) == Counter(
        (r.prompt_id, r.index) for r in requests
    )
    assert Counter(kept) == Counter(samples)
    assert set(server.delivered.values()) == {1}
    assert sum(server.delivered.values()) == len(requests) == sampler.counts["replies"]
    assert sampler.counts["retries"] == sum(server.faults_sent.values()) > 5


def test_a_base_model_is_asked_for_completions_of_the_plain_format(prompts):
    with FaultyServer(lambda body: Scripted(" fine.")) as server:
        sampler = sampler_of(server, chat_format="human-assistant")
        (sample,) = sampler.sample(requests_for(prompts[:1], responses=1))
    assert server.requests[0]["prompt"] == "\n\nHuman: Hi 0\n\nAssistant:"
    assert "messages" not in server.requests[0]
    assert sample.text == "fine."  # without the space that belongs to the format


def test_tools_travel_beside_the_messages():
    from prefstage.sampling import SampleRequest

    tools = [{"type": "function", "function": {"name": "clock"}}]
    prompt = ({"role": "user", "content": "Time?", "tools": tools},)
    with FaultyServer(lambda body: Scripted("", "tool_calls")) as server:
        (sample,) = sampler_of(server).sample([SampleRequest("p", prompt, 0)])
    assert server.requests[0]["tools"] == tools
    assert server.requests[0]["messages"] == [{"role": "user", "content": "Time?"}]
    assert sample.finish_reason == "other"


def test_transformers_serve_is_spoken_to_in_its_dialect_one_request_at_a_time(prompts):
    with FaultyServer(lambda body: Scripted("x", delay_s=0.02), openapi=TRANSFORMERS) as server:
        list(sampler_of(server).sample(requests_for(prompts, responses=1)))
        assert server.most_at_once == 1
        list(sampler_of(server, concurrency=4).sample(requests_for(prompts, responses=1)))
        assert server.most_at_once > 1
    body = server.requests[0]
    assert set(body) == {"model", "messages", "generation_config", "seed"}
    assert json.loads(body["generation_config"]) == {
        "max_new_tokens": 40,
        "do_sample": True,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
    }


@pytest.mark.parametrize("openapi", [None, TRANSFORMERS])
def test_temperature_zero_is_greedy_in_both_dialects(prompts, openapi):
    with FaultyServer(echo, openapi=openapi) as server:
        list(
            sampler_of(server, SamplingConfig(temperature=0)).sample(
                requests_for(prompts[:1], responses=1)
            )
        )
    body = server.requests[0]
    if openapi is None:
        assert body["temperature"] == 0
    else:
        assert json.loads(body["generation_config"])["do_sample"] is False


def test_refused_prompts_are_told_after_all_others_are_answered(prompts):
    def reply(body):
        text = body["messages"][0]["content"]
        return Scripted(status=400, error="too long") if "fox" in text else Scripted("fine")

    kept = []
    with FaultyServer(reply) as server:
        sampler = sampler_of(server, concurrency=1)
        samples = list(sampler.sample_into(requests_for(prompts, responses=1), kept.append))
        assert len(server.requests) == 12
    assert kept == samples
    refused = [sample for sample in samples if sample.refusal]
    assert len(refused) == 4
    assert {(s.text, s.refusal) for s in refused} == {("", "HTTP 400 X (too long)")}
    (line,) = shortfalls(samples)
    assert re.fullmatch(
        r"4 answers refused by the server, the first for prompt \w+: HTTP 400 .*", line
    )
    assert len(to_candidates(prompts, samples, source="m")) == 8


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_that_concerns_all_ends_at_once(prompts, status):
    with FaultyServer(lambda body: Scripted(status=status)) as server:
        with pytest.raises(ServiceError, match=f"HTTP {status}"):
            list(sampler_of(server, concurrency=2).sample(requests_for(prompts, responses=5)))
        assert len(server.requests) <= 2


def test_a_server_that_refuses_everything_gives_no_result(prompts):
    with FaultyServer(lambda body: Scripted(status=400, error="too long")) as server:
        samples = list(sampler_of(server, concurrency=2).sample(requests_for(prompts, responses=2)))
    with pytest.raises(ServiceError, match=r"refused all 24 requests, the first .*too long"):
        shortfalls(samples)


def test_a_field_that_a_server_does_not_take_is_left_out_and_told_once(prompts, caplog):
    def reply(body):
        if "top_k" in body:
            return Scripted(status=400, error="Unrecognized request argument supplied: top_k")
        if "max_tokens" in body:
            error = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Scripted(status=400, error=error)
        return Scripted("fine")

    with FaultyServer(reply) as server:
        samples = list(sampler_of(server, concurrency=1).sample(requests_for(prompts, responses=1)))
        assert {sample.text for sample in samples} == {"fine"}
        assert len(server.requests) == len(prompts) + 2
        assert server.requests[-1]["max_completion_tokens"] == CONFIG.max_new_tokens
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_nothing_wanted_nothing_asked():
    sampler = ServerSampler(ServerClient("http://127.0.0.1:1", "m"), CONFIG, name="m")
    assert list(sampler.sample([])) == []


def test_the_fingerprint_is_of_model_and_settings_not_of_the_address():
    def fingerprint(model="m", url="http://127.0.0.1:1", config=CONFIG, **options):
        return ServerSampler(ServerClient(url, model), config, name="m", **options).fingerprint

    assert fingerprint(url="http://127.0.0.1:2", concurrency=2) == fingerprint()
    assert fingerprint(model="other") != fingerprint()
    assert fingerprint(config=CONFIG.model_copy(update={"seed": 4})) != fingerprint()
    assert fingerprint(chat_format="plain") != fingerprint()


def test_an_unknown_format_is_an_input_error():
    with pytest.raises(InputError, match="chat_format='no'"):
        ServerSampler(ServerClient("http://h", "m"), CONFIG, name="m", chat_format="no")
