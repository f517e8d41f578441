"""Log-probs of given tokens straight from hidden states, without holding the logits."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefstage.scoring.direct import new_gradient, takes_direct_gradient

CHUNK_ELEMENTS = 1 << 19
"""Logits held at once (2 MiB in float32): stays in a CPU's cache; on a GPU see below."""

GPU_CHUNK_ELEMENTS = 1 << 27
"""Logits held at once on a GPU, where large products matter more than cache."""

KEPT_ELEMENTS = 1 << 25
"""On a CPU, logits kept for the backward pass (128 MiB in float32) unless `room_for_logits` says
otherwise; others are computed again, which is a third more of the vocabulary's arithmetic."""

MAX_CHUNK_TOKENS = 1024
"""Tokens whose logits are held at once."""

_STATISTICS = ("entropy", "log_sum_squares")

_room: ContextVar[int | None] = ContextVar("room", default=None)


@contextmanager
def room_for_logits(elements: int) -> Iterator[None]:
    """Let as many logits be kept for the backward pass, on a CPU.

    Args:
        elements: Logits, >= 0, in place of `KEPT_ELEMENTS`.
    """
    token = _room.set(elements)
    try:
        yield
    finally:
        _room.reset(token)


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits: ``softcap · tanh(scale · (h Wᵀ + b) / softcap)``.

    Attributes:
        weight: W. [vocabulary, hidden].
        bias: b. [vocabulary], or None.
        scale: Factor on the logits.
        softcap: Bound of the logits; None for none.
    """

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class TokenLogProbs:
    """Log-probs of target tokens, and what else was asked for; nats, float32 at least.

    Attributes:
        log_probs: log π(target). [tokens].
        entropy: -Σ_v π(v) log π(v). [tokens]; None unless asked for. No gradient.
        log_sum_squares: log Σ_v π(v)². [tokens]; likewise.
    """

    log_probs: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"] | None = None
    log_sum_squares: Float[Tensor, " tokens"] | None = None

    def cpu(self) -> "TokenLogProbs":
        """The same on the CPU."""
        entropy, squares = self.entropy, self.log_sum_squares
        return TokenLogProbs(
            self.log_probs.cpu(),
            None if entropy is None else entropy.cpu(),
            None if squares is None else squares.cpu(),
        )


def linear_log_probs(
    hidden: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    *,
    statistics: tuple[str, ...] = (),
) -> TokenLogProbs:
    """Log-softmax of the head's logits at the targets, in chunks of tokens and vocabulary.

    ``log π(y) = z_y - log Σ_v exp z_v``, summed in float32 (float64 for float64 input)
    from half-precision weights and under autocast too. Memory does not grow with the
    vocabulary: of logits that there is no room for, the backward pass computes the chunks again.

    Args:
        hidden: Final hidden states. [tokens, hidden].
        targets: Token whose log-prob is wanted. [tokens].
        head: The map to logits.
        statistics: Of "entropy" and "log_sum_squares", those wanted; they cost time.

    Returns:
        Log-probs and the statistics asked for.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the products
        log_probs, *extra = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            hidden,
            head.weight,
            head.bias,
            targets,
            head.scale,
            head.softcap,
            bool(statistics),
            torch.is_grad_enabled(),
            takes_direct_gradient(head.weight),
        )
    known = dict(zip(_STATISTICS, extra, strict=True)) if statistics else {}
    return TokenLogProbs(log_probs, **{name: known[name] for name in statistics})


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by place
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        with_statistics: bool,
        with_gradient: bool,
        direct: bool,
    ) -> tuple[Tensor, ...]:
        head = Head(weight, bias, scale, softcap)
        sums = _Sums.start(hidden, with_statistics=with_statistics)
        kept = _Kept.start(hidden, head, with_gradient and not with_statistics)
        for words in _word_chunks(len(targets), len(weight), hidden.device):
            for tokens in _token_chunks(len(targets)):
                logits = _logits(hidden[tokens], head, words)[0]
                sums.add(logits, tokens)
                kept.add(logits)
        at_target = _target_logits(hidden, head, targets)
        ctx.save_for_backward(hidden, weight, bias, targets, sums.total)
        ctx.scale, ctx.softcap, ctx.kept = scale, softcap, kept
        ctx.owner = weight if direct else None
        statistics = sums.statistics()
        ctx.mark_non_differentiable(*statistics)
        return (at_target - sums.total, *statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, total = ctx.saved_tensors
        head = Head(weight, bias, ctx.scale, ctx.softcap)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        precise = total.dtype
        grad_hidden = torch.zeros_like(hidden, dtype=precise) if wants_hidden else None
        grad_weight = _room_for_gradient(weight, ctx.owner) if wants_weight else None
        adds = ctx.owner is not None and ctx.owner.grad is not None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        for words in _word_chunks(len(targets), len(weight), hidden.device):
            part = weight[words].to(precise)
            of_part = None
            if grad_weight is not None:
                of_part = _Accumulated(part, grad_weight, words, adds=adds)
            part_bias = part.new_zeros(len(part))
            for tokens in _token_chunks(len(targets)):
                slopes = _slopes(
                    ctx.kept.take() or _logits(hidden[tokens], head, words),
                    targets[tokens],
                    head,
                    words,
                    total[tokens],
                )
                slopes *= grad[tokens, None]
                if grad_hidden is not None:
                    grad_hidden[tokens].addmm_(slopes, part)
                if of_part is not None:
                    of_part.add(slopes.t(), hidden[tokens].to(precise))
                if grad_bias is not None:
                    part_bias += slopes.sum(0)
            if of_part is not None:
                of_part.finish()
            if grad_bias is not None:
                grad_bias[words] = part_bias
        typed = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        if ctx.owner is not None:
            ctx.owner.grad, grad_weight = grad_weight, None
        return (typed, grad_weight, grad_bias, *[None] * 6)


def _room_for_gradient(weight: Tensor, owner: Tensor | None) -> Tensor:
    """Where the gradient goes: into the owner's own, if there is one already."""
    if owner is None:
        return torch.empty_like(weight)
    return new_gradient(owner) if owner.grad is None else owner.grad


class _Accumulated:
    """A part of the weight's gradient, summed in full precision; in place where that is its own."""

    def __init__(self, part: Tensor, whole: Tensor, words: slice, *, adds: bool) -> None:
        self._goal = whole[words]
        self._sum = self._goal if whole.dtype == part.dtype else torch.empty_like(part)
        self._empty = not adds

    def add(self, left: Tensor, right: Tensor) -> None:
        if self._empty:
            torch.mm(left, right, out=self._sum)
        else:
            self._sum.addmm_(left, right)
        self._empty = False

    def finish(self) -> None:
        if self._empty:
            self._sum.zero_()
        if self._sum is not self._goal:
            self._goal.copy_(self._sum)


@dataclass
class _Kept:
    """Logits of the first chunks, as many as there is room for, taken in their order."""

    room: int
    chunks: deque[Tensor]

    @staticmethod
    def start(hidden: Tensor, head: Head, wanted: bool) -> "_Kept":
        on = wanted and head.softcap is None and hidden.device.type == "cpu"
        room = _room.get()
        return _Kept((KEPT_ELEMENTS if room is None else room) if on else 0, deque())

    def add(self, logits: Tensor) -> None:
        self.room = self.room - logits.numel() if logits.numel() <= self.room else -1
        if self.room >= 0:
            self.chunks.append(logits)

    def take(self) -> tuple[Tensor, None] | None:
        return (self.chunks.popleft(), None) if self.chunks else None


def _slopes(
    known: tuple[Tensor, Tensor | None], targets: Tensor, head: Head, words: slice, total: Tensor
) -> Tensor:
    """Slope of log π(target) by h Wᵀ + b in a chunk: (1[v = target] - π(v)) · the head's."""
    logits, slope = known
    slopes = logits.sub_(total[:, None]).exp_().neg_()
    (inside,) = ((targets >= words.start) & (targets < words.stop)).nonzero(as_tuple=True)
    slopes[inside, targets[inside] - words.start] += 1
    return slopes.mul_(head.scale if slope is None else slope * head.scale)


@dataclass
class _Sums:
    """Running sums over the vocabulary, all kept relative to the sum so far (no overflow).

    Attributes:
        total: log Σ e^z.
        surprise: Σ π (z - total), the negative entropy.
        squares: log Σ e^2z.
    """

    total: Tensor
    surprise: Tensor | None
    squares: Tensor | None

    @staticmethod
    def start(hidden: Tensor, *, with_statistics: bool) -> "_Sums":
        precise = torch.promote_types(hidden.dtype, torch.float32)
        empty = hidden.new_full((len(hidden),), -math.inf, dtype=precise)
        if not with_statistics:
            return _Sums(empty, None, None)
        return _Sums(empty, torch.zeros_like(empty), empty.clone())

    def add(self, logits: Tensor, tokens: slice) -> None:
        before = self.total[tokens].clone()
        after = torch.logaddexp(before, _log_sum_exp(logits))
        self.total[tokens] = after
        if self.surprise is None or self.squares is None:
            return
        self.squares[tokens] = torch.logaddexp(self.squares[tokens], _log_sum_exp(2 * logits))
        # The first chunk has nothing before it; a finite shift makes 0 of it, not NaN.
        shift = (before - after).clamp(min=-1e4)
        relative = logits.sub_(after[:, None])
        added = (relative.exp() * relative).sum(-1)
        self.surprise[tokens] = shift.exp() * (self.surprise[tokens] + shift) + added

    def statistics(self) -> tuple[Tensor, ...]:
        if self.surprise is None or self.squares is None:
            return ()
        return -self.surprise, self.squares - 2 * self.total


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Compute log Σ_v e^z_v: log-softmax takes one pass where logsumexp takes four."""
    return logits[:, 0] - logits.log_softmax(-1)[:, 0]


def _token_chunks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, MAX_CHUNK_TOKENS):
        yield slice(start, min(start + MAX_CHUNK_TOKENS, tokens))


def _word_chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    elements = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
    step = max(elements // max(1, min(tokens, MAX_CHUNK_TOKENS)), 64)
    for start in range(0, vocabulary, step):
        yield slice(start, min(start + step, vocabulary))


def _logits(hidden: Tensor, head: Head, words: slice) -> tuple[Tensor, Tensor | None]:
    """Logits of a chunk in full precision, and the slope of the soft-cap."""
    weight = head.weight[words]
    precise = torch.promote_types(hidden.dtype, torch.float32)
    if hidden.dtype != precise and hidden.device.type == "cuda":
        # Under autocast the weight is still in full precision.
        logits = torch.mm(hidden, weight.t().to(hidden.dtype), out_dtype=precise)
    else:
        logits = torch.mm(hidden.to(precise), weight.t().to(precise))
    if head.bias is not None:
        logits += head.bias[words]
    return _finish(logits, head)


def _target_logits(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    precise = torch.promote_types(hidden.dtype, torch.float32)
    rows = head.weight[targets].to(precise)
    logits = (hidden.to(precise) * rows).sum(-1)
    if head.bias is not None:
        logits += head.bias[targets]
    return _finish(logits, head)[0]


def _finish(logits: Tensor, head: Head) -> tuple[Tensor, Tensor | None]:
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is None:
        return logits, None
    logits.div_(head.softcap).tanh_()
    slope = 1 - logits.square()
    return logits.mul_(head.softcap), slope
