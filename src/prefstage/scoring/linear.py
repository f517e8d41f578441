"""Log-probs of given tokens straight from hidden states, without holding the logits.

A vocabulary of 150,000 words makes the logits of a thousand tokens 600 MB, three times that with
their log-softmax and gradient: more than everything else of a small model. Here they exist in
chunks of tokens and words. A chunk adds to a running log Σ e^z and is gone; the backward pass
computes it again, or takes it from what there was room to keep.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefstage.scoring.cpu.lean import owner_of, savings

CHUNK_ELEMENTS = 1 << 19
"""Logits held at once (2 MiB in float32): stays in a CPU's cache; on a GPU see below."""

GPU_CHUNK_ELEMENTS = 1 << 27
"""Logits held at once on a GPU, where large products matter more than cache."""

MAX_CHUNK_TOKENS = 1024
"""Tokens whose logits are held at once."""

STATISTICS = ("entropy", "log_sum_squares")


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
    """Log-probs of target tokens, and what else was requested; nats, float32 at least.

    Attributes:
        log_probs: log π(target). [tokens].
        entropy: -Σ_v π(v) log π(v). [tokens]; None unless requested. No gradient.
        log_sum_squares: log Σ_v π(v)². [tokens]; likewise.
    """

    log_probs: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"] | None = None
    log_sum_squares: Float[Tensor, " tokens"] | None = None


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
        Log-probs and the statistics requested.
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
            # Inside `forward` the gradient is always off; both must be asked here.
            torch.is_grad_enabled(),
            owner_of(head.weight),
        )
    # None or all of them.
    known = zip(STATISTICS, extra, strict=False)
    return TokenLogProbs(log_probs, **{name: x for name, x in known if name in statistics})


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        with_statistics: bool,
        with_gradient: bool,
        owner: Tensor | None,
    ) -> tuple[Tensor, ...]:
        head = Head(weight, bias, scale, softcap)
        sums = _Sums(hidden, with_statistics=with_statistics)
        # The first chunks are kept, as many as fit, and taken again in their order. Not with a
        # soft-cap, which would need its slope as well, nor with statistics, which write over
        # the logits.
        keeps = with_gradient and not with_statistics and softcap is None
        room = savings().room if keeps and hidden.device.type == "cpu" else 0
        kept = deque[Tensor]()
        for words in _word_chunks(len(targets), len(weight), hidden.device):
            for tokens in _chunks(len(targets), MAX_CHUNK_TOKENS):
                logits = _logits(hidden[tokens], head, words)[0]
                sums.add(logits, tokens)
                if logits.numel() <= room:
                    kept.append(logits)
                    room -= logits.numel()
                else:
                    room = 0
        ctx.save_for_backward(hidden, weight, bias, targets, sums.total)
        ctx.scale, ctx.softcap, ctx.kept, ctx.owner = scale, softcap, kept, owner
        statistics = (-sums.surprise, sums.squares - 2 * sums.total) if with_statistics else ()
        ctx.mark_non_differentiable(*statistics)
        return (_target_logits(hidden, head, targets) - sums.total, *statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, total = ctx.saved_tensors
        head, owner = Head(weight, bias, ctx.scale, ctx.softcap), ctx.owner
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        precise = total.dtype
        grad_hidden = torch.zeros_like(hidden, dtype=precise) if wants_hidden else None
        # Into the weight's `.grad` itself where that may be: the largest gradient of a small
        # model is then never there twice.
        adds = owner is not None and owner.grad is not None
        grad_weight = None
        if wants_weight:
            # Products write over what is not initialised, and there are none without targets.
            make = torch.empty_like if len(targets) else torch.zeros_like
            grad_weight = owner.grad if adds else make(weight, requires_grad=False)
        grad_bias = torch.zeros_like(bias, dtype=precise) if wants_bias else None
        for words in _word_chunks(len(targets), len(weight), hidden.device):
            part = weight[words].to(precise)
            part_grad = part
            if grad_weight is not None:
                # A half-precision gradient is summed in float32 and rounded once a part.
                goal = grad_weight[words]
                part_grad = goal if goal.dtype == precise else torch.empty_like(part)
            for turn, tokens in enumerate(_chunks(len(targets), MAX_CHUNK_TOKENS)):
                kept = (ctx.kept.popleft(), None) if ctx.kept else None
                logits, slope = kept or _logits(hidden[tokens], head, words)
                # d log π(y) / dz = 1[v = y] - π(v), in the logits' own memory.
                slopes = logits.sub_(total[tokens, None]).exp_().neg_()
                at = targets[tokens]
                (inside,) = ((at >= words.start) & (at < words.stop)).nonzero(as_tuple=True)
                slopes[inside, at[inside] - words.start] += 1
                slopes *= head.scale if slope is None else slope * head.scale
                slopes *= grad[tokens, None]
                if grad_hidden is not None:
                    grad_hidden[tokens].addmm_(slopes, part)
                if grad_weight is not None:
                    torch.addmm(
                        part_grad,
                        slopes.t(),
                        hidden[tokens].to(precise),
                        # β = 0 ignores what stands there, which is not even initialised.
                        beta=float(adds or turn > 0),
                        out=part_grad,
                    )
                if grad_bias is not None:
                    grad_bias[words] += slopes.sum(0)
            if grad_weight is not None and part_grad.dtype != grad_weight.dtype:
                grad_weight[words] = part_grad
        if owner is not None:
            owner.grad, grad_weight = grad_weight, None
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            grad_weight,
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 6,
        )


