"""What `prefstage measure` may be told, in YAML or by options."""

from typing import Self

from pydantic import Field, model_validator

from prefstage.measuring import MeasureConfig
from prefstage.sampling import LoadOptions, SamplingConfig

_LOADING = ("chat_format", "dtype", "device", "adapter", "concurrency")


class MeasureSettings(MeasureConfig):
    """The measurement's rules, and where policy, data and judge are found."""

    off: str = Field(description="Off-policy pairs or candidates.")
    judge: str = Field(description="Who says which response is better.")
    policy: str | None = Field(default=None, description="Who answers; with `on`, its name.")
    on: str | None = Field(default=None, description="The policy's responses, if given.")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="How it answers.")
    chat_format: str | None = Field(default=None, description="Plain format of a base model.")
    dtype: str | None = Field(default=None, description="auto, float32, bfloat16 or float16.")
    device: str | None = Field(default=None, description="auto, cpu, cuda:0, ...")
    adapter: str | None = Field(default=None, description="PEFT adapter on the policy.")
    concurrency: int | None = Field(default=None, ge=1, description="Requests in flight.")

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        if self.policy is None and self.on is None:
            raise ValueError("neither policy nor on is set; expected who answers; give --policy")
        twice = {"responses", "seed"} & self.sampling.model_fields_set
        if twice:
            raise ValueError(
                f"sampling.{min(twice)} is set; expected it once; use on_responses and seed"
            )
        ignored = [name for name in _LOADING if getattr(self, name) is not None]
        ignored += ["sampling"] if self.sampling.model_fields_set else []
        if self.on is not None and ignored:
            raise ValueError(
                f"{ignored[0]} is set beside on; expected no sampling, as on gives the responses; "
                f"leave {ignored[0]} or on out"
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
        return LoadOptions(**{name: getattr(self, name) for name in _LOADING})
