import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import (
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PretrainedConfig,
)
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core.errors import InputError
from prefstage.scoring.cpu.lean import KEPT_ELEMENTS
from prefstage.scoring.memory import (
    GPU_TOKENS,
    MIN_TOKENS,
    TRAINING_CPU_TOKENS,
    TRAINING_SHARE,
    JobSize,
    ModelShape,
    estimate_memory,
    training_budget,
)
from tests.faulty_server import FaultyServer
from tests.tiny_models import tiny_tokenizer

CONFIG = LlamaConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(CONFIG).save_pretrained(folder)
    tiny_tokenizer("chatml").save_pretrained(folder)
    return folder


def doctor(*arguments: str | Path):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def found(*arguments: str | Path):
    result = doctor(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_says_what_is_here() -> None:
    seen = found()
    assert seen["versions"]["torch"]
    assert seen["machine"]["memory_bytes"] >= seen["machine"]["memory_available_bytes"] > 0
    assert seen["machine"]["torch_threads"] >= 1
    assert "model" not in seen
    text = doctor().stdout
    assert "torch" in text
    assert "GPU" in text


def test_looks_at_a_model(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.json"
    seen = found("--model", model, "--out", out)
    assert json.loads(out.read_text()).keys() == seen.keys()
    parameters = sum(each.numel() for each in LlamaForCausalLM(CONFIG).parameters())
    assert seen["model"]["parameters"] == parameters
    assert seen["model"]["weight_bytes"] == 4 * parameters
    assert seen["model"]["architecture"] == "LlamaForCausalLM"
    assert seen["scoring"]["layout"] == "tree"
    assert seen["scoring"]["backend_reason"]
    assert seen["chat"]["known"]
    assert seen["chat"]["end_of_turn"] == "<|im_end|>"


def test_weights_stay_unloaded_when_asked(model: Path) -> None:
    (copy := model.parent / "no-weights").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model / name).exists():
            (copy / name).write_bytes((model / name).read_bytes())
    result = doctor("--model", copy, "--no-load", "--job", "train")
    assert result.exit_code == 0
    assert "--load tries it now" in result.stdout
    assert "gradients" in result.stdout
    refused = doctor("--model", copy, "--load")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1


def test_unknown_chat_template_names_the_formats(tmp_path: Path) -> None:
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path)
    tiny_tokenizer("base").save_pretrained(tmp_path)
    seen = found("--model", tmp_path, "--no-load")
    assert not seen["chat"]["known"]
    assert "chat_format" in seen["chat"]["reason"]
    named = found("--model", tmp_path, "--no-load", "--chat-format", "plain")
    assert named["chat"]["known"]
    assert doctor("--model", tmp_path, "--no-load", "--chat-format", "plane").exit_code == 2


def test_looks_at_a_judge_and_a_server() -> None:
    judge = "python:prefstage.sandbox:true_preference"
    with FaultyServer() as server:
        seen = found("--judge", judge, "--server", server.url)
    assert seen["judge"]["kind"] == "compares pairs"
    assert isinstance(seen["server"]["models"], list)


def test_a_dead_server_is_one_line() -> None:
    result = doctor("--server", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_job_on_this_machine_fits_or_not(model: Path) -> None:
    small = found("--model", model, "--no-load", "--job", "score", "--batch", 1)["job"]
    assert small["fits"]
    assert small["bytes"]["total"] == sum(
        size for name, size in small["bytes"].items() if name != "total"
    )
    huge = found("--model", model, "--no-load", "--job", "sample", "--batch", 10**12)["job"]
    assert not huge["fits"]
    text = doctor("--model", model, "--no-load", "--job", "sample", "--batch", 10**12).stdout
    assert "does not fit" in text


def test_estimates_follow_their_formulas() -> None:
    shape = ModelShape.of_config(CONFIG, dtype="float32")
    half = ModelShape.of_config(CONFIG, dtype="bfloat16")
    assert half.weight_bytes * 2 == shape.weight_bytes == 4 * shape.parameters
    assert (shape.query_width, shape.key_width) == (32, 16)

    sampled = estimate_memory(shape, JobSize("sample", 2, 3, 10, 20), pass_tokens=1024)
    assert sampled.kv_cache == 2 * 4 * 16 * 4 * (2 * 3 * 30)
    trained = estimate_memory(shape, JobSize("train", 2, 3, 10, 20), pass_tokens=1024)
    assert trained.optimizer == 2 * trained.gradients == 2 * shape.weight_bytes
    kept = 4 * 3 * (2 * 32 + 2 * (32 + 16) + 2 * 48)
    assert trained.activations == (kept + shape.pass_bytes) * 2 * (10 + 3 * 20)


def test_what_layers_keep_depends_on_their_form_and_the_device() -> None:
    size = JobSize("train", 1, 1, 10, 20)

    def kept(config: PretrainedConfig, *, on_cpu: bool) -> float:
        shape = ModelShape.of_config(config, dtype="float32")
        found = estimate_memory(shape, size, pass_tokens=1024, on_cpu=on_cpu)
        return (found.activations / 30 - shape.pass_bytes) / (4 * shape.layers)

    norms = 2 * 32
    assert kept(CONFIG, on_cpu=False) == kept(CONFIG, on_cpu=True) + norms
    other = GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_inner=48)
    assert kept(other, on_cpu=True) == kept(other, on_cpu=False) == 6 * 32 + 4 * 32 + 4 * 48


