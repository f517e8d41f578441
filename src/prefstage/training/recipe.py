"""Recipes: a training from a YAML file, `prefstage train`'s configuration, and its checks."""

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefstage.core import Config, ConfigError, did_you_mean, is_adapter, load_config, refuse
from prefstage.data.records import Ties
from prefstage.data.settings import CHAT_SETTINGS, ChatSettings, ReadOptions
from prefstage.sampling.base import SamplingConfig
from prefstage.training.dynamics.win_rates import WinRateSettings

if TYPE_CHECKING:
    from prefstage.training.arguments import PreferenceArguments

CHECKPOINTS = "checkpoints"
# Name of an evaluation set that stands alone: its metrics are `eval_loss` and so on.
UNNAMED = "eval"

# Arguments that stand in another part of a recipe, or that the command sets.
_ELSEWHERE = {
    "output_dir": "the command's --out",
    "loss": "loss",
    "ties": "ties",
    "reference": "reference",
    "reference_cache": "reference_cache",
    "resume_from_checkpoint": "nothing: the same command goes on by itself",
    "disable_tqdm": "nothing: progress is shown on a terminal only",
    **{name: f"tokens.{name}" for name in (*CHAT_SETTINGS, "max_prompt_tokens")},
    **{name: f"tokens.{name}" for name in ("max_response_tokens", "token_budget", "layout")},
}


class DataSettings(ReadOptions):
    """One data set, and how it is read."""

    path: str = Field(description="File, folder or Hub id.")

    @model_validator(mode="before")
    @classmethod
    def _by_path(cls, values: Any) -> Any:
        return {"path": values} if isinstance(values, str) else values


class TokenSettings(ChatSettings):
    """How texts become tokens, and tokens forward passes."""

    max_prompt_tokens: int | None = Field(default=None, ge=1, description="Longer keep the end.")
    max_response_tokens: int | None = Field(
        default=None, ge=1, description="Longer keep the start."
    )
    token_budget: int | Literal["auto"] = Field(
        default="auto", description="Tokens a forward and backward pass."
    )
    layout: Literal["auto", "tree", "flat"] = Field(default="auto", description="Of a pass.")


class LoraSettings(Config):
    """A new adapter; names as in `peft.LoraConfig`."""

    r: int = Field(default=16, ge=1, description="Rank.")
    lora_alpha: int = Field(default=32, ge=1, description="Scale is lora_alpha / r.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on its input.")
    target_modules: str | list[str] = Field(default="all-linear", description="What it acts on.")
    modules_to_save: list[str] | None = Field(default=None, description="Trained as a whole.")
    use_rslora: bool = Field(default=False, description="Scale is lora_alpha / sqrt(r).")


class DynamicsSettings(Config):
    """What is recorded of fixed pairs while training goes on."""

    every: int | None = Field(default=None, ge=1, description="Steps between; None: evaluations.")
    subsample: int = Field(default=1000, ge=1, description="Pairs of each set at most.")
    distance: bool = Field(default=True, description="Measure how far the weights have moved.")
    win_rate: WinRateSettings | None = Field(
        default=None, description="Sample answers, and judge them against the start's."
    )
    seed: int = Field(default=0, ge=0, description="Of the choice of pairs.")


