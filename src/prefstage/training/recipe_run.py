"""Running a recipe: from its settings to a trained, exported model in a run folder."""

import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from prefstage.core import (
    MANIFEST,
    MissingDependencyError,
    Outcome,
    PrefstageError,
    RunFolderError,
    progress,
    run_date,
    run_folder,
    shown,
    write_config,
    write_json,
    write_result,
)
from prefstage.data import Candidates, PairSet, load_prompts, load_tokenizer
from prefstage.losses import LossMix, parse_loss
from prefstage.scoring.scorer import ScoringWarning
from prefstage.training.compat import is_first_process
from prefstage.training.datasets import check_rows, learns_pairs, load_data, sets_by_name
from prefstage.training.dynamics.callback import DisplacementWarning, DynamicsCallback
from prefstage.training.export import (
    best_checkpoint,
    describe_exported,
    exported_step,
    metrics_at,
    plain_metrics,
)
from prefstage.training.items import LEFT_OUT, LoadedSet, left_out
from prefstage.training.online import OnlinePreferenceTrainer
from prefstage.training.policy import (
    BASE,
    PrecisionWarning,
    load_policy,
    merge_start,
)
from prefstage.training.recipe import (
    UNNAMED,
    DataSettings,
    Recipe,
    check_recipe,
    load_recipe,
    training_arguments,
)
from prefstage.training.trainer import PreferenceTrainer

_log = logging.getLogger(__name__)

MODEL, MERGED, DYNAMICS = "model", "merged", "dynamics"
RESULT, HISTORY, RESOLVED = "train.json", "history.json", "config.yaml"

# Our own warnings while training, which become notes of the result.
_NOTED = (DisplacementWarning, PrecisionWarning, ScoringWarning)


class Trained(Outcome):
    """What a recipe's run came to; for its `result` see ``train.json`` in docs/training.md."""


def train_recipe(recipe: Recipe | Mapping[str, Any] | str | Path, out: str | Path) -> Trained:
    """Train by a recipe, in a run folder; a run that was stopped goes on.

    Args:
        recipe: What to train: a recipe, its settings, or its YAML file.
        out: The run folder: ``checkpoints``, ``model`` (the export), ``config.yaml`` (the
            resolved recipe), ``train.json``, ``history.json`` and, where the recipe has them,
            ``dynamics`` and ``merged``.

    Returns:
        What came of it.

    Raises:
        ConfigError: If settings contradict one another.
        DataError: If data cannot be read.
        ModelError: If the policy cannot be loaded or trained.
        RunFolderError: If the folder holds another run, or another process works in it.
    """
    out = Path(out)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe) if isinstance(recipe, str) else recipe)
    if recipe.tokens.template_date is None:
        # The day on which the run began, and not that of a resumption: a template may print it.
        recipe = recipe.model_copy(
            update={"tokens": recipe.tokens.model_copy(update={"template_date": run_date(out)})}
        )
    check_recipe(recipe)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading and saving weights
    loaded = check_sets({"data": recipe.data, **recipe.eval}, parse_loss(recipe.loss))
    with ExitStack() as stack:
        with _opened(recipe, out, stack):
            trainer = open_trainer(recipe, out, loaded)
            # A layout that is not exact for the policy is refused while the folder can still go.
            _log.info("log-probs are computed in the %s layout", trainer.runner.scorer.layout)
        with _progress(trainer), warnings.catch_warnings(record=True, action="always") as warned:
            trainer.train(resume_from_checkpoint="auto")
            metrics = metrics_at(trainer.state.log_history, exported_step(trainer))
            # What is followed has figures of the last step, also where nothing was evaluated there.
            if recipe.eval and all(f"{DYNAMICS}/" in name for name in metrics):
                metrics |= plain_metrics(trainer.evaluate())
        trainer.save_model(str(out / MODEL))
        if recipe.export.merge_adapter and is_first_process():
            trainer.model.merge_and_unload().save_pretrained(out / MERGED)
            trainer.processing_class.save_pretrained(out / MERGED)
        result = _result(trainer, recipe, loaded, metrics)
        # Libraries' warnings are left out.
        result["notes"] += dict.fromkeys(
            str(warning.message) for warning in warned or () if issubclass(warning.category, _NOTED)
        )
        if is_first_process():
            write_json(out / HISTORY, {"history": trainer.state.log_history})
            write_json(out / RESULT, result)
            loss_text = " + ".join(
                term["name"] + ("" if term.get("beta") is None else f" (β {term['beta']:g})")
                for term in result["loss"]
            )
            write_result(
                out,
                "train",
                headline=f"{recipe.policy} trained on {result['items']:,} items by {loss_text}",
                facts={"policy": recipe.policy, "loss": loss_text, "data": recipe.data.path},
            )
    written = map(out.joinpath, (MODEL, BASE, MERGED, DYNAMICS, RESULT, HISTORY, RESOLVED))
    return Trained(_summary(result), result, [path for path in written if path.exists()])


