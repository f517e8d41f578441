"""The callback in `PreferenceTrainer`: what it takes over, killed and resumed, on processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prefstage.diagnosing import FLIP_GROUPS
from prefstage.training import (
    DynamicsCallback,
    PreferenceArguments,
    PreferenceTrainer,
    read_dynamics,
    read_metrics,
)
from tests.training.dynamics_runs import encoder, pairs, tokenizer, weak_policy

REPOSITORY = Path(__file__).resolve().parents[2]


def preference_run(
    folder: Path, *, watched: bool = True, resume: Any = None, **changes: Any
) -> Any:
    settings = {
        "output_dir": str(folder),
        "loss": "sigmoid",
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 3e-3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        **changes,
    }
    callback = DynamicsCallback(folder / "dynamics", subsample=30, displacement_nats=1e9)
    trainer = PreferenceTrainer(
        weak_policy(),
        PreferenceArguments(**settings),
        train_dataset=pairs(),
        eval_dataset=pairs(10, split="test"),
        processing_class=tokenizer(),
        callbacks=[callback] if watched else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("preference")
    return folder / "dynamics", preference_run(folder)


def test_pairs_encoder_and_beta_are_the_trainers_own(run: tuple) -> None:
    folder, trainer = run
    evaluated = [e for e in trainer.state.log_history if "eval_loss" in e]
    recorded = {entry["step"]: entry for entry in read_metrics(folder)}
    assert [entry["step"] for entry in evaluated] == [3, 6]
    for entry in evaluated:
        ours = recorded[entry["step"]]
        assert ours["eval_dynamics/loss"] == pytest.approx(entry["eval_loss"], rel=1e-5)
        for name in ("logps/chosen", "logps/rejected"):
            assert ours[f"eval_dynamics/{name}"] == pytest.approx(entry[f"eval_{name}"], rel=1e-5)
    rows = read_dynamics(folder).to_pylist()
    assert len({row["pair"] for row in rows if row["set"] == "train"}) == 30
    for row in rows[:30]:
        pair = pairs()[row["pair"]]
        tree = encoder().encode(pair.prompt, [pair.chosen[0], pair.rejected[0]])
        assert row["prompt_id"] == pair.prompt_id
        assert (row["chosen_tokens"], row["rejected_tokens"]) == tuple(map(len, tree.response_ids))


def test_weights_and_losses_are_those_of_a_run_without(run: tuple, tmp_path: Path) -> None:
    _, watched = run
    alone = preference_run(tmp_path, watched=False)
    for (name, one), (_, other) in zip(
        watched.model.state_dict().items(), alone.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    losses = [
        [entry["loss"] for entry in each.state.log_history if "loss" in entry]
        for each in (watched, alone)
    ]
    assert losses[0] == losses[1]


def test_a_resumed_run_has_every_step_once(run: tuple, tmp_path: Path) -> None:
    whole, _ = run
    saving = {"save_strategy": "steps", "save_steps": 2}
    preference_run(tmp_path, **saving)
    # As if killed after step 5: the newest checkpoint is of step 4, records go to step 6.
    preference_run(tmp_path, resume=str(tmp_path / "checkpoint-4"), **saving)
    assert read_dynamics(tmp_path / "dynamics").equals(read_dynamics(whole))
    assert read_metrics(tmp_path / "dynamics") == read_metrics(whole)


# --- What Rankings found (arXiv:2405.19534, Section 4) -----------------------------------------


def test_dpo_lowers_the_loss_and_flips_few_rankings(tmp_path: Path) -> None:
    """A weakly trained policy on pairs of other writers; the benchmark has the larger run."""
    preference_run(tmp_path, max_steps=30, eval_steps=10, learning_rate=1e-3)
    first, *_, last = read_metrics(tmp_path / "dynamics")
    assert last["dynamics/loss"] < first["dynamics/loss"] - 0.05
    assert last["dynamics/rewards/accuracies"] > 0.65
    wrong = first["dynamics/flips/incorrect_to_incorrect/share"]
    assert last["dynamics/flips/incorrect_to_correct/share"] < 0.25 * wrong
    rows = read_dynamics(tmp_path / "dynamics").to_pylist()
    assert len(rows) == 4 * (30 + 10)
    for row in rows:  # Theorem 4.1, from the recorded numbers alone
        assert (row["loss"] <= row["threshold"]) == row["correct"]
        assert row["group"] in FLIP_GROUPS
        assert row["group"].endswith("->correct") == row["correct"]


# --- Several processes ---------------------------------------------------------------------------


def launch(folder: Path, *, fsdp: int = 0) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    order = json.dumps({"folder": str(folder), "fsdp": fsdp})
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *(f"--master-port={port}", "-m", "tests.training.dynamics_distributed", order),
        ],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_record_what_one_records(run: tuple, tmp_path: Path) -> None:
    whole, _ = run
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (
        read_dynamics(folder).to_pylist() for folder in (tmp_path / "dynamics", whole)
    )
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one["step"], one["set"], one["pair"]) == (
            other["step"],
            other["set"],
            other["pair"],
        )
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_sharded_weights_are_refused_by_every_process(tmp_path: Path, version: int) -> None:
    done = launch(tmp_path, fsdp=version)
    assert done.returncode != 0
    assert done.stderr.count("spread over processes (FSDP") >= 2
    assert not (tmp_path / "dynamics").exists()
