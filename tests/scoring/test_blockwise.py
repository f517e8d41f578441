"""Blockwise attention against the definition, values and gradients in float64."""

import pytest
import torch
from torch import Tensor

from prefstage.scoring import blockwise
from prefstage.scoring.attention import visible_keys
from prefstage.scoring.blockwise import AttentionRule, attend
from prefstage.scoring.rows import Leaf, Row, build_row

PROMPT, OTHER = (1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 9)


@pytest.fixture
def row() -> Row:
    """Two prompts that share a beginning, responses that share one, and one that is a part."""
    responses = [(1, 1, 1, 1, 1), (1, 1, 2, 3), (1, 1), (8,), (8, 8, 8, 8, 8, 8, 8)]
    leaves = [Leaf(0, i, PROMPT, ids) for i, ids in enumerate(responses)]
    return build_row([*leaves, Leaf(1, 0, OTHER, (4, 4, 4))])


def written_out(q: Tensor, k: Tensor, v: Tensor, row: Row, rule: AttentionRule) -> Tensor:
    repeats = len(q) // len(k)
    k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    scores = q @ k.transpose(1, 2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    seen = visible_keys(row, window=rule.window, device=q.device)[0]
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_values_and_gradients_equal_the_definition(
    row: Row, block: int, window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "BLOCK_PLACES", block)
    torch.manual_seed(0)
    places, rule = len(row.input_ids), AttentionRule(0.6, softcap, window)
    inputs = [
        torch.randn(heads, places, dim, dtype=torch.float64, requires_grad=True)
        for heads, dim in ((6, 4), (2, 4), (2, 5))
    ]
    found = attend(*inputs, segments=row.segments, rule=rule)
    expected = written_out(*inputs, row, rule)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_inputs_in_the_layers_own_strides_are_taken(row: Row) -> None:
    torch.manual_seed(0)
    places, rule = len(row.input_ids), AttentionRule(0.5)
    inputs = [torch.randn(places, heads, 4).transpose(0, 1) for heads in (6, 2, 2)]
    found = attend(*inputs, segments=row.segments, rule=rule)
    torch.testing.assert_close(found, written_out(*inputs, row, rule))


def test_autocast_leaves_scores_in_full_precision(row: Row) -> None:
    torch.manual_seed(0)
    rule, places = AttentionRule(0.5), len(row.input_ids)
    inputs = [torch.randn(heads, places, 8).bfloat16().requires_grad_() for heads in (6, 2, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*inputs, segments=row.segments, rule=rule)
    expected = attend(*(each.float() for each in inputs), segments=row.segments, rule=rule)
    torch.testing.assert_close(found, expected.bfloat16())
    (slope,) = torch.autograd.grad(found.float().sum(), inputs[:1])
    assert slope.isfinite().all()
