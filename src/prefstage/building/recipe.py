"""What a build is told: which data, which judge, which method, which filters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prefstage.building.augmented import TEMPLATE
from prefstage.building.budget import Budget
from prefstage.building.filters import Filters
from prefstage.building.mixing import ANSWERS, SHARE
from prefstage.building.principled import PRINCIPLES, Principle
from prefstage.building.rejection import ACCEPTED, BETA
from prefstage.building.splitting import check_shares
from prefstage.building.tiers import COMBINATIONS, parse_combination
from prefstage.core.config import Config, check_config, load_config, nearest
from prefstage.core.errors import ConfigError
from prefstage.data.records import Ties
from prefstage.data.settings import CHAT_SETTINGS, ChatSettings
from prefstage.sampling.base import SamplingConfig
from prefstage.sampling.loading import LoadOptions

Inputs = Literal["candidates", "pairs"]
_LOADING = (*CHAT_SETTINGS, "dtype", "device", "adapter", "concurrency")
_KEEPS_LABELS = ("keep", "mixing")


class ChoiceSettings(Config):
    """Best against another response."""

    min_gap: float = Field(default=0.0, ge=0, description="Score of chosen less rejected, least.")


class MaxGapSettings(Config):
    """The largest gap of a prompt, if it is large enough."""

    min_gap: float = Field(gt=0, description="Score of chosen less rejected, least.")


class AllPairsSettings(ChoiceSettings):
    """All pairs of the k best responses."""

    k: int | None = Field(default=None, ge=2, description="Best responses taken; None for all.")


class TierSettings(Config):
    """Combinations of quality tiers."""

    combinations: tuple[str, ...] = Field(
        default=COMBINATIONS, min_length=1, description="CHOSEN/REJECTED, tiers from 5 responses."
    )


class GapSettings(Config):
    """Large and small gaps of high and low quality."""

    large_gap: float | None = Field(default=None, gt=0, description="Target of LG; None: median.")
    small_gap: float | None = Field(default=None, gt=0, description="Target of SG; None: 0.4 LG.")
    tolerance: float | None = Field(default=None, gt=0, description="Of the means; None: 0.05 LG.")


class RejectionSettings(Config):
    """Statistical rejection sampling."""

    accepted: int = Field(default=ACCEPTED, ge=2, description="Responses accepted a prompt.")
    beta: float = Field(default=BETA, gt=0, description="Small prefers the best responses.")


class NoSettings(Config):
    """A method without settings."""


class MixingSettings(Config):
    """On-policy mixing."""

    share: float = Field(default=SHARE, ge=0, le=1, description="ρ, of the prompts.")
    answers: int = Field(default=ANSWERS, ge=1, description="k, own answers a drawn prompt.")


class OwnAnswersSettings(Config):
    """Pairs of a policy's own answers."""

    answers: int = Field(default=2, ge=2, description="Answers a prompt.")
    choose: Literal["best-vs-worst", "best-vs-random", "best-vs-second", "all-pairs"] = Field(
        default="best-vs-worst", description="Which of them meet."
    )
    min_gap: float = Field(default=0.0, ge=0, description="Score of chosen less rejected, least.")


class DivergenceSettings(Config):
    """Preference-divergence selection."""

    aspects: dict[str, str] = Field(min_length=2, description="A judge an aspect, by its name.")
    share: float = Field(default=0.3, gt=0, le=1, description="Of the pairs, to keep.")


class PrincipledSettings(Config):
    """Answers under a good and under a bad principle."""

    principles: tuple[Principle, ...] = Field(
        default=PRINCIPLES, min_length=1, description="One is drawn a prompt."
    )


class PerPromptSettings(Config):
    """Each prompt takes the side that its own comparisons favour."""

    measurement: str = Field(description="Run folder of prefstage measure.")
    budget: Budget | None = Field(
        default=None, description="Spend more samples where votes are even; needs policy."
    )


@dataclass(frozen=True)
class Method:
    """One way to build.

    Attributes:
        settings: Its settings.
        inputs: What it takes.
        judge: Whether it needs a judge ("optional": the dataset's own scores serve too).
        policy: Whether it needs a policy that answers.
    """

    settings: type[Config]
    inputs: frozenset[Inputs]
    judge: Literal["needed", "optional", "none"] = "optional"
    policy: Literal["needed", "optional", "none"] = "none"


