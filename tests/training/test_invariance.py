"""How a step is divided changes nothing: micro-batches, budgets, layouts, accumulation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import (
    largest_difference,
    preference_trainer,
    tiny_pairs,
    tiny_policy,
    weights_of,
)

# One that treats pairs alone, whole-batch ones on unpaired and paired data, two with state
# (one of them a whole-batch loss), and one that draws tokens.
LOSSES = [
    *("sigmoid", "kto", "bco", "sgdpo", "tpo", "kto + 0.2*sft", "bco_udm"),
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("aot", "beta_dpo", "re_po")),
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("wpo", "sigmoid + 0.2*sft")),
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("pipa_n", "odpo")),
]

DIVISIONS: dict[str, dict[str, Any]] = {
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "one item a micro-batch": {"token_budget": 1},
    "small micro-batches": {"token_budget": 150},
    "flat": {"layout": "flat"},
    "flat, small micro-batches": {"layout": "flat", "token_budget": 100},
}


def trained(folder: Path, **settings: Any) -> tuple[dict[str, Tensor], list[Any], dict[str, Any]]:
    """Weights, log and loss state after several steps, the last of an epoch being short."""
    data = tiny_pairs(13, gold=settings.get("loss") == "tpo")
    trainer = preference_trainer(folder, data=data, max_steps=4, **settings)
    trainer.train()
    return weights_of(trainer.model), trainer.state.log_history, trainer.loss_state


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers by dotted names."""
    found: dict[str, float] = {}
    for name, value in state.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_divisions_of_a_step_are_all_the_same(loss: Any, tmp_path: Path) -> None:
    start = weights_of(tiny_policy(tiny_tokenizer("chatml")))
    weights, log, state = trained(tmp_path / "whole", loss=loss)
    assert largest_difference(start, weights) > 1e-3  # something was learned
    for name, division in DIVISIONS.items():
        others, other_log, other_state = trained(tmp_path / "divided", loss=loss, **division)
        assert largest_difference(weights, others) < 1e-5, name
        for one, other in zip(log, other_log, strict=True):
            for metric in one.keys() - {"train_runtime"}:
                if "per_second" not in metric:
                    assert one[metric] == pytest.approx(other[metric], rel=1e-3, abs=1e-4), name
        assert flat(state) == pytest.approx(flat(other_state), rel=1e-4), name


def test_the_draws_of_a_random_loss_change_from_step_to_step(tmp_path: Path) -> None:
    """Else the test above would say nothing about them."""
    trainer = preference_trainer(tmp_path, loss="sgdpo", pairs=8, max_steps=2)
    trainer.train()
    first = trainer.last_step.items.seeds
    assert len(set(first)) == 8
    again = preference_trainer(tmp_path, loss="sgdpo", pairs=8, max_steps=1)
    again.train()
    assert set(again.last_step.items.seeds).isdisjoint(first)


def test_dropout_is_off_unless_it_is_wanted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = trained(tmp_path / "a")[0]
    torch.manual_seed(1)
    assert largest_difference(weights, trained(tmp_path / "b")[0]) == 0.0
