"""Blockwise attention against the definition, values and gradients in float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from prefstage.scoring.attention import visible_keys
from prefstage.scoring.cpu import blockwise
from prefstage.scoring.cpu.blockwise import AttentionRule, attend, tiles_for, tiling
from prefstage.scoring.layout import Leaf, Row, Segment, build_row

PROMPT, OTHER = (1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 9)


@pytest.fixture
def row() -> Row:
    """Two prompts that share a beginning, responses that share one, and one that is a part."""
    responses = [(1, 1, 1, 1, 1), (1, 1, 2, 3), (1, 1), (8,), (8, 8, 8, 8, 8, 8, 8)]
    leaves = [Leaf(0, i, PROMPT, ids) for i, ids in enumerate(responses)]
    return build_row([*leaves, Leaf(1, 0, OTHER, (4, 4, 4))])


@pytest.fixture
def deep_row() -> Row:
    """Responses that leave one another late and early, some by one place; a second tree."""
    long = tuple(range(10, 41))
    responses = [long, (*long[:20], 1), (*long[:20], 1, 2, 2), (*long[:3], 5), (7, 7), (7, 8)]
    leaves = [Leaf(0, i, PROMPT, (*ids, 0)) for i, ids in enumerate(responses)]
    return build_row([*leaves, Leaf(1, 0, (50, 51, 52), (6, 0)), Leaf(1, 1, (50, 51, 52), (5, 0))])


@pytest.fixture(params=[1, 2, 3, 16])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check_against_definition(
    row: Row, rule: AttentionRule, heads: int = 6, groups: int = 2
) -> None:
    """Compare values and gradients in float64."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(each, len(row.input_ids), dim, dtype=torch.float64, requires_grad=True)
        for each, dim in ((heads, 4), (groups, 4), (groups, 5))
    ]
    found = attend(*inputs, segments=row.segments, rule=rule)
    expected = written_out(*inputs, row, rule)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


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
    monkeypatch.setattr(blockwise, "BLOCK_QUERIES", block)
    check_against_definition(row, AttentionRule(0.6, softcap, window))


@pytest.mark.parametrize("block", [5, 64])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (None, 5), (0.7, 12)])
def test_any_number_of_threads_gives_the_definition(
    deep_row: Row,
    threads: int,
    *,
    block: int,
    softcap: float | None,
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blockwise, "BLOCK_QUERIES", block)
    check_against_definition(deep_row, AttentionRule(0.6, softcap, window))


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 3), (9, 3), (8, 2)])
def test_any_sharing_of_keys_gives_the_definition(
    deep_row: Row, threads: int, heads: int, groups: int
) -> None:
    check_against_definition(deep_row, AttentionRule(0.6), heads, groups)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_what_it_returns(
    deep_row: Row, threads: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rule, places = AttentionRule(0.5), len(deep_row.input_ids)
    exact = [torch.randn(heads, places, 8).to(dtype).double() for heads in (6, 2, 2)]
    found, expected = (
        attend(*inputs, segments=deep_row.segments, rule=rule)
        for inputs in ([x.to(dtype) for x in exact], exact)
    )
    assert found.dtype == dtype
    half_unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * half_unit, atol=1e-6)


def test_a_text_alone_gives_what_it_gives_in_company(deep_row: Row, threads: int) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(heads, len(deep_row.input_ids), 8) for heads in (6, 2, 2))
    rule = AttentionRule(0.5)
    together = attend(query, key, value, segments=deep_row.segments, rule=rule)
    for segment in deep_row.segments:
        places = torch.cat(
            [torch.arange(*span) for span in (*segment.context, (segment.start, segment.stop))]
        )
        own = slice(segment.start - segment.stop, None)
        alone = attend(
            *(x[:, places] for x in (query, key, value)),
            segments=(Segment(0, len(places), ()),),
            rule=rule,
        )
        torch.testing.assert_close(
            alone[own], together[segment.start : segment.stop], rtol=1e-5, atol=1e-6
        )


def test_gradient_after_a_pass_without_one(row: Row) -> None:
    """What the first pass keeps for later ones can be used where gradients are wanted."""
    tiling.cache_clear()
    with torch.inference_mode():
        inputs = [torch.randn(heads, len(row.input_ids), 4) for heads in (6, 2, 2)]
        attend(*inputs, segments=row.segments, rule=AttentionRule(0.25))
    check_against_definition(row, AttentionRule(0.25))


@pytest.mark.parametrize(
    ("groups", "busiest"),
    [
        (1, {1: 1, 2: 2, 3: 3, 16: 8}),
        (2, {1: 1, 2: 1, 3: 3, 16: 8}),
        (3, {1: 1, 2: 2, 3: 1, 16: 5}),
        (9, {1: 1, 2: 2, 3: 1, 16: 7}),
    ],
)
def test_tiles_keep_the_threads_busiest(threads: int, groups: int, busiest: dict[int, int]) -> None:
    assert tiles_for(groups, torch.device("cpu")) == busiest[threads]
    assert tiles_for(groups, torch.device("cuda")) == 1


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
