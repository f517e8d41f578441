"""Ranking accuracy beside win rate, over the checkpoints of a run."""

import json
from pathlib import Path

import pytest

from prefstage.core.errors import InputError
from prefstage.evaluating import (
    EvaluateConfig,
    WinRate,
    WinRateConfig,
    evaluate,
    rankings_against_win_rates,
    win_rate,
)
from prefstage.evaluating.comparing import step_of
from prefstage.training import DynamicsCallback, read_metrics
from tests.evaluating.judges import WordJudge, answers
from tests.training.dynamics_runs import PlainDPO, arguments, encoder, pairs, trees, weak_policy


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


def test_rankings_of_a_named_set_and_their_figure_are_among_the_results(tmp_path: Path) -> None:
    trainer = PlainDPO(weak_policy(), arguments(tmp_path, learning_rate=1e-2), trees(pairs()))
    DynamicsCallback(
        tmp_path / "dynamics",
        train_pairs=pairs(),
        eval_pairs={"helpful": pairs(10, split="test")},
        encoder=encoder(),
        displacement_nats=1e9,
    ).attach(trainer)
    trainer.train()
    steps = [int(entry["step"]) for entry in read_metrics(tmp_path / "dynamics")]
    models = [
        answers(f"run/checkpoint-{step}", ["good" if k < step else "bad" for k in range(20)])
        for step in steps
    ]
    done = evaluate(
        answers=models,
        baseline=answers("b", ["fine"] * 20),
        judge=WordJudge(),
        out=tmp_path / "results",
        config=EvaluateConfig(dynamics=tmp_path / "dynamics"),
    )
    kept = json.loads((tmp_path / "results" / "results.json").read_text())["rankings"]
    assert kept == json.loads(json.dumps(done.result["rankings"]))
    assert kept["pairs"] == "eval_helpful"
    assert [line["step"] for line in kept["checkpoints"]] == steps
    drawn = tmp_path / "results" / "figures" / "distance-eval_helpful.svg"
    assert drawn in done.written
