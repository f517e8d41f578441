"""What transformers would refuse late is said when a recipe is loaded, in one line."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from typer.testing import CliRunner

from prefstage.aligning import load_recipe as load_alignment
from prefstage.aligning.experiment import load_grid
from prefstage.cli.main import app
from prefstage.core.errors import ConfigError, MissingDependencyError, PrefstageError
from prefstage.training import PreferenceArguments
from prefstage.training.recipe import check_recipe, load_recipe, training_arguments
from tests.training.preference_runs import arguments, preference_trainer

EVALUATED = {"eval_strategy": "steps", "eval_steps": 5}
MIN_LR = {"lr_scheduler_type": "cosine_with_min_lr"}

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    # trackers
    ({"report_to": "wandb"}, ["report_to='wandb'", "wandb to be installed"]),
    ({"report_to": ["tensorboard"]}, ["report_to='tensorboard'", "tensorboard to be installed"]),
    ({"report_to": "mlflow"}, ["report_to='mlflow'", "pip install mlflow"]),
    ({"report_to": "wandbb"}, ["report_to='wandbb'", "wandb"]),
    # optimisers
    ({"optim": "adamw_bnb_8bit"}, ["optim='adamw_bnb_8bit'", "bitsandbytes"]),
    ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, ["galore_torch"]),
    ({"optim": "lomo"}, ["lomo-optim"]),
    ({"optim": "grokadamw"}, ["pip install grokadamw"]),
    ({"optim": "schedule_free_adamw"}, ["schedulefree"]),
    ({"optim": "apollo_adamw"}, ["apollo_torch"]),
    ({"optim": "stable_adamw"}, ["torch-optimi"]),
    ({"optim": "adamw_torch_8bit"}, ["torchao"]),
    ({"optim": "sgd", "optim_args": "momentum=fast"}, ["optim='sgd'", "'fast'"]),
    ({"optim": "sgd", "optim_args": "momentum"}, ["optim_args='momentum'", "name=value"]),
    ({"optim": "sgd", "optim_args": "momentm=0.9"}, ["momentm=0.9", "does not read"]),
    ({"optim_args": {"beta1": 0.8}}, ["optim_args beta1=0.8", "adam_beta1"]),
    ({"optim_target_modules": ["q_proj"]}, ["optim_target_modules", "does not read"]),
    # schedules
    (MIN_LR, ["'cosine_with_min_lr'", "min_lr"]),
    ({"lr_scheduler_type": "cosine_warmup_with_min_lr"}, ["min_lr"]),
    ({"lr_scheduler_type": "warmup_stable_decay"}, ["num_decay_steps"]),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["eval strategy"]),
    ({"lr_scheduler_type": "greedy"}, ["eval strategy"]),
    ({"lr_scheduler_type": "polynomial", "learning_rate": 5e-8}, ["lr_end"]),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}}, ["'two'"]),
    ({**MIN_LR, "lr_scheduler_kwargs": {"minimum": 1e-8}}, ["minimum"]),
    (
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": -1e-3}},
        ["at step", "multiplies the learning rate by -"],
    ),
    (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1e-8}},
        ["min_lr", "does not read"],
    ),
    ({"lr_scheduler_type": "constant", "warmup_steps": 10}, ["warmup_steps=10", "does not read"]),
    (
        {"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 0.1, **EVALUATED},
        ["warmup_steps=0.1", "does not read"],
    ),
    # settings in mappings and files
    ({"gradient_checkpointing_kwargs": {"use_reentrant": False}}, ["without activation_check"]),
    (
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"reentrant": 1}},
        ["'reentrant'"],
    ),
    (
        {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": "so"},
        },
        ["use_reentrant is neither true nor false"],
    ),
    ({"accelerator_config": {"split": True}}, ["'split'"]),
    ({"accelerator_config": "none.json"}, ["accelerator_config='none.json'", "no such file"]),
    ({"fsdp": "full_shard", "fsdp_config": "none.json"}, ["fsdp_config='none.json'"]),
    ({"fsdp": "full_shard bogus"}, ["bogus"]),
    ({"deepspeed": "none.json"}, ["deepspeed='none.json'"]),
    # what the machine lacks, and the Hub
    ({"bf16": True, "use_cpu": False}, ["bf16"]),
    ({"fp16": True}, ["fp16=True on a CPU"]),
    ({"tf32": True}, ["tf32=True", "Ampere"]),
    ({"push_to_hub": True}, ["push_to_hub without a token", "hf auth login"]),
    ({"hub_strategy": "allways"}, ["hub_strategy='allways'", "all_checkpoints"]),
    ({"log_level": "loud"}, ["log_level='loud'"]),
    ({"debug": "everything"}, ["everything"]),
    # without effect, or with another one
    ({"use_liger_kernel": True}, ["use_liger_kernel=True", "no effect"]),
    ({"liger_kernel_config": {"rope": True}}, ["liger_kernel_config", "no effect"]),
    ({"torch_compile": True}, ["torch_compile=True", "remove"]),
    ({"torch_compile_backend": "inductor"}, ["torch_compile=True", "remove"]),
    ({"neftune_noise_alpha": 5.0}, ["neftune_noise_alpha=5.0", "remove"]),
    ({"parallelism_config": {"tp_size": 2}}, ["parallelism_config", "remove"]),
    ({"label_smoothing_factor": 0.1}, ["label_smoothing_factor", "no effect"]),
    ({"dataloader_num_workers": 4}, ["dataloader_num_workers=4", "no effect"]),
    ({"remove_unused_columns": False}, ["remove_unused_columns", "no effect"]),
    ({"include_for_metrics": ["inputs"]}, ["include_for_metrics", "no effect"]),
    ({"eval_accumulation_steps": 2}, ["eval_accumulation_steps", "no effect"]),
    ({"torch_empty_cache_steps": 2}, ["torch_empty_cache_steps", "no effect"]),
    ({"bf16_full_eval": True}, ["bf16_full_eval", "no effect"]),
    ({"average_tokens_across_devices": False}, ["average_tokens_across_devices", "no effect"]),
    # evaluation of nothing
    (EVALUATED, ["eval_strategy='steps'", "no eval"]),
    ({"eval_on_start": True}, ["eval_on_start=True", "no eval"]),
    ({"save_strategy": "best", "load_best_model_at_end": True}, ["save_strategy='best'"]),
]
NEEDS_EVAL = ("reduce_lr_on_plateau",)

ACCEPTED: list[dict[str, Any]] = [
    {**MIN_LR, "lr_scheduler_kwargs": {"min_lr": "5e-8"}},
    {**MIN_LR, "lr_scheduler_kwargs": '{"min_lr": 5e-8}'},
    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": "10"}},
    {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1},
    {"optim": "sgd", "optim_args": {"momentum": "9e-1", "nesterov": True}},
    {"optim": "rmsprop", "optim_args": "momentum=0.9,centered=true"},
    {"optim": "adamw_torch_fused"},
    {"optim": "adafactor"},
    {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": "false"},
    },
    {"accelerator_config": {"split_batches": False}},
    {"bf16": True},
    {"report_to": "all"},
    {"report_to": "none"},
    {"max_steps": "1e3", "warmup_steps": 100},
]


def recipe_of(training: dict[str, Any]) -> dict[str, Any]:
    evaluated = training.get("lr_scheduler_type") in NEEDS_EVAL and "eval_strategy" in training
    more = {"eval": "e.jsonl"} if evaluated else {}
    return {"policy": "p", "data": "d.jsonl", "training": {"use_cpu": True, **training}, **more}


def written(folder: Path, training: dict[str, Any]) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_of(training)))
    return file


def lacks(training: dict[str, Any]) -> bool:
    """Whether this machine may have what the case says is missing."""
    return torch.cuda.is_available() or any(
        importlib.util.find_spec(name) is not None
        for name in ("wandb", "tensorboard", "tensorboardX", "mlflow", "bitsandbytes", "torchao")
    )


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


@pytest.mark.parametrize(("training", "said"), REFUSED, ids=[str(case[0])[:70] for case in REFUSED])
def test_a_setting_is_refused_when_the_recipe_is_loaded(
    tmp_path: Path, training: dict[str, Any], said: list[str]
) -> None:
    if lacks(training):
        pytest.skip("a machine with what the cases lack")
    with pytest.raises(PrefstageError) as caught:
        load_recipe(written(tmp_path, training), {})
    line = str(caught.value)
    assert "\n" not in line
    assert "; expected " in line
    for part in said:
        assert part in line


@pytest.mark.parametrize(("training", "said"), REFUSED[::4])
def test_an_alignment_is_refused_likewise_before_anything_is_sampled(
    tmp_path: Path, training: dict[str, Any], said: list[str]
) -> None:
    """By the dry run too: policy, data and judge need not even be there."""
    if lacks(training):
        pytest.skip("a machine with what the cases lack")
    train = {
        name: each for name, each in recipe_of(training).items() if name in ("training", "eval")
    }
    given = {"policy": "p", "off_policy": "d.jsonl", "judge": "none:judge", "train": train}
    with pytest.raises(PrefstageError):
        load_alignment(given)
    file = tmp_path / "align.yaml"
    file.write_text(yaml.safe_dump(given))
    for words in ([], ["--dry-run"]):
        refused = CliRunner().invoke(
            app, ["align", str(file), "--out", str(tmp_path / "r"), *words]
        )
        assert refused.exit_code == 2
        (line,) = refused.stderr.strip().splitlines()
        for part in said:
            assert part in line
    assert not (tmp_path / "r").exists()
    sft = {**given, "train": {}, "sft": {"data": "s.jsonl", **train}}
    with pytest.raises(PrefstageError):
        load_alignment(sft)
    with pytest.raises(PrefstageError):
        load_grid({"recipe": {**given, "train": {}}, "axes": {"train": [train]}})


@pytest.mark.parametrize("training", ACCEPTED, ids=[str(case)[:70] for case in ACCEPTED])
def test_what_transformers_takes_is_taken(tmp_path: Path, training: dict[str, Any]) -> None:
    recipe = load_recipe(written(tmp_path, training), {})
    made = training_arguments(recipe, tmp_path)
    for mapping in (made.lr_scheduler_kwargs, made.accelerator_config.to_dict()):
        for value in (mapping or {}).values():
            assert not isinstance(value, str)


EVERY = [("optim", each.value) for each in OptimizerNames]
EVERY += [("lr_scheduler_type", each.value) for each in SchedulerType]


def test_every_optimiser_and_schedule_is_made_or_refused_by_name(tmp_path: Path) -> None:
    plain, refused = load_recipe(written(tmp_path, {}), {}), dict[str, str]()
    for setting, name in EVERY:
        try:
            check_recipe(plain.model_copy(update={"training": {"use_cpu": True, setting: name}}))
        except PrefstageError as error:
            refused[name] = str(error)
    assert [name for name, line in refused.items() if name not in line or "\n" in line] == []
    made = {name for _, name in EVERY} - {*refused}
    assert {"adamw_torch", "sgd", "adafactor", "linear", "cosine", "constant"} <= made


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    """Neither random numbers nor the environment are another afterwards."""
    before, state = dict(os.environ), torch.get_rng_state()
    load_recipe(written(tmp_path, {"fsdp": True, "optim": "sgd"}), {})
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(os.environ) == before


def test_the_trainer_checks_them_too_and_not_those_of_an_optimiser_that_it_is_handed(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="min_lr"):
        preference_trainer(tmp_path, lr_scheduler_type="cosine_with_min_lr")
    with pytest.raises(MissingDependencyError, match="lomo"):
        preference_trainer(tmp_path, optim="lomo")


def test_arguments_read_numbers_written_as_text(tmp_path: Path) -> None:
    made = arguments(
        tmp_path,
        optim_args={"momentum": "5e-1"},
        lr_scheduler_kwargs={"a": ["1e-3", "x"], "b": {"c": "7", "d": "true"}},
    )
    assert isinstance(made, PreferenceArguments)
    assert made.optim_args == "momentum=0.5"
    assert made.lr_scheduler_kwargs == {"a": [0.001, "x"], "b": {"c": 7, "d": True}}


def test_a_best_metric_names_its_set(tmp_path: Path) -> None:
    best = {**EVALUATED, "save_steps": 5, "load_best_model_at_end": True, "use_cpu": True}
    recipe = {"policy": "p", "data": "d", "eval": {"held": "e"}, "training": best}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match="eval_held_loss"):
        load_recipe(file, {})
    for name in ("held_loss", "eval_held_rewards/margins"):
        load_recipe(file, {"training.metric_for_best_model": name})


def test_what_a_launcher_starts_may_have_other_devices() -> None:
    train = {"training": {"bf16": True, "tf32": True}}
    given = {"policy": "p", "off_policy": "d", "judge": "none:judge", "train": train}
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError):
            load_alignment(given)
    load_alignment({**given, "launch": "srun accelerate launch"})
    train["training"]["optim"] = "lomo"
    with pytest.raises(MissingDependencyError):
        load_alignment({**given, "launch": "srun accelerate launch"})
