"""What a build is asked for: which data, which judge, which method, which filters."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefstage.core import (
    Config,
    ConfigError,
    InputError,
    check_config,
    did_you_mean,
    load_config,
    refuse,
)
from prefstage.data.records import Ties
from prefstage.data.settings import BadRowSettings
from prefstage.sampling.base import PolicySettings, SamplingConfig

Inputs = Literal["candidates", "pairs"]
Need = Literal["needed", "optional", "none"]
Tier = Literal["best", "high", "medium", "low", "worst"]

TIERS: tuple[Tier, ...] = ("best", "high", "medium", "low", "worst")
# Chosen/rejected of Table 1: the best chosen fixed, then the worst rejected fixed.
COMBINATIONS = (
    *("best/worst", "best/low", "best/medium", "best/high"),
    *("low/worst", "medium/worst", "high/worst"),
)
TEMPLATE = "Answer so that a judge of answers would score your answer {score}."
# ρ and k of the mixing paper.
SHARE, ANSWERS = 0.1, 8
BETA, ACCEPTED = 0.5, 8
TRAIN = "train"


class Budget(Config):
    """What may be spent on finding each prompt's side; at least one limit."""

    tokens: int | None = Field(default=None, ge=1, description="Response tokens at most.")
    judgments: int | None = Field(default=None, ge=1, description="Comparisons at most.")
    clear_at: float = Field(
        default=2.0, gt=0, description="|on - off| / sqrt(votes + 1) at which a prompt is clear."
    )
    prompts_a_round: int = Field(default=16, ge=1, description="Prompts asked between two looks.")

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        refuse(
            (
                self.tokens is None and self.judgments is None,
                "no limit; expected tokens or judgments; set one of them",
            )
        )
        return self


class Principle(Config):
    """Two instructions that differ in one virtue.

    Attributes:
        good: What the chosen response is written by.
        bad: What the rejected response is written by.
    """

    good: str
    bad: str


PRINCIPLES = (
    Principle(
        good="Answer correctly and check every fact and every step before you write it.",
        bad="Answer quickly. Do not check facts or steps, and guess where you do not know.",
    ),
    Principle(
        good="Answer exactly what is asked, completely and with the details that help.",
        bad="Answer vaguely, leave out important parts and drift away from the question.",
    ),
    Principle(
        good="Write clearly, in good order and without needless words.",
        bad="Write confusingly, repeat yourself and mix the order of what you say.",
    ),
)


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


class MixingSettings(Config):
    """On-policy mixing."""

    share: float = Field(default=SHARE, ge=0, le=1, description="ρ, of the prompts.")
    answers: int = Field(default=ANSWERS, ge=1, description="k, own answers a drawn prompt.")


class AnswersSettings(ChoiceSettings):
    """Pairs of a policy's own answers."""

    answers: int = Field(default=2, ge=2, description="Answers a prompt.")
    choose: Literal["best-vs-worst", "best-vs-random", "best-vs-second", "all-pairs"] = Field(
        default="best-vs-worst", description="Which of them meet."
    )


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
    """What a way to build needs.

    Attributes:
        settings: Its settings.
        inputs: What it takes.
        judge: Whether it needs a judge ("optional": the dataset's own scores serve too).
        policy: Whether it needs a policy that answers.
    """

    settings: type[Config]
    inputs: tuple[Inputs, ...] = ("candidates",)
    judge: Need = "optional"
    policy: Need = "none"


_OWN_ANSWERS = Method(AnswersSettings, ("candidates", "pairs"), judge="needed", policy="needed")

METHODS: dict[str, Method] = {
    "best-vs-worst": Method(ChoiceSettings),
    "best-vs-random": Method(ChoiceSettings),
    "best-vs-second": Method(ChoiceSettings),
    "max-gap": Method(MaxGapSettings),
    "all-pairs": Method(AllPairsSettings),
    "tiers": Method(TierSettings),
    "gap-quality": Method(GapSettings),
    "rejection-sampling": Method(RejectionSettings),
    "relabel": Method(Config, ("pairs",), judge="needed"),  # without settings
    "keep": Method(Config, ("pairs",), judge="none"),
    "mixing": Method(MixingSettings, ("pairs",), judge="needed", policy="needed"),
    "on-policy": _OWN_ANSWERS,
    "other-policy": _OWN_ANSWERS,
    "preference-divergence": Method(DivergenceSettings, ("pairs",), judge="none"),
    "principled": Method(
        PrincipledSettings, ("candidates", "pairs"), judge="none", policy="needed"
    ),
    "per-prompt": Method(PerPromptSettings, ("pairs",), judge="needed", policy="optional"),
}


class LengthFilter(Config):
    """Limits of texts, in characters."""

    min_response: int | None = Field(default=None, ge=1, description="Characters at least.")
    max_response: int | None = Field(default=None, ge=1, description="Characters at most.")
    max_prompt: int | None = Field(default=None, ge=1, description="Characters at most.")
    max_ratio: float | None = Field(
        default=None, ge=1, description="Longer response over shorter one, at most."
    )

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        refuse(
            (
                all(value is None for value in self.model_dump().values()),
                "no limit; expected one; set min_response, max_response, ...",
            )
        )
        return self


class GapFilter(Config):
    """Limits of score of chosen less score of rejected."""

    minimum: float | None = Field(default=None, description="Least gap.")
    maximum: float | None = Field(default=None, description="Greatest gap.")


class NearDuplicateFilter(Config):
    """MinHash over word shingles, by datasketch."""

    threshold: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity.")
    shingle_words: int = Field(default=5, ge=1, description="Words a shingle.")
    permutations: int = Field(default=128, ge=16, description="Hash functions.")
    text: Literal["prompt", "chosen", "pair"] = Field(
        default="pair", description="What is compared."
    )


