"""Batches of random log-probs for every kind of loss, and how to cut, order and pad them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from prefstage.losses import (
    GroupBatch,
    Loss,
    LossBatch,
    PairBatch,
    ResponseBatch,
    Responses,
    Totals,
    UnpairedBatch,
)

ITEMS = 6
NAMES = ("ada", "ben", "ada", "eve", "ben", "ada")


def draw_responses(
    lengths: Sequence[int],
    *,
    seed: int,
    scale: float = 1.0,
    equal: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Responses:
    """Responses with every optional field.

    `scale` is the size of log-ratios of whole responses in nats; with `equal`, policy and
    reference are the same.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    likely = -(noise().abs() + 0.01) * mask
    shifts = noise() * mask * (0.0 if equal else scale) / torch.tensor(lengths)[:, None].sqrt()
    policy, reference = likely + shifts.clamp(max=0), likely - shifts.clamp(min=0)
    squares = -noise().abs() * mask
    return Responses(
        policy=policy.to(dtype).requires_grad_(),
        lengths=torch.tensor(lengths),
        reference=reference.to(dtype),
        scores=torch.randn(len(lengths), generator=generator, dtype=torch.float64).to(dtype),
        log_sum_squares=squares.to(dtype),
    )


def draw_lengths(items: int, *, seed: int, longest: int = 9) -> list[int]:
    generator = torch.Generator().manual_seed(seed + 17)
    return torch.randint(1, longest + 1, (items,), generator=generator).tolist()


def draw_pairs(
    chosen: Sequence[int], rejected: Sequence[int], *, seed: int, **how: Any
) -> PairBatch:
    generator = torch.Generator().manual_seed(seed + 31)
    preference = torch.rand(len(chosen), generator=generator, dtype=torch.float64)
    return PairBatch(
        draw_responses(chosen, seed=2 * seed, **how),
        draw_responses(rejected, seed=2 * seed + 1, **how),
        Totals(len(chosen), sum(chosen), sum(rejected)),
        seeds=torch.arange(len(chosen)) + 1000 * seed,
        preference=preference.to(how.get("dtype", torch.float64)),
        annotators=tuple(NAMES[item % len(NAMES)] for item in range(len(chosen))),
        gold=draw_responses(rejected[::-1], seed=2 * seed + 7, **how),
    )


def draw_batch(kind: str, *, seed: int = 0, items: int = ITEMS, **how: Any) -> LossBatch:
    """A batch of a kind with every field that such a batch may have."""
    lengths = draw_lengths(items, seed=seed)
    if kind == "pairs":
        return draw_pairs(lengths, draw_lengths(items, seed=seed + 1), seed=seed, **how)
    if kind == "groups":
        sizes = [2 + item % 3 for item in range(items)]
        group = torch.arange(items).repeat_interleave(torch.tensor(sizes))
        lengths = draw_lengths(sum(sizes), seed=seed)
        responses = draw_responses(lengths, seed=seed, **how)
        return GroupBatch(responses, group, Totals(items, sum(lengths)))
    responses = draw_responses(lengths, seed=seed, **how)
    if kind == "responses":
        return ResponseBatch(responses, Totals(items, sum(lengths)))
    generator = torch.Generator().manual_seed(seed)
    desirable = torch.rand(items, generator=generator) < 0.5
    desirable[0], desirable[-1] = True, items == 1
    others = draw_responses(draw_lengths(items, seed=seed + 1), seed=seed + 1, **how)
    if (others.log_ratios.mean() > 0) != (seed % 2 == 0):  # KTO's point is 0 at odd seeds
        others = replace(others, policy=others.reference, reference=others.policy.detach())
    wanted = int(responses.lengths[desirable].sum())
    return UnpairedBatch(
        responses,
        desirable,
        Totals(items, wanted, sum(lengths) - wanted),
        mismatched=others,
        density_ratio=torch.rand(items, generator=generator).exp().to(responses.policy.dtype),
    )


def kinds_of(loss: Loss) -> list[str]:
    return sorted(loss.data)


def learners(batch: LossBatch) -> list[Responses]:
    """The responses whose log-probs a loss differentiates by."""
    if not isinstance(batch, PairBatch):
        return [batch.responses]
    return [batch.chosen, batch.rejected, *([batch.gold] if batch.gold else [])]


def change_responses(batch: LossBatch, change: Any) -> LossBatch:
    """The batch with every `Responses` in it changed by a function."""
    own = {each.name: getattr(batch, each.name) for each in fields(batch)}
    found = {name: change(value) for name, value in own.items() if isinstance(value, Responses)}
    return replace(batch, **found)


def pad(batch: LossBatch, columns: int) -> LossBatch:
    """The batch with columns of zeros behind all tokens."""

    def wider(side: Responses) -> Responses:
        names = ("policy", "reference", "log_sum_squares")
        grown = {n: torch.nn.functional.pad(getattr(side, n), (0, columns)) for n in names}
        return replace(side, **grown)

    return change_responses(batch, wider)


def take(batch: LossBatch, items: Sequence[int]) -> LossBatch:
    """Some of the items in the order given, as part of the same optimiser batch."""
    if isinstance(batch, GroupBatch):
        rows = [torch.nonzero(batch.group == item).flatten() for item in items]
        sizes = torch.tensor([len(each) for each in rows])
        group = torch.arange(len(items)).repeat_interleave(sizes)
        return replace(batch, responses=_rows(batch.responses, torch.cat(rows)), group=group)
    rows = torch.tensor(items)
    changes: dict[str, Any] = {}
    for each in fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, Responses):
            changes[each.name] = _rows(value, rows)
        elif isinstance(value, Tensor):
            changes[each.name] = value[rows]
        elif isinstance(value, tuple):
            changes[each.name] = tuple(value[item] for item in items)
    return replace(batch, **changes)


def _rows(side: Responses, rows: Tensor) -> Responses:
    found = {each.name: getattr(side, each.name) for each in fields(side)}
    return Responses(**{name: None if v is None else v[rows] for name, v in found.items()})
