import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st

from prefstage.core.errors import InputError
from prefstage.judging.base import Comparison, Judgment
from prefstage.measuring import (
    MeasureConfig,
    PromptVotes,
    ScoreSummary,
    Stage,
    call_reliability,
    chance_above_half,
    measure_stage,
)
from prefstage.measuring.reliability import STEPS, shares_behind
from tests.measuring.measuring_worlds import LargerIsBetter, answers


def one_vote_a_prompt(on: int, off: int) -> ScoreSummary:
    """As many prompts of one comparison each: the variance is that of single votes."""
    votes = [PromptVotes(1.0, 1, 0, 0, 0)] * on + [PromptVotes(0.0, 0, 1, 0, 0)] * off
    return ScoreSummary.of(votes)


def by_hand(on: int, off: int, *, reach: float, points: int = 20_000) -> float:
    """P(θ > ½) for θ uniform on ½ ± reach and binomial votes, summed plainly."""
    sides = []
    for side in (1, -1):
        total = 0.0
        for i in range(points):
            theta = 0.5 + side * reach * (i + 0.5) / points
            total += theta**on * (1 - theta) ** off
        sides.append(total)
    return sides[0] / sum(sides)


@pytest.mark.parametrize(("accuracy", "overlap"), [(1.0, 0.0), (0.8, 0.0), (0.6, 0.0), (0.8, 0.5)])
def test_single_votes_have_the_binomial_posterior(accuracy: float, overlap: float) -> None:
    on, off = 230, 200
    found = chance_above_half(
        one_vote_a_prompt(on, off), accuracy=accuracy, overlap=overlap, errors="any-pair"
    )
    reach = (2 * accuracy - 1) * (1 - overlap**2) / 2
    assert float(found) == pytest.approx(by_hand(on, off, reach=reach), abs=2e-3)


def test_close_pairs_are_turned_round_as_the_shares_say() -> None:
    """Qualities are drawn and misread, and the truths behind each seen score are counted."""
    rng = np.random.default_rng(0)
    for accuracy in (0.6, 0.8):
        gaps, misread = rng.standard_normal((2, 400_000))
        behind = np.concatenate([[0.0], shares_behind(accuracy, "close-pairs").cumsum()])
        for shift in (0.1, 0.5, 1.0):
            scale = found_noise(gaps + shift, misread, accuracy)
            seen = float((gaps + shift + scale * misread > 0).mean())
            truth = float((gaps + shift > 0).mean())
            place = STEPS * (seen - 0.5) / (accuracy - 0.5)
            told = float(np.interp(place, np.arange(STEPS + 1), behind))
            assert told == pytest.approx(2 * truth - 1, abs=0.02)
            assert abs(place / STEPS - (2 * truth - 1)) > 0.02  # any pair alike is another line


def found_noise(gaps: np.ndarray, misread: np.ndarray, accuracy: float) -> float:
    """The noise by which so many of the signs are right."""
    low, high = 0.0, 20.0
    for _ in range(20):
        middle = (low + high) / 2
        right = ((gaps + middle * misread > 0) == (gaps > 0)).mean()
        low, high = (middle, high) if right > accuracy else (low, middle)
    return low


@pytest.mark.parametrize("errors", ["unknown", "any-pair", "close-pairs"])
def test_the_shares_are_a_distribution_and_thinnest_near_a_half(errors: str) -> None:
    for accuracy in (0.501, 0.51, 0.55, 0.7, 0.85, 0.99, 1.0):
        shares = shares_behind(accuracy, errors)
        assert len(shares) == STEPS
        assert shares.sum() == pytest.approx(1.0)
        assert (shares > 0).all()
        assert (np.diff(shares) >= -1e-9).all()
    perfect, nearly = shares_behind(1.0, errors), shares_behind(0.9999, errors)
    assert np.abs(nearly - perfect).max() < 2e-3


def test_a_judge_that_errs_in_close_pairs_is_trusted_more_and_unknown_lies_between() -> None:
    seen = one_vote_a_prompt(30, 22)
    known, unknown, close = (
        float(chance_above_half(seen, accuracy=0.7, errors=errors))
        for errors in ("any-pair", "unknown", "close-pairs")
    )
    assert 0.5 < known < unknown < close < 1.0
    perfect = [
        float(chance_above_half(seen, accuracy=1.0, errors=errors))
        for errors in ("any-pair", "unknown", "close-pairs")
    ]
    assert np.ptp(perfect) == pytest.approx(0.0)


@given(
    prompts=st.integers(2, 400),
    accuracy=st.floats(0.51, 1.0),
    overlap=st.floats(0.0, 0.95),
    share=st.floats(0.0, 1.0),
    errors=st.sampled_from(["unknown", "any-pair", "close-pairs"]),
)
def test_the_chance_grows_with_the_score_and_passes_a_half_at_a_half(
    prompts: int, accuracy: float, overlap: float, share: float, errors: str
) -> None:
    means = np.linspace(0.0, 1.0, 21)
    seen = ScoreSummary(prompts, means, share * prompts * means * (1 - means))
    chances = chance_above_half(seen, accuracy=accuracy, overlap=overlap, errors=errors)
    inner = slice(4, 17)  # a few equal scores at the ends say less of their spread
    assert (np.diff(chances[inner]) >= -1e-12).all()
    assert (chances[means >= 0.5] >= 0.5 - 1e-9).all()
    assert (chances[means <= 0.5] <= 0.5 + 1e-9).all()
    assert ((chances >= 0.0) & (chances <= 1.0)).all()


