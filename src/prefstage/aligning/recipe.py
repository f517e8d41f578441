"""The recipe of an alignment: policy, data, judge, schedule, and the settings of every step."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from prefstage.building.recipe import METHODS, Filters
from prefstage.core import Config, ConfigError, check_config, did_you_mean, load_config, refuse
from prefstage.data.settings import ChatSettings
from prefstage.evaluating.settings import WinRateConfig
from prefstage.measuring.settings import MeasureConfig
from prefstage.sampling.base import LoadOptions, SamplingConfig
from prefstage.training.recipe import Recipe as TrainRecipe, check_recipe

_SET_BY_ALIGN = {
    "policy": "policy, and the steps before",
    "data": "off_policy and schedule",
    "reference": "reference: iteration or fixed",
    "reference_cache": "nothing: it lies in the step's folder",
}

_MEASURES = ("eval_", "load_best", "metric_for", "greater_is", "save_", "do_eval")
RELABEL, CHOOSE, PER_PROMPT, KEEP = "relabel", "best-vs-worst", "per-prompt", "keep"

Depth = Literal["stage", "forecast", "pilot"]
"""How deep advice goes: the boundary score; gradients too; short trainings too."""


@dataclass(frozen=True)
class Rule:
    """How one iteration's data are chosen.

    Attributes:
        kind: "auto" (by the measured stage), "advise" (by forecast or pilots), or the data
            themselves: "off" (off-policy), "on" (the policy's own answers), "mix" (both),
            "per-prompt" (either), "other" (another policy's answers) or "data" (other data).
        share: Of "mix": ρ, the share of prompts that get the policy's best answer.
        source: Of "other": who answers in the policy's place; of "data": other pairs or candidates.
    """

    kind: Literal["auto", "advise", "off", "on", "mix", "other", "data", "per-prompt"]
    share: float | None = None
    source: str | None = None

    def __str__(self) -> str:
        """As in a recipe."""
        if self.kind == "mix":
            return f"mix: {self.share:g}"
        return self.kind if self.source is None else f"{self.kind}: {self.source}"


def parse_schedule(schedule: Any, *, iterations: int) -> tuple[Rule, ...]:
    """Read a recipe's schedule.

    Args:
        schedule: A word (auto, off, on, per-prompt), a mapping (mix: ρ, other: MODEL), or a list
            of these, one an iteration; words may also stand in one text, "off,on".
        iterations: How many there are.

    Returns:
        The rule of each iteration.

    Raises:
        ConfigError: If it is no schedule, or a list of another length.
    """
    if isinstance(schedule, str) and "," in schedule:
        schedule = [word.strip() for word in schedule.split(",")]
    if not isinstance(schedule, Sequence) or isinstance(schedule, str):
        return (_rule(schedule),) * iterations
    ConfigError.unless(
        len(schedule) == iterations,
        saw=f"a schedule of {len(schedule)} entries for {iterations} iterations",
        expected="an entry an iteration, or one for all",
        cure=f"set iterations: {len(schedule)}, or change the list",
    )
    return tuple(map(_rule, schedule))


def _rule(entry: Any) -> Rule:
    match entry:
        case bool():  # YAML 1.1 reads the bare words off and on as false and true
            return Rule("on" if entry else "off")
        case "auto" | "advise" | "off" | "on" | "per-prompt":
            return Rule(entry)
        case {"mix": int() | float() as share, **others} if 0 < share <= 1 and not others:
            return Rule("mix", share=float(share))
        case {"other": str(source), **others} if source.strip() and not others:
            return Rule("other", source=source)
        case {"data": str(source), **others} if source.strip() and not others:
            return Rule("data", source=source)
    raise ConfigError.of(
        saw=f"schedule {entry!r}",
        expected="auto, advise, off, on, per-prompt, mix: SHARE, other: MODEL, data: FILE, or a "
        "list of these",
        cure=did_you_mean(
            entry if isinstance(entry, str) else "",
            ("auto", "advise", "off", "on", "per-prompt"),
            "write one of them, e.g. mix: 0.1",
        ),
    )


ConfigT = TypeVar("ConfigT", bound=Config)


class BuildSettings(Config):
    """How answers become pairs; methods as of `prefstage build`."""

    off: str | dict[str, Any] | None = Field(
        default=None,
        description="Of off-policy data; None: relabel pairs, best-vs-worst of candidates; keep: "
        "pairs by their own labels, such as those of a build.",
    )
    on: str | dict[str, Any] = Field(
        default="best-vs-worst", description="Of the policy's own answers, or another model's."
    )
    accept_reversal: bool = Field(
        default=False,
        description="Train on off-policy pairs also where the judge reverses over 40 % of labels.",
    )
    filters: Filters = Field(default=Filters(), description="What to leave out.")


class StageSettings(MeasureConfig):
    """How each iteration's stage is measured, and on what."""

    off_policy: str | None = Field(
        default=None,
        description="Held-out pairs or candidates to measure on; None: the recipe's off_policy, "
        "where a policy trained on them is measured in-sample.",
    )


class EvaluateSettings(Config):
    """How each policy is compared, on prompts that are not trained on."""

    prompts: str = Field(description="Held-out prompts: file, folder or Hub id.")
    baseline: str | None = Field(
        default=None,
        description="Whom all policies, the start too, are compared with: a file of answers "
        "(FILE#WRITER), or a model; None: the start.",
    )
    sampling: SamplingConfig | None = Field(
        default=None, description="How policies answer; None: as for training data."
    )
    win_rate: WinRateConfig = Field(default=WinRateConfig(), description="How it is measured.")


class AdviseSettings(Config):
    """How it is found out which data to train on next."""

    candidates: list[Any] = Field(
        default=["off", "on", {"mix": 0.5}],
        description="Entries of a schedule: off, on, mix: SHARE, other: MODEL, data: FILE.",
    )
    depth: Depth = Field(default="forecast", description="Where to stop: stage, forecast or pilot.")
    prompts: str | None = Field(
        default=None,
        description="That gains are measured on; None: some that no gradient or pilot uses.",
    )
    target_prompts: int = Field(default=128, ge=8, description="How many of them.")
    responses: int = Field(default=8, ge=2, description="The policy's answers to each of them.")
    pairs: int = Field(default=256, ge=1, description="Prompts whose pairs give gradients.")
    shares: list[float] = Field(
        default=[1 / 4],
        description="Of the prompts that pilots are trained on, heat by heat.",
        min_length=1,
    )
    seeds: int = Field(default=2, ge=1, description="Trainings of every pilot.")
    valued_by: Literal["sampling", "scoring", "both"] = Field(
        default="scoring",
        description="A pilot's gain: by new answers, judged; by how likely it makes the start's; "
        "or by both.",
    )
    pilot_responses: int = Field(
        default=2, ge=1, description="A pilot's answers to each target prompt, by sampling."
    )

    @field_validator("shares")
    @classmethod
    def _grow(cls, shares: list[float]) -> list[float]:
        wrong = shares != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1
        refuse((wrong, f"shares is {shares}; expected growing shares in (0, 1); fix them"))
        return shares

    @property
    def methods(self) -> tuple[str, ...]:
        """How pilots are valued."""
        return ("sampling", "scoring") if self.valued_by == "both" else (self.valued_by,)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The candidates.

        Raises:
            ConfigError: If there are fewer than two, or one is no data.
        """
        rules = parse_schedule(self.candidates, iterations=len(self.candidates))
        wrong = [str(rule) for rule in rules if rule.kind in ("auto", "advise", "per-prompt")]
        ConfigError.unless(
            not wrong and len({*map(str, rules)}) >= max(2, len(rules)),
            saw=f"advise.candidates {wrong or self.candidates}",
            expected="at least two different ones of off, on, mix: SHARE, other: MODEL, data: FILE",
            cure="change them",
        )
        return rules


class StopRules(Config):
    """When to stop before all iterations are done; checked between steps."""

    no_gain: bool = Field(
        default=False, description="The win rate over the start is not better than before."
    )
    judgments: int | None = Field(default=None, ge=1, description="Judgments bought.")
    tokens: int | None = Field(default=None, ge=1, description="Response tokens sampled.")
    hours: float | None = Field(default=None, gt=0, description="Hours of finished steps.")


class Recipe(ChatSettings):
    """An alignment: who is trained, on what, judged by whom, how often."""

    policy: str = Field(description="Model folder or Hub id.")
    off_policy: str | None = Field(
        default=None, description="Pairs or candidates that training could use."
    )
    prompts: str | None = Field(
        default=None, description="What the policy answers; None: the prompts of off_policy."
    )
    judge: str = Field(description="Who says which answer is better.")
    iterations: int = Field(default=2, ge=1, description="Rounds of the loop at most.")
    schedule: Any = Field(default="auto", description="What each iteration trains on.")
    reference: Literal["iteration", "fixed"] = Field(
        default="iteration", description="Each iteration's start, or the first one's."
    )
    sft: dict[str, Any] | None = Field(
        default=None, description="A training before the loop, with its data."
    )
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="Own answers.")
    measure: StageSettings | Literal[False] = Field(
        default=StageSettings(), description="How the stage is measured; false: not at all."
    )
    advise: AdviseSettings = Field(
        default=AdviseSettings(), description="What `prefstage advise` and schedule: advise do."
    )
    build: BuildSettings = Field(default=BuildSettings(), description="Pairs.")
    train: dict[str, Any] = Field(default={}, description="As in a recipe of prefstage train.")
    evaluate: EvaluateSettings | None = Field(default=None, description="Win rates.")
    stop: StopRules = Field(default=StopRules(), description="When to end early.")
    seed: int = Field(default=0, ge=0, description="Of everything that sets no seed of its own.")
    on_bad_row: Literal["error", "quarantine"] = Field(
        default="error",
        description="Of off_policy, prompts and held-out prompts; put aside in the run folder.",
    )
    dtype: str | None = Field(default=None, description="Of sampling: auto, float32, bfloat16.")
    device: str | None = Field(default=None, description="Of sampling: auto, cpu, cuda:0, ...")
    server: str | None = Field(
        default=None,
        description="Command that serves {policy} at {port} to sample from; None: in process.",
    )
    launch: str | None = Field(
        default=None,
        description="Command that starts a training's processes: accelerate launch ...",
    )

    @model_validator(mode="before")
    @classmethod
    def _sets_no_quarantine_file(cls, settings: Any) -> Any:
        refuse(
            (
                isinstance(settings, Mapping) and "quarantine_file" in settings,
                "quarantine_file is set; expected on_bad_row: quarantine alone, since bad rows go "
                "to quarantine/ in the run folder; leave quarantine_file out",
            )
        )
        return settings

    @field_validator("evaluate", mode="before")
    @classmethod
    def _by_prompts(cls, evaluate: Any) -> Any:
        return {"prompts": evaluate} if isinstance(evaluate, str) else evaluate

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        rules = self.rules
        if any(rule.kind == "advise" for rule in rules):
            rules = (*rules, *self.advise.rules)
        # Whether off-policy data may be trained on, and whether data depend on a measured stage.
        kinds = {rule.kind for rule in rules}
        takes_off_policy = bool(kinds - {"on", "other", "data", "advise"})
        held_out = self.measure and self.measure.off_policy
        refuse(
            (
                self.off_policy is None
                and (takes_off_policy or (self.measure is not False and not held_out)),
                "off_policy is missing; expected the data that the schedule trains on or is "
                "measured against; set it, or set measure: false with schedule on or other",
            ),
            (
                bool(held_out) and "per-prompt" in kinds,
                "measure.off_policy is set with schedule per-prompt; expected the stage of the "
                "prompts that are trained on, which choose by it; remove measure.off_policy",
            ),
            (
                self.off_policy is None and self.prompts is None,
                "prompts is missing; expected prompts without off_policy; set it",
            ),
            (
                self.measure is False and bool(kinds & {"auto", "per-prompt"}),
                f"measure is false with schedule {self.schedule!r}; expected a measured stage "
                "to choose by; remove measure: false, or fix the schedule",
            ),
            (
                self.stop.no_gain and self.evaluate is None,
                "stop.no_gain is set without evaluate; expected win rates to go by; set evaluate",
            ),
            (
                self.build.accept_reversal and not takes_off_policy,
                "build.accept_reversal is set with a schedule without off-policy pairs, whose "
                "labels alone a judge replaces; expected it where they may be trained on; remove "
                "it",
            ),
        )
        # What needs a judge alone; and takes answers, which come as candidates.
        by_judge = [m for m, n in METHODS.items() if n.policy == "none" and n.judge != "none"]
        of_answers = [method for method in by_judge if "candidates" in METHODS[method].inputs]
        for side, known in (("off", [*by_judge, KEEP]), ("on", of_answers)):
            method = getattr(self.build, side)
            name = method.get("name") if isinstance(method, Mapping) else method
            text = f"expected one of {', '.join(known)}; change it"
            refuse((name not in (None, *known), f"build.{side} is {name!r}; {text}"))
        return self

    @model_validator(mode="after")
    def _starts_servers_with_all_they_need(self) -> Self:
        if self.server is not None:
            refuse(
                *(
                    (
                        name not in str(self.server),
                        f"server {self.server!r} lacks {name}; expected {{policy}} and {{port}} "
                        f"where the folder and the port go; add {name}",
                    )
                    for name in ("{policy}", "{port}")
                ),
                *(
                    (
                        getattr(self, name) is not None,
                        f"{name} is set with server; expected one of them, since a server takes "
                        f"its own from its command; remove {name}",
                    )
                    for name in ("dtype", "device")
                ),
            )
        return self

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rule of each iteration.

        Raises:
            ConfigError: As `parse_schedule`.
        """
        return parse_schedule(self.schedule, iterations=self.iterations)

    @property
    def load_options(self) -> LoadOptions:
        """How samplers are loaded."""
        return LoadOptions(**self.encoding, dtype=self.dtype, device=self.device)

    def sampled_from(self, policy: str) -> str:
        """What `load_sampler` takes for a policy: itself, or the server that is started on it.

        Args:
            policy: Folder, Hub id, or a server's spec, which stays as it is.

        Returns:
            The spec.
        """
        if self.server is None or policy.startswith(("openai:", "serve:")):
            return policy
        return f"serve:{self.server.replace('{policy}', shlex.quote(whole_path(policy)))}"

    def seeded(self, config: ConfigT) -> ConfigT:
        """A part of the recipe with the recipe's seed, unless it sets a seed itself."""
        has_seed = "seed" in config.model_fields_set
        return config if has_seed else config.model_copy(update={"seed": self.seed})


def load_recipe(
    source: "Recipe | Mapping[str, Any] | Path | str", overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Read and check a recipe.

    Args:
        source: A recipe, its settings, or its YAML file.
        overrides: Values by dotted key that win over it.

    Returns:
        The recipe; its training settings are checked too.

    Raises:
        ConfigError: One line that names what is wrong, and the nearest valid name.
    """
    recipe = source if isinstance(source, Recipe) else load_config(Recipe, source, overrides)
    here = recipe.launch is None
    check_recipe(train_settings(recipe, policy="policy", data="data"), here=here)
    if recipe.sft is not None:
        check_recipe(train_settings(recipe, policy="policy"), here=here)
    return recipe


def train_settings(
    recipe: Recipe, *, policy: str, data: str | None = None, reference: str = "start"
) -> TrainRecipe:
    """The recipe of one iteration's training, or of the one before the loop.

    Args:
        recipe: The alignment's.
        policy: Folder or Hub id of the policy that goes in.
        data: The pairs; None: of the training before the loop, whose section `sft` names its data.
        reference: As in a recipe of `prefstage train`.

    Returns:
        The training's recipe.

    Raises:
        ConfigError: If the section `train`, or `sft`, is wrong.
    """
    section = "sft" if data is None else "train"
    settings = dict(recipe.train) if data is not None else {"loss": "sft", **(recipe.sft or {})}
    for name, source in _SET_BY_ALIGN.items():
        ConfigError.unless(
            name not in settings or (data is None and name == "data"),
            saw=f"setting '{section}.{name}'",
            expected=f"it to follow from {source}",
            cure=f"leave {section}.{name} out",
        )
    pairs = {} if data is None else {"data": data, "reference": reference}
    settings |= {"policy": policy, **pairs}
    # The section's own values win over those of the recipe. Where it holds nonsense instead of
    # a mapping it is left as it is, so that the check below names it.
    for name, defaults in (("training", {"seed": recipe.seed}), ("tokens", recipe.encoding)):
        values = settings.get(name, {})
        if isinstance(values, Mapping):
            settings[name] = {**defaults, **values}
    # The next step loads whole models, not adapters.
    if settings.get("lora") not in (None, False):
        settings["export"] = {"merge_adapter": True}
    return check_config(TrainRecipe, settings, origin=section)


def pilot_settings(
    recipe: TrainRecipe, *, share: float = 1.0, seed: int | None = None
) -> TrainRecipe:
    """A training's recipe for a part of its data, with nothing measured on the way.

    Counts of steps shrink with the data; epochs, rates and schedules stay.

    Args:
        recipe: The whole training's.
        share: Of its data, in (0, 1].
        seed: Of this training; None: the recipe's.

    Returns:
        The pilot's recipe.
    """
    training = {n: v for n, v in recipe.training.items() if not n.startswith(_MEASURES)}
    for name in ("max_steps", "warmup_steps"):
        if float(training.get(name, 0)) >= 1:
            training[name] = math.ceil(share * float(training[name]))
    if seed is not None:
        training["seed"] = seed
    return recipe.model_copy(
        update={"training": {**training, "save_strategy": "no"}, "eval": {}, "dynamics": None}
    )


def whole_path(spec: str) -> str:
    """A file or folder by its whole path; a Hub id as it is."""
    return str(Path(spec).absolute()) if Path(spec).exists() else spec
