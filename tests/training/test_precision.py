"""Where updates of the size of the learning rate are rounded away, it is said, with the remedy."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.training.policy import PrecisionWarning, precision_note, vanishing_share
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_pairs, tiny_policy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rate", [5e-7, 1e-5, 3e-4])
def test_the_share_is_what_really_does_not_move(dtype: torch.dtype, rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (0.02 * torch.randn(50_000, generator=generator)).to(dtype)
    moved = (weights.float() + rate).to(dtype)
    stuck = float((moved == weights).float().mean())
    assert vanishing_share([weights], rate) == pytest.approx(stuck, abs=0.01)


def test_few_weights_and_none() -> None:
    assert vanishing_share([], 1e-6) == 0.0
    zeros = torch.zeros(10, dtype=torch.bfloat16)
    assert vanishing_share([zeros], 1e-6) == 0.0
    assert vanishing_share([zeros, torch.ones(30, dtype=torch.bfloat16)], 1e-6) == 0.75


def model(dtype: torch.dtype) -> Any:
    return tiny_policy(tiny_tokenizer()).to(dtype)


def test_only_half_precision_at_a_low_rate_is_said() -> None:
    note = precision_note(model(torch.bfloat16), 5e-7)
    assert note is not None
    assert "learning rate 5e-07 does not move" in note
    assert "dtype: float32 and training.bf16: true" in note
    assert precision_note(model(torch.bfloat16), 1e-2) is None
    assert precision_note(model(torch.float32), 5e-7) is None


def test_an_adapter_in_float32_on_frozen_bfloat16_weights_is_well() -> None:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(
            model(torch.bfloat16), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        )
    assert precision_note(adapted, 5e-7) is None


@pytest.mark.parametrize(("dtype", "warned"), [("bfloat16", True), ("float32", False)])
def test_it_stands_on_the_terminal_and_in_the_card(
    tmp_path: Path, dtype: str, *, warned: bool
) -> None:
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    tiny_pairs(8).save(tmp_path / "pairs.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"policy: {tmp_path}/policy\ndata: {tmp_path}/pairs.jsonl\ndtype: {dtype}\n"
        "training: {max_steps: 1, learning_rate: 5e-7, save_strategy: 'no', use_cpu: true}\n"
    )
    done = CliRunner().invoke(app, ["train", str(recipe), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    for text in (done.stdout, card):
        assert ("without float32 master weights" in text) == warned
        assert ("set dtype: float32 and training.bf16: true" in text) == warned


def test_a_trainer_warns_once(tmp_path: Path) -> None:
    from tests.training.preference_runs import preference_trainer

    trainer = preference_trainer(
        tmp_path, model=model(torch.bfloat16), learning_rate=5e-7, max_steps=1
    )
    with pytest.warns(PrecisionWarning, match="does not move"):
        trainer.train()
    assert len(trainer.notes) == 1
