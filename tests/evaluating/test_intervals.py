"""Intervals: with few wins, lengths on one side, and judging that stops when it is decided."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.special import expit as sigmoid
from scipy.stats import t

from prefstage import win_rate
from prefstage.evaluating import WinRateConfig, compare_win_rates, length_controlled_interval
from prefstage.evaluating.win_rates import confidence_at_stop
from prefstage.judging import Judge, Judgment
from prefstage.measuring.length_controlled import length_problem
from prefstage.measuring.length_interval import profile_interval
from prefstage.measuring.rates import fit_l1_logistic, standardised_length
from tests.evaluating.judges import WordJudge, answers


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    b = rng.integers(200, 2000, n).astype(float)
    a = np.round(b * rng.uniform(0.4, 1.6, n))
    share = sigmoid(-0.7 * standardised_length(a, b) + 0.4)
    return rng.beta(share, 1 - share), a, b


@pytest.mark.parametrize("n", [25, 120])
def test_the_profile_interval_is_where_a_general_optimiser_finds_it(n: int) -> None:
    y, a, b = rows(n, seed=n)
    problem = length_problem(y, a, b, regularise=False)
    y = problem.labels  # in its own order of the rows
    w = fit_l1_logistic(problem.features, y, np.ones((n, 1)), c=1e6)[0]
    found = profile_interval(problem, w, confidence=0.9)

    def deviance(term: float) -> float:
        def loss(v: np.ndarray) -> float:
            z = v[0] * problem.features[:, 0] + term
            return float((np.logaddexp(0, z) - y * z).sum())

        return 2 * float(minimize(loss, w[:1], method="BFGS", options={"gtol": 1e-9}).fun)

    p = sigmoid(problem.features @ w)
    m = y.mean()
    phi = (((y - p) ** 2).sum() + m**2 + (1 - m) ** 2) / ((p * (1 - p)).sum() + 2 * m * (1 - m))
    limit = deviance(w[1]) + phi * t.ppf(0.95, n - 2) ** 2
    ends = [brentq(lambda c: deviance(c) - limit, w[1], w[1] + far) for far in (-8, 8)]
    assert found == pytest.approx([float(sigmoid(np.array(end))) for end in ends], abs=2e-3)


def test_where_nothing_tells_the_interval_is_everything() -> None:
    """Answers that are all shorter, all lost: equal lengths may be anything."""
    b = np.linspace(500, 900, 40)
    low, high = length_controlled_interval(
        np.full(40, 0.001), b * 0.3, b, regularise=False, resamples=50
    )
    assert low < 1
    assert high > 99


def test_few_wins_on_one_side_of_the_lengths_are_covered() -> None:
    """30 prompts with a mean of 3 % at lengths from which the rate is extrapolated."""
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(60):
        b = np.exp(rng.normal(7.0, 0.5, 30))
        a = b * np.exp(rng.normal(-1.5, 0.5, 30))
        p = sigmoid(-2.2 * standardised_length(a, b) - 1.6)
        y = rng.beta(0.5 * p, 0.5 * (1 - p))
        low, high = length_controlled_interval(y, a, b, regularise=False, resamples=60, seed=trial)
        held += low <= 100 * float(sigmoid(np.array(-1.6))) <= high
    assert held >= 55  # of an interval that held in 95 % of draws, 92 % of such draws would pass


class Drawn(Judge):
    name = fingerprint = "drawn"

    def __init__(self, verdicts):
        self.verdicts = verdicts

    def compare(self, comparisons):
        return [Judgment(self.verdicts[each.prompt_id]) for each in comparisons]


def test_intervals_hold_where_judging_stopped() -> None:
    """Even verdicts: looking again and again, the plain interval misses ½ in a tenth of runs."""
    ours, theirs = answers("m", ["a"] * 200), answers("b", ["b"] * 200)
    config = WinRateConfig(stop_early=True, length_controlled=False, resamples=60)
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(80):
        verdicts = dict(zip(ours.by_prompt, (rng.random(200) < 0.5).astype(float), strict=True))
        low, high = win_rate(ours, theirs, judge=Drawn(verdicts), config=config).rates.interval
        held += low <= 50 <= high
    assert held >= 76


def test_the_price_of_looking_is_said_and_paid() -> None:
    assert confidence_at_stop(0.95, 1, early=False) == 0.95
    assert confidence_at_stop(0.95, 9, early=False) == pytest.approx(0.975)
    misses = 1 - confidence_at_stop(0.95, 9, early=True)
    assert 8 * misses + 0.025 == pytest.approx(0.05)
    texts = ["good" if k % 5 else "bad" for k in range(120)]
    config = {"length_controlled": False, "resamples": 400}
    sides = answers("m", texts), answers("b", ["fair"] * 120)
    found = {
        stop: win_rate(*sides, judge=WordJudge(), config=WinRateConfig(stop_early=stop, **config))
        for stop in (False, True)
    }
    assert (found[False].looks, found[True].stopped) == (1, "decided")
    assert found[True].looks > 3
    assert any("wider, and hold there" in note for note in found[True].notes)
    assert not any("wider" in note for note in found[False].notes)
    assert found[True].rates.confidence == 0.95
    low, high = found[True].rates.interval
    assert high - low > 1.3 * (found[False].rates.interval[1] - found[False].rates.interval[0])


def test_differences_of_models_that_stopped_allow_for_the_looks() -> None:
    base = answers("b", ["good"] * 120)
    texts = {name: ["good good" if k % m else "bad" for k in range(120)] for name, m in MODELS}
    lines = {}
    for stop in (False, True):
        config = WinRateConfig(stop_early=stop, length_controlled=False, resamples=50)
        results = {
            name: win_rate(answers(name, each), base, judge=WordJudge(), config=config)
            for name, each in texts.items()
        }
        (lines[stop],) = compare_win_rates(results, resamples=500)
    assert lines[True].p_value > lines[False].p_value
    widths = [each.interval[1] - each.interval[0] for each in lines.values()]
    assert widths[1] > 1.2 * widths[0]


MODELS = (("one", 5), ("other", 4))
