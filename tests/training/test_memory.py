"""Little memory: what it asks for, where it works, and that it is used."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.scoring.activations import ActivationStore
from prefstage.training.memory import LEAN_TOKENS, check_lean_memory, token_budget_of
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import preference_trainer, tiny_policy


def settings(**given: Any) -> Any:
    return SimpleNamespace(**{"token_budget": "auto", "lean_memory": False, **given})


@pytest.mark.parametrize(("device", "processes"), [("cuda", 1), ("cpu", 2)])
def test_lean_memory_elsewhere_is_an_error(device: str, processes: int) -> None:
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    assert check_lean_memory(settings(), accelerator) is False
    with pytest.raises(InputError, match=f"lean_memory on {device}, {processes} processes"):
        check_lean_memory(settings(lean_memory=True), accelerator)


def test_lean_memory_takes_smaller_micro_batches_unless_told() -> None:
    model = tiny_policy(tiny_tokenizer())
    assert token_budget_of(settings(), model) > LEAN_TOKENS
    assert token_budget_of(settings(lean_memory=True), model) == LEAN_TOKENS
    assert token_budget_of(settings(lean_memory=True, token_budget=4000), model) == 4000


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, False),
        ({"lean_memory": True}, True),
        ({"lean_memory": True, "gradient_checkpointing": True}, False),
    ],
)
def test_activations_are_stored_only_where_it_helps(
    given: dict[str, Any], used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, keeping = list[int](), ActivationStore.keeping

    def counting(store: ActivationStore, weights: Any) -> Any:
        turns.append(1)
        return keeping(store, weights)

    monkeypatch.setattr(ActivationStore, "keeping", counting)
    trainer = preference_trainer(tmp_path, max_steps=2, token_budget=100, **given)
    trainer.train()
    assert bool(turns) is used
    assert trainer.state.global_step == 2
