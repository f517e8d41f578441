"""The callback in TRL's trainer, with adapters, with several sets, and where it refuses."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from prefstage.core.errors import InputError, ModelError, RunFolderError
from prefstage.training.compat import spread_over_processes
from prefstage.training.dynamics.callback import DynamicsCallback
from prefstage.training.dynamics.records import read_dynamics, read_metrics
from tests.training.dynamics_runs import (
    PlainDPO,
    arguments,
    encoder,
    pairs,
    tokenizer,
    trees,
    weak_policy,
)

QUIET = {"encoder": encoder(), "displacement_nats": 1e9, "subsample": 12}


def plain(folder: Path, *, model: Any = None, **changes: Any) -> PlainDPO:
    return PlainDPO(model or weak_policy(), arguments(folder, **changes), trees(pairs()))


# --- TRL ------------------------------------------------------------------------------------


def trl_run(folder: Path, callback: DynamicsCallback | None) -> Any:
    from trl import DPOConfig, DPOTrainer

    settings = arguments(folder).to_dict()
    known = ("per_device_train_batch_size", "learning_rate", "max_steps", "seed", "use_cpu")
    config = DPOConfig(
        output_dir=str(folder),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="no",
        logging_steps=3,
        report_to="none",
        disable_tqdm=True,
        beta=0.3,
        bf16=False,
        max_length=None,
        **{name: settings[name] for name in known},
    )
    weak_policy().save_pretrained(folder / "start")
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "start"),
        args=config,
        train_dataset=pairs().dataset.select_columns(["prompt", "chosen", "rejected"]),
        eval_dataset=pairs(10, split="test").dataset.select_columns(
            ["prompt", "chosen", "rejected"]
        ),
        processing_class=tokenizer(),
    )
    if callback is not None:
        callback.attach(trainer)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trl_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("trl")
    callback = DynamicsCallback(
        folder / "dynamics",
        train_pairs=pairs(),
        eval_pairs=pairs(10, split="test"),
        displacement_nats=1e9,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own
        return trl_run(folder / "a", callback), trl_run(folder / "b", None), folder / "dynamics"


def test_trl_trains_to_the_same_bits_and_logs_the_same(trl_runs: tuple) -> None:
    watched, alone, _ = trl_runs
    for (name, one), (_, other) in zip(
        watched.model.state_dict().items(), alone.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name

    def own(trainer: Any) -> list[dict[str, float]]:
        return [
            {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
            for entry in trainer.state.log_history
            if not any("dynamics/" in key for key in entry)
        ]

    assert own(watched) == own(alone)


def test_trl_metrics_of_the_same_name_are_the_same_metric(trl_runs: tuple) -> None:
    watched, _, folder = trl_runs
    at_4 = next(e for e in watched.state.log_history if e["step"] == 4 and "eval_loss" in e)
    rows = [r for r in read_dynamics(folder).to_pylist() if r["step"] == 4 and r["set"] == "eval"]
    columns = {
        "logps/chosen": lambda row: row["chosen_log_prob"],
        "logps/rejected": lambda row: row["rejected_log_prob"],
        "rewards/margins": lambda row: row["margin"],
        "rewards/accuracies": lambda row: float(row["margin"] > 0),
        "rewards/chosen": lambda row: (
            0.3 * (row["chosen_log_prob"] - row["reference_chosen_log_prob"])
        ),
    }
    ours = {entry["step"]: entry for entry in read_metrics(folder)}[4]
    for name, value in columns.items():
        # TRL averages over its batches of 8 and 2 pairs, unweighted; we average over pairs.
        batches = [[value(row) for row in part] for part in (rows[:8], rows[8:])]
        mean = sum(sum(batch) / len(batch) for batch in batches) / 2
        assert at_4[f"eval_{name}"] == pytest.approx(mean, abs=1e-3), name
        over_pairs = sum(map(sum, batches)) / len(rows)
        assert ours[f"eval_dynamics/{name}"] == pytest.approx(over_pairs), name


def test_trl_s_beta_is_taken_over(trl_runs: tuple) -> None:
    _, _, folder = trl_runs
    for row in read_dynamics(folder).to_pylist():
        expected = math.log1p(math.exp(-0.3 * row["reference_log_ratio"]))
        assert row["threshold"] == pytest.approx(expected, rel=1e-9)


# --- References, sets and moments ------------------------------------------------------------


def test_the_reference_may_be_the_policy_beneath_its_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(weak_policy(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.5)  # an adapter that has been trained before
    trainer = plain(tmp_path, model=model, max_steps=2, eval_steps=2)
    DynamicsCallback(tmp_path / "d", train_pairs=pairs(), reference="adapter-off", **QUIET).attach(
        trainer
    )
    trainer.train()
    rows = read_dynamics(tmp_path / "d").to_pylist()
    start = [row for row in rows if row["step"] == 0]
    assert any(row["chosen_log_prob"] != row["reference_chosen_log_prob"] for row in start)
    bare = plain(tmp_path / "bare", max_steps=1, eval_strategy="no")
    DynamicsCallback(tmp_path / "e", train_pairs=pairs(), **QUIET).attach(bare)
    bare.train()
    for row, other in zip(start, read_dynamics(tmp_path / "e").to_pylist(), strict=False):
        assert row["reference_chosen_log_prob"] == pytest.approx(
            other["reference_chosen_log_prob"], abs=1e-3
        )


def test_the_reference_may_be_a_folder(tmp_path: Path) -> None:
    weak_policy().save_pretrained(tmp_path / "reference")
    other = weak_policy()
    with torch.no_grad():
        other.model.norm.weight *= 1.3
    trainer = plain(tmp_path, model=other, max_steps=1, eval_strategy="no")
    DynamicsCallback(
        tmp_path / "d", train_pairs=pairs(), reference=str(tmp_path / "reference"), **QUIET
    ).attach(trainer)
    trainer.train()
    again = plain(tmp_path, max_steps=1, eval_strategy="no")
    DynamicsCallback(tmp_path / "e", train_pairs=pairs(), **QUIET).attach(again)
    again.train()
    columns = ["reference_chosen_log_prob", "reference_rejected_log_prob"]
    found, expected = (
        read_dynamics(tmp_path / name).select(columns).to_pandas() for name in ("d", "e")
    )
    assert found.equals(expected)


def test_mixed_precision_is_that_of_the_training(tmp_path: Path) -> None:
    steps = {}
    for name, mixed in (("exact", False), ("mixed", True)):
        trainer = plain(tmp_path / name, max_steps=1, eval_strategy="no", bf16=mixed)
        DynamicsCallback(tmp_path / name / "d", train_pairs=pairs(), **QUIET).attach(trainer)
        trainer.train()
        steps[name] = read_dynamics(tmp_path / name / "d")["chosen_log_prob"].to_pylist()
    assert steps["mixed"] != steps["exact"]
    assert steps["mixed"] == pytest.approx(steps["exact"], rel=0.02)


def test_named_sets_every_and_the_end(tmp_path: Path) -> None:
    trainer = plain(tmp_path, max_steps=7, eval_strategy="no", logging_steps=2)
    DynamicsCallback(
        tmp_path / "d",
        eval_pairs={"near": pairs(), "far": pairs(10, split="test")},
        every=3,
        distance=False,
        **QUIET,
    ).attach(trainer)
    trainer.train()
    metrics = read_metrics(tmp_path / "d")
    assert [entry["step"] for entry in metrics] == [0, 3, 6, 7]
    assert {"eval_near_dynamics/loss", "eval_far_dynamics/loss"} < set(metrics[0])
    assert not any(name.startswith("dynamics/weight") for name in metrics[0])
    assert not (tmp_path / "d" / "start_weights").exists()


def test_the_end_is_the_last_step_even_if_the_best_one_is_loaded(tmp_path: Path) -> None:
    trainer = plain(
        tmp_path,
        max_steps=6,
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that an early checkpoint is the best
    )
    DynamicsCallback(tmp_path / "d", train_pairs=pairs(), every=5, **QUIET).attach(trainer)
    trainer.train()
    assert not trainer.state.best_model_checkpoint.endswith("-6")
    distances = {e["step"]: e["dynamics/weight_distance"] for e in read_metrics(tmp_path / "d")}
    assert list(distances) == [0, 2, 4, 5, 6]
    assert distances[6] > distances[2]


def test_the_same_seed_chooses_the_same_pairs_and_another_others(tmp_path: Path) -> None:
    chosen = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = plain(tmp_path / name, max_steps=1, eval_strategy="no")
        DynamicsCallback(tmp_path / name / "d", train_pairs=pairs(), seed=seed, **QUIET).attach(
            trainer
        )
        trainer.train()
        chosen[name] = read_dynamics(tmp_path / name / "d")["pair"].to_pylist()[:12]
    assert chosen["a"] == chosen["b"] != chosen["c"]


# --- Refusals ---------------------------------------------------------------------------------


def test_no_trainer_is_an_error_before_anything_is_done(tmp_path: Path) -> None:
    callback = DynamicsCallback(tmp_path / "d", train_pairs=pairs(), **QUIET)
    trainer = plain(tmp_path)
    trainer.add_callback(callback)
    with pytest.raises(InputError, match=r"attach\(trainer\)"):
        trainer.train()
    assert not (tmp_path / "d").exists()


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    for count, expected in ((40, None), (30, "different: sets")):
        trainer = plain(tmp_path, max_steps=1, eval_strategy="no")
        DynamicsCallback(tmp_path / "d", train_pairs=pairs(count), **QUIET).attach(trainer)
        if expected is None:
            trainer.train()
        else:
            with pytest.raises(RunFolderError, match=expected):
                trainer.train()


def test_a_run_without_its_start_is_refused(tmp_path: Path) -> None:
    plain(tmp_path, max_steps=3, save_strategy="steps", save_steps=2).train()
    trainer = plain(tmp_path, max_steps=4)
    DynamicsCallback(tmp_path / "d", train_pairs=pairs(), **QUIET).attach(trainer)
    with pytest.raises(InputError, match="goes on at step 2, and no reference of its start"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_diverged_policy_is_named(tmp_path: Path) -> None:
    model = weak_policy()
    trainer = plain(tmp_path, model=model, max_steps=1, eval_strategy="no")
    DynamicsCallback(tmp_path / "d", train_pairs=pairs(), **QUIET).attach(trainer)
    with torch.no_grad():
        model.lm_head.weight[:] = math.nan
    with pytest.raises((InputError, ModelError), match=r"nan|diverged|differ"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_pairs": pairs(), "every": 0}, "every=0"),
        ({"train_pairs": pairs(), "beta": -1.0}, r"beta=-1\.0"),
        ({"train_pairs": pairs(), "displacement_nats": 0.0}, r"displacement_nats=0\.0"),
    ],
)
def test_settings_are_checked_at_once(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DynamicsCallback(tmp_path, **settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither train_pairs nor eval_pairs"),
        ({"train_pairs": []}, "0 pairs in the set 'train'"),
        ({"train_pairs": [encoder().encode(pairs()[0].prompt, ["one"])]}, "has 1 responses"),
    ],
)
def test_pairs_are_checked_when_training_begins(tmp_path: Path, given: dict, message: str) -> None:
    trainer = plain(tmp_path)
    DynamicsCallback(tmp_path / "d", **given, **QUIET).attach(trainer)
    with pytest.raises(InputError, match=message):
        trainer.train()


def test_spread_weights_are_found() -> None:
    model = torch.nn.Linear(2, 2)
    assert spread_over_processes(model) is None
    model.weight.ds_id = 0
    assert spread_over_processes(model) == "DeepSpeed ZeRO stage 3"
