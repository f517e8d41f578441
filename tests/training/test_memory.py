"""Micro-batches: what they may hold, and that what they keep is bounded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefstage.scoring.cpu import lean
from prefstage.scoring.cpu.lean import Recipes
from prefstage.scoring.memory import TRAINING_CPU_TOKENS, ModelShape
from prefstage.training.step import token_budget_of
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import preference_trainer, tiny_policy


def test_a_budget_that_was_given_is_taken() -> None:
    model = tiny_policy(tiny_tokenizer())
    assert (
        token_budget_of(SimpleNamespace(token_budget="auto", activation_checkpointing=False), model)
        == TRAINING_CPU_TOKENS
    )
    assert token_budget_of(SimpleNamespace(token_budget=4000), model) == 4000


@pytest.mark.parametrize(
    ("given", "used"),
    [({}, True), ({"gradient_checkpointing": True}, False), ({"token_budget": 4000}, True)],
)
def test_layers_run_again_only_where_an_item_is_longer_than_the_budget(
    given: dict[str, Any], used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, again = list[int](), list[int]()
    keeping, recomputed = Recipes.keeping, lean.recomputed_layers

    def counting(recipes: Recipes) -> Any:
        turns.append(1)
        return keeping(recipes)

    def noting(body: Any, *, tokens: int, room: int) -> Any:
        again.append(max(0, tokens - room))
        return recomputed(body, tokens=tokens, room=room)

    monkeypatch.setattr(Recipes, "keeping", counting)
    monkeypatch.setattr(lean, "recomputed_layers", noting)
    trainer = preference_trainer(tmp_path, max_steps=2, **{"token_budget": 20, **given})
    trainer.train()
    assert bool(turns) is used
    assert len(again) == len(turns)
    assert any(again) is (used and "token_budget" not in given)
    assert trainer.state.global_step == 2


def test_logits_may_take_what_a_short_micro_batch_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "KEPT_ELEMENTS", 1000)
    rooms, tokens = list[int](), list[int]()
    saving, recomputed = lean.saving, lean.recomputed_layers

    def noting_room(**changes: Any) -> Any:
        rooms.extend([changes["room"]] if "room" in changes else [])
        return saving(**changes)

    def noting_tokens(body: Any, **given: int) -> Any:
        tokens.append(given["tokens"])
        return recomputed(body, **given)

    monkeypatch.setattr(lean, "saving", noting_room)
    monkeypatch.setattr(lean, "recomputed_layers", noting_tokens)
    preference_trainer(tmp_path, max_steps=2, token_budget=40).train()
    layers = 2 * (2 * 32 + 2 * (32 + 16) + 2 * 48)  # numbers that a token keeps: docs/install.md
    assert rooms == [1000 + layers * max(0, 40 - each) for each in tokens]
    assert min(tokens) < 40 < max(tokens)


def test_a_model_in_half_precision_leaves_half_the_room() -> None:
    model = tiny_policy(tiny_tokenizer())
    whole = ModelShape.of(model).kept_bytes(norms_recomputed=True)
    assert ModelShape.of(model.to(torch.bfloat16)).kept_bytes(norms_recomputed=True) * 2 == whole
