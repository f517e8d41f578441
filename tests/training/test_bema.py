"""BEMA by TRL's own callback: its average of the weights is that of our training's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import preference_trainer, tiny_policy, weights_of

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")


class Steps(TrainerCallback):
    """Keeps the weights of every step."""

    def __init__(self) -> None:
        self.weights: list[Any] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.weights.append(weights_of(model))


def test_trls_callback_averages_our_training(tmp_path: Path) -> None:
    from trl import BEMACallback

    steps, start = Steps(), weights_of(tiny_policy(tiny_tokenizer("chatml")))
    trainer = preference_trainer(tmp_path, callbacks=[steps, BEMACallback(update_freq=2, lag=10)])
    trainer.train()
    average = dict(start)
    for step in (2, 4):
        beta, alpha = (10 + step) ** -0.5, (10 + step) ** -0.2
        now = steps.weights[step - 1]
        average = {n: (1 - beta) * v + beta * now[n] for n, v in average.items()}
    expected = {n: v + alpha * (now[n] - start[n]) for n, v in average.items()}
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "bema").state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)