def _summary(result: Mapping[str, Any]) -> str:
    loss = " + ".join(
        term["name"] if term["weight"] == 1 else f"{term['weight']:g}*{term['name']}"
        for term in result["loss"]
    )
    exported, sampled = describe_exported(result), result.get("online", {})
    lines = [
        f"trained {result['policy']} by {loss} on {result['items']} {result['kind']}: "
        f"{result['steps']} steps, {shown(result['epochs'])} epochs",
        exported and f"exported: {exported}",
        f"loss: {shown(result['first_loss'])} to {shown(result['last_loss'])}"
        if result["first_loss"] is not None
        else None,
        *(
            f"{name}: {shown(value)}"
            for name, value in sorted(result["metrics"].items())
            if "dynamics/" not in name
        ),
        *(
            f"{words}: {metrics[name]:.1%}"
            for name, words in {
                "dynamics/rankings/accuracy": "pairs ranked rightly",
                "eval_dynamics/rankings/accuracy": "held-out pairs ranked rightly",
                "dynamics/win_rate": "win rate over the start",
            }.items()
            if name in (metrics := result["metrics"])
        ),
        # Of what encoding counts: what was cut or changed, where no note says it.
        *(
            f"{name.replace('_', ' ')}: {count}"
            for name, count in result["counts"].items()
            if count and name not in ("prompts", "responses", *LEFT_OUT)
        ),
        sampled
        and "sampled rejected responses: "
        + ", ".join(f"{name} {count}" for name, count in sampled.items()),
        *(f"note: {note}" for note in result["notes"]),
    ]
    return "\n".join(filter(None, lines))


def check_sets(sets: Mapping[str, DataSettings], loss: LossMix) -> dict[str, LoadedSet]:
    """Load data sets and check that they can serve a loss, without a policy.

    Args:
        sets: By name: where they are and how they are read.
        loss: Says what it takes, and what it needs.

    Returns:
        The sets by name.

    Raises:
        DataError: As the loaders.
        InputError: As `check_rows`.
    """
    loaded = {
        name: load_data(settings.path, loss, **settings.model_dump(exclude={"path"}))
        for name, settings in sets.items()
    }
    for name, rows in loaded.items():
        check_rows(rows, loss, name)
    return loaded


# Hold the run folder until the stack ends; if the block refuses its input, a new one is removed.
@contextmanager
def _opened(recipe: Recipe, out: Path, stack: ExitStack) -> Iterator[None]:
    if not is_first_process():
        yield
        return
    begun = (out / MANIFEST).exists()
    # How long to train and what to log may change when a run goes on.
    inputs = recipe.model_dump(mode="json", exclude={"training", "export", "dynamics", "eval"})
    try:
        stack.enter_context(run_folder(out, command="train", inputs=inputs))
        write_config(recipe, out / RESOLVED)
    except OSError as error:
        raise RunFolderError.of(
            saw=f"cannot write to {out} ({error.strerror})",
            expected="a run folder that may be written to",
            cure="name another folder with --out, or change its permissions",
        ) from error
    try:
        yield
    except PrefstageError:
        if not begun:  # it was vacant before
            stack.close()
            shutil.rmtree(out)
        raise


