"""Recipes: a training from one YAML file, `prefstage train`'s configuration."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefstage.core.adapters import is_adapter
from prefstage.core.config import Config, nearest
from prefstage.core.errors import ConfigError
from prefstage.data.records import Ties
from prefstage.data.settings import CHAT_SETTINGS, ChatSettings, ReadOptions
from prefstage.sampling.base import SamplingConfig

if TYPE_CHECKING:
    from prefstage.training.arguments import PreferenceArguments

CHECKPOINTS = "checkpoints"
UNNAMED = "eval"
"""Name of an evaluation set that stands alone: its metrics are `eval_loss` and so on."""

# Arguments that stand in another part of a recipe, or are the command's own business.
_ELSEWHERE = {
    "output_dir": "the command's --out",
    "loss": "loss",
    "ties": "ties",
    "reference": "reference",
    "reference_cache": "reference_cache",
    "resume_from_checkpoint": "nothing: the same command goes on by itself",
    "disable_tqdm": "nothing: progress is shown on a terminal only",
    **{
        name: f"tokens.{name}"
        for name in (
            *(*CHAT_SETTINGS, "max_prompt_tokens", "max_response_tokens"),
            *("token_budget", "layout"),
        )
    },
}


class DataSettings(ReadOptions):
    """One data set, and how it is read."""

    path: str = Field(description="File, folder or Hub id.")


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

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, given: Any) -> Any:
        """Sampling is from the policy itself unless said otherwise."""
        if not isinstance(given, Mapping) or not isinstance(given.get("sampling", {}), Mapping):
            return given
        own = given.get("sampling", {})
        if own.get("responses", 1) != 1:
            raise ValueError(
                "sampling.responses is set; expected one response a pair and sampling; remove it"
            )
        whole = {"responses": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        return {**given, "sampling": {**whole, **own}}


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

    @field_validator("data", mode="before")
    @classmethod
    def _data_by_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @field_validator("eval", mode="before")
    @classmethod
    def _sets_by_name(cls, given: Any) -> Any:
        """One set alone, or several by name; each a path or a mapping with `path`."""
        if isinstance(given, str) or (isinstance(given, Mapping) and "path" in given):
            given = {UNNAMED: given}
        if not isinstance(given, Mapping):
            return {} if given is None else given
        return {
            name: {"path": each} if isinstance(each, str) else each for name, each in given.items()
        }

    @field_validator("lora", "dynamics", "online", mode="before")
    @classmethod
    def _on_or_off(cls, given: Any) -> Any:
        """`true` takes the defaults, `false` is none."""
        return {True: {}, False: None}.get(given, given) if isinstance(given, bool) else given

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.export.merge_adapter and self.lora is None and not is_adapter(self.policy):
            raise ValueError(
                "export.merge_adapter is set without lora; expected an adapter to merge; "
                "remove it, set lora, or give an adapter's folder as policy"
            )
        return self


def argument_values(recipe: Recipe) -> dict[str, Any]:
    """The training arguments of a recipe, by the names of `PreferenceArguments`.

    Args:
        recipe: The recipe.

    Returns:
        Values of the `training` section, numbers as numbers, and those of its own sections.

    Raises:
        ConfigError: If a name is none of theirs (the nearest is named), or has its own
            place in a recipe.
    """
    from prefstage.training.arguments import PreferenceArguments

    fields = {each.name: each.type for each in dataclasses.fields(PreferenceArguments)}
    for name in recipe.training:
        _check_name(str(name), [*fields])
    given = {name: _as_typed(value, fields[name]) for name, value in recipe.training.items()}
    own = recipe.tokens.model_dump(mode="json") | {
        "loss": recipe.loss,
        "ties": recipe.ties,
        "reference": recipe.reference,
        "reference_cache": recipe.reference_cache,
    }
    return {**given, **own}


def training_arguments(recipe: Recipe, folder: Path) -> "PreferenceArguments":
    """The training arguments of a recipe, in a run folder.

    Args:
        recipe: The recipe.
        folder: Where checkpoints go, and references without a place of their own.

    Returns:
        The arguments, checked.

    Raises:
        ConfigError: As `argument_values` and `PreferenceArguments`.
    """
    from prefstage.training.arguments import PreferenceArguments

    given = argument_values(recipe)
    cache = given.pop("reference_cache") or str(folder / "references")
    return PreferenceArguments(
        **{
            "disable_tqdm": True,
            **given,
            "output_dir": str(folder / CHECKPOINTS),
            "reference_cache": cache,
        }
    )


def _check_name(name: str, known: list[str]) -> None:
    place = _ELSEWHERE.get(name)
    if place is not None:
        raise ConfigError.of(
            saw=f"setting 'training.{name}'",
            expected=f"it in its own place: {place}",
            cure="move it there",
        )
    if name in known:
        return
    guess = nearest(name, known)
    raise ConfigError.of(
        saw=f"unknown setting 'training.{name}'",
        expected="a field of transformers.TrainingArguments",
        cure=f"did you mean 'training.{guess}'?" if guess else "remove it",
    )


def _as_typed(value: Any, annotation: Any) -> Any:
    """A number where the argument takes one: YAML 1.1 reads 5e-7 as text."""
    if not isinstance(value, str):
        return value
    allowed = {annotation, *typing.get_args(annotation)}
    if not allowed & {float, int}:
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if float in allowed else int(number) if number.is_integer() else value
