"""Beam search: transformers' own result, whatever else is in the batch, and on after a stop."""

import json
import random
from itertools import islice

import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.data import ResponseEncoder
from prefstage.sampling import (
    SamplingConfig,
    TransformersSampler,
    collect,
    load_sampler,
    requests_for,
)
from prefstage.sampling.base import sample_seed, shared_settings, stored_sample
from prefstage.sampling.decoding import Row, generate_rows

GREEDY = SamplingConfig(temperature=0, beams=3, max_new_tokens=20)
DRAWN = SamplingConfig(temperature=1.0, top_p=0.95, top_k=40, beams=3, max_new_tokens=20, seed=3)


def generated(policy, ids, **options):
    """The new tokens that transformers generates."""
    made = policy.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **options
    )
    return made[0, len(ids) :].tolist()


def as_pairs(samples):
    return {(each.prompt_id, each.index): each for each in samples}


@pytest.fixture(scope="module")
def drawn(policy, tokenizer, prompts):
    sampler = TransformersSampler(policy, tokenizer, DRAWN)
    return as_pairs(sampler.sample(requests_for(prompts, responses=3)))


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_greedy_beams_are_those_of_transformers(policy, tokenizer, prompts, beams):
    config = GREEDY.model_copy(update={"beams": beams})
    sampler = TransformersSampler(policy, tokenizer, config)
    encoder = ResponseEncoder(tokenizer)
    found = as_pairs(sampler.sample(requests_for(prompts, responses=1)))
    reasons = set()
    for prompt in prompts:
        ids = encoder.prompt_ids(prompt.prompt)
        new = generated(policy, ids, num_beams=beams, do_sample=False, max_new_tokens=20)
        sample = found[prompt.prompt_id, 0]
        assert sample.text == encoder.read(new).answer
        assert sample.response_tokens == len(new)
        assert (sample.finish_reason == "stop") == (new[-1] in sampler.stop_ids)
        reasons.add(sample.finish_reason)
    assert reasons == {"stop", "length"}


def test_drawn_beams_are_those_of_transformers_with_the_same_draws(
    policy, tokenizer, prompts, drawn, monkeypatch
):
    encoder = ResponseEncoder(tokenizer)
    for request in requests_for(prompts[:6], responses=2):
        stream = random.Random(sample_seed(DRAWN, request))

        def draw(probabilities, num_samples, stream=stream):
            left, places = probabilities.double(), []
            for _ in range(num_samples):
                cumulative = left.cumsum(-1)
                point = stream.random() * cumulative[:, -1:]
                place = torch.searchsorted(cumulative, point, right=True)
                places.append(place.clamp_max(left.shape[1] - 1))
                left = left.scatter(1, places[-1], 0.0)
            return torch.cat(places, dim=1)

        monkeypatch.setattr(torch, "multinomial", draw)
        ids = encoder.prompt_ids(request.prompt)
        options = {"num_beams": 3, "do_sample": True, "max_new_tokens": 20}
        new = generated(policy, ids, **options, temperature=1.0, top_p=0.95, top_k=40)
        assert drawn[request.prompt_id, request.index].text == encoder.read(new).answer


def test_the_best_of_all_sequences_is_found_where_beams_hold_them_all(policy):
    """Two tokens after a prompt, every pair a candidate: the likeliest pair wins."""
    prompt = [5, 6, 7]
    config = SamplingConfig(temperature=0, beams=len_of(policy), max_new_tokens=2)
    rows = [Row(prompt=0, seed=0, max_new_tokens=2)]
    ((_, found),) = generate_rows(policy, [prompt], rows, config=config, stop_ids=frozenset())
    with torch.inference_mode():
        first = policy(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        batch = torch.tensor([[*prompt, token] for token in range(len(first))])
        second = policy(batch).logits[:, -1].double().log_softmax(-1)
    best = int((first[:, None] + second).flatten().argmax())
    assert found == (best // len(first), best % len(first))


def len_of(policy):
    return policy.config.vocab_size


@pytest.mark.parametrize("batch_tokens", [1, 600, 100_000])
def test_beams_do_not_depend_on_the_batch_or_the_order(
    policy, tokenizer, prompts, drawn, batch_tokens
):
    other = TransformersSampler(policy, tokenizer, DRAWN, batch_tokens=batch_tokens)
    requests = requests_for(prompts, responses=3)
    random.Random(0).shuffle(requests)
    assert as_pairs(other.sample(requests)) == drawn
    assert len({each.text for each in drawn.values()}) > 20


def test_few_tokens_to_draw_from_are_enough(policy, tokenizer, prompts):
    config = DRAWN.model_copy(update={"top_k": 1, "top_p": 0.01, "beams": 4})
    found = list(
        TransformersSampler(policy, tokenizer, config).sample(requests_for(prompts, responses=1))
    )
    assert len(found) == len(prompts)
    assert all(0 < each.response_tokens <= 20 for each in found)


def test_a_stopped_beam_search_goes_on(policy, tokenizer, prompts, drawn, tmp_path):
    sampler = TransformersSampler(policy, tokenizer, DRAWN, batch_tokens=600)
    requests = requests_for(prompts, responses=3)
    with Ledger(tmp_path / "ledger.sqlite") as store:
        kept = list(islice(collect(sampler, requests, store), 5))
    with Ledger(tmp_path / "ledger.sqlite") as store:
        known = [stored_sample(sampler.fingerprint, request, store) for request in requests]
        assert as_pairs(filter(None, known)) == as_pairs(kept)
        assert as_pairs(collect(sampler, requests, store)) == drawn
        ((_, _, settings, _),) = store.samplers()
    assert json.loads(settings)["beams"] == 3


def test_the_number_of_beams_is_part_of_what_an_answer_depends_on(policy, tokenizer):
    one, three, four = (
        TransformersSampler(policy, tokenizer, DRAWN.model_copy(update={"beams": n}))
        for n in (1, 3, 4)
    )
    assert len({one.fingerprint, three.fingerprint, four.fingerprint}) == 3
    assert three.settings["beams"] == 3
    # answers from before there were beams stay valid
    assert "beams" not in shared_settings(one.config)
    assert SamplingConfig(**one.config.model_dump()) == one.config


@pytest.mark.parametrize("spec", ["openai:m@http://127.0.0.1:9", "serve:echo m --port {port}"])
def test_servers_refuse_beams(spec):
    with pytest.raises(InputError, match=r"beams=3 with a server.*leave beams out"):
        load_sampler(spec, GREEDY)
