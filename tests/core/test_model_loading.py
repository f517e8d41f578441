"""The door for models: the right ones come in, the others are refused by name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from prefstage.core.checkpoints import CAUSAL_LM, CLASSIFIER, load_checkpoint
from prefstage.core.errors import ModelError
from tests.damaged_models import edited, weight_file
from tests.tiny_models import save_tiny_llama, tiny_llama, tiny_tokenizer

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def load(folder: Path, task: Any = CAUSAL_LM, **settings: Any) -> Any:
    return load_checkpoint(str(folder), task, **{"dtype": "auto", "device_map": "cpu", **settings})


def said_of(folder: Path, task: Any = CAUSAL_LM, **settings: Any) -> str:
    """The one line that a folder is refused with."""
    with pytest.raises(ModelError) as caught:
        load(folder, task, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(folder: Path, name: str, **settings: Any) -> Path:
    """A tiny random model of a class of transformers, saved."""
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model_class(model_class.config_class(**{**SMALL, **settings})).save_pretrained(folder)
    return folder


def configured(folder: Path, **changes: Any) -> Path:
    """A folder whose config.json was changed."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("policy") / "whole", tiny_tokenizer())


@pytest.fixture
def copy(policy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(policy, tmp_path / "copy")


# --- What must still load --------------------------------------------------------------------


def gpt2(folder: Path, **settings: Any) -> Path:
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(**sizes, **ids, **settings)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


MASK = torch.ones(1, 1, 32, 32)
LEFTOVERS = {
    "rotary frequencies": (
        lambda folder: save_tiny_llama(folder, tiny_tokenizer()),
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    ),
    "causal masks": (
        gpt2,
        {
            "transformer.h.0.attn.bias": MASK,
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        },
    ),
    "a tied head": (gpt2, {"lm_head.weight": None}),
    "layers that predict further tokens": (
        lambda folder: saved(folder, "Ernie4_5_MoeForCausalLM", moe_num_experts=2),
        {"model.mtp_block.0.self_attn.q_proj.weight": torch.ones(2)},
    ),
}


@pytest.mark.parametrize("kind", LEFTOVERS)
def test_harmless_leftovers_load_to_the_same_weights(kind: str, tmp_path: Path) -> None:
    make, more = LEFTOVERS[kind]
    folder = make(tmp_path / "model")
    before = load(folder).state_dict()

    def add(weights: dict[str, torch.Tensor]) -> None:
        tied = weights.get("transformer.wte.weight")
        weights.update({k: tied.clone() if v is None else v for k, v in more.items()})

    after = load(edited(folder, tmp_path / "more", add)).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tied_model_saves_no_head_and_loads(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tied", "Qwen2ForCausalLM", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(weight_file(folder))
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_towers_that_the_class_ignores_are_no_fault(tmp_path: Path) -> None:
    config = transformers.Qwen3_5TextConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["full_attention"],
    )
    transformers.Qwen3_5ForCausalLM(config).save_pretrained(tmp_path / "text")
    visual = {"model.visual.blocks.0.attn.qkv.weight": torch.ones(2)}
    folder = edited(tmp_path / "text", tmp_path / "both", lambda w: w.update(visual))
    assert load(folder).config.hidden_size == 16


def test_a_file_of_older_torch_loads(copy: Path) -> None:
    weights = load_file(weight_file(copy))
    weight_file(copy).unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert torch.equal(load(copy).lm_head.weight, weights["lm_head.weight"])


def sharded(copy: Path) -> dict[str, str]:
    """Save a folder's model in several files; the file of each tensor."""
    model = load(copy)
    weight_file(copy).unlink()
    model.save_pretrained(copy, max_shard_size="10KB")
    return dict(json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"])


def test_a_model_in_several_files_loads(copy: Path) -> None:
    before = load(copy).state_dict()
    assert len(set(sharded(copy).values())) > 1
    after = load(copy).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- What must not ------------------------------------------------------------------------------


def test_a_shard_that_is_not_there(copy: Path) -> None:
    names = sharded(copy)
    lost = names["model.norm.weight"]
    (copy / lost).unlink()
    assert lost in said_of(copy)


def test_a_shard_cut_off(copy: Path) -> None:
    shard = copy / sharded(copy)["model.norm.weight"]
    shard.write_bytes(shard.read_bytes()[:-4])
    assert f"{shard} cannot be read" in said_of(copy)


def test_an_index_that_names_what_its_file_lacks(copy: Path) -> None:
    names = sharded(copy)
    shard = copy / names["model.norm.weight"]
    weights = load_file(shard)
    del weights["model.norm.weight"]
    from safetensors.torch import save_file

    save_file(weights, shard, metadata={"format": "pt"})
    assert "1 missing (model.norm.weight)" in said_of(copy)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_of_older_torch_cut_off(copy: Path, share: float) -> None:
    weights = load_file(weight_file(copy))
    weight_file(copy).unlink()
    file = copy / "pytorch_model.bin"
    torch.save(weights, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert f"{file} cannot be read" in said_of(copy)


CONFIGS = {
    "more layers": ({"num_hidden_layers": 2}, r"9 missing \(model\.layers\.1\."),
    "another width": ({"hidden_size": 32}, r"12 of another shape \(lm_head\.weight: \[396, 16\]"),
    "another vocabulary": ({"vocab_size": 500}, r"2 of another shape .*\[500, 16\] by config"),
    "a padding token outside": ({"pad_token_id": 396}, "pad_token_id 396 and vocab_size 396"),
    "another kind": ({"model_type": "t5"}, "is a t5 model; expected a .*causal language model"),
    "a kind of the future": ({"model_type": "zzz"}, "zzz"),
    "no number": ({"num_hidden_layers": "two"}, "num_hidden_layers"),
    "uneven heads": ({"num_attention_heads": 3}, r"not a multiple .*heads \(3\)"),
    "an unknown function": ({"hidden_act": "zzz"}, "cannot load .*zzz"),
    "a classifier's": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "a checkpoint of LlamaForSequenceClassification.*serves as judge",
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_of_other_weights(kind: str, copy: Path) -> None:
    changes, said = CONFIGS[kind]
    assert re.search(said, said_of(configured(copy, **changes)))


def test_fewer_layers_than_the_checkpoint_has(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "two", tiny_tokenizer(), num_hidden_layers=2)
    said = said_of(configured(folder, num_hidden_layers=1))
    assert "9 unexpected (model.layers.1." in said
    assert "and 6 more)" in said


def test_a_table_of_positions_of_another_length(tmp_path: Path) -> None:
    folder = configured(gpt2(tmp_path / "gpt2"), n_positions=64)
    shapes = "transformer.wpe.weight: [32, 16] in the file, [64, 16] by config.json"
    assert f"1 of another shape ({shapes})" in said_of(folder)


@pytest.mark.parametrize("head", ["v_head.summary.weight", "score.weight", "value_head.weight"])
def test_a_reward_or_value_model_is_no_policy(policy: Path, tmp_path: Path, head: str) -> None:
    folder = edited(policy, tmp_path / "copy", lambda w: w.update({head: torch.ones(1, 16)}))
    said = said_of(folder)
    assert f"1 unexpected ({head})" in said
    assert "reward or value model" in said


def test_an_encoder_is_no_policy(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert", "BertForMaskedLM")
    assert "checkpoint of BertForMaskedLM; expected" in said_of(folder)
    assert "is an encoder" in said_of(configured(folder, architectures=["BertLMHeadModel"]))


def test_a_language_model_is_no_judge(policy: Path) -> None:
    assert "1 missing (score.weight), 1 unexpected (lm_head.weight)" in said_of(policy, CLASSIFIER)


def test_an_expert_that_is_missing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "moe", "MixtralForCausalLM", num_local_experts=4)
    assert load(folder).config.num_local_experts == 4
    for name, number in ((r"experts\.1\.(w1|gate_proj)", 1), (r"experts\.\d\.(w1|gate_proj)", 4)):

        def drop(weights: dict[str, torch.Tensor], name: str = name) -> None:
            for lost in [key for key in weights if re.search(name, key)]:
                del weights[lost]

        said = said_of(edited(folder, tmp_path / f"lacks{number}", drop))
        assert "model.layers.0.mlp.experts.gate_up_proj" in said


def test_no_weights_or_no_model_at_all(copy: Path, tmp_path: Path) -> None:
    weight_file(copy).unlink()
    assert "no file named model.safetensors" in said_of(copy)
    (tmp_path / "empty").mkdir()
    assert "no model configuration" in said_of(tmp_path / "empty")
    assert "no model folder" in said_of(tmp_path / "nowhere")
    (copy / "config.json").write_text('{"model_type": "lla')
    assert "config.json cannot be read (Unterminated" in said_of(copy)


def test_numbers_beyond_float16_say_what_to_do(policy: Path, tmp_path: Path) -> None:
    def grow(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"] * 1e5

    folder = edited(policy, tmp_path / "large", grow)
    assert load(folder).dtype == torch.float32
    said = said_of(folder, dtype=torch.float16)
    assert "1 with NaN or inf (model.norm.weight)" in said
    assert "try bfloat16" in said


def test_the_right_one_is_loaded_unchanged(policy: Path) -> None:
    model = load(policy)
    want = tiny_llama(tiny_tokenizer()).state_dict()
    assert not model.training
    assert model.state_dict().keys() == want.keys()
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())
