import dataclasses
import random

import pytest
import torch

from prefstage.core.errors import InputError, ModelError
from prefstage.data import ResponseEncoder
from prefstage.sampling import (
    Sampler,
    SamplingConfig,
    TransformersSampler,
    requests_for,
)
from prefstage.sampling.base import shared_settings
from tests.sampling.conftest import candidates

CONFIG = SamplingConfig(temperature=1.0, max_new_tokens=24, seed=5)


def by_request(samples):
    found = {(sample.prompt_id, sample.index): sample for sample in samples}
    return found


@pytest.fixture(scope="module")
def sampler(policy, tokenizer):
    return TransformersSampler(policy, tokenizer, CONFIG)


@pytest.fixture(scope="module")
def whole(sampler, prompts):
    """Every answer, from one batch."""
    return by_request(sampler.sample(requests_for(prompts, responses=3)))


def test_it_is_a_sampler_that_says_what_its_answers_depend_on(sampler):
    assert isinstance(sampler, Sampler)
    assert sampler.settings


def test_each_request_is_answered_once_and_answers_differ(sampler, prompts, whole):
    requests = requests_for(prompts, responses=3)
    answers = list(sampler.sample(requests))
    assert len(answers) == len(requests) == 36
    assert {(r.prompt_id, r.index) for r in requests} == set(whole)
    assert len({sample.text for sample in whole.values()}) > 30
    reasons = {sample.finish_reason for sample in whole.values()}
    assert reasons == {"stop", "length"}
    for sample in whole.values():
        assert (sample.response_tokens == 24) >= (sample.finish_reason == "length")
        assert "<|im_end|>" not in sample.text


@pytest.mark.parametrize("batch_tokens", [1, 150, 400, 100_000])
def test_answers_do_not_depend_on_the_batch_size(policy, tokenizer, prompts, whole, batch_tokens):
    other = TransformersSampler(policy, tokenizer, CONFIG, batch_tokens=batch_tokens)
    assert by_request(other.sample(requests_for(prompts, responses=3))) == whole


def test_answers_do_not_depend_on_order_or_on_what_else_is_asked(sampler, prompts, whole):
    requests = requests_for(prompts, responses=3)
    random.Random(0).shuffle(requests)
    assert by_request(sampler.sample(requests)) == whole
    few = by_request(sampler.sample(requests[:5]))
    assert all(whole[key] == sample for key, sample in few.items())


def test_another_seed_gives_other_answers(policy, tokenizer, prompts, whole):
    config = CONFIG.model_copy(update={"seed": 6})
    other = by_request(
        TransformersSampler(policy, tokenizer, config).sample(requests_for(prompts, responses=3))
    )
    same = [key for key in whole if other[key].text == whole[key].text]
    assert len(same) < len(whole) / 4


def test_greedy_answers_are_those_of_transformers(policy, tokenizer, prompts):
    config = SamplingConfig(temperature=0, max_new_tokens=16)
    sampler = TransformersSampler(policy, tokenizer, config)
    encoder = ResponseEncoder(tokenizer)
    for sample, prompt in zip(
        sorted(sampler.sample(requests_for(prompts, responses=1)), key=lambda s: s.prompt_id),
        sorted(prompts, key=lambda p: p.prompt_id),
        strict=True,
    ):
        ids = torch.tensor([encoder.prompt_ids(prompt.prompt)])
        made = policy.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16
        )
        new = made[0, ids.shape[1] :].tolist()
        assert sample.text == encoder.read(new).answer
        assert (sample.prompt_tokens, sample.response_tokens) == (ids.shape[1], len(new))


def test_any_of_the_models_end_tokens_stops_and_is_not_text(policy, tokenizer, prompts):
    ends = [tokenizer.convert_tokens_to_ids(letter) for letter in "aeiotn"]
    old = policy.generation_config.eos_token_id
    policy.generation_config.eos_token_id = ends
    try:
        sampler = TransformersSampler(policy, tokenizer, CONFIG)
    finally:
        policy.generation_config.eos_token_id = old
    assert sampler.stop_ids == {*ends, tokenizer.eos_token_id}