_CANDIDATES: frozenset[Inputs] = frozenset({"candidates"})
_PAIRS: frozenset[Inputs] = frozenset({"pairs"})

METHODS: dict[str, Method] = {
    "best-vs-worst": Method(ChoiceSettings, _CANDIDATES),
    "best-vs-random": Method(ChoiceSettings, _CANDIDATES),
    "best-vs-second": Method(ChoiceSettings, _CANDIDATES),
    "max-gap": Method(MaxGapSettings, _CANDIDATES),
    "all-pairs": Method(AllPairsSettings, _CANDIDATES),
    "tiers": Method(TierSettings, _CANDIDATES),
    "gap-quality": Method(GapSettings, _CANDIDATES),
    "rejection-sampling": Method(RejectionSettings, _CANDIDATES),
    "relabel": Method(NoSettings, _PAIRS, judge="needed"),
    "keep": Method(NoSettings, _PAIRS, judge="none"),
    "mixing": Method(MixingSettings, _PAIRS, judge="needed", policy="needed"),
    "on-policy": Method(OwnAnswersSettings, _PAIRS | _CANDIDATES, judge="needed", policy="needed"),
    "other-policy": Method(
        OwnAnswersSettings, _PAIRS | _CANDIDATES, judge="needed", policy="needed"
    ),
    "preference-divergence": Method(DivergenceSettings, _PAIRS, judge="none"),
    "principled": Method(PrincipledSettings, _PAIRS | _CANDIDATES, judge="none", policy="needed"),
    "per-prompt": Method(PerPromptSettings, _PAIRS, judge="needed", policy="optional"),
}

_RELABELLING = ("relabel", "per-prompt", "preference-divergence")


class Augmentation(Config):
    """Take each pair twice, with the score that is asked for in the prompt."""

    template: str = Field(default=TEMPLATE, description="System message, with {score} in it.")
    digits: int = Field(default=1, ge=0, le=6, description="Decimal places of the score.")


class Recipe(ChatSettings):
    """A build, whole: the same recipe on the same data gives the same pairs."""

    candidates: str | None = Field(default=None, description="Prompts with responses.")
    pairs: str | None = Field(default=None, description="Preference pairs.")
    on_policy: str | None = Field(
        default=None, description="Per-prompt: the policy's answers; None: the measurement's."
    )
    judge: str | None = Field(default=None, description="Who scores or labels.")
    policy: str | None = Field(default=None, description="Who answers.")
    sources: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Only responses by these writers."
    )
    method: str | dict[str, Any] = Field(description="Its name, or {name: ..., settings ...}.")
    accept_reversal: bool = Field(
        default=False, description="Replace labels also where the judge reverses over 40 %."
    )
    augment: Augmentation | None = Field(default=None, description="Reward-augmented pairs.")
    filters: Filters = Field(default=Filters(), description="What to leave out.")
    ties: Ties = Field(
        default="leave-out", description="Pairs of evenly split raters: leave-out or keep."
    )
    splits: dict[str, float] = Field(default={}, description="Share of prompts besides train.")
    license: str | None = Field(default=None, description="Licence of the result, for the card.")
    seed: int = Field(default=0, ge=0, description="Of every draw.")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(temperature=0.6), description="How the policy answers."
    )
    dtype: str | None = Field(default=None, description="auto, float32, bfloat16 or float16.")
    device: str | None = Field(default=None, description="auto, cpu, cuda:0, ...")
    adapter: str | None = Field(default=None, description="PEFT adapter on the policy.")
    concurrency: int | None = Field(default=None, ge=1, description="Requests in flight.")
    on_bad_row: Literal["error", "quarantine"] = Field(
        default="error", description="What happens to rows that cannot be used."
    )
    quarantine_file: str | None = Field(default=None, description="Where bad rows go.")

    @property
    def load_options(self) -> LoadOptions:
        """How the policy is loaded."""
        return LoadOptions(
            **self.encoding,
            **{name: getattr(self, name) for name in _LOADING if name not in CHAT_SETTINGS},
        )


