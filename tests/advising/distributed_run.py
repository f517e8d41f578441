"""One process of a forecast over several: run by torchrun."""

import json
import sys
from pathlib import Path

import torch

from prefstage.advising.forecast import forecast_gains
from tests.advising.test_forecast import judged
from tests.training.preference_runs import preference_trainer, tiny_pairs

LOSSES = ("sigmoid", "bco", "sampo")
PAIRS, PROMPTS, BATCH = 17, 11, 6


def figures_of(folder: str | Path, *, a_process: int) -> dict[str, list[float]]:
    """Forecasts by every loss; neither pairs nor prompts divide by the processes."""
    figures = dict[str, list[float]]()
    for loss in LOSSES:
        trainer = preference_trainer(
            Path(folder) / loss, loss=loss, per_device_train_batch_size=a_process, token_budget=60
        )
        made = forecast_gains(trainer, judged(PROMPTS), {"ours": tiny_pairs(PAIRS)})
        ours = made.by_name["ours"]
        numbers = [made.agreement, ours.gain.value, ours.gain.error]
        figures[loss] = [*numbers, ours.cosine.value, ours.cosine.error]
    return figures


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = figures_of(sys.argv[1], a_process=BATCH // 2)
    rank = torch.distributed.get_rank()
    Path(sys.argv[1], f"figures-{rank}.json").write_text(json.dumps(made), encoding="utf-8")