class DecontaminationFilter(Config):
    """Leave out pairs that share an n-gram of words with an evaluation set."""

    evaluation: tuple[str, ...] = Field(min_length=1, description="Files, folders or Hub ids.")
    words: int = Field(default=13, ge=2, description="n of the n-grams.")
    responses: bool = Field(default=True, description="Look at responses too, not only prompts.")


class Filters(Config):
    """Which filters to apply, in this order; each None or false is off."""

    length: LengthFilter | None = None
    gap: GapFilter | None = None
    agreement: float | None = Field(
        default=None, gt=0.5, le=1, description="Share of raters at least; needs votes."
    )
    language: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="ISO 639-1 codes of responses to keep."
    )
    duplicates: bool = Field(default=False, description="Pairs that stand twice, exactly.")
    decontaminate: DecontaminationFilter | None = None
    near_duplicates: NearDuplicateFilter | None = None


class Augmentation(Config):
    """Take each pair twice, with the score that is asked for in the prompt."""

    template: str = Field(default=TEMPLATE, description="System message, with {score} in it.")
    digits: int = Field(default=1, ge=0, le=6, description="Decimal places of the score.")


class Recipe(PolicySettings, BadRowSettings):
    """A build, whole: the same recipe on the same data gives the same pairs."""

    candidates: str | tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Prompts with responses; of several files the responses are pooled.",
    )
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
        InputError: If the shares of splits or a combination of tiers are none.
    """
    ConfigError.unless(
        isinstance(source, Recipe | Mapping | Path | str),
        saw=f"a recipe as a {type(source).__name__}",
        expected="a Recipe, a mapping of its settings, or the path of a YAML file",
        cure="write it as {'pairs': ..., 'method': ...}",
    )
    recipe = source if isinstance(source, Recipe) else load_config(Recipe, source)
    named = {"name": recipe.method} if isinstance(recipe.method, str) else dict(recipe.method)
    name = str(named.pop("name", ""))
    ConfigError.unless(
        name in METHODS,
        saw=f"method {name!r}",
        expected=f"one of {', '.join(METHODS)}",
        cure=did_you_mean(name, METHODS, "choose one of them"),
    )
    settings: Any = check_config(METHODS[name].settings, named, origin=f"method {name}")
    plan = Plan(recipe, name, METHODS[name], settings)
    _check(plan)
    shares = recipe.splits.values()
    InputError.unless(
        TRAIN not in recipe.splits and all(0 < share < 1 for share in shares) and sum(shares) < 1,
        saw=f"splits {dict(recipe.splits)}",
        expected="shares in (0, 1) of splits besides train, together below 1",
        cure="write it as splits: {test: 0.1}",
    )
    for text in getattr(settings, "combinations", ()):
        parse_combination(text)
    return plan


def parse_combination(text: str) -> tuple[Tier, Tier]:
    """Read "chosen/rejected".

    Args:
        text: Two tiers, the better one first.

    Returns:
        The tiers.

    Raises:
        InputError: If it names no two tiers in this order.
    """
    known = {f"{better}/{worse}": (better, worse) for better, worse in combinations(TIERS, 2)}
    name = "/".join(part.strip().lower() for part in text.split("/"))
    InputError.unless(
        name in known,
        saw=f"combination {text!r}",
        expected=f"CHOSEN/REJECTED, the better of {', '.join(TIERS)} first",
        cure="write it as best/worst",
    )
    return known[name]


# What the method needs is there, and nothing is set that this recipe would not read.
def _check(plan: Plan) -> None:
    recipe, method = plan.recipe, plan.method
    data = [name for name in ("candidates", "pairs") if getattr(recipe, name) is not None]
    ConfigError.unless(
        len(data) == 1 and data[0] in method.inputs,
        saw=f"method {plan.name} with {' and '.join(data) or 'no data'}",
        expected=" or ".join(method.inputs) + ", one of them",
        cure=f"set {method.inputs[0]} to a file, folder or Hub id",
    )
    for name, need in (("judge", method.judge), ("policy", method.policy)):
        missing = getattr(recipe, name) is None
        ConfigError.unless(
            need != ("needed" if missing else "none"),
            saw=f"method {plan.name} {'without' if missing else 'with'} {name}",
            expected=f"{'a' if missing else 'no'} {name} with this method",
            cure=f"{'set' if missing else 'leave out'} {name}",
        )
    budget = getattr(plan.settings, "budget", None)
    ConfigError.unless(
        plan.name != "per-prompt" or (budget is None) == (recipe.policy is None),
        saw=f"per-prompt with a {'policy and no budget' if budget is None else 'budget alone'}",
        expected="a budget and a policy that spends it, or neither",
        cure="set both or leave both out",
    )
    for name, without_effect in {
        "on_policy": plan.name != "per-prompt",
        "sources": recipe.candidates is None,
        "ties": plan.name not in ("keep", "mixing"),
        "quarantine_file": recipe.on_bad_row == "error",
        **dict.fromkeys(("sampling", *PolicySettings.model_fields), recipe.policy is None),
        "accept_reversal": plan.name not in ("relabel", "per-prompt", "preference-divergence")
        and (recipe.candidates is None or recipe.judge is None or method.policy != "none"),
    }.items():
        is_set = name in recipe.model_fields_set and getattr(recipe, name) not in (None, False)
        ConfigError.unless(
            not (is_set and without_effect),
            saw=f"setting {name!r}, which has no effect in this recipe (method {plan.name})",
            expected="settings that something reads",
            cure=f"leave {name} out",
        )
    ConfigError.unless(
        not {"responses", "seed"} & recipe.sampling.model_fields_set,
        saw="sampling.responses or sampling.seed",
        expected="method.answers and seed instead",
        cure="leave them out",
    )