@dataclass(frozen=True)
class Plan:
    """A recipe that was checked.

    Attributes:
        recipe: The recipe.
        name: The method's name.
        method: What it needs.
        settings: Its settings.
    """

    recipe: Recipe
    name: str
    method: Method
    settings: Any


def read_recipe(source: Recipe | Mapping[str, Any] | Path | str) -> Plan:
    """Read and check a recipe: unknown keys, and settings without effect, are errors.

    Args:
        source: A recipe, its settings, or its YAML file.

    Returns:
        The recipe with its method and the method's settings.

    Raises:
        ConfigError: One line that names what is wrong, and the nearest valid name.
    """
    if isinstance(source, Recipe):
        recipe = source
    else:
        recipe = load_config(Recipe, Path(source) if isinstance(source, str) else source)
    given = {"name": recipe.method} if isinstance(recipe.method, str) else dict(recipe.method)
    name = str(given.pop("name", ""))
    if name not in METHODS:
        guess = nearest(name, list(METHODS))
        raise ConfigError.of(
            saw=f"method {name!r}",
            expected=f"one of {', '.join(METHODS)}",
            cure=f"did you mean {guess!r}?" if guess else "choose one of them",
        )
    settings: Any = check_config(METHODS[name].settings, given, origin=f"method {name}")
    plan = Plan(recipe, name, METHODS[name], settings)
    _check(plan)
    return plan


def _check(plan: Plan) -> None:
    recipe, method = plan.recipe, plan.method
    given = [name for name in ("candidates", "pairs") if getattr(recipe, name) is not None]
    if len(given) != 1 or given[0] not in method.inputs:
        raise ConfigError.of(
            saw=f"method {plan.name} with {' and '.join(given) or 'no data'}",
            expected=" or ".join(sorted(method.inputs)) + ", one of them",
            cure=f"set {min(method.inputs)} to a file, folder or Hub id",
        )
    for name, need in (("judge", method.judge), ("policy", method.policy)):
        value = getattr(recipe, name)
        if (value is None and need == "needed") or (value is not None and need == "none"):
            raise ConfigError.of(
                saw=f"method {plan.name} {'without' if value is None else 'with'} {name}",
                expected=f"{'a' if value is None else 'no'} {name} with this method",
                cure=f"{'set' if value is None else 'leave out'} {name}",
            )
    _check_effects(plan)
    check_shares(recipe.splits)
    if isinstance(plan.settings, TierSettings):
        for text in plan.settings.combinations:
            parse_combination(text)


def _check_effects(plan: Plan) -> None:
    """Refuse settings that this recipe would not read."""
    recipe = plan.recipe
    budget = getattr(plan.settings, "budget", None)
    if plan.name == "per-prompt" and (budget is None) != (recipe.policy is None):
        raise ConfigError.of(
            saw=f"per-prompt with a {'policy and no budget' if budget is None else 'budget alone'}",
            expected="a budget and a policy that spends it, or neither",
            cure="set both or leave both out",
        )
    unread = {
        "on_policy": plan.name != "per-prompt",
        "sources": recipe.candidates is None,
        "ties": plan.name not in _KEEPS_LABELS,
        "quarantine_file": recipe.on_bad_row == "error",
    }
    unread |= dict.fromkeys(("sampling", *_LOADING), recipe.policy is None)
    unread["accept_reversal"] = plan.name not in _RELABELLING and (
        recipe.candidates is None or recipe.judge is None or plan.method.policy != "none"
    )
    for name, without_effect in unread.items():
        unset = getattr(recipe, name) in (None, False)
        if without_effect and name in recipe.model_fields_set and not unset:
            raise ConfigError.of(
                saw=f"setting {name!r}, which has no effect in this recipe (method {plan.name})",
                expected="settings that something reads",
                cure=f"leave {name} out",
            )
    if {"responses", "seed"} & recipe.sampling.model_fields_set:
        raise ConfigError.of(
            saw="sampling.responses or sampling.seed",
            expected="method.answers and seed instead",
            cure="leave them out",
        )