def test_the_sides_are_alike() -> None:
    for accuracy, bias in ((0.7, 0.0), (0.9, 0.1)):
        seen, mirrored = one_vote_a_prompt(30, 20), one_vote_a_prompt(20, 30)
        found, other = (
            float(chance_above_half(each, accuracy=accuracy, bias=bias))
            for each in (seen, mirrored)
        )
        assert found + other == pytest.approx(1.0)
        assert found > 0.5
    assert float(chance_above_half(one_vote_a_prompt(9, 9), accuracy=0.7)) == pytest.approx(0.5)


def test_more_prompts_and_better_judges_tell_more_and_bias_and_overlap_less() -> None:
    few, many = one_vote_a_prompt(12, 8), one_vote_a_prompt(120, 80)
    sure = float(chance_above_half(many, accuracy=0.8))
    assert sure > float(chance_above_half(few, accuracy=0.8)) > 0.5
    by_accuracy = chance_above_half(few, accuracy=[0.55, 0.65, 0.8, 1.0], errors="any-pair")
    assert (np.diff(by_accuracy) > 0).all()
    by_overlap = chance_above_half(few, accuracy=0.8, overlap=[0.0, 0.5, 0.9, 0.99])
    assert (np.diff(by_overlap) < 0).all()
    by_bias = chance_above_half(many, accuracy=0.8, bias=[0.0, 0.05, 0.1, 0.2])
    assert (np.diff(by_bias) < 0).all()


def test_prompts_that_say_the_same_tell_more_than_prompts_that_say_all_or_nothing() -> None:
    even, steep = ScoreSummary(50, 0.6, 50 * 0.02), ScoreSummary(50, 0.6, 50 * 0.24)
    assert chance_above_half(even, accuracy=0.8) > chance_above_half(steep, accuracy=0.8)


def test_extreme_scores_are_finite() -> None:
    seen = ScoreSummary([1, 8, 2000], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    found = chance_above_half(seen, accuracy=1.0)
    assert np.isfinite(found).all()
    assert found[0] > 0.5 > found[1]
    assert found[2] == pytest.approx(1.0)


def test_ties_count_half_whatever_the_rule() -> None:
    votes = [PromptVotes(0.0, 0, 0, 4, 0), PromptVotes(0.5, 1, 1, 0, 2)]  # the first by ties=off
    assert ScoreSummary.of(votes) == ScoreSummary(2, 0.5, 0.0)
    assert call_reliability(votes, "injection", accuracy=0.9) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"accuracy": 0.5}, "judge accuracy 0.5"),
        ({"accuracy": 1.1}, "judge accuracy 1.1"),
        ({"accuracy": math.nan}, "judge accuracy nan"),
        ({"accuracy": 0.9, "bias": 0.2}, "judge bias 0.2 at accuracy 0.9"),
        ({"accuracy": 0.9, "bias": -0.1}, "judge bias -0.1"),
        ({"accuracy": 0.9, "overlap": 1.0}, "overlap 1.0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        chance_above_half(one_vote_a_prompt(3, 2), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"judge_bias": 0.1},
        {"overlap": 0.1},
        {"judge_errors": "any-pair"},
        {"judge_accuracy": 0.9, "judge_bias": 0.2},
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        MeasureConfig(**settings)


class OftenRight(LargerIsBetter):
    """Turns round each verdict with probability 1 - accuracy, the same one each time."""

    def __init__(self, accuracy: float) -> None:
        super().__init__()
        self._accuracy = accuracy

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        return [self._turned(each) for each in comparisons]

    def _turned(self, each: Comparison) -> Judgment:
        right = float(float(each.a) > float(each.b))
        draw = random.Random(f"{each.prompt_id} {each.a} {each.b}").random()
        return Judgment(right if draw < self._accuracy else 1.0 - right)


def test_a_measurement_says_how_reliable_it_is() -> None:
    off, on = answers(200, skill=0.0), answers(200, skill=0.3, seed=1)
    plain, known, cautious = (
        measure_stage(off, judge=OftenRight(0.8), on_policy=on, config=MeasureConfig(**settings))
        for settings in (
            {},
            {"judge_accuracy": 0.8},
            {"judge_accuracy": 0.8, "judge_bias": 0.1, "overlap": 0.5},
        )
    )
    assert plain.reliability is None
    assert plain.as_dict() | {"reliability": known.reliability, "judge_accuracy": 0.8} == (
        known.as_dict()
    )
    assert known.reliability is not None
    assert cautious.reliability is not None
    assert 0.5 < cautious.reliability < known.reliability < 1.0


def test_the_accuracy_may_be_told_later_in_the_same_folder(tmp_path) -> None:
    off, on = answers(60, skill=0.0), answers(60, skill=0.5, seed=1)

    def measured(**settings: float) -> Stage:
        config = MeasureConfig(**settings)
        return measure_stage(
            off, judge=LargerIsBetter(), on_policy=on, config=config, out=tmp_path / "run"
        )

    assert measured().reliability is None
    told = measured(judge_accuracy=0.9)
    assert told.reliability is not None
    assert Stage.load(tmp_path / "run" / "stage.json") == told
