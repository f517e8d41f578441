"""Memory for tensors that soon go again."""

import torch

from prefstage.scoring.short_lived import mapped, short_lived


def test_it_is_longer_than_it_need_be_and_looks_as_asked_for() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor = short_lived((3, 5), torch.empty(0, dtype=dtype))
        assert tensor.shape == (3, 5)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() >= tensor.nbytes + 96
    assert short_lived((2, 0), torch.empty(0, device="meta")).shape == (2, 0)


def test_a_map_is_its_formula() -> None:
    rows, weight, bias = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
    torch.testing.assert_close(mapped(rows, weight, None), rows @ weight.t())
    torch.testing.assert_close(mapped(rows, weight, bias), rows @ weight.t() + bias)
