import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from prefstage.core.errors import CheckpointError, TrainingError
from prefstage.training.checkpoints import STAGING, checkpoints_in, newest_whole, verify_checkpoint
from tests.training.plain_runs import Rows, plain_trainer, tiny_model
from tests.training.run_results import log_of, results_of

REPOSITORY = Path(__file__).resolve().parents[2]


def names_in(folder: Path) -> list[str]:
    return [each.name for each in checkpoints_in(folder)]


def keep_up_to(folder: Path, step: int) -> None:
    for each in checkpoints_in(folder):
        if int(each.name.split("-")[1]) > step:
            shutil.rmtree(each)


SCHEDULES = {
    "logs between saves": {"save_steps": 2, "logging_steps": 3},
    "evaluation at the epoch's end": {"save_steps": 3, "eval_strategy": "epoch"},
    "all at the epoch's end": {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
    },
    "best kept": {
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    },
    "ends inside an epoch": {"max_steps": 10, "save_steps": 5, "eval_strategy": "epoch"},
    "accumulating": {"gradient_accumulation_steps": 2, "save_steps": 2},
}


@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, settings: dict
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer = plain_trainer(whole, **settings)
    output = trainer.train()
    trainer.save_state()
    expected = results_of(whole)
    assert len(expected["optimizer.pt"]["state"]) > 0
    for checkpoint in checkpoints_in(whole)[::-2]:
        shutil.rmtree(resumed, ignore_errors=True)
        shutil.copytree(whole, resumed)
        keep_up_to(resumed, int(checkpoint.name.split("-")[1]))
        torch.manual_seed(99)
        again = plain_trainer(resumed, **settings)
        repeated = again.train(resume_from_checkpoint=True)
        again.save_state()
        assert results_of(resumed) == expected, checkpoint.name
        assert repeated.training_loss == output.training_loss
        for ours, theirs in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_early_stopping_counts_on(tmp_path: Path) -> None:
    """The patience used up before a kill is not given again, and a stopped run stays stopped."""
    settings = {
        "num_train_epochs": 6,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "learning_rate": 0.1,
    }
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    patience = [EarlyStoppingCallback(early_stopping_patience=3)]
    trainer = plain_trainer(whole, callbacks=patience, **settings)
    trainer.train()
    trainer.save_state()
    last = trainer.state.global_step
    assert last < trainer.state.max_steps
    for step in (last - 2, last):
        shutil.rmtree(resumed, ignore_errors=True)
        shutil.copytree(whole, resumed)
        keep_up_to(resumed, step)
        anew = [EarlyStoppingCallback(early_stopping_patience=3)]
        again = plain_trainer(resumed, callbacks=anew, **settings)
        again.train(resume_from_checkpoint=True)
        again.save_state()
        assert results_of(resumed) == results_of(whole)


# --- Where to go on ----------------------------------------------------------------------------


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .*leave resume_from"):
        plain_trainer(tmp_path).train(resume_from_checkpoint=True)
    assert plain_trainer(tmp_path, max_steps=1).train("auto").global_step == 1


def test_a_half_written_checkpoint_is_no_reason_to_stop(tmp_path: Path, caplog) -> None:
    plain_trainer(tmp_path).train()
    keep_up_to(tmp_path, 4)
    half = tmp_path / STAGING / "checkpoint-6"
    shutil.copytree(tmp_path / "checkpoint-4", half)
    (half / "optimizer.pt").write_bytes(b"half")
    trainer = plain_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 12
    assert "half-written" in caplog.text
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e-3}, ["another configuration", "learning_rate was 0.01", "0.001"]),
        ({"seed": 7}, ["seed was 42 and is now 7", "set seed back to 42"]),
        ({"gradient_accumulation_steps": 2}, ["items_per_step was 4 and is now 8"]),
        ({"num_train_epochs": 5}, ["num_train_epochs was 2 and is now 5"]),
        (
            {"model": tiny_model(hidden_size=32)},
            ["another model", "model.hidden_size was 16", "32"],
        ),
        ({"model": tiny_model(dropout=0.0)}, ["another model", "attention_dropout was 0.1"]),
        ({"model": tiny_model().double()}, ["another model", "torch.float32", "torch.float64"]),
    ],
)
def test_a_checkpoint_of_another_run(tmp_path: Path, change: dict, said: list[str]) -> None:
    plain_trainer(tmp_path, max_steps=2 if "num" in str(change) else -1).train()
    if "num_train_epochs" in change:
        shutil.rmtree(tmp_path)
        plain_trainer(tmp_path).train()
    with pytest.raises(CheckpointError) as caught:
        plain_trainer(tmp_path, **change).train(resume_from_checkpoint=True)
    for part in [*said, "checkpoint-12", "begin a new run"]:
        assert part in str(caught.value)


