"""The fused linear log-prob against log-softmax of the whole logits."""

from collections import deque

import pytest
import torch
from torch import Tensor

from prefstage.scoring import linear
from prefstage.scoring.cpu.lean import saving
from prefstage.scoring.linear import Head, linear_log_probs


def whole_logits(hidden: Tensor, head: Head) -> Tensor:
    logits = hidden @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of tokens and of vocabulary, the last ones cut short."""
    monkeypatch.setattr(linear, "MAX_CHUNK_TOKENS", 5)
    monkeypatch.setattr(linear, "CHUNK_ELEMENTS", 1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("kept", [0, 700, 1 << 25])
def test_values_and_gradients_are_exact(
    with_bias: bool, scale: float, softcap: float | None, kept: int
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(150, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(150, dtype=torch.float64, requires_grad=True) if with_bias else None
    targets = torch.randint(150, (13,))

    def log_probs(hidden: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        head = Head(weight, bias[0] if bias else None, scale, softcap)
        with saving(room=kept):
            return linear_log_probs(hidden, targets, head).log_probs

    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    expected = whole_logits(hidden, Head(weight, bias, scale, softcap)).log_softmax(-1)
    torch.testing.assert_close(
        log_probs(*inputs), expected.gather(-1, targets[:, None])[:, 0], rtol=1e-12, atol=1e-12
    )
    assert torch.autograd.gradcheck(log_probs, inputs, fast_mode=True)


def test_logits_are_kept_for_a_backward_pass_alone_and_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, compute = [], linear._logits
    monkeypatch.setattr(linear, "_logits", lambda *a: calls.append(a) or compute(*a))
    hidden, weight = torch.randn(13, 6), torch.randn(150, 6, requires_grad=True)
    targets = torch.randint(150, (13,))
    done = []
    for kept in (1 << 25, 13 * 150 - 300, 0):
        calls.clear()
        with saving(room=kept):
            log_probs = linear_log_probs(hidden, targets, Head(weight)).log_probs
        first = len(calls)
        log_probs.sum().backward()
        done.append(len(calls) / first)
    assert done[0] == 1 < done[1] < done[2] == 2
    kept_at_all = list[int]()

    class Noted(deque[Tensor]):
        def append(self, logits: Tensor) -> None:
            kept_at_all.append(logits.numel())

    monkeypatch.setattr(linear, "deque", Noted)
    with torch.no_grad():
        linear_log_probs(hidden, targets, Head(weight))
    assert kept_at_all == []
    linear_log_probs(hidden, targets, Head(weight))
    assert sum(kept_at_all) == 13 * 150


def test_room_for_logits_counts_in_place_of_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[int]()  # logits of each pass

    class Noted(deque[Tensor]):
        def append(self, logits: Tensor) -> None:
            kept[-1] += logits.numel()
            super().append(logits)

    monkeypatch.setattr(linear, "CHUNK_ELEMENTS", 1)  # 64 words a chunk
    monkeypatch.setattr(linear, "MAX_CHUNK_TOKENS", 5)
    monkeypatch.setattr(linear, "deque", Noted)
    hidden, weight = torch.randn(13, 6, requires_grad=True), torch.randn(150, 6)
    targets = torch.randint(150, (13,))

    def gradient() -> Tensor:
        kept.append(0)
        log_probs = linear_log_probs(hidden, targets, Head(weight)).log_probs
        return torch.autograd.grad(log_probs.sum(), hidden)[0]

    with saving(room=700):
        usual = gradient()
        with saving(room=0), saving(room=13 * 150):
            more = gradient()
        with saving(room=0):
            none = gradient()
        gradient()
    assert 0 < kept[0] <= 700 < kept[1] == 13 * 150
    assert (kept[2], kept[3]) == (0, kept[0])
    assert torch.equal(usual, more)
    assert torch.equal(usual, none)


def test_frozen_weight_gets_no_gradient_and_hidden_does() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(70, 4)
    linear_log_probs(hidden, torch.tensor([1, 2, 69]), Head(weight)).log_probs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_statistics_equal_their_definitions() -> None:
    torch.manual_seed(0)
    hidden, weight = 3 * torch.randn(7, 5), torch.randn(200, 5)
    scored = linear_log_probs(
        hidden, torch.arange(7), Head(weight), statistics=("log_sum_squares", "entropy")
    )
    log_probs = whole_logits(hidden, Head(weight)).log_softmax(-1)
    torch.testing.assert_close(scored.entropy, -(log_probs.exp() * log_probs).sum(-1))
    torch.testing.assert_close(scored.log_sum_squares, (2 * log_probs).logsumexp(-1))


def test_statistics_are_absent_unless_asked_for() -> None:
    scored = linear_log_probs(torch.randn(2, 3), torch.tensor([0, 1]), Head(torch.randn(9, 3)))
    assert scored.entropy is None
    assert scored.log_sum_squares is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 64).to(dtype), torch.randn(300, 64).to(dtype)
    targets = torch.randint(300, (6,))
    found = linear_log_probs(hidden, targets, Head(weight)).log_probs
    exact = whole_logits(hidden.double(), Head(weight.double())).log_softmax(-1)
    assert found.dtype == torch.float32
    expected = exact.gather(-1, targets[:, None])[:, 0].float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_large_logits_neither_overflow_nor_lose_the_target() -> None:
    hidden = torch.tensor([[1e4], [-1e4]])
    scored = linear_log_probs(
        hidden,
        torch.tensor([2, 2]),
        Head(torch.tensor([[0.0], [1.0], [2.0]])),
        statistics=("entropy", "log_sum_squares"),
    )
    torch.testing.assert_close(scored.log_probs, torch.tensor([0.0, -2e4]))
    torch.testing.assert_close(scored.entropy, torch.zeros(2))
    torch.testing.assert_close(scored.log_sum_squares, torch.zeros(2))


def test_autocast_leaves_values_and_gradients_in_full_precision() -> None:
    torch.manual_seed(0)
    weight, targets = torch.randn(300, 64, requires_grad=True), torch.randint(300, (6,))
    hidden = torch.randn(6, 64).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_log_probs(hidden, targets, Head(weight)).log_probs
    exact = whole_logits(hidden.double(), Head(weight.double())).log_softmax(-1)
    expected = exact.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-4)
    ours, theirs = (torch.autograd.grad(each.sum(), weight)[0] for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
