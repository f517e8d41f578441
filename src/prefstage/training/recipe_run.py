"""Running a recipe: from its settings to a trained, exported model in a run folder."""

import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from prefstage.core.config import write_config
from prefstage.core.errors import (
    MissingDependencyError,
    PrefstageError,
    RunFolderError,
)
from prefstage.core.files import write_json
from prefstage.core.progress import Ticker, progress
from prefstage.core.results import write_result
from prefstage.core.runs import MANIFEST, RunFolder, run_date
from prefstage.data import load_tokenizer
from prefstage.losses import LossMix, parse_loss
from prefstage.scoring.scorer import ScoringWarning
from prefstage.training.arguments import PreferenceArguments
from prefstage.training.best import best_checkpoint, exported_step, metrics_at, plain_metrics
from prefstage.training.datasets import check_rows, load_data
from prefstage.training.dynamics import DisplacementWarning, DynamicsCallback
from prefstage.training.items import ItemSet, LoadedSet, left_out
from prefstage.training.online import OnlinePreferenceTrainer
from prefstage.training.policy import BASE, load_policy, merge_start
from prefstage.training.precision import PrecisionWarning
from prefstage.training.recipe import (
    UNNAMED,
    DataSettings,
    LoraSettings,
    Recipe,
    training_arguments,
)
from prefstage.training.recipe_loading import check_recipe
from prefstage.training.trainer import PreferenceTrainer

MODEL, MERGED, DYNAMICS = "model", "merged", "dynamics"
RESULT, HISTORY, RESOLVED = "train.json", "history.json", "config.yaml"


@dataclass(frozen=True)
class Trained:
    """What a recipe's run came to.

    Attributes:
        result: Figures and names, JSON-serialisable; see ``train.json`` in docs/training.md.
        written: Files and folders of the run that hold something to use.
    """

    result: dict[str, Any]
    written: list[Path]


def train_recipe(recipe: Recipe, out: Path) -> Trained:
    """Train by a recipe, in a run folder; a run that was stopped goes on.

    Args:
        recipe: What to train.
        out: The run folder: ``checkpoints``, ``model`` (the export), ``config.yaml`` (the
            resolved recipe), ``train.json``, ``history.json`` and, where asked for,
            ``dynamics`` and ``merged``.

    Returns:
        What came of it.

    Raises:
        ConfigError: If settings contradict one another.
        DataError: If data cannot be read.
        ModelError: If the policy cannot be loaded or trained.
        RunFolderError: If the folder holds another run.
    """
    recipe = _dated(recipe, out)
    loss = parse_loss(recipe.loss)
    check_recipe(recipe)
    args = training_arguments(recipe, out)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading and saving weights
    data = load_set(recipe.data, loss)
    named = {name: load_set(each, loss) for name, each in recipe.eval.items()}
    for name, rows in {"data": data, **named}.items():
        check_rows(rows, loss, name)
    with _opened(recipe, out):
        trainer = _trainer(recipe, args, data, named, out)
    with _progress(trainer), _told_warnings() as warned:
        trainer.train(resume_from_checkpoint="auto")
        metrics = _final_metrics(trainer, evaluates=bool(named))
    trainer.save_model(str(out / MODEL))
    if recipe.export.merge_adapter and is_first_process():
        _save_merged(trainer, out / MERGED)
    result = _result(trainer, recipe, {"data": data, **named}, metrics)
    result["notes"] += warned
    if is_first_process():
        write_json(out / HISTORY, {"history": trainer.state.log_history})
        write_json(out / RESULT, result)
        facts = {"policy": recipe.policy, "loss": _loss_text(result), "data": recipe.data.path}
        headline = f"{recipe.policy} trained on {result['items']:,} items by {facts['loss']}"
        write_result(out, "train", headline=headline, facts=facts)
    names = (MODEL, BASE, MERGED, DYNAMICS, RESULT, HISTORY, RESOLVED)
    return Trained(result, [out / name for name in names if (out / name).exists()])


def _loss_text(result: Mapping[str, Any]) -> str:
    betas = (
        "" if term.get("beta") is None else f" (β {term['beta']:g})" for term in result["loss"]
    )
    return " + ".join(term["name"] + beta for term, beta in zip(result["loss"], betas, strict=True))


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks (`accelerate launch` sets RANK)."""
    return int(os.environ.get("RANK", "0")) == 0


def load_set(settings: DataSettings, loss: LossMix) -> LoadedSet:
    """Load one data set as what a loss takes.

    Args:
        settings: Where it is and how it is read.
        loss: Says what it takes.

    Returns:
        Pairs, candidates, labelled responses or conversations.

    Raises:
        DataError: As the loaders.
    """
    return load_data(settings.path, loss, **settings.model_dump(exclude={"path"}))


def check_sets(sets: Mapping[str, DataSettings], loss: LossMix) -> None:
    """Check that data sets can serve a loss, without a policy.

    Args:
        sets: By name: where they are and how they are read.
        loss: Says what it takes, and what it needs.

    Raises:
        DataError: As the loaders.
        InputError: As `check_rows`.
    """
    for name, settings in sets.items():
        check_rows(load_set(settings, loss), loss, name)


def _dated(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the day on which the run began, which its chat template reads as today."""
    if recipe.tokens.template_date is not None:
        return recipe
    tokens = recipe.tokens.model_copy(update={"template_date": run_date(out)})
    return recipe.model_copy(update={"tokens": tokens})


