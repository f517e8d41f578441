"""Pairs as other kinds of items, and the totals that losses see."""

from pathlib import Path

import pytest
import torch

from prefstage.data import ResponseEncoder
from prefstage.losses import Totals, parse_loss
from prefstage.training.batches import StepItems
from prefstage.training.datasets import item_set_of
from prefstage.training.items import ItemSet, encode_items
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import preference_trainer, tiny_pairs


@pytest.fixture(scope="module")
def encoder() -> ResponseEncoder:
    return ResponseEncoder(tiny_tokenizer("chatml"))


@pytest.fixture
def pairs(encoder: ResponseEncoder) -> ItemSet:
    return encode_items(tiny_pairs(6), encoder)


def test_pairs_give_a_desirable_and_an_undesirable_item(
    encoder: ResponseEncoder, pairs: ItemSet
) -> None:
    items = item_set_of(pairs, encoder, parse_loss("kto")).items
    assert [item.desirable for item in items] == [True, False] * 6
    for place, pair in enumerate(pairs.items):
        both = [item.trees[0].response_ids[0] for item in items[2 * place : 2 * place + 2]]
        assert tuple(both) == pair.trees[0].response_ids


def test_mismatched_responses_belong_to_another_prompt(
    encoder: ResponseEncoder, pairs: ItemSet
) -> None:
    items = item_set_of(pairs, encoder, parse_loss("kto"))
    own = {(i.trees[0].prompt_ids, i.trees[0].response_ids[0]) for i in items.items}
    for item in items.items:
        tree = item.trees[0]
        assert len(tree.response_ids) == 2
        assert (tree.prompt_ids, tree.response_ids[1]) not in own
    assert item_set_of(items, encoder, parse_loss("kto")) is items


def test_demonstrations_of_pairs_are_their_chosen_side(
    encoder: ResponseEncoder, pairs: ItemSet
) -> None:
    items = item_set_of(pairs, encoder, parse_loss("sft"))
    assert items.kind == "responses"
    for item, pair in zip(items.items, pairs.items, strict=True):
        assert item.trees[0].response_ids == pair.trees[0].response_ids[:1]


def test_a_part_keeps_the_totals_and_values_of_its_items(pairs: ItemSet) -> None:
    whole = StepItems("pairs", pairs.items, torch.arange(0.0))
    values = torch.arange(float(whole.tokens))
    whole = StepItems("pairs", pairs.items, values)
    part = whole.part((4, 1))
    responses = [tree.response_ids for item in pairs.items for tree in item.trees]
    assert part.whole_totals == Totals(
        6, sum(len(chosen) for chosen, _ in responses), sum(len(other) for _, other in responses)
    )
    batch = part.loss_batch(part.reference)
    for row, position in enumerate((4, 1)):
        span = whole.spans[position][1]
        own = batch.rejected.policy[row]
        assert torch.equal(own[: span.stop - span.start], values[span])
        assert float(own[span.stop - span.start :].abs().sum()) == 0.0


def test_token_mean_of_demonstrations_is_over_the_whole_step(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path, loss="sft", max_steps=1, token_budget=60)
    trainer.train()
    step = trainer.last_step
    expected = -step.scored.log_probs.sum() / step.items.tokens
    assert step.loss == pytest.approx(float(expected), rel=1e-5)
