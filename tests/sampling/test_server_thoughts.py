"""Servers that part thought and answer, and servers that leave the marks in the text."""

import sys

import pytest
from faulty_server import FaultyServer, Scripted

from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.sampling import (
    LoadOptions,
    SamplingConfig,
    ServerSampler,
    collect,
    load_sampler,
    requests_for,
    to_candidates,
)
from prefstage.serving import ServerClient

CONFIG = SamplingConfig(responses=1, max_new_tokens=9)


def answers(reply, prompts, **options):
    with FaultyServer(lambda body: reply) as server:
        sampler = ServerSampler(ServerClient(server.url, "m"), CONFIG, name="m", **options)
        samples = list(sampler.sample(requests_for(prompts[:1], responses=1)))
        return samples[0], server.requests[0]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_server_that_parts_them(prompts, field):
    reply = Scripted("\n\nParis.", message={field: "\nFrance, so\n"}, completion_tokens=7)
    sample, _ = answers(reply, prompts)
    assert (sample.text, sample.thought, sample.thought_cut) == ("Paris.", "France, so", False)
    assert (sample.response_tokens, sample.token_ids, sample.tokenizer) == (7, (), "")


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("<think>\nFrance, so\n</think>\n\nParis.", "Paris.", "France, so"),
        ("France, so\n</think>\n\nParis.", "Paris.", "France, so"),  # the prompt opened it
        ("[THINK]France, so[/THINK]Paris.", "Paris.", "France, so"),
        ("Paris.", "Paris.", None),
        ("It ends with `</think>`.", "It ends with `</think>`.", None),
    ],
)
def test_a_server_that_leaves_the_marks(prompts, text, answer, thought):
    sample, _ = answers(text, prompts)
    assert (sample.text, sample.thought, sample.thought_cut) == (answer, thought, False)


@pytest.mark.parametrize(
    "reply",
    [
        Scripted("", finish_reason="length", message={"reasoning_content": "France, so"}),
        Scripted("", finish_reason="length", message={"content": None, "reasoning": "France, so"}),
        Scripted("<think>\nFrance, so", finish_reason="length"),
    ],
)
def test_a_thought_that_was_cut_is_a_cut_answer(prompts, reply):
    sample, _ = answers(reply, prompts)
    assert (sample.text, sample.thought) == ("", "France, so")
    assert sample.thought_cut
    assert sample.finish_reason == "length"


@pytest.mark.parametrize(("reason", "refused"), [("content_filter", True), ("tool_calls", False)])
def test_what_a_server_ends_for_other_reasons_is_no_cut_thought(prompts, reason, refused):
    reply = Scripted("", finish_reason=reason, message={"reasoning": "hm"})
    sample, _ = answers(reply, prompts)
    assert (sample.text, sample.finish_reason, sample.thought_cut) == ("", "other", False)
    assert bool(sample.refusal) == refused


def test_a_thought_in_parts_is_read(prompts):
    parts = [{"type": "reasoning.text", "text": "France, "}, {"text": "so"}]
    sample, _ = answers(Scripted("Paris.", message={"reasoning_details": parts}), prompts)
    assert (sample.text, sample.thought) == ("Paris.", "France, so")


@pytest.mark.parametrize("odd", [None, "", [{"data": "hm"}], 3])
def test_a_reasoning_field_that_is_no_text_is_none(prompts, odd):
    sample, _ = answers(Scripted("Paris.", message={"reasoning": odd}), prompts)
    assert (sample.text, sample.thought) == ("Paris.", None)


def test_thoughts_of_a_server_stand_beside_the_answers(prompts, tmp_path):
    reply = Scripted("Paris.", message={"reasoning": "France, so"})
    requests = requests_for(prompts[:2], responses=1)
    with FaultyServer(lambda body: reply) as server:
        sampler = ServerSampler(ServerClient(server.url, "m"), CONFIG, name="m")
        with Ledger(tmp_path / "s.sqlite") as store:
            first = list(collect(sampler, requests, store))
        with Ledger(tmp_path / "s.sqlite") as store:
            assert sorted(collect(sampler, requests, store), key=str) == sorted(first, key=str)
        assert len(server.requests) == 2
    for row in to_candidates(prompts, first, source="m"):
        assert row.messages() == [
            {"role": "assistant", "content": "Paris.", "reasoning_content": "France, so"}
        ]


def test_template_options_reach_the_server(prompts):
    off = {"enable_thinking": False}
    _, request = answers("Paris.", prompts, template_options=off)
    assert request["chat_template_kwargs"] == off
    _, request = answers("Paris.", prompts)
    assert "chat_template_kwargs" not in request


def test_template_options_are_part_of_what_answers_depend_on():
    spec, off = "openai:m@http://127.0.0.1:1", {"enable_thinking": False}
    plain, without = (
        load_sampler(spec, CONFIG, options=LoadOptions(template_options=options))
        for options in (None, off)
    )
    assert plain.fingerprint != without.fingerprint
    assert without.settings["template_options"] == off
    served = load_sampler(
        f"serve:{sys.executable} serve model --port {{port}}",
        CONFIG,
        options=LoadOptions(template_options=off),
    )
    assert served.settings["template_options"] == off


def test_template_options_of_a_plain_format_are_refused():
    options = LoadOptions(template_options={"enable_thinking": False}, chat_format="plain")
    with pytest.raises(InputError, match="chat_format 'plain', which has no variables"):
        load_sampler("openai:m@http://127.0.0.1:1", CONFIG, options=options)
