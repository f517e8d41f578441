"""What an alignment is told: policy, data, judge, schedule, and how each step is done."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefstage.aligning.schedule import Rule, parse_schedule
from prefstage.building.recipe import METHODS, Filters
from prefstage.core.config import Config, check_config, load_config
from prefstage.core.errors import ConfigError
from prefstage.data.settings import ChatSettings
from prefstage.evaluating.settings import WinRateConfig
from prefstage.measuring.settings import MeasureConfig
from prefstage.sampling.base import LoadOptions, SamplingConfig
from prefstage.training.recipe import Recipe as TrainRecipe
from prefstage.training.recipe import check_online, check_recipe

_SET_BY_ALIGN = {
    "policy": "policy, and the steps before",
    "data": "off_policy and schedule",
    "reference": "reference: iteration or fixed",
    "reference_cache": "nothing: it lies in the step's folder",
}

_SERVERS = ("openai:", "serve:")


class BuildSettings(Config):
    """How answers become pairs; methods as of `prefstage build`."""

    off: str | dict[str, Any] | None = Field(
        default=None,
        description="Of off-policy data; None: relabel pairs, best-vs-worst of candidates.",
    )
    on: str | dict[str, Any] = Field(
        default="best-vs-worst", description="Of the policy's own answers, or another model's."
    )
    accept_reversal: bool = Field(
        default=False,
        description="Train on off-policy pairs also where the judge reverses over 40 % of labels.",
    )
    filters: Filters = Field(default=Filters(), description="What to leave out.")


class EvaluateSettings(Config):
    """How each policy is compared with the start, on prompts that are not trained on."""

    prompts: str = Field(description="Held-out prompts: file, folder or Hub id.")
    sampling: SamplingConfig | None = Field(
        default=None, description="How policies answer; None: as for training data."
    )
    win_rate: WinRateConfig = Field(default=WinRateConfig(), description="How it is measured.")


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
    measure: MeasureConfig | Literal[False] = Field(
        default=MeasureConfig(), description="How the stage is measured; false: not at all."
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
    def _has_its_quarantine(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "quarantine_file" in given:
            raise ValueError(
                "quarantine_file is set; expected on_bad_row: quarantine alone, since bad rows go "
                "to quarantine/ in the run folder; leave quarantine_file out"
            )
        return given

    @field_validator("evaluate", mode="before")
    @classmethod
    def _by_prompts(cls, given: Any) -> Any:
        return {"prompts": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        rules = self.rules
        if self.off_policy is None and (
            self.measure is not False or any(rule.needs_off_policy for rule in rules)
        ):
            raise ValueError(
                "off_policy is missing; expected the data that the schedule trains on or is "
                "measured against; set it, or set measure: false with schedule on or other"
            )
        if self.off_policy is None and self.prompts is None:
            raise ValueError("prompts is missing; expected prompts without off_policy; set it")
        if self.measure is False and any(rule.measures for rule in rules):
            raise ValueError(
                f"measure is false with schedule {self.schedule!r}; expected a measured stage "
                "to choose by; remove measure: false, or fix the schedule"
            )
        if self.stop.no_gain and self.evaluate is None:
            raise ValueError(
                "stop.no_gain is set without evaluate; expected win rates to go by; set evaluate"
            )
        self._check_methods()
        if self.build.accept_reversal and not any(rule.needs_off_policy for rule in rules):
            raise ValueError(
                "build.accept_reversal is set with a schedule without off-policy pairs, whose "
                "labels alone a judge replaces; expected it where they may be trained on; remove it"
            )
        self._check_server()
        return self

    def _check_server(self) -> None:
        if self.server is None:
            return
        missing = [name for name in ("{policy}", "{port}") if name not in self.server]
        if missing:
            raise ValueError(
                f"server {self.server!r} lacks {missing[0]}; expected {{policy}} and {{port}} "
                f"where the folder and the port go; add {missing[0]}"
            )
        useless = [name for name in ("dtype", "device") if getattr(self, name) is not None]
        if useless:
            raise ValueError(
                f"{useless[0]} is set with server; expected one of them, since a server takes "
                f"its own from its command; remove {useless[0]}"
            )

    def _check_methods(self) -> None:
        for side in ("off", "on"):
            method = getattr(self.build, side)
            name = method.get("name") if isinstance(method, Mapping) else method
            known = [
                each
                for each, needs in METHODS.items()
                if needs.policy == "none"
                and needs.judge != "none"
                and (side == "off" or "candidates" in needs.inputs)
            ]
            if name is not None and name not in known:
                raise ValueError(
                    f"build.{side} is {name!r}; expected one of {', '.join(known)}; change it"
                )

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
        if self.server is None or policy.startswith(_SERVERS):
            return policy
        place = str(Path(policy).absolute()) if Path(policy).exists() else policy
        return f"serve:{self.server.replace('{policy}', shlex.quote(place))}"

    def seeded(self, config: Any) -> Any:
        """A part of the recipe with the recipe's seed, if it sets none of its own."""
        if "seed" in config.model_fields_set:
            return config
        return config.model_copy(update={"seed": self.seed})


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
    if isinstance(source, Recipe):
        recipe = source
    else:
        given = Path(source) if isinstance(source, str) else source
        recipe = load_config(Recipe, given, overrides)
    settings = train_settings(recipe, policy="policy", data="data")
    here = recipe.launch is None
    check_recipe(settings, here=here)
    if recipe.sft is not None:
        check_recipe(sft_settings(recipe, policy="policy"), here=here)
    return recipe


