import pytest
import torch

from prefstage.measuring import ScoreSummary, chance_above_half
from prefstage.sandbox.theory.guide import (
    Judges,
    binned,
    called,
    draw_guide_worlds,
    draw_judges,
    draw_verdicts,
)

WORLDS = 200


def constant(value: float, count: int = WORLDS) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_worlds_have_the_truth_and_the_overlap_that_are_wanted(overlap: float) -> None:
    reach = (1 - overlap**2) / 2
    wanted = torch.linspace(0.5 - 0.95 * reach, 0.5 + 0.95 * reach, WORLDS).double()
    worlds = draw_guide_worlds(constant(overlap), generator=generator(), truth=wanted)
    assert torch.allclose(worlds.on.sum(-1), torch.ones(()).double())
    assert torch.allclose(worlds.off.sum(-1), torch.ones(()).double())
    assert float((worlds.truth - wanted).abs().max()) < 0.02
    common = torch.minimum(worlds.on, worlds.off)[..., :2].sum(-1)
    assert torch.allclose(common, constant(overlap)[:, None])
    assert torch.equal(worlds.on_quality[..., :2], worlds.off_quality[..., :2])


def test_truths_are_uniform_by_default() -> None:
    truth = draw_guide_worlds(constant(0.0, 500), generator=generator()).truth.sort().values
    assert float((truth - torch.linspace(0, 1, 500)).abs().max()) < 0.08


@pytest.mark.parametrize("errors", ["any pair", "close pairs"])
def test_judges_are_as_accurate_as_wanted_and_verdicts_follow_the_truth(errors: str) -> None:
    worlds = draw_guide_worlds(constant(0.5), generator=generator(1))
    judges = draw_judges(worlds, constant(0.8), errors=errors)
    perfect = Judges("any pair", constant(1.0), constant(0.0), constant(0.0))
    by_judge, by_truth = (
        draw_verdicts(worlds, each, prompts=300, generator=generator(2))
        for each in (judges, perfect)
    )
    exact = by_truth[0].mean((-1, -2, -3)) - worlds.truth
    assert abs(float(exact.mean())) < 0.01
    assert float(exact.std()) < 0.04
    same = (by_judge[1][..., :, None] == by_judge[2][..., None, :]) & (by_judge[1] < 2)[..., None]
    assert torch.equal(by_judge[0] == 0.5, same)
    centre = by_judge[0].mean((-1, -2, -3)) - 0.5
    if errors == "any pair":
        line = 0.6 * (worlds.truth - 0.5)
        assert abs(float((centre - line).mean())) < 0.01
        assert float((centre - line).std()) < 0.04


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9])
def test_a_judge_that_errs_in_close_pairs_is_right_as_often_as_wanted(accuracy: float) -> None:
    worlds = draw_guide_worlds(constant(0.3), generator=generator(3))
    judges = draw_judges(worlds, constant(accuracy), errors="close pairs")
    draw = generator(4)
    gap = worlds.on_quality[..., :, None] - worlds.off_quality[..., None, :]
    read = gap + 2**0.5 * judges.noise[:, None, None, None] * torch.randn(
        (*gap.shape,), generator=draw, dtype=torch.float64
    )
    weight = worlds.on[..., :, None] * worlds.off[..., None, :] * (gap != 0)
    right = (weight * ((read > 0) == (gap > 0))).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    assert float(right.mean()) == pytest.approx(accuracy, abs=0.01)


def test_a_biased_judge_moves_the_score_by_its_bias() -> None:
    worlds = draw_guide_worlds(constant(0.0), generator=generator(5))
    judges = draw_judges(worlds, constant(0.8), errors="any pair", bias=constant(0.1))
    seen = draw_verdicts(worlds, judges, prompts=300, generator=generator(6))[0]
    line = 0.5 + 0.6 * (worlds.truth - 0.5) + 0.1
    assert abs(float((seen.mean((-1, -2, -3)) - line).mean())) < 0.01


def test_calls_are_those_of_the_library() -> None:
    verdicts = torch.tensor([[[[1, 1], [0, 1]], [[1, 0], [1, 1]]]], dtype=torch.float64)
    tuning, told = called(verdicts, constant(0.8, 1), overlap=constant(0.0, 1))
    assert tuning.tolist() == [True]
    wanted = chance_above_half(ScoreSummary(2, 0.75, 0.0), accuracy=0.8)
    assert float(told[0]) == pytest.approx(float(wanted))
    assert called(1 - verdicts, constant(0.8, 1), overlap=constant(0.0, 1))[1] == pytest.approx(
        told
    )


def test_bins_count_every_call_once() -> None:
    printed = torch.tensor([0.45, 0.55, 0.6, 0.97, 1.0], dtype=torch.float64)
    right = torch.tensor([False, True, True, True, False])
    bins = binned(printed, right)
    assert [(each.low, each.calls, each.right) for each in bins] == [
        (0.5, 2, 0.5), (0.6, 1, 1.0), (0.95, 1, 1.0), (0.98, 1, 0.0),
    ]  # fmt: skip
    assert bins[0].difference == pytest.approx(0.0)