class OnlineSettings(Config):
    """Chosen-fixed online training: rejected responses freshly sampled as training goes on.

    Source:
        Pan et al. 2025, arXiv:2508.18312, Section 4.2.
    """

    interval: int = Field(default=16, ge=1, description="Optimiser steps between samplings.")
    attempts: int = Field(
        default=2, ge=1, description="Samplings of a pair before its own rejected response stands."
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(responses=1, temperature=1.0, top_p=1.0, top_k=0),
        description="How the policy answers.",
    )

    # Sampling is from the policy itself unless other settings are written.
    @field_validator("sampling", mode="before")
    @classmethod
    def _whole_distribution(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        refuse(
            (
                value.get("responses", 1) != 1,
                "sampling.responses is set; expected one response a pair and sampling; remove it",
            )
        )
        return {"responses": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, **value}


class ExportSettings(Config):
    """What is written at the end, besides the model (or adapter) itself."""

    merge_adapter: bool = Field(default=False, description="Also the model with the adapter in it.")


class Recipe(Config):
    """A training: who learns what from which data."""

    policy: str = Field(description="Folder or Hub id of a model, or of an adapter to go on from.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Of the weights; bf16 autocast is training.bf16."
    )
    data: DataSettings = Field(description="What is learnt: a file, folder or Hub id.")
    eval: dict[str, DataSettings] = Field(default={}, description="Evaluation sets by name.")
    loss: Any = Field(default="sigmoid", description="Name, sum, mapping or list of mappings.")
    ties: Ties = Field(
        default="leave-out", description="Pairs of evenly split raters: leave-out or keep."
    )
    reference: str = Field(default="start", description="start, adapter-off, none, or a model.")
    reference_cache: str | None = Field(default=None, description="Folder; None: in the run's.")
    tokens: TokenSettings = Field(default=TokenSettings(), description="Templates and limits.")
    lora: LoraSettings | None = Field(default=None, description="A new adapter; None: all weights.")
    training: dict[str, Any] = Field(
        default={}, description="Any field of transformers.TrainingArguments."
    )
    dynamics: DynamicsSettings | None = Field(default=None, description="Rankings and flips.")
    online: OnlineSettings | None = Field(default=None, description="Fresh rejected responses.")
    export: ExportSettings = Field(default=ExportSettings(), description="What is written.")

    # A set alone, or several by name; paths or mappings with `path`.
    @field_validator("eval", mode="before")
    @classmethod
    def _sets_by_name(cls, value: Any) -> Any:
        alone = isinstance(value, str) or (isinstance(value, Mapping) and "path" in value)
        return {UNNAMED: value} if alone else {} if value is None else value

    # `true` takes the defaults, `false` is none.
    @field_validator("lora", "dynamics", "online", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        rates = None if self.dynamics is None else self.dynamics.win_rate
        refuse(
            (
                rates is not None and rates.prompts is None and not self.eval,
                "dynamics.win_rate is set without prompts and eval; expected prompts to answer; "
                "set dynamics.win_rate.prompts or eval",
            ),
            (
                self.export.merge_adapter and self.lora is None and not is_adapter(self.policy),
                "export.merge_adapter is set without lora; expected an adapter to merge; "
                "remove it, set lora, or give an adapter's folder as policy",
            ),
        )
        return self


# --- As training arguments -----------------------------------------------------------------------


def training_arguments(recipe: Recipe, folder: Path) -> "PreferenceArguments":
    """The training arguments of a recipe, in a run folder.

    Args:
        recipe: The recipe.
        folder: Where checkpoints go, and references where the recipe names no folder for them.

    Returns:
        The arguments, checked: those of the `training` section and of the others.

    Raises:
        ConfigError: If a name in `training` is none of theirs (the nearest is named), or belongs
            to another section of a recipe; or as `PreferenceArguments`.
    """
    # Imported when needed, here and below: transformers takes a second, and reading a recipe's
    # models (for help and schema) should not.
    from prefstage.training.arguments import PreferenceArguments

    names = [argument.name for argument in dataclasses.fields(PreferenceArguments)]
    for name in map(str, recipe.training):
        ConfigError.unless(
            name not in _ELSEWHERE,
            saw=f"setting 'training.{name}'",
            expected=f"it in its own place: {_ELSEWHERE.get(name)}",
            cure="move it there",
        )
        ConfigError.unless(
            name in names,
            saw=f"unknown setting 'training.{name}'",
            expected="a field of transformers.TrainingArguments",
            cure=did_you_mean(name, names, "remove it", prefix="training."),
        )
    return PreferenceArguments(
        **{"disable_tqdm": True, **recipe.training},
        **recipe.tokens.model_dump(mode="json"),
        loss=recipe.loss,
        ties=recipe.ties,
        reference=recipe.reference,
        reference_cache=recipe.reference_cache or str(folder / "references"),
        output_dir=str(folder / CHECKPOINTS),
    )


# --- From files and overrides --------------------------------------------------------------------


def load_recipe(
    source: Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, with settings that win over it.

    Args:
        source: The YAML file, or its settings.
        overrides: Values by key; dotted keys reach inner settings, also of sections that the
            file writes in short (``data: pairs.jsonl`` and ``data.split``).

    Returns:
        The recipe; what transformers makes of its training settings is checked too.

    Raises:
        ConfigError: As `load_config` and `check_recipe`.
        MissingDependencyError: As `check_recipe`.
    """
    dotted = {key: value for key, value in (overrides or {}).items() if "." in key}
    recipe = load_config(
        Recipe, source, {key: value for key, value in (overrides or {}).items() if "." not in key}
    )
    if dotted:  # of sections that are written in full by now
        recipe = load_config(Recipe, recipe.model_dump(mode="json"), dotted)
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe, *, here: bool = True) -> None:
    """Check what transformers makes of a recipe's training settings, before anything runs.

    Args:
        recipe: The recipe.
        here: Whether this process's devices are those of the training; a launcher may start it
            where there are others.

    Raises:
        ConfigError: If a setting is refused, has no effect, or needs an evaluation set that
            is not there; or if online training meets a loss that reads scores or preferences;
            one line.
        MissingDependencyError: If a setting needs a package that is not installed.
    """
    from unittest.mock import patch

    from transformers.utils import is_torch_tf32_available

    from prefstage.losses import parse_loss
    from prefstage.training.setting_checks import check_settings

    lacking = sorted(parse_loss(recipe.loss).needs & {"scores", "preference"})
    ConfigError.unless(
        recipe.online is None or not lacking,
        saw=f"online with a loss that needs {' and '.join(lacking)}",
        expected="a loss on labels alone, since nobody judges the responses sampled on the way",
        cure="leave online out, or choose another loss",
    )
    settings = dict(recipe.training)
    # Making arguments would switch it on.
    ConfigError.unless(
        not (settings.pop("tf32", False) and here) or is_torch_tf32_available(),
        saw="tf32=True on a machine without it",
        expected="an NVIDIA GPU of Ampere or later",
        cure="remove tf32",
    )
    settings |= {} if here else {"fp16": False, "use_cpu": True}
    with (
        # Trying settings warns of nothing, and leaves the environment as it was: transformers sets
        # ACCELERATE_... and FSDP_... as it makes arguments, and never unsets them.
        patch.multiple(
            logging.getLogger("transformers"), handlers=[logging.NullHandler()], propagate=False
        ),
        patch.dict(os.environ),
        warnings.catch_warnings(action="ignore"),
    ):
        args = training_arguments(recipe.model_copy(update={"training": settings}), Path("unused"))
        check_settings(args)
    strategy, metric = str(args.eval_strategy.value), args.metric_for_best_model
    setting = "eval_on_start=True" if strategy == "no" else f"eval_strategy={strategy!r}"
    ConfigError.unless(
        recipe.eval or (strategy == "no" and not args.eval_on_start),
        saw=f"training.{setting}, and no eval",
        expected="a set to evaluate",
        cure="set eval, or remove it",
    )
    ConfigError.unless(
        args.save_strategy.value != "best" or strategy != "no",
        saw="training.save_strategy='best' with eval_strategy='no'",
        expected="evaluations, which say what is best",
        cure="set eval_strategy and eval, or another save_strategy",
    )
    names = [f"eval_{name}_" for name in recipe.eval if set(recipe.eval) != {UNNAMED}]
    ConfigError.unless(
        not (metric and names) or f"eval_{metric.removeprefix('eval_')}".startswith(tuple(names)),
        saw=f"metric_for_best_model={metric!r}",
        expected=f"a metric of an evaluation set: {', '.join(f'{name}loss' for name in names)}"
        " and so on",
        cure="name the set in it",
    )