def train_settings(
    recipe: Recipe, *, policy: str, data: str, reference: str = "start"
) -> TrainRecipe:
    """The recipe of one iteration's training.

    Args:
        recipe: The alignment's.
        policy: Folder of the policy that goes in.
        data: The pairs.
        reference: As in a recipe of `prefstage train`.

    Returns:
        The training's recipe.

    Raises:
        ConfigError: If the section `train` is wrong.
    """
    given = dict(recipe.train)
    _refuse(given, "train", tuple(_SET_BY_ALIGN))
    return _train_recipe(
        recipe, given, "train", {"policy": policy, "data": data, "reference": reference}
    )


def sft_settings(recipe: Recipe, *, policy: str) -> TrainRecipe:
    """The recipe of the training before the loop.

    Args:
        recipe: The alignment's, with a section `sft`.
        policy: Folder or Hub id of the policy that goes in.

    Returns:
        The training's recipe.

    Raises:
        ConfigError: If the section `sft` is wrong.
    """
    given = {"loss": "sft", **(recipe.sft or {})}
    _refuse(given, "sft", ("policy", "reference", "reference_cache"))
    return _train_recipe(recipe, given, "sft", {"policy": policy})


def _refuse(given: Mapping[str, Any], section: str, names: tuple[str, ...]) -> None:
    for name in names:
        if name in given:
            raise ConfigError.of(
                saw=f"setting '{section}.{name}'",
                expected=f"it to follow from {_SET_BY_ALIGN[name]}",
                cure=f"leave {section}.{name} out",
            )


def _train_recipe(
    recipe: Recipe, given: dict[str, Any], section: str, fixed: Mapping[str, Any]
) -> TrainRecipe:
    arguments = given.get("training", {})
    if isinstance(arguments, Mapping):
        given["training"] = {"seed": recipe.seed, **arguments}
    tokens = given.get("tokens", {})
    if isinstance(tokens, Mapping):  # texts are read alike when sampled and when trained on
        given["tokens"] = {**recipe.encoding, **tokens}
    if given.get("lora") not in (None, False):  # the next step loads a whole model
        given["export"] = {"merge_adapter": True}
    found: TrainRecipe = check_config(TrainRecipe, {**given, **fixed}, origin=section)
    check_online(found)
    return found
