"""Memory for tensors that soon go again."""

import torch

from prefstage.scoring.cpu.lean import saving, short_lived


def test_it_is_longer_than_it_need_be_and_looks_as_asked_for() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor = short_lived((3, 5), torch.empty(0, dtype=dtype))
        assert tensor.shape == (3, 5)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() >= tensor.nbytes + 96
    assert short_lived((2, 0), torch.empty(0, device="meta")).shape == (2, 0)


def test_a_pool_gives_out_again_what_nobody_holds() -> None:
    like = torch.empty(0)
    with saving(buffers={}):
        first = short_lived((4, 3), like)
        place = first.data_ptr()
        other = short_lived((4, 3), like)
        assert other.data_ptr() != place
        del first
        again = short_lived((3, 4), like)
        assert again.data_ptr() == place
        assert again.shape == (3, 4)
        assert short_lived((4, 3), torch.empty(0, dtype=torch.float64)).data_ptr() != place
        assert short_lived((5, 3), like).data_ptr() != place


def test_a_pool_remembers_the_last_eight_of_a_size() -> None:
    like = torch.empty(0)
    with saving(buffers={}):
        held = [short_lived((4, 3), like) for _ in range(10)]
        places = [each.data_ptr() for each in held]
        del held[2:]
        again = [short_lived((4, 3), like) for _ in range(8)]
    assert [each.data_ptr() for each in again] == places[2:]


def test_a_pool_leaves_alone_what_is_held_in_any_form() -> None:
    like = torch.empty(0)
    with saving(buffers={}):
        row, array = short_lived((4, 3), like)[1], short_lived((4, 3), like).numpy()
        weight = torch.ones(3, requires_grad=True)
        kept = (short_lived((4, 3), like).fill_(2.0) * weight).sum()  # by the graph alone
        row[:], array[:] = 5.0, 7.0
        taken = [short_lived((4, 3), like).zero_() for _ in range(20)]
        assert len({each.data_ptr() for each in taken}) == 20
    kept.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [8.0] * 3
    assert row.tolist() == [5.0] * 3
    assert (array == 7).all()


def test_a_pool_ends_with_its_block() -> None:
    with saving(buffers={}):
        inside = short_lived((4, 3), torch.empty(0))
        place = inside.data_ptr()
        storage = inside.untyped_storage()
    del inside
    assert short_lived((4, 3), torch.empty(0)).data_ptr() != place
    assert storage.data_ptr() == place
