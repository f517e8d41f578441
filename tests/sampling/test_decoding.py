import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefstage.core.errors import ModelError
from prefstage.sampling import SamplingConfig
from prefstage.sampling.decoding import Row, generate_rows

SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 2,
}
ARCHITECTURES = {
    "llama": SIZE,
    "qwen2": SIZE,
    "qwen3": SIZE,
    "mistral": SIZE | {"sliding_window": 6},
    "gemma2": SIZE | {"sliding_window": 6},
    "gemma3_text": SIZE | {"sliding_window": 6},
    "phi3": SIZE,
    "gpt2": {
        "vocab_size": 97,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "eos_token_id": 1,
        "bos_token_id": 2,
    },
    "gpt_neox": SIZE,
    "mixtral": SIZE | {"num_local_experts": 4},
    "mamba": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": 1},
}
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [30], [40, 41, 42, 43, 44, 45]]
STOP = frozenset({1})
GREEDY = SamplingConfig(temperature=0)


def build(kind):
    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():  # apart, so that logits are too
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return model


def generated(model, prompts, rows, config=GREEDY):
    return dict(generate_rows(model, prompts, rows, config=config, stop_ids=STOP))


def alone(model, prompt, new_tokens):
    """What transformers generates greedily for one prompt."""
    ids = torch.tensor([prompt])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens
    )
    return tuple(made[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_rows_are_what_transformers_generates_for_each_prompt_alone(kind):
    model = build(kind)
    rows = [Row(prompt, 0, 20) for prompt in (1, 0, 3, 2, 0)]
    made = generated(model, PROMPTS, rows)
    assert sorted(made) == [0, 1, 2, 3, 4]
    for place, row in enumerate(rows):
        assert made[place] == alone(model, PROMPTS[row.prompt], 20)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_sampled_rows_do_not_depend_on_the_batch(kind):
    model = build(kind)
    config = SamplingConfig(temperature=1.0, top_p=0.95)
    rows = [Row(place % 4, seed=place, max_new_tokens=15) for place in range(8)]
    together = generated(model, PROMPTS, rows, config)
    for place, row in enumerate(rows):
        single = generated(model, [PROMPTS[row.prompt]], [Row(0, row.seed, 15)], config)
        assert single[0] == together[place]
    assert together[0] != together[4]  # one prompt, two seeds


def test_finished_rows_leave_the_batch_and_the_others_go_on():
    model = build("llama")
    sizes = []
    forward = model.forward

    def counted(*args, **kwargs):
        sizes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    counted.__signature__ = __import__("inspect").signature(forward)
    model.forward = counted
    rows = [Row(0, 0, 2), Row(1, 0, 5), Row(1, 0, 1), Row(1, 0, 5)]
    made = dict(generate_rows(model, PROMPTS[:2], rows, config=GREEDY, stop_ids=frozenset()))
    assert [len(made[row]) for row in range(4)] == [2, 5, 1, 5]
    assert sizes == [(2, 11), (3, 1), (2, 1), (2, 1), (2, 1)]  # two prompts for four rows


def test_the_random_state_of_the_process_is_left_alone():
    model = build("llama")
    before = torch.random.get_rng_state()
    generated(model, PROMPTS, [Row(0, 0, 5)], SamplingConfig(temperature=1.0))
    assert torch.equal(torch.random.get_rng_state(), before)


class From:
    """Changes the last logits of a model from its nth forward pass on."""

    def __init__(self, number, change):
        self.number, self.change, self.passes = number, change, 0

    def __call__(self, _model, _inputs, output):
        self.passes += 1
        if self.passes >= self.number:
            self.change(output.logits)
        return output


def first(value):
    return lambda logits: logits[0, -1, 7:8].fill_(value)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize(
    "change",
    [first(torch.nan), first(torch.inf), lambda logits: logits[0].fill_(-torch.inf)],
    ids=["nan", "inf", "all forbidden"],
)
def test_logits_that_are_no_numbers_make_an_error_and_no_text(change, step, temperature, beams):
    model = build("llama")
    model.config.name_or_path = "folder/of-noise"
    handle = model.register_forward_hook(From(step, change))
    config = SamplingConfig(temperature=temperature, beams=beams)
    rows = [Row(prompt, 0, 8) for prompt in (0, 1)]
    with pytest.raises(ModelError, match=r"folder/of-noise in float32: \d of \d rows of next-"):
        list(generate_rows(model, PROMPTS, rows, config=config, stop_ids=frozenset()))
    handle.remove()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_model_may_forbid_all_tokens_but_one(temperature, beams):
    model = build("llama")

    def forbid(logits):
        logits[..., :40] = logits[..., 41:] = -torch.inf

    model.register_forward_hook(From(1, forbid))
    config = SamplingConfig(temperature=temperature, beams=beams, top_p=0.9)
    assert generated(model, PROMPTS[:1], [Row(0, 0, 5)], config) == {0: (40,) * 5}
