"""A training of pairs that `build_pairs` made goes on with the pairs of an equal build."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prefstage.building import build_pairs
from prefstage.core.errors import CheckpointError
from tests.data.dataset_rows import GOOD, write_rows
from tests.training.preference_runs import preference_trainer, weights_of


def built_trainer(folder: Path, source: Path, *, max_steps: int) -> Any:
    pairs = build_pairs({"pairs": str(source), "method": "keep"}).train
    saving = {"save_strategy": "steps", "save_steps": 2}
    return preference_trainer(folder, data=pairs, max_steps=max_steps, **saving)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": f"Why {n}?"} for n in range(12)]
    source = write_rows(tmp_path / "a.jsonl", rows)
    built_trainer(tmp_path / "parts", source, max_steps=2).train()
    parts = built_trainer(tmp_path / "parts", source, max_steps=4)
    parts.train(resume_from_checkpoint=True)
    whole = built_trainer(tmp_path / "whole", source, max_steps=4)
    whole.train()
    left, right = weights_of(whole.model), weights_of(parts.model)
    assert all(torch.equal(left[name], right[name]) for name in left)
    other = write_rows(tmp_path / "b.jsonl", [{**row, "chosen": "No idea."} for row in rows])
    with pytest.raises(CheckpointError, match="of another data set"):
        built_trainer(tmp_path / "parts", other, max_steps=6).train(resume_from_checkpoint=True)
