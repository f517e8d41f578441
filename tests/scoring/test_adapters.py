"""LoRA adapters: on, off, trained, and told apart by the fingerprint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prefstage.core.errors import InputError, ModelError
from prefstage.scoring import Scorer, model_fingerprint, response_log_probs
from tests.scoring.tiny_models import (
    largest_difference,
    plain_log_probs,
    realistic_trees,
    tiny_model,
)

peft = pytest.importorskip("peft")


def adapted(name: str = "llama") -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(name), config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_()
    return model


def test_adapter_on_equals_the_adapted_model_and_off_the_bare_one() -> None:
    model, trees = adapted(), realistic_trees()[2:]
    scorer = Scorer(model)
    assert scorer.layout == "tree"
    on = [tree.per_token for tree in scorer.score(trees)]
    off = [tree.per_token for tree in scorer.score(trees, with_adapter=False)]
    with torch.no_grad():
        assert largest_difference(on, plain_log_probs(model, trees)) < 1e-4
        assert largest_difference(off, plain_log_probs(tiny_model("llama"), trees)) < 1e-4
    assert largest_difference(on, off) > 0.1


def test_gradient_reaches_the_adapter_and_nothing_else() -> None:
    model = adapted()
    torch.cat([t.sums for t in response_log_probs(model, realistic_trees()[2:])]).sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)


def test_saved_adapter_is_loaded_with_its_model(tmp_path: Path) -> None:
    model, trees = adapted(), realistic_trees()[2:]
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    scorer = Scorer.load(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    found, expected = scorer.score(trees), Scorer(model).score(trees)
    pairs = ([t.per_token for t in side] for side in (found, expected))
    assert largest_difference(*pairs) < 1e-6


def test_no_adapter_to_leave_out_is_refused() -> None:
    with pytest.raises(InputError, match="without PEFT adapters"):
        Scorer(tiny_model("llama")).score([], with_adapter=False)


def test_prompt_tuning_is_refused() -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(ModelError, match="virtual tokens"):
        Scorer(model)


def test_fingerprint_tells_adapters_apart_and_shares_the_base() -> None:
    model = adapted()
    assert model_fingerprint(model, with_adapter=False) == model_fingerprint(tiny_model("llama"))
    before = model_fingerprint(model)
    assert before != model_fingerprint(model, with_adapter=False)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).add_(1)
    assert model_fingerprint(model) != before
