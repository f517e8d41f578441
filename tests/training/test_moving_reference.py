"""TR-DPO: the reference takes up a part of the policy, every so many steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from prefstage.core.errors import PrefstageError
from prefstage.training import PreferenceTrainer
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import (
    arguments,
    largest_difference,
    logged,
    preference_trainer,
    tiny_pairs,
    tiny_policy,
    weights_of,
)

SYNC = {"sync_ref_model": True, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 2}


class Watch(TrainerCallback):
    """Keeps the policy's weights and the reference log-probs of every step."""

    trainer: PreferenceTrainer

    def __init__(self) -> None:
        self.weights: list[Any] = []
        self.references: list[Any] = []
        self.items: list[Any] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.weights.append(weights_of(self.trainer.model))
        assert self.trainer.last_step is not None
        self.references.append(self.trainer.last_step.items.reference)
        self.items.append(self.trainer.last_step.items.items)


def run(folder: Path, *, resume: Any = None, watch: Watch | None = None, **settings: Any) -> Any:
    trainer = preference_trainer(folder, callbacks=[watch] if watch else None, **settings)
    if watch:
        watch.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def plain_log_probs(weights: dict[str, Any], items: Any) -> torch.Tensor:
    """By the model's own forward pass, response by response."""
    model = tiny_policy(tiny_tokenizer("chatml"))
    model.load_state_dict(weights)
    found = []
    for item in items:
        (tree,) = item.trees
        for ids in tree.response_ids:
            row = torch.tensor([[*tree.prompt_ids, *ids]])
            with torch.no_grad():
                logits = model(row).logits[0].log_softmax(-1)
            start = len(tree.prompt_ids)
            found += [logits[start + n - 1, token] for n, token in enumerate(ids)]
    return torch.stack(found)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_the_reference_is_the_mixture_of_the_policies(alpha: float, tmp_path: Path) -> None:
    watch, settings = Watch(), SYNC | {"ref_model_mixup_alpha": alpha}
    reference = weights_of(tiny_policy(tiny_tokenizer("chatml")))
    run(tmp_path, watch=watch, max_steps=6, **settings)
    for step, known in enumerate(watch.references):
        if step and step % 2 == 0:
            policy = watch.weights[step - 1]
            reference = {n: alpha * policy[n] + (1 - alpha) * v for n, v in reference.items()}
        expected = plain_log_probs(reference, watch.items[step])
        torch.testing.assert_close(known, expected, rtol=1e-4, atol=1e-4)


def test_before_the_first_update_it_is_an_ordinary_training(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    late = run(tmp_path / "late", **SYNC | {"ref_model_sync_steps": 5})
    soon = run(tmp_path / "soon", **SYNC)
    assert largest_difference(weights_of(plain.model), weights_of(late.model)) == 0.0
    assert largest_difference(weights_of(plain.model), weights_of(soon.model)) > 1e-4


def test_after_a_hard_update_every_step_margins_begin_at_zero(tmp_path: Path) -> None:
    """The policy is its own reference at every step: DPO's loss is log 2."""
    trainer = run(tmp_path, **SYNC | {"ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1})
    assert logged(trainer) == pytest.approx([0.693147] * 5, abs=1e-4)


def test_a_resumed_run_has_the_reference_of_the_run(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = run(tmp_path, **saving, **SYNC)
    resumed = run(tmp_path, resume=str(tmp_path / "checkpoint-3"), **saving, **SYNC)
    assert largest_difference(weights_of(whole.model), weights_of(resumed.model)) == 0.0
    with pytest.raises(PrefstageError, match=r"ref_model_mixup_alpha was 0\.6 and is now 0.5"):
        run(
            tmp_path,
            resume=str(tmp_path / "checkpoint-3"),
            **saving,
            **SYNC | {"ref_model_mixup_alpha": 0.5},
        )


def test_divisions_of_a_step_change_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", **SYNC)
    small = run(tmp_path / "small", token_budget=1, **SYNC)
    assert largest_difference(weights_of(whole.model), weights_of(small.model)) < 1e-5


def test_of_an_adapter_the_factors_move(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    hard = SYNC | {"ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1}
    trainer = run(tmp_path, peft_config=config, **hard)
    assert logged(trainer) == pytest.approx([0.693147] * 5, abs=1e-4)


def test_evaluation_is_against_the_present_reference(tmp_path: Path) -> None:
    hard = SYNC | {"ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1}
    trainer = run(tmp_path, eval_dataset=tiny_pairs(5, seed=2), **hard)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ref_model_sync_steps": 5}, "without sync_ref_model"),
        (SYNC | {"loss": "simpo"}, "a loss without reference"),
        (SYNC | {"ref_model_mixup_alpha": 0.0}, "a share above 0"),
        (SYNC | {"ref_model_mixup_alpha": 1.5}, "a share above 0"),
        (SYNC | {"ref_model_sync_steps": 0}, "at least one step"),
        (SYNC | {"reference": "some/model"}, "reference='some/model'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(PrefstageError, match=said) as error:
        preference_trainer(tmp_path, **settings)
    assert "\n" not in str(error.value)
    assert arguments(tmp_path).sync_ref_model is False
