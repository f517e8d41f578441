"""Recipes from files and overrides, checked before anything runs."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from prefstage.core.config import load_config
from prefstage.core.errors import ConfigError
from prefstage.training.recipe import UNNAMED, Recipe, training_arguments


def load_recipe(path: Path, overrides: Mapping[str, Any]) -> Recipe:
    """Read a recipe, with settings that win over it.

    Args:
        path: The YAML file.
        overrides: Values by key; dotted keys reach inner settings, also of sections that the
            file writes in short (``data: pairs.jsonl`` and ``data.split``).

    Returns:
        The recipe; what transformers makes of its training settings is checked too.

    Raises:
        ConfigError: As `load_config` and `check_recipe`.
        MissingDependencyError: As `check_recipe`.
    """
    whole = {key: value for key, value in overrides.items() if "." not in key}
    inner = {key: value for key, value in overrides.items() if "." in key}
    recipe = load_config(Recipe, path, whole)
    if inner:
        recipe = load_config(Recipe, recipe.model_dump(mode="json"), inner)
    check_online(recipe)
    check_recipe(recipe)
    return recipe


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """Read ``key=value`` texts, dotted keys reaching inner settings, values as in YAML.

    Args:
        texts: Such as ``training.learning_rate=5e-7``.

    Returns:
        Values by dotted key, for `load_config`.

    Raises:
        ConfigError: If one is no ``key=value``.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not key.strip() or not value.strip():
            raise ConfigError.of(
                saw=f"--set {text!r}",
                expected="key=value with a value as in YAML",
                cure="write e.g. --set training.learning_rate=5e-7",
            )
    return found


def check_recipe(recipe: Recipe, *, here: bool = True) -> None:
    """Check what transformers makes of a recipe's training settings, before anything runs.

    Args:
        recipe: The recipe.
        here: Whether this process's devices are those of the training; a launcher may start it
            where there are others.

    Raises:
        ConfigError: If a setting is refused, has no effect, or needs an evaluation set that
            is not there; one line.
        MissingDependencyError: If a setting needs a package that is not installed.
    """
    from prefstage.training.setting_checks import check_settings, check_tf32

    left_out = ("tf32",) if here else ("tf32", "fp16", "use_cpu")
    given = {name: each for name, each in recipe.training.items() if name not in left_out}
    if here:
        check_tf32(recipe.training.get("tf32"))
    else:
        given["use_cpu"] = True
    with _no_traces():
        args = training_arguments(recipe.model_copy(update={"training": given}), Path("unused"))
        check_settings(args)
    _check_evaluation(recipe, args)


@contextmanager
def _no_traces() -> Iterator[None]:
    """What is tried only warns of nothing, and leaves the environment as it was (FSDP's do not)."""
    before, log = dict(os.environ), logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        for name in {*os.environ} - {*before}:
            del os.environ[name]
        os.environ.update(before)


def _check_evaluation(recipe: Recipe, args: Any) -> None:
    strategy, metric = str(args.eval_strategy.value), args.metric_for_best_model
    asks = {
        f"eval_strategy={strategy!r}": strategy != "no",
        "eval_on_start=True": args.eval_on_start,
    }
    for setting in [name for name, asked in asks.items() if asked and not recipe.eval]:
        raise ConfigError.of(
            saw=f"training.{setting}, and no eval",
            expected="a set to evaluate",
            cure="set eval, or remove it",
        )
    if args.save_strategy.value == "best" and strategy == "no":
        raise ConfigError.of(
            saw="training.save_strategy='best' with eval_strategy='no'",
            expected="evaluations, which say what is best",
            cure="set eval_strategy and eval, or another save_strategy",
        )
    names = [f"eval_{name}_" for name in recipe.eval if set(recipe.eval) != {UNNAMED}]
    wanted = f"eval_{(metric or '').removeprefix('eval_')}"
    if metric and names and not wanted.startswith(tuple(names)):
        raise ConfigError.of(
            saw=f"metric_for_best_model={metric!r}",
            expected=f"a metric of an evaluation set: {', '.join(f'{name}loss' for name in names)}"
            " and so on",
            cure="name the set in it",
        )


def check_online(recipe: Recipe) -> None:
    """Check that online training has what the loss needs: nobody judges a fresh response.

    Args:
        recipe: The recipe.

    Raises:
        ConfigError: If the loss reads scores or preferences.
    """
    from prefstage.losses import parse_loss

    if recipe.online is None:
        return
    lacking = sorted(parse_loss(recipe.loss).needs & {"scores", "preference"})
    if lacking:
        raise ConfigError.of(
            saw=f"online with a loss that needs {' and '.join(lacking)}",
            expected="a loss on labels alone, since nobody judges the responses sampled on the way",
            cure="leave online out, or choose another loss",
        )
