import errno
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefstage.core import TrainingError
from prefstage.scoring.memory import MemoryWatch, is_out_of_memory
from prefstage.training.durable import DurableTrainer
from prefstage.training.faults import (
    bad_losses,
    bad_weights,
    out_of_memory,
    saving_failed,
)
from tests.training.plain_runs import tiny_model

NAN = float("nan")


@pytest.mark.parametrize(
    ("log_probs", "cure"),
    [
        ({"the policy's log-probs": [NAN, 0.0]}, "lower learning_rate (now 0.002)"),
        ({"the policy's log-probs": [0.0], "the reference's log-probs": [NAN]}, "reference cache"),
        ({"the policy's log-probs": [0.0]}, "lengths and scores"),
    ],
)
def test_a_loss_that_is_none_names_step_rows_and_where_it_began(log_probs, cure) -> None:
    known = {what: torch.tensor(values) for what, values in log_probs.items()}
    line = str(
        bad_losses(
            torch.tensor([0.5, NAN, float("inf"), 0.2]),
            [7, 8, 9, 10],
            step=11,
            log_probs=known,
            learning_rate=2e-3,
            last=Path("out/checkpoint-10"),
        )
    )
    for part in ("step 12", "2 of 4 items", "rows 8, 9", cure, "checkpoint-10 is untouched"):
        assert part in line
    assert ("not a number either" in line) == any(NAN in each for each in log_probs.values())


def test_many_bad_rows_are_counted_not_listed() -> None:
    line = str(bad_losses(torch.full((20,), NAN), list(range(20)), step=0, log_probs={}))
    assert re.search(r"rows 0, 1, 2, 3, 4 and 15 more.*begin again", line)


@pytest.mark.parametrize("norm", [NAN, float("inf"), torch.tensor(NAN)])
def test_a_gradient_that_is_no_number(norm, tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(global_step=4), args=SimpleNamespace(output_dir=tmp_path)
    )
    with pytest.raises(TrainingError) as caught:
        DurableTrainer.check_norm(trainer, norm)
    line = str(caught.value)
    assert re.search(r"step 5: the gradient's norm is (nan|inf)", line)


def test_only_trained_weights_are_looked_at() -> None:
    model = tiny_model()
    assert bad_weights(model, step=1) is None
    with torch.no_grad():
        model.lm_head.weight[0, 0] = NAN
    assert "lm_head.weight" in str(bad_weights(model, step=1))
    model.lm_head.weight.requires_grad_(False)
    assert bad_weights(model, step=1) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "lower save_total_limit"),
        (RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos 64"), "make room"),
        (OSError(errno.EACCES, "Permission denied"), "a folder that can be written to"),
    ],
)
def test_what_the_disk_says(tmp_path: Path, error: Exception, said: str) -> None:
    line = str(saving_failed(error, tmp_path, 6, None))
    for part in ("step 6", "checkpoint-6", said, "begin again"):
        assert part in line


# --- Memory ------------------------------------------------------------------------------------


def test_the_budget_comes_from_what_was_measured() -> None:
    watch = MemoryWatch()
    watch.note(1000, held=5_000, peak=105_000)  # 100 bytes a token
    watch.note(500, held=5_000, peak=905_000)  # smaller: not taken
    budget = watch.budget(held=5_000, capacity=65_000, tokens=2_000, reached=65_000)
    assert budget == 0.9 * 60_000 / 100 // 64 * 64 == 512


def test_the_budget_without_a_success_is_below_what_failed() -> None:
    budget = MemoryWatch().budget(held=0, capacity=1000, tokens=1000, reached=1)
    assert budget == 896
    assert MemoryWatch().budget(held=10, capacity=5, tokens=1000, reached=900) == 64


def memory_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


def test_what_torch_really_says_is_recognised() -> None:
    error = memory_error()
    assert is_out_of_memory(error)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    made = out_of_memory(error, step=2, tokens=900, longest=100, budget=448, last=None)
    for part in ("step 3", "900 tokens", "1152921504606846976 bytes", "set token_budget=448"):
        assert part in str(made)
    made = out_of_memory(error, step=2, tokens=900, longest=700, budget=448, last=None)
    assert "the longest item alone has 700 tokens" in str(made)
    assert "gradient_checkpointing" in str(made)