def test_the_fingerprint_covers_weights_format_and_settings_but_not_the_batch(
    policy, tokenizer, sampler
):
    def fingerprint(config=CONFIG, **options):
        return TransformersSampler(policy, tokenizer, config, **options).fingerprint

    assert fingerprint(batch_tokens=7, name="x") == sampler.fingerprint
    assert fingerprint(CONFIG.model_copy(update={"responses": 9})) == sampler.fingerprint
    for change in ({"seed": 1}, {"top_p": 0.5}, {"max_new_tokens": 9}, {"temperature": 0.1}):
        assert fingerprint(CONFIG.model_copy(update=change)) != sampler.fingerprint
    assert fingerprint(chat_format="plain") != sampler.fingerprint
    with torch.no_grad():
        weight = policy.model.layers[0].mlp.up_proj.weight
        weight[0, 0] += 1
        assert fingerprint() != sampler.fingerprint
        weight[0, 0] -= 1
    assert set(shared_settings(CONFIG)) < set(sampler.settings)


def test_a_prompt_that_fills_the_context_is_an_error_before_anything_is_generated(
    policy, tokenizer, prompts
):
    long = candidates("word " * 400)
    sampler = TransformersSampler(policy, tokenizer, CONFIG)
    with pytest.raises(InputError, match=r"1 of 13 prompts fill the model's context of 256"):
        next(iter(sampler.sample(requests_for([*prompts, long], responses=2))))


def test_truncation_makes_a_long_prompt_fit_and_is_counted(policy, tokenizer):
    long = candidates("word " * 400)
    sampler = TransformersSampler(policy, tokenizer, CONFIG, max_prompt_tokens=250)
    (sample,) = sampler.sample(requests_for([long], responses=1))
    assert sample.prompt_tokens == 250
    assert sample.response_tokens <= 6  # what is left of the context
    assert sampler.counts["prompts_truncated"] == 1
    assert sampler.counts["prompt_tokens_dropped"] > 100


def test_loading_from_a_folder_gives_the_same_answers(policy, tokenizer, prompts, whole, tmp_path):
    policy.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    loaded = TransformersSampler.load(str(tmp_path / "tiny"), CONFIG, device="cpu")
    assert loaded.name == "tiny"
    few = by_request(loaded.sample(requests_for(prompts[:2], responses=2)))
    assert all(whole[key] == sample for key, sample in few.items())


def test_an_adapter_changes_the_answers_and_the_fingerprint(
    policy, tokenizer, prompts, sampler, tmp_path
):
    import copy

    from peft import LoraConfig, get_peft_model

    policy.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(copy.deepcopy(policy), lora)
    adapted.save_pretrained(tmp_path / "lora")
    loaded = TransformersSampler.load(
        str(tmp_path / "tiny"), CONFIG, device="cpu", adapter=str(tmp_path / "lora")
    )
    assert loaded.name == "tiny+lora"
    assert loaded.fingerprint != sampler.fingerprint
    requests = requests_for(prompts[:4], responses=1)
    adapted, plain = (by_request(one.sample(requests)) for one in (loaded, sampler))
    assert any(plain[key].text != sample.text for key, sample in adapted.items())


@pytest.mark.parametrize(
    ("options", "saw"),
    [({}, "no tokenizer"), ({"adapter": "nowhere"}, "no tokenizer")],
)
def test_a_missing_model_is_one_line(options, saw, tmp_path):
    with pytest.raises(ModelError, match=saw) as caught:
        TransformersSampler.load(str(tmp_path / "none"), CONFIG, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_or_adapter_is_one_line(policy, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="no model configuration at"):
        TransformersSampler.load(str(tmp_path / "bare"), CONFIG)
    policy.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"no adapter_config\.json at"):
        TransformersSampler.load(str(tmp_path / "bare"), CONFIG, adapter=str(tmp_path / "bare"))


def test_samples_are_frozen(whole):
    with pytest.raises(dataclasses.FrozenInstanceError):
        next(iter(whole.values())).text = "other"
