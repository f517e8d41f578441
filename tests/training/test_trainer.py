"""The trainer as users meet it: settings, precision, adapters, evaluation, the first step."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import EarlyStoppingCallback

from prefstage.core.errors import ConfigError, InputError, ModelError, RunFolderError
from prefstage.training import PreferenceArguments, PreferenceTrainer
from tests.held_folder import held
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

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def train(folder: Path, **settings: Any) -> PreferenceTrainer:
    trainer = preference_trainer(folder, **settings)
    trainer.train()
    return trainer


def test_a_second_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path, max_steps=1)
    with held(tmp_path, "_lock") as number:
        with pytest.raises(RunFolderError, match=f"in use by another process .process {number}."):
            trainer.train()
        assert [path.name for path in tmp_path.iterdir()] == ["_lock"]
    trainer.train()


def test_accuracy_begins_at_one_half(tmp_path: Path) -> None:
    """Whatever the layout: where policy and reference are one, no pair is told apart."""
    for number, layout in enumerate(("tree", "flat")):
        trainer = train(tmp_path / str(number), layout=layout, max_steps=1)
        assert logged(trainer, "rewards/accuracies") == [0.5]


def test_a_policy_learns_to_prefer(tmp_path: Path) -> None:
    trainer = train(tmp_path, pairs=16, max_steps=30, learning_rate=0.5)
    assert logged(trainer)[0] == pytest.approx(math.log(2), rel=1e-5)
    assert logged(trainer)[-1] < 0.6
    assert logged(trainer, "rewards/accuracies")[-1] > 0.8
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for name in (
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "lengths/chosen", "lengths/rejected"),
        *("grad_norm", "tokens_per_second", "items_per_second"),
    ):
        assert math.isfinite(entry[name]), name


def test_logged_values_are_means_over_items_not_over_steps(tmp_path: Path) -> None:
    """An epoch of 10 items is a step of 8 and one of 2."""
    settings = {"pairs": 10, "max_steps": -1, "num_train_epochs": 1}
    each = train(tmp_path / "a", **settings)
    both = train(tmp_path / "b", **settings, logging_steps=2)
    for name in ("loss", "logps/chosen", "rewards/margins"):
        first, second = logged(each, name)
        assert logged(both, name) == [pytest.approx(0.8 * first + 0.2 * second, rel=1e-5)]


def test_accumulation_is_folded_into_the_batch(tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 1)
    again = PreferenceArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=args.per_device_train_batch_size
    )
    assert again.per_device_train_batch_size == 8


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "token_budget": 100, "layout": "flat"},
    ],
)
def test_checkpointing_changes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, checkpointed = train(tmp_path / "a"), train(tmp_path / "b", **settings)
    assert largest_difference(weights_of(plain.model), weights_of(checkpointed.model)) < 1e-6


@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_bfloat16_follows_float32(layout: str, tmp_path: Path) -> None:
    plain = train(tmp_path / "a")
    rough = train(tmp_path / "b", bf16=True, layout=layout)
    assert logged(rough) == pytest.approx(logged(plain), rel=2e-3)
    assert logged(rough) != logged(plain)
    assert next(rough.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop"])
def test_optimisers_of_transformers_are_taken(optim: str, tmp_path: Path) -> None:
    args = {"optim_args": "alpha=0.99"} if optim == "rmsprop" else {}
    trainer = train(tmp_path, optim=optim, learning_rate=1e-3, max_steps=3, **args)
    inner = trainer.optimizer.optimizer
    assert type(inner).__name__.lower() in optim.replace("adamw_torch", "adamw")
    if optim == "rmsprop":
        assert inner.defaults["alpha"] == 0.99


# --- Adapters ------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["start", "adapter-off"])
def test_only_the_adapter_learns_and_its_absence_is_the_reference(
    reference: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer("chatml")
    before = weights_of(tiny_policy(tokenizer))
    trainer = train(tmp_path, peft_config=LORA, learning_rate=1.0, reference=reference)
    assert logged(trainer)[0] == pytest.approx(math.log(2), rel=1e-6)
    after = weights_of(trainer.model.unload())
    assert largest_difference(before, after) == 0.0
    trained = [p for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert all(float(each.abs().max()) > 0 for each in trained)


def test_an_adapter_that_was_trained_before_starts_from_itself(tmp_path: Path) -> None:
    """Its reference is the policy as given, adapter included; without the adapter another."""
    first = train(tmp_path / "a", peft_config=LORA, learning_rate=1.0)
    again = preference_trainer(tmp_path / "b", model=first.model, max_steps=1)
    again.train()
    assert logged(again) == [pytest.approx(math.log(2), rel=1e-6)]
    off = preference_trainer(
        tmp_path / "c", model=first.model, max_steps=1, reference="adapter-off"
    )
    off.train()
    assert abs(logged(off)[0] - math.log(2)) > 1e-5


# --- The reference -------------------------------------------------------------------------


def test_another_model_as_reference_is_loaded_and_used(tmp_path: Path) -> None:
    other = tiny_policy(tiny_tokenizer("chatml"), seed=7)
    other.save_pretrained(tmp_path / "other")
    trainer = train(tmp_path / "run", reference=str(tmp_path / "other"), max_steps=1)
    items = trainer.last_step.items
    trees = [tree for item in items.items for tree in item.trees]
    from prefstage.scoring import Scorer

    expected = torch.cat([t for tree in Scorer(other).score(trees) for t in tree.per_token])
    torch.testing.assert_close(items.reference, expected)


def test_a_loss_without_reference_scores_none(tmp_path: Path) -> None:
    trainer = train(tmp_path, loss="simpo", max_steps=1)
    assert trainer.last_step.items.reference is None
    assert not (tmp_path / "_reference").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reference": "none"}, "compares with a reference"),
        ({"loss": "simpo", "reference": "some/model"}, "uses no reference"),
    ],
)
def test_contradictions_of_loss_and_reference_are_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        preference_trainer(tmp_path, **settings)


def test_reference_log_probs_are_read_from_disk_in_the_next_run(tmp_path: Path) -> None:
    train(tmp_path / "a", reference_cache=str(tmp_path / "cache"), max_steps=1)
    files = sorted((tmp_path / "cache").rglob("*.parquet"))
    train(tmp_path / "b", reference_cache=str(tmp_path / "cache"), max_steps=1, seed=8)
    assert files
    assert sorted((tmp_path / "cache").rglob("*.parquet")) == files


# --- The first step ------------------------------------------------------------------------


def test_a_start_unlike_its_reference_stops_the_run(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path)
    trainer.compute_references()
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(1.5)
    with pytest.raises(ModelError, match=r"nats a token .*; expected .* ln 2"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("settings", [{"initial_loss_tolerance": 10.0}, {"disable_dropout": False}])
def test_the_check_is_as_strict_as_is_asked_and_says_nothing_under_dropout(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_policy(tiny_tokenizer("chatml"), attention_dropout=0.1)
    trainer = preference_trainer(tmp_path, model=model, max_steps=1, **settings)
    trainer.compute_references()
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(1.5)
    trainer.train()
    assert trainer.state.global_step == 1


# --- Evaluation ----------------------------------------------------------------------------


def test_named_sets_are_means_over_items_and_choose_the_best(tmp_path: Path) -> None:
    sets = {"small": tiny_pairs(3, seed=2), "large": tiny_pairs(11, seed=4)}
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_large_loss",
        "max_steps": 3,
        "learning_rate": 3.0,
    }
    trainer = train(tmp_path, eval_dataset=sets, **settings)
    found = logged(trainer, "eval_large_loss")
    assert len(found) == len(logged(trainer, "eval_small_rewards/accuracies")) == 3
    assert trainer.state.best_metric == min(found)
    again = trainer.evaluate()
    assert again["eval_large_loss"] == pytest.approx(min(found), rel=1e-6)
    pairs = [trainer.evaluate(eval_dataset=tiny_subset(sets["large"], i)) for i in ()]
    assert pairs == []


def tiny_subset(pairs: Any, index: int) -> Any:
    return type(pairs).of([pairs[index]])


@pytest.mark.parametrize("settings", [{"token_budget": 60}, {"per_device_eval_batch_size": 1}])
def test_batches_do_not_change_an_evaluation(settings: dict[str, Any], tmp_path: Path) -> None:
    held_out = tiny_pairs(11, seed=4)
    for loss in ("sigmoid", "aot", "kto"):
        whole = preference_trainer(tmp_path / "a", eval_dataset=held_out, loss=loss)
        divided = preference_trainer(tmp_path / "b", eval_dataset=held_out, loss=loss, **settings)
        one, other = whole.evaluate(), divided.evaluate()
        for name in one.keys() - {"eval_runtime"}:
            if "per_second" not in name:
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def test_early_stopping_stops(tmp_path: Path) -> None:
    trainer = train(
        tmp_path,
        eval_dataset=tiny_pairs(6, seed=4),
        callbacks=[EarlyStoppingCallback(1, early_stopping_threshold=10.0)],
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        max_steps=20,
    )
    assert trainer.state.global_step < 20


def test_a_set_that_comes_after_training_has_no_reference(tmp_path: Path) -> None:
    trainer = train(tmp_path, max_steps=1)
    with pytest.raises(ConfigError, match="pass all evaluation sets to PreferenceTrainer"):
        trainer.evaluate(tiny_pairs(3, seed=6))


# --- Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token_budget": 0}, "token_budget=0"),
        ({"token_budget": "many"}, "token_budget='many'"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"layout": "round"}, "layout='round'"),
    ],
)
def test_settings_without_effect_are_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        arguments(tmp_path, **settings)