def test_training_memory_is_bounded_by_the_token_budget() -> None:
    shape = ModelShape.of_config(CONFIG, dtype="float32")

    def activations(batch: int, response: int, *, on_cpu: bool) -> int:
        size = JobSize("train", batch, 2, 100, response)
        return estimate_memory(shape, size, pass_tokens=700, on_cpu=on_cpu).activations

    assert activations(8, 100, on_cpu=True) == activations(64, 100, on_cpu=True)
    beyond = 1000 - 700  # a CPU runs layers of a long item again, so that it keeps no more
    long, full = activations(1, 450, on_cpu=True), activations(8, 100, on_cpu=True)
    assert long == full + shape.pass_bytes * beyond
    assert activations(1, 450, on_cpu=False) * 700 == activations(8, 100, on_cpu=False) * 1000


def test_kept_logits_take_their_room_and_what_the_layers_leave() -> None:
    shape = ModelShape.of_config(CONFIG, dtype="float32")
    wide = replace(shape, vocabulary=10_000_000)
    layers = shape.kept_bytes(norms_recomputed=True)

    def logits(shape: ModelShape, *, on_cpu: bool = True, batch: int = 2) -> int:
        size = JobSize("train", batch, 3, 10, 20)
        return estimate_memory(shape, size, pass_tokens=1024, on_cpu=on_cpu).logits

    assert logits(shape) == 4 * shape.vocabulary * 2 * 3 * 20
    assert logits(wide) == 4 * KEPT_ELEMENTS + layers * (1024 - 2 * 70)
    assert logits(wide, batch=20) == 4 * KEPT_ELEMENTS
    assert logits(wide, on_cpu=False) == 0
    scored = estimate_memory(wide, JobSize("score", 2, 3, 10, 20), pass_tokens=1024)
    assert scored.logits == 0


def test_the_trainer_chooses_its_budget_from_what_is_left() -> None:
    shape = ModelShape.of_config(CONFIG, dtype="float32")
    fixed = 4 * shape.weight_bytes
    assert training_budget(shape, 1 << 40, loaded=False, on_cpu=True) == TRAINING_CPU_TOKENS
    assert training_budget(shape, 1 << 40, loaded=False, on_cpu=False) == GPU_TOKENS
    room = 5000 * shape.step_bytes(checkpointing=False) / TRAINING_SHARE
    assert training_budget(shape, fixed + int(room), loaded=False, on_cpu=False) in (4999, 5000)
    assert training_budget(shape, 0, loaded=False, on_cpu=False) == MIN_TOKENS


def test_scoring_memory_is_bounded_by_the_token_budget() -> None:
    shape = ModelShape.of_config(CONFIG, dtype="float32")
    one = estimate_memory(shape, JobSize("score", 1, 8, 400, 60), pass_tokens=512)
    many = estimate_memory(shape, JobSize("score", 64, 8, 400, 60), pass_tokens=512)
    assert one == many
    long = estimate_memory(shape, JobSize("score", 1, 1, 4000, 60), pass_tokens=512)
    assert long.activations == shape.pass_bytes * 4060


def test_a_mixture_counts_the_experts_that_a_token_visits() -> None:
    config = MixtralConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    shape = ModelShape.of_config(config, dtype="float32")
    assert shape.intermediate == 48
    assert not shape.fused


@pytest.mark.parametrize("name", ["batch", "responses", "prompt_tokens", "max_tokens"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="at least 1"):
        JobSize("score", **{name: 0})