def test_what_does_not_steer_the_weights_may_change(tmp_path: Path) -> None:
    constant = {"lr_scheduler_type": "constant"}
    plain_trainer(tmp_path, num_train_epochs=1, **constant).train()
    changed = {"logging_steps": 1, "save_steps": 3, "num_train_epochs": 2}
    trainer = plain_trainer(tmp_path, **constant, **changed)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 12
    assert {"checkpoint-9", "checkpoint-12"} <= set(names_in(tmp_path))


def test_another_adapter_and_none(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted(rank: int):
        return peft.get_peft_model(tiny_model(), peft.LoraConfig(r=rank, task_type="CAUSAL_LM"))

    plain_trainer(tmp_path, model=adapted(2), max_steps=2).train()
    for model, said in [
        (adapted(4), "adapter.default.r was 2 and is now 4"),
        (None, "adapter was 'default' and is now none"),
    ]:
        with pytest.raises(CheckpointError, match="another adapter") as caught:
            plain_trainer(tmp_path, model=model, max_steps=2).train(resume_from_checkpoint=True)
        assert said in str(caught.value)


def test_a_checkpoint_without_the_optimiser(tmp_path: Path) -> None:
    plain_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="holds the model alone"):
        plain_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_a_corrupt_one_is_refused_and_the_one_before_it_named(tmp_path: Path) -> None:
    plain_trainer(tmp_path, max_steps=4).train()
    file = tmp_path / "checkpoint-4" / "optimizer.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"optimizer\.pt has changed.*checkpoint-2"):
        plain_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)
    before = tmp_path / "checkpoint-2"
    trainer = plain_trainer(tmp_path, max_steps=4)
    trainer.train(resume_from_checkpoint=str(before))
    verify_checkpoint(tmp_path / "checkpoint-4")


# --- What is saved, and what stays -------------------------------------------------------------


def test_the_limit_spares_the_best_and_the_last_to_the_end(tmp_path: Path) -> None:
    trainer = plain_trainer(
        tmp_path,
        data=Rows(4),
        num_train_epochs=8,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=0.2,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert sorted(names_in(tmp_path)) == sorted({Path(best).name, "checkpoint-8"})
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best
    assert Path(best).parent == tmp_path
    for each in checkpoints_in(tmp_path):
        verify_checkpoint(each)


def test_the_best_one_is_found_again_when_the_folder_has_moved(tmp_path: Path) -> None:
    settings = {
        "num_train_epochs": 4,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "learning_rate": 0.1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    trainer = plain_trainer(tmp_path / "first", **settings)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint).name
    (tmp_path / "first").rename(tmp_path / "moved")
    again = plain_trainer(tmp_path / "moved", **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / best)


class Spoil(TrainerCallback):
    """Makes one weight NaN before a step's checkpoint."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            with torch.no_grad():
                model.lm_head.weight[3, 2] = float("nan")


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path, callbacks=[Spoil()], save_total_limit=1)
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    line = str(caught.value)
    assert "step 4: 1 of 1,024 weights of lm_head.weight are NaN" in line
    assert "checkpoint-2 is untouched" in line
    assert names_in(tmp_path) == ["checkpoint-2"]
    verify_checkpoint(tmp_path / "checkpoint-2")


def test_a_full_disk_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = plain_trainer(tmp_path, save_total_limit=1)
    real = torch.save

    def save(what, file, *args, **kwargs):
        if "checkpoint-4" in str(file) and "optimizer" in str(file):
            Path(file).write_bytes(b"the part that had room")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(what, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    line = str(caught.value)
    for part in ("step 4", "No space left on device", "MB are free", "checkpoint-2 is untouched"):
        assert part in line
    assert names_in(tmp_path) == ["checkpoint-2"]
    assert not (tmp_path / STAGING).exists()
    monkeypatch.undo()
    again = plain_trainer(tmp_path, save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 12


LIMITED = """
import resource, signal, sys
from pathlib import Path
from prefstage.core.errors import TrainingError
from tests.training.plain_runs import plain_trainer, tiny_model
folder = Path(sys.argv[1])
plain_trainer(folder, max_steps=2).train()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for file in ("model.safetensors", "optimizer.pt"):
    room = (folder / "checkpoint-2" / file).stat().st_size // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        plain_trainer(folder, max_steps=2).train()
    except TrainingError as error:
        print(error)
"""


def test_what_the_real_writers_say_when_a_file_cannot_grow(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=REPOSITORY,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = [line for line in ran.stdout.splitlines() if "cannot be written" in line]
    assert len(lines) == 2, ran.stdout + ran.stderr
    for line in lines:
        assert "MB are free" in line
        assert "checkpoint-2 is untouched" in line
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-2"
    verify_checkpoint(tmp_path / "checkpoint-2")


def test_logs_are_compared_without_clocks() -> None:
    assert log_of([{"loss": 1.0, "train_runtime": 3.0, "eval_samples_per_second": 2.0}]) == [
        {"loss": 1.0}
    ]
