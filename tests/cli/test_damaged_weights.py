"""Every use of weights × every fault of them: one line that names the tensors, and exit 2.

The uses go through the commands, with the model as policy, reference or judge, and with adapters.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from typer.testing import CliRunner

from prefstage.cli.main import app
from tests.damaged_models import edited, faults, truncated
from tests.judging.tiny_judges import TEMPLATE, word_tokenizer
from tests.tiny_models import save_tiny_llama, tiny_llama, tiny_tokenizer

SAMPLE = "sample --policy {model} --prompts pairs.jsonl --max-new-tokens 2 --out new.jsonl"
DIAGNOSE = "diagnose --pairs pairs.jsonl --policy {model}"
COMPARE = "diagnose --pairs pairs.jsonl --policy policy --reference {model}"
TRAIN = "train recipe.yaml --out run --set policy={model}"
REFERENCE = "train recipe.yaml --out run --set policy=policy --set reference={model}"
DOCTOR = "doctor --model {model}"
JUDGE = "judge --judge {model} --pairs pairs.jsonl --out judged.jsonl"

Q = "model.layers.0.self_attn.q_proj.weight"
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SCORE = "base_model.model.score.weight"
HEAD = "head_layer.4.weight"

USES: dict[str, tuple[str, str, str]] = {
    "sampling": (SAMPLE, "policy", Q),
    "scoring": (DIAGNOSE, "policy", Q),
    "a reference to score": (COMPARE, "policy", Q),
    "training": (TRAIN, "policy", Q),
    "a reference to train": (REFERENCE, "policy", Q),
    "doctor": (DOCTOR, "policy", Q),
    "a reward model": (JUDGE, "reward", "score.weight"),
    "PairRM": (JUDGE, "pairrm", HEAD),
    "sampling, an adapter": (SAMPLE, "adapter", A),
    "scoring, an adapter": (DIAGNOSE, "adapter", A),
    "training, an adapter": (TRAIN, "adapter", A),
    "training, from an adapter": (TRAIN + " --set lora.r=2", "adapter", A),
    "a reference to train, an adapter": (REFERENCE, "adapter", A),
    "doctor, an adapter": (DOCTOR, "adapter", A),
    "a reward model, an adapter": (JUDGE, "judge_adapter", A),
    "a reward model, its head in an adapter": (JUDGE, "judge_adapter", SCORE),
}


def adapter_of(model: object, base: Path, folder: Path, task: str) -> None:
    """Save a random adapter of a model that lies in `base`."""
    torch.manual_seed(1)
    config = LoraConfig(task_type=task, r=2, target_modules=["q_proj"], init_lora_weights=False)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder)
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"base_model_name_or_path": base.name}))


def pair_ranker(folder: Path) -> None:
    """A tiny random PairRM in the published layout."""
    from transformers import DebertaV2Config, DebertaV2Model

    markers = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
    tokenizer = word_tokenizer(extra=markers)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = DebertaV2Config(vocab_size=len(tokenizer), intermediate_size=16, **sizes)
    backbone = DebertaV2Model(config).state_dict()
    weights = {f"pretrained_model.{name}": tensor.clone() for name, tensor in backbone.items()}
    shapes = {"1.weight": (16, 32), "1.bias": (16,), "4.weight": (1, 16), "4.bias": (1,)}
    weights |= {f"head_layer.{name}": torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    names = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")
    ids = zip(names, tokenizer.convert_tokens_to_ids(list(markers)), strict=True)
    published = {**config.to_dict(), "architectures": ["DebertaV2PairRM"], "n_tasks": 1}
    content = published | {"drop_out": 0.0} | dict(ids)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, recipes, and one right model of each kind."""
    folder = tmp_path_factory.mktemp("world")
    rows = [
        {"prompt": f"the cat {n}", "chosen": f"sat on the mat {n}", "rejected": "the dog ran"}
        for n in range(4)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = "training: {max_steps: 1, per_device_train_batch_size: 2, use_cpu: true}"
    (folder / "recipe.yaml").write_text(f"data: pairs.jsonl\n{training}\n")
    tokenizer, words = tiny_tokenizer(), word_tokenizer(template=TEMPLATE)
    save_tiny_llama(folder / "policy", tokenizer, max_position_embeddings=256)
    head = {"kind": "LlamaForSequenceClassification", "num_labels": 1, "pad_token_id": 0}
    head |= {"max_position_embeddings": 256}
    save_tiny_llama(folder / "reward", words, **head)
    save_tiny_llama(folder / "words", words, max_position_embeddings=256)
    pair_ranker(folder / "pairrm")
    adapter_of(tiny_llama(tokenizer), folder / "policy", folder / "adapter", "CAUSAL_LM")
    scorer = tiny_llama(words, **head)
    adapter_of(scorer, folder / "words", folder / "judge_adapter", "SEQ_CLS")
    return folder


@pytest.fixture
def run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Run a command in a folder that has links to the data and the models."""
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return lambda command, **named: CliRunner().invoke(app, shlex.split(command.format(**named)))


@pytest.mark.parametrize("fault", [*faults(Q), "truncated"])
@pytest.mark.parametrize("use", USES)
def test_a_fault_is_refused_in_one_line_that_names_the_tensors(
    use: str, fault: str, world: Path, tmp_path: Path, run: Callable[..., object]
) -> None:
    command, model, name = USES[use]
    if fault == "truncated":
        truncated(world / model, tmp_path / "damaged")
        said = [".safetensors cannot be read (", "download it again"]
    else:
        change, said = faults(name)[fault]
        edited(world / model, tmp_path / "damaged", change)
        said = [part.removeprefix("base_model.model.") for part in said]
    if name == SCORE:  # the base's own head is random, as long as the adapter brings none
        expected = {"missing": ["1 missing (score.weight)"], "renamed": said[:2]}
        said = expected.get(fault, ["gives 3 logits"] if fault == "mis-shaped" else said)
    result = run(command, model="damaged")
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("prefstage: error: ")
    assert "; expected " in line
    assert "LOAD REPORT" not in result.stderr
    for part in said:
        assert part in line
    results = ("new.jsonl", "judged.jsonl", "run/model")
    assert [name for name in results if (tmp_path / name).exists()] == []


@pytest.mark.parametrize("use", USES)
def test_the_right_ones_go_through(use: str, run: Callable[..., object]) -> None:
    command, model, _ = USES[use]
    result = run(command, model=model)
    assert result.exit_code == 0, result.output
