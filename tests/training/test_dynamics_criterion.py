"""The loss that pairs are followed by: an IPO training has IPO's loss and threshold."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from prefstage.core.errors import InputError, PrefstageError
from prefstage.data import load_prompts
from prefstage.training import (
    DynamicsCallback,
    PreferenceArguments,
    PreferenceTrainer,
    WinRateSettings,
    read_dynamics,
    read_metrics,
)
from prefstage.training.dynamics import criterion as module
from prefstage.training.dynamics.callback import _criterion
from prefstage.training.dynamics.criterion import Criterion
from tests.training.dynamics_runs import pairs, tokenizer, weak_policy

TAU = 0.05


class StopsAt(TrainerCallback):  # type: ignore[misc] # transformers is not typed here
    """Interrupts a training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trained(out: Path, loss: Any, *, stop: int | None = None, **more: Any) -> Path:
    trainer = PreferenceTrainer(
        weak_policy(),
        PreferenceArguments(
            output_dir=str(out / "run"),
            loss=loss,
            per_device_train_batch_size=8,
            max_steps=6,
            learning_rate=5e-3,
            eval_strategy="steps",
            eval_steps=3,
            save_steps=3,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=pairs(),
        eval_dataset=pairs(10, split="test"),
        processing_class=tokenizer(),
        callbacks=[
            DynamicsCallback(out / "dynamics", displacement_nats=1e9, **more),
            *([] if stop is None else [StopsAt(stop)]),
        ],
    )
    with nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint="auto")
    return out / "dynamics"


@pytest.mark.parametrize("per_token", [True, False])
def test_an_ipo_training_is_followed_by_ipo(tmp_path: Path, *, per_token: bool) -> None:
    folder = trained(tmp_path, {"name": "ipo", "tau": TAU, "per_token": per_token})
    about = json.loads((folder / "about.json").read_text())
    assert (about["beta"], about["loss"]) == (TAU, {"name": "IPO", "per_token": per_token})
    rows, goal, guaranteed = read_dynamics(folder).to_pylist(), 1 / (2 * TAU), 0
    for row in rows:
        lengths = (row["chosen_tokens"], row["rejected_tokens"]) if per_token else (1, 1)
        policy, reference = (
            row[f"{who}chosen_log_prob"] / lengths[0] - row[f"{who}rejected_log_prob"] / lengths[1]
            for who in ("", "reference_")
        )
        assert row["loss"] == pytest.approx((policy - reference - goal) ** 2)
        if -reference > goal:
            assert math.isnan(row["threshold"])
        else:
            assert row["threshold"] == pytest.approx((goal + reference) ** 2)
            if row["loss"] < row["threshold"] * (1 - 1e-9):
                assert policy >= 0
                guaranteed += 1
    assert guaranteed or not per_token
    last = read_metrics(folder)[-1]
    losses = [row["loss"] for row in rows if (row["set"], row["step"]) == ("train", last["step"])]
    assert last["dynamics/loss"] == pytest.approx(sum(losses) / len(losses))
    assert "dynamics/rankings/at_threshold" not in last  # that of another loss
    state = json.loads((tmp_path / "run/checkpoint-6/trainer_state.json").read_text())
    evaluated = next(
        line["eval_loss"] for line in state["log_history"][::-1] if "eval_loss" in line
    )
    assert last["eval_dynamics/loss"] == pytest.approx(evaluated, rel=1e-4)


def test_other_losses_are_followed_by_dpos(tmp_path: Path) -> None:
    about = json.loads((trained(tmp_path, "sigmoid + 0.1*sft") / "about.json").read_text())
    assert about["beta"] == 0.1
    assert "loss" not in about  # as folders had it before, so that those trainings go on


def test_trls_ipo_is_known() -> None:
    def of(**args: Any) -> Criterion:
        return _criterion(SimpleNamespace(args=SimpleNamespace(**args)), None)

    assert of(beta=TAU, loss_type="ipo") == Criterion(TAU, "IPO", per_token=True)
    assert of(beta=TAU, loss_type=["ipo"]) == Criterion(TAU, "IPO", per_token=True)
    assert of(beta=0.3, loss_type=["sigmoid", "ipo"]) == Criterion(0.3)
    assert of() == Criterion(0.1)


def test_the_curve_ends_where_no_loss_guarantees_the_order() -> None:
    curve = Criterion(0.1, "IPO").curve(torch.tensor([-1.0, 0.0, 5.0, 5.1]).double().numpy())
    assert curve[:3].tolist() == [36.0, 25.0, 0.0]
    assert math.isnan(curve[3])


@pytest.mark.parametrize("name", ["DPO", "IPO"])
def test_a_pair_on_the_wrong_side_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, lengths = torch.ones(1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.long)
    sides = (one * 4, one * 0), (one * 0, one * 0)
    Criterion(0.1, name).measure(*sides, lengths)
    monkeypatch.setattr(module, "ranking_accuracy", lambda *_: torch.zeros(1))
    with pytest.raises(PrefstageError, match="wrong side"):
        Criterion(0.1, name).measure(*sides, lengths)


# --- The win rate over the start ---------------------------------------------------------------


ASKED: list[tuple[str, str]] = []


def prefers_longer(a: str, b: str, prompt: Any) -> float:
    ASKED.append((prompt[-1]["content"], a))
    return 0.5 if len(a) == len(b) else float(len(a) > len(b))


JUDGE = f"python:{__name__}:prefers_longer"


def win_rate(**more: Any) -> dict[str, Any]:
    sampling = {"responses": 1, "max_new_tokens": 12, "temperature": 1.0}
    settings = WinRateSettings(judge=JUDGE, sampling=sampling, max_prompts=8, **more)
    return {"win_rate": settings, "win_rate_prompts": load_prompts(pairs(20, split="test"))}


def test_answers_are_judged_against_the_starts(tmp_path: Path) -> None:
    ASKED.clear()
    plain = read_metrics(trained(tmp_path / "plain", "sigmoid"))
    metrics = read_metrics(trained(tmp_path / "judged", "sigmoid", **win_rate()))
    assert "dynamics/win_rate" not in metrics[0]  # the start is the baseline
    for entry, other in zip(metrics[1:], plain[1:], strict=True):
        assert 0 <= entry["dynamics/win_rate"] <= 1
        assert entry["dynamics/win_rate_undecided"] == 0
        # Sampling leaves the training as it is.
        assert entry["dynamics/loss"] == other["dynamics/loss"]
        assert entry["dynamics/weight_distance"] == other["dynamics/weight_distance"]
    assert 1 <= len({prompt for prompt, _ in ASKED}) <= 8
    assert metrics[-1]["dynamics/weight_distance"] > 0


def test_a_training_that_goes_on_has_the_starts_answers(tmp_path: Path) -> None:
    whole = read_metrics(trained(tmp_path / "whole", "sigmoid", **win_rate()))
    trained(tmp_path / "parts", "sigmoid", stop=4, **win_rate())
    asked = len(ASKED)
    parts = read_metrics(trained(tmp_path / "parts", "sigmoid", **win_rate()))
    rates = [[entry.get("dynamics/win_rate") for entry in metrics] for metrics in (whole, parts)]
    assert rates[0] == rates[1]
    assert len(ASKED) > asked


def test_a_win_rate_needs_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="win_rate_prompts"):
        DynamicsCallback(tmp_path, win_rate=WinRateSettings(judge=JUDGE))
