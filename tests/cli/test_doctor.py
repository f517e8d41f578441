import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.cli.memory import JobSize, estimate_memory, model_shape
from prefstage.core.errors import InputError
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
    shape = model_shape(CONFIG, dtype="float32")
    half = model_shape(CONFIG, dtype="bfloat16")
    assert half.weight_bytes * 2 == shape.weight_bytes == 4 * shape.parameters
    assert (shape.query_width, shape.key_width) == (32, 16)

    sampled = estimate_memory(shape, JobSize("sample", 2, 3, 10, 20), pass_tokens=1024)
    assert sampled.kv_cache == 2 * 4 * 16 * 4 * (2 * 3 * 30)
    trained = estimate_memory(shape, JobSize("train", 2, 3, 10, 20), pass_tokens=1024)
    assert trained.optimizer == 2 * trained.gradients == 2 * shape.weight_bytes
    saved = 4 * 3 * (6 * 32 + 2 * (32 + 16) + 4 * 48)
    assert trained.activations == (saved + shape.pass_bytes) * 2 * (10 + 3 * 20)


def test_scoring_memory_is_bounded_by_the_token_budget() -> None:
    shape = model_shape(CONFIG, dtype="float32")
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
    assert model_shape(config, dtype="float32").intermediate == 48


@pytest.mark.parametrize("name", ["batch", "responses", "prompt_tokens", "max_tokens"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="at least 1"):
        JobSize("score", **{name: 0})
