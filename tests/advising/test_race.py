"""The race of pilots: leaders, distances, and who runs on."""

import math

import pytest
import torch

from prefstage.advising import Heat, standing, survivors

PROMPTS = 400


def heat(share: float, gains: dict[str, float], *, seeds: int = 2, seed_noise: float = 0.0) -> Heat:
    """Values with a common noise of prompts, little noise of their own, and noise of seeds."""
    random = torch.Generator().manual_seed(int(1000 * share))
    common = torch.randn(PROMPTS, generator=random)
    values = {}
    for name, gain in gains.items():
        noise = 0.1 * torch.randn(seeds, PROMPTS, generator=random)
        shifts = seed_noise * torch.linspace(-1, 1, seeds)[:, None]
        values[name] = gain + common + noise + shifts
    return Heat(share, values)


def test_noise_that_all_share_cancels() -> None:
    one = heat(0.125, {"off": 0.0, "on": 0.05}, seeds=1)
    # Each mean has an error of 1/20, the difference one of 0.1·√2/20.
    assert one.error(["off", "on"]) == pytest.approx(0.1 * math.sqrt(2 / PROMPTS), rel=0.1)
    distances = standing([one])
    assert list(distances) == ["on", "off"]
    assert distances["on"] == 0
    expected = (one.gain("on") - one.gain("off")) / one.error(["off", "on"])
    assert distances["off"] == pytest.approx(expected)


def test_seeds_that_differ_make_the_error_larger() -> None:
    calm = heat(0.125, {"off": 0.0, "on": 0.05})
    wild = heat(0.125, {"off": 0.0, "on": 0.05}, seed_noise=0.2)
    names = ["off", "on"]
    # Two values at ±0.2 have a variance of 0.08; the mean of two seeds half, a difference twice.
    assert wild.error(names) ** 2 - calm.error(names) ** 2 == pytest.approx(0.08, rel=0.2)
    assert survivors([calm]) == ["on"]
    assert survivors([wild]) == ["on", "off"]


def test_heats_add_up_in_their_own_errors() -> None:
    heats = [heat(0.125, {"off": 0.0, "on": 0.02}), heat(0.25, {"off": 0.0, "on": 0.04})]
    alone = [standing([h])["off"] for h in heats]
    assert standing(heats)["off"] == pytest.approx(sum(alone) / math.sqrt(2))


def test_a_forecast_counts_as_one_heat_more() -> None:
    one = heat(0.25, {"off": 0.0, "on": 0.02, "mix": 0.01})
    error = one.error(["off", "on", "mix"])
    alone = standing([one])
    # Differences from the best of 4 and 2, with errors whose mean square is 1.
    forecast = {"off": (5.0, 0.0), "on": (1.0, math.sqrt(1.5)), "mix": (3.0, math.sqrt(0.5))}
    together = standing([one], forecast)
    gains = {name: one.gain(name) / error + forecast[name][0] for name in alone}
    best = max(gains.values())
    for name, distance in together.items():
        assert distance == pytest.approx((best - gains[name]) / math.sqrt(2))
    assert next(iter(together)) == "off" != next(iter(alone))
    # It ranks, but leaves nobody out as clearly behind: it may be further off than its error.
    strong = heat(0.25, {"off": 0.0, "on": 0.05})
    assert survivors([strong], {"off": (100.0, 0.0), "on": (0.0, 1.0)}) == ["on"]
    same = heat(0.25, {"off": 0.0, "on": 0.0})
    assert survivors([same], {"off": (100.0, 0.0), "on": (0.0, 1.0)}) == ["off", "on"]


def test_with_one_seed_nobody_is_called_behind_and_the_better_half_runs_on() -> None:
    gains = {"a": 0.0, "b": 0.3, "c": 0.2, "d": 0.1, "e": 0.25}
    first = heat(0.125, gains, seeds=1)
    assert survivors([first]) == ["b", "e", "c"]
    second = heat(0.25, {name: gains[name] for name in ("b", "e", "c")}, seeds=1)
    assert survivors([first, second]) == ["b", "e"]
    last = heat(0.5, {"b": 1.0, "e": 0.0}, seeds=1)
    assert survivors([first, second, last]) == ["b", "e"]


def test_equal_pilots_are_equal() -> None:
    values = torch.zeros(2, 5)
    same = Heat(0.25, {"off": values, "on": values})
    assert standing([same]) == {"off": 0, "on": 0}
    assert survivors([same]) == ["off", "on"]


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    """Candidates without any difference, four of them: at most 5 % of races lose one wrongly."""
    random, lost, races = torch.Generator().manual_seed(3), 0, 300
    for _ in range(races):
        common = torch.randn(50, generator=random)
        values = {
            name: common
            + 0.3 * torch.randn(4, 50, generator=random)
            + 0.05 * torch.randn(4, 1, generator=random)
            for name in "ab"
        }
        lost += len(survivors([Heat(0.25, values)])) < 2
    assert lost / races < 0.05 + 3 * math.sqrt(0.05 * 0.95 / races)