def open_trainer(recipe: Recipe, out: Path, loaded: Mapping[str, LoadedSet]) -> PreferenceTrainer:
    """The trainer of a recipe.

    Args:
        recipe: The recipe; its data and evaluation sets are not read.
        out: The run folder.
        loaded: The set to train on as "data", and those to evaluate on by name.

    Returns:
        The trainer.
    """
    policy = load_policy(recipe.policy, dtype=recipe.dtype)
    lora = None
    if recipe.lora is not None:
        if hasattr(policy, "peft_config"):
            policy = merge_start(policy, out / BASE)
        with MissingDependencyError.instead_of(
            ImportError,
            saw="lora, and no package peft",
            expected="peft, which makes adapters",
            cure="pip install 'prefstage[train]'",
        ):
            from peft import LoraConfig
        lora = LoraConfig(task_type="CAUSAL_LM", **recipe.lora.model_dump())
    settings: dict[str, Any] = {
        "processing_class": load_tokenizer(recipe.policy),
        "train_dataset": loaded["data"],
        "eval_dataset": _evaluated(loaded),
        "peft_config": lora,
    }
    if recipe.dynamics is not None:
        rates, prompts = recipe.dynamics.win_rate, list[Candidates]()
        if rates is not None:
            source = next(iter(recipe.eval.values()), recipe.data)
            how = {} if rates.prompts else source.model_dump(exclude={"path"})
            prompts = list(load_prompts(rates.prompts or source.path, **how)[: rates.max_prompts])
        # A loss that learns responses made of pairs (SFT, KTO) ranks those pairs all the same.
        pairs = {name: rows for name, rows in loaded.items() if isinstance(rows, PairSet)}
        followed: dict[str, Any] = {}
        if not learns_pairs(parse_loss(recipe.loss)):
            followed = {"train_pairs": pairs.get("data"), "eval_pairs": _evaluated(pairs)}
        settings["callbacks"] = [
            DynamicsCallback(
                out / DYNAMICS,
                **followed,
                **recipe.dynamics.model_dump(exclude={"win_rate"}),
                win_rate=rates,
                win_rate_prompts=prompts,
            )
        ]
    trainer_type: type[PreferenceTrainer] = PreferenceTrainer
    if recipe.online is not None:
        trainer_type, settings["online"] = OnlinePreferenceTrainer, recipe.online
    trainer = trainer_type(policy, training_arguments(recipe, out), **settings)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


# The sets to evaluate on: one that stands alone, or several by name.
def _evaluated(loaded: Mapping[str, LoadedSet]) -> Any:
    sets = {name: rows for name, rows in loaded.items() if name != "data"}
    return sets[UNNAMED] if {*sets} == {UNNAMED} else sets or None


# A bar over the optimiser steps, on a terminal only.
@contextmanager
def _progress(trainer: PreferenceTrainer) -> Iterator[None]:
    whole = math.ceil(len(trainer.get_train_dataloader()) * trainer.args.num_train_epochs)
    total = trainer.args.max_steps if trainer.args.max_steps > 0 else whole
    with progress("training", total, enabled=None if is_first_process() else False) as tick:

        class Ticks(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
            done = 0

            def on_step_end(self, args: Any, state: Any, control: Any, **event: Any) -> None:
                tick(state.global_step - self.done)
                self.done = state.global_step

            def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
                loss = (event.get("logs") or {}).get("loss")
                if loss is not None:
                    tick(0, note=f"loss {float(loss):.4f}")

        trainer.add_callback(Ticks)  # and never off: no step comes after the block
        yield


def _result(
    trainer: PreferenceTrainer,
    recipe: Recipe,
    loaded: Mapping[str, LoadedSet],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    history, exported = trainer.state.log_history, exported_step(trainer)
    losses = [entry["loss"] for entry in history if "loss" in entry and entry["step"] <= exported]
    trained = trainer.train_dataset
    encoded = sets_by_name(trained, trainer.eval_dataset, "data", UNNAMED, "{}")
    notes = [
        f"{name}: {line}"
        for name, rows in loaded.items()
        for line in (
            rows.report.quarantined and f"{rows.report.quarantined} bad rows put aside",
            *rows.report.notes,
            *left_out(encoded[name].counts),
        )
        if line
    ]
    result: dict[str, Any] = {
        "policy": recipe.policy,
        "loss": trainer.loss.resolved(),
        "items": len(trained),
        "kind": trained.kind,
        "steps": trainer.state.global_step,
        "exported_step": exported,
        "epochs": trainer.state.epoch,
        "tokens": trainer.state.num_input_tokens_seen,
        "train_loss": next((e["train_loss"] for e in history if "train_loss" in e), None),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "metrics": dict(metrics),
        "counts": dict(trained.counts),
        "best": best_checkpoint(trainer),
        "notes": notes,
    }
    if isinstance(trainer, OnlinePreferenceTrainer):
        result["online"] = trainer.online_counts()
    return result
