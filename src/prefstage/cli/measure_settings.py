"""What `prefstage measure` may be told, in YAML or by options."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from prefstage.data.settings import ChatSettings
from prefstage.measuring import MeasureConfig
from prefstage.sampling import LoadOptions, SamplingConfig

_LOADING = ("dtype", "device", "adapter", "concurrency")


class MeasureSettings(MeasureConfig, ChatSettings):
    """The measurement's rules, and where policy, data and judge are found."""

    off_policy: str = Field(default="", description="Off-policy pairs or candidates.")
    judge: str = Field(default="", description="Who says which response is better.")
    policy: str | None = Field(default=None, description="Who answers; or, to on_policy, a name.")
    on_policy: str | None = Field(default=None, description="The policy's responses, if given.")
    off_sources: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Writers whose off-policy responses take part."
    )
    on_sources: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Writers whose given responses are the policy's."
    )
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="How it answers.")
    dtype: str | None = Field(default=None, description="auto, float32, bfloat16 or float16.")
    device: str | None = Field(default=None, description="auto, cpu, cuda:0, ...")
    adapter: str | None = Field(default=None, description="PEFT adapter on the policy.")
    concurrency: int | None = Field(default=None, ge=1, description="Requests in flight.")
    distinctness: bool = Field(default=False, description="Score both sides by the policy.")
    on_bad_row: Literal["error", "quarantine"] = Field(
        default="error", description="What happens to rows of the data that cannot be used."
    )
    quarantine_file: str | None = Field(default=None, description="Where bad rows go.")

    @model_validator(mode="after")
    def _sides_and_judge_are_named(self) -> Self:
        if not self.off_policy:
            raise ValueError("no off-policy data; expected pairs or candidates; give --off")
        if not self.judge:
            raise ValueError("no judge; expected who says which response is better; give --judge")
        if not self.policy and not self.on_policy:
            raise ValueError("no policy; expected who answers, or its answers; give --policy")
        return self

    @field_validator("off_sources", "on_sources", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Options give one text with commas."""
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        twice = {"responses", "seed"} & self.sampling.model_fields_set
        if twice:
            raise ValueError(
                f"sampling.{min(twice)} is set; expected on_responses and seed instead; "
                f"remove sampling.{min(twice)}"
            )
        ignored = [*self.encoding, *(name for name in _LOADING if getattr(self, name) is not None)]
        ignored += ["sampling"] if self.sampling.model_fields_set else []
        if self.on_policy is not None and ignored:
            raise ValueError(
                f"{ignored[0]} is set and responses are given too; expected only one of them, "
                f"as nothing is sampled then; leave {ignored[0]} or --on out"
            )
        if self.on_sources is not None and self.on_policy is None:
            raise ValueError(
                "on_sources is set and no responses are given; expected both or neither; give "
                "--on, or leave on_sources out"
            )
        served = str(self.policy).startswith(("openai:", "serve:"))
        if self.distinctness and (self.on_policy is not None or served):
            raise ValueError(
                "distinctness is set; expected a policy that runs in this process, since it "
                "needs its weights; leave distinctness out"
            )
        return self

    @property
    def rules(self) -> MeasureConfig:
        """The measurement's own part."""
        return MeasureConfig(**self.model_dump(include=set(MeasureConfig.model_fields)))

    @property
    def sampling_config(self) -> SamplingConfig:
        """How the policy answers, with the measurement's seed and number of responses."""
        shared = {"responses": self.on_responses, "seed": self.seed}
        return self.sampling.model_copy(update=shared)

    @property
    def load_options(self) -> LoadOptions:
        """How the policy is loaded."""
        return LoadOptions(**self.encoding, **{name: getattr(self, name) for name in _LOADING})