@contextmanager
def _opened(recipe: Recipe, out: Path) -> Iterator[None]:
    """Open the run folder; if the block refuses what it is given, a new one goes again.

    How long to train and what to log may change when a run goes on.
    """
    if not is_first_process():
        yield
        return
    begun = (out / MANIFEST).exists()
    inputs = recipe.model_dump(mode="json", exclude={"training", "export", "dynamics", "eval"})
    try:
        RunFolder.open(out, command="train", inputs=inputs)
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
            shutil.rmtree(out)
        raise


def _trainer(
    recipe: Recipe,
    args: PreferenceArguments,
    data: LoadedSet,
    named: Mapping[str, LoadedSet],
    out: Path,
) -> PreferenceTrainer:
    callbacks: list[TrainerCallback] = []
    if recipe.dynamics is not None:
        settings = recipe.dynamics.model_dump()
        callbacks.append(DynamicsCallback(out / DYNAMICS, **settings))
    made: Callable[..., PreferenceTrainer] = PreferenceTrainer
    others: dict[str, Any] = {}
    if recipe.online is not None:
        made, others = OnlinePreferenceTrainer, {"online": recipe.online}
    policy = load_policy(recipe.policy, dtype=recipe.dtype)
    if recipe.lora is not None and hasattr(policy, "peft_config"):
        policy = merge_start(policy, out / BASE)
    trainer = made(
        policy,
        args,
        processing_class=load_tokenizer(recipe.policy),
        train_dataset=data,
        eval_dataset=(named[UNNAMED] if set(named) == {UNNAMED} else dict(named)) or None,
        peft_config=None if recipe.lora is None else _lora_config(recipe.lora),
        callbacks=callbacks,
        **others,
    )
    for each in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(each)
    return trainer


def _lora_config(settings: LoraSettings) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingDependencyError.of(
            saw="lora, and no package peft",
            expected="peft, which makes adapters",
            cure="pip install 'prefstage[train]'",
        ) from error
    return LoraConfig(task_type="CAUSAL_LM", **settings.model_dump())


class _Ticks(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Moves a progress bar by the trainer's steps."""

    def __init__(self, tick: Ticker) -> None:
        self._tick = tick
        self._done = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        self._tick(state.global_step - self._done)
        self._done = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        loss = (event.get("logs") or {}).get("loss")
        if loss is not None:
            self._tick(0, note=f"loss {float(loss):.4f}")


@contextmanager
def _progress(trainer: PreferenceTrainer) -> Iterator[None]:
    """A bar over the optimiser steps, on a terminal only."""
    total = trainer.args.max_steps
    if total <= 0:
        steps = len(trainer.get_train_dataloader()) * trainer.args.num_train_epochs
        total = math.ceil(steps)
    shown = None if is_first_process() else False
    with progress("training", total, enabled=shown) as tick:
        callback = _Ticks(tick)
        trainer.add_callback(callback)
        try:
            yield
        finally:
            trainer.remove_callback(callback)


@contextmanager
def _told_warnings() -> Iterator[list[str]]:
    """What our own warnings say while the block runs, as notes; libraries' are left out."""
    told = list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    ours = (DisplacementWarning, PrecisionWarning, ScoringWarning)
    told += dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, ours))


def _final_metrics(trainer: PreferenceTrainer, *, evaluates: bool) -> dict[str, float]:
    """The evaluation of the model that is exported, made now if there was none."""
    if not evaluates:
        return {}
    known = metrics_at(trainer.state.log_history, exported_step(trainer))
    return known or plain_metrics(trainer.evaluate())


def _save_merged(trainer: PreferenceTrainer, folder: Path) -> None:
    merged = trainer.model.merge_and_unload()
    merged.__dict__.pop("forward", None)
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


def _result(
    trainer: PreferenceTrainer,
    recipe: Recipe,
    sets: Mapping[str, LoadedSet],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    history, exported = trainer.state.log_history, exported_step(trainer)
    losses = [each["loss"] for each in history if "loss" in each and each["step"] <= exported]
    items = _item_sets(trainer)
    found: dict[str, Any] = {
        "policy": recipe.policy,
        "loss": trainer.loss.resolved(),
        "items": len(trainer.train_dataset),
        "kind": trainer.train_dataset.kind,
        "steps": trainer.state.global_step,
        "exported_step": exported,
        "epochs": trainer.state.epoch,
        "tokens": trainer.state.num_input_tokens_seen,
        "train_loss": next((e["train_loss"] for e in history if "train_loss" in e), None),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "metrics": dict(metrics),
        "counts": dict(trainer.train_dataset.counts),
        "best": best_checkpoint(trainer),
        "notes": [
            f"{name}: {note}"
            for name, each in sets.items()
            for note in (*_put_aside(each), *each.report.notes, *left_out(items[name].counts))
        ],
    }
    if isinstance(trainer, OnlinePreferenceTrainer):
        found["online"] = trainer.online_counts()
    return found


def _item_sets(trainer: PreferenceTrainer) -> dict[str, ItemSet]:
    """The encoded sets by their names in the recipe."""
    evaluated = trainer.eval_dataset
    named = evaluated if isinstance(evaluated, Mapping) else {UNNAMED: evaluated}
    return {"data": trainer.train_dataset, **named}


def _put_aside(rows: LoadedSet) -> list[str]:
    bad = rows.report.quarantined
    return [f"{bad} bad rows put aside"] if bad else []