class _Sums:
    """Running sums over the vocabulary, all kept relative to the sum so far (no overflow).

    Attributes:
        total: log Σ e^z.
        surprise: Σ π (z - total), the negative entropy.
        squares: log Σ e^2z.
    """

    def __init__(self, hidden: Tensor, *, with_statistics: bool) -> None:
        self.total = hidden.new_full(
            (len(hidden),), -math.inf, dtype=torch.promote_types(hidden.dtype, torch.float32)
        )
        self.surprise, self.squares = torch.zeros_like(self.total), self.total.clone()
        self._with_statistics = with_statistics

    def add(self, logits: Tensor, tokens: slice) -> None:
        before = self.total[tokens].clone()
        after = torch.logaddexp(before, _log_sum_exp(logits))
        self.total[tokens] = after
        if not self._with_statistics:
            return
        self.squares[tokens] = torch.logaddexp(self.squares[tokens], _log_sum_exp(2 * logits))
        # When the total grows from t to t', every weight so far shrinks by e^(t - t') and every
        # surprise by t - t': Σ π(z - t') = e^(t-t') (Σ π(z - t) + (t - t')) + what is new. The
        # first chunk has nothing before it; a finite shift makes 0 of it, not NaN.
        shift = (before - after).clamp(min=-1e4)
        relative = logits.sub_(after[:, None])
        self.surprise[tokens] = shift.exp() * (self.surprise[tokens] + shift) + (
            relative.exp() * relative
        ).sum(-1)


# Compute log Σ_v e^z_v: log-softmax takes one pass where logsumexp takes four.
def _log_sum_exp(logits: Tensor) -> Tensor:
    return logits[:, 0] - logits.log_softmax(-1)[:, 0]


def _word_chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    elements = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
    return _chunks(vocabulary, max(elements // max(1, min(tokens, MAX_CHUNK_TOKENS)), 64))


def _chunks(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


# Logits of a chunk in full precision, and the slope of the soft-cap.
def _logits(hidden: Tensor, head: Head, words: slice) -> tuple[Tensor, Tensor | None]:
    weight = head.weight[words]
    precise = torch.promote_types(hidden.dtype, torch.float32)
    if hidden.dtype != precise and hidden.device.type == "cuda":
        # Half-precision tensor cores that add up and write in float32: exact, and no copy of
        # the weight. Under autocast the weight is still in full precision.
        logits = torch.mm(hidden, weight.t().to(hidden.dtype), out_dtype=precise)
    else:
        logits = torch.mm(hidden.to(precise), weight.t().to(precise))
    return _finish(logits, head, words)


# Logits of the targets alone: a row of W a token, without looking for them in the chunks.
def _target_logits(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    precise = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden.to(precise) * head.weight[targets].to(precise)).sum(-1)
    return _finish(logits, head, targets)[0]


# What follows the product: the words' bias, scale and soft-cap, which has a slope.
def _finish(logits: Tensor, head: Head, words: slice | Tensor) -> tuple[Tensor, Tensor | None]:
    if head.bias is not None:
        logits += head.bias[words]
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is None:
        return logits, None
    logits.div_(head.softcap).tanh_()
    slope = 1 - logits.square()
    return logits.mul_(head.softcap), slope
