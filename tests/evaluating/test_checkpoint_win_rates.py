"""Ranking accuracy beside win rate, over the checkpoints of a run."""

from pathlib import Path

import pytest

from prefstage.core.errors import InputError
from prefstage.evaluating import WinRate, WinRateConfig, rankings_against_win_rates, win_rate
from prefstage.evaluating.comparing import step_of
from tests.evaluating.judges import WordJudge, answers


def rate(wins: int) -> WinRate:
    texts = ["good" if k < wins else "bad" for k in range(20)]
    config = WinRateConfig(length_controlled=False, resamples=50)
    return win_rate(
        answers("m", texts), answers("b", ["fine"] * 20), judge=WordJudge(), config=config
    )


@pytest.fixture
def dynamics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    figures = {
        step: {"eval_dynamics/rankings/accuracy": accuracy, "dynamics/weight_distance": step / 5}
        for step, accuracy in ((0, 0.5), (10, 0.6), (20, 0.7))
    }
    recorded = [{"step": step, **each} for step, each in figures.items()]
    monkeypatch.setattr("prefstage.training.read_metrics", lambda folder: recorded)
    return tmp_path


def test_recorded_steps_stand_beside_their_win_rates(dynamics: Path) -> None:
    rates = {20: rate(18), 0: rate(8), 10: rate(12)}
    found = rankings_against_win_rates(dynamics, rates)
    assert [each.step for each in found.checkpoints] == [0, 10, 20]
    assert [each.ranking_accuracy for each in found.checkpoints] == [0.5, 0.6, 0.7]
    assert [each.weight_distance for each in found.checkpoints] == [0, 2, 4]
    assert found.checkpoints[2].win_rate == rates[20].rates.win_rate
    assert found.correlation == pytest.approx(0.993, abs=1e-3)
    assert rankings_against_win_rates(dynamics, {0: rates[0]}).correlation is None


def test_steps_and_pairs_that_were_not_recorded_are_named(dynamics: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint 7.*0, 10, 20"):
        rankings_against_win_rates(dynamics, {7: rate(3)})
    with pytest.raises(InputError, match="none for pairs 'train'"):
        rankings_against_win_rates(dynamics, {10: rate(3)}, pairs="train")
    assert step_of("run/checkpoints/checkpoint-120") == 120
    with pytest.raises(InputError, match="checkpoint-STEP"):
        step_of("final")
