"""Adapters: what they lie on, and that every weight of theirs is used."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from prefstage.core.checkpoints import CAUSAL_LM, load_checkpoint
from prefstage.core.errors import ModelError
from prefstage.core.weights import adapters_of, is_adapter
from prefstage.data import load_tokenizer
from tests.damaged_models import edited
from tests.tiny_models import save_tiny_llama, tiny_llama, tiny_tokenizer

LORA = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}


def load(folder: Path, **settings: Any) -> Any:
    return load_checkpoint(
        str(folder), CAUSAL_LM, dtype="auto", device_map="cpu", **{"merge": True, **settings}
    )


def save_adapter(model: Any, folder: Path, base: object, config: Any = None) -> Any:
    """Put a random adapter on a model, save it in a folder, with its base named; the PeftModel."""
    config = config or LoraConfig(task_type="CAUSAL_LM", **LORA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(folder)
    rename_base(folder, str(base))
    return adapted


def rename_base(folder: Path, base: object) -> None:
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"base_model_name_or_path": base}))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "base", tiny_tokenizer())


@pytest.fixture
def adapted(base: Path, tmp_path: Path) -> Any:
    """The model with its adapter, which lies in ``adapter``."""
    torch.manual_seed(0)
    return save_adapter(tiny_llama(tiny_tokenizer()), tmp_path / "adapter", base)


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapters_folder_is_the_model_with_the_adapter_on(
    adapted: Any, tmp_path: Path, merge: bool
) -> None:
    model = load(tmp_path / "adapter", merge=merge)
    assert hasattr(model, "peft_config") != merge
    assert torch.allclose(logits(model), logits(adapted), atol=1e-6)
    assert not torch.allclose(logits(model), logits(load(tmp_path / "base")), atol=1e-3)


def test_an_adapter_on_an_adapter_finds_it_merged(adapted: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    twice = save_adapter(adapted.merge_and_unload(), tmp_path / "second", tmp_path / "adapter")
    want = logits(twice)
    assert torch.allclose(logits(load(tmp_path / "second")), want, atol=1e-6)
    assert adapters_of(str(tmp_path / "second")) == (
        str(tmp_path / "base"),
        [str(tmp_path / "adapter"), str(tmp_path / "second")],
    )


def test_a_base_is_where_its_name_says(
    adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = logits(adapted)
    folder = tmp_path / "adapter"
    rename_base(folder, "../base")  # from the adapter's folder
    assert torch.allclose(logits(load(folder)), want, atol=1e-6)
    monkeypatch.chdir(tmp_path)
    rename_base(folder, "base")  # from here
    assert torch.allclose(logits(load(folder)), want, atol=1e-6)
    rename_base(folder, "some/model-of-the-hub")
    assert adapters_of("adapter") == ("some/model-of-the-hub", ["adapter"])


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("/nowhere/base", "names base model '/nowhere/base', which is not there"),
        ("./base-2", "which is not there"),
        (None, "names no base model"),
        (5, "names no base model"),
    ],
)
def test_a_base_that_is_not_there(adapted: Any, tmp_path: Path, named: object, said: str) -> None:
    rename_base(tmp_path / "adapter", named)
    with pytest.raises(ModelError, match=said):
        load(tmp_path / "adapter")


def test_an_adapter_that_is_its_own_base(adapted: Any, tmp_path: Path) -> None:
    rename_base(tmp_path / "adapter", str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match="names itself"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize("change", [{"hidden_size": 8}, {"num_hidden_layers": 2}])
def test_an_adapter_of_another_model(base: Path, tmp_path: Path, change: dict[str, int]) -> None:
    save_adapter(tiny_llama(tiny_tokenizer(), **change), tmp_path / "other", base)
    with pytest.raises(ModelError, match=r"weights of .*other: \d+ (of another shape|unexpected)"):
        load(tmp_path / "other")


CONFIGS = {
    "cut off": lambda file: file.write_text(file.read_text()[:40]),
    "no mapping": lambda file: file.write_text("[]"),
    "no kind": lambda file: file.write_text('{"base_model_name_or_path": "base"}'),
    "an unknown kind": lambda file: file.write_text(file.read_text().replace('"LORA"', '"LARO"')),
    "other modules": lambda file: file.write_text(file.read_text().replace("q_proj", "zzz")),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_that_cannot_be_used(
    adapted: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    CONFIGS[kind](tmp_path / "adapter" / "adapter_config.json")
    with pytest.raises(ModelError) as caught:
        load(Path("adapter"))
    assert "\n" not in str(caught.value)
    assert "adapter" in str(caught.value)


def test_an_adapter_without_weights(adapted: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load adapter"):
        load(tmp_path / "adapter")


def test_a_folder_without_adapter_as_adapter(base: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config\.json at"):
        load(base, adapter=str(base))


def test_other_kinds_of_adapters(base: Path, tmp_path: Path) -> None:
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    )
    saved = save_adapter(tiny_llama(tiny_tokenizer()), tmp_path / "ia3", base, config)
    assert torch.allclose(logits(load(tmp_path / "ia3")), logits(saved), atol=1e-6)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        modules_to_save=["lm_head"],
        **(LORA | {"target_modules": ["q_proj"]}),
    )
    saved = save_adapter(tiny_llama(tiny_tokenizer()), tmp_path / "head", base, config)
    assert torch.allclose(logits(load(tmp_path / "head")), logits(saved), atol=1e-6)

    def drop(weights: dict[str, torch.Tensor]) -> None:
        del weights["base_model.model.lm_head.weight"]

    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load(edited(tmp_path / "head", tmp_path / "lacks", drop))


def test_virtual_tokens_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    save_adapter(tiny_llama(tiny_tokenizer()), tmp_path / "prompt", base, config)
    with pytest.raises(ModelError, match="cannot be merged"):
        load(tmp_path / "prompt")


def test_the_tokenizer_of_an_adapter_comes_before_its_bases(adapted: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    assert load_tokenizer(str(folder)).chat_template == tiny_tokenizer().chat_template
    tiny_tokenizer("llama3").save_pretrained(folder)
    assert load_tokenizer(str(folder)).chat_template == tiny_tokenizer("llama3").chat_template


def test_an_adapter_is_known_by_its_configuration(adapted: Any, tmp_path: Path) -> None:
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(tmp_path / "base")
    shutil.rmtree(tmp_path / "adapter")
    assert not is_adapter(tmp_path / "adapter")
