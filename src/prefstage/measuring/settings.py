"""A measurement as settings: what YAML, the command and `align` say."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefstage.core import Config, refuse
from prefstage.data.settings import BadRowSettings
from prefstage.sampling.base import AnswerConfig, PolicySettings

Votes = Literal["hard", "probability"]
TieRule = Literal["half", "off"]
# Where a judge errs: in any pair alike, or in close pairs since it misreads their quality.
JudgeErrors = Literal["unknown", "any-pair", "close-pairs"]

FEWEST_MODELS = 3
ENOUGH_MODELS = f"at least {FEWEST_MODELS}: fewer cannot tell a prompt from a chance"
_SERVED = ("openai:", "serve:")


class MeasureConfig(Config):
    """How a stage is measured; the defaults stop as soon as the answer is known."""

    on_responses: int = Field(default=2, ge=1, description="On-policy responses a prompt (m).")
    off_responses: int = Field(default=2, ge=1, description="Off-policy responses a prompt (n).")
    votes: Votes = Field(
        default="hard", description="hard: P > 1/2 is a vote; probability: P itself counts."
    )
    ties: TieRule = Field(
        default="half", description="A tie among hard votes: half for each side, or for off."
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of the interval.")
    new_prompts: bool = Field(
        default=False,
        description="Ask about all prompts like these, not only about the ones at hand.",
    )
    all_prompts: bool = Field(
        default=False, description="Use the whole budget: the paper's fixed-size measurement."
    )
    max_prompts: int | None = Field(default=None, ge=1, description="Prompts used at most.")
    max_judgments: int | None = Field(default=None, ge=1, description="Comparisons at most.")
    seed: int = Field(default=0, ge=0, description="Of the order and choice of what is used.")
    first_chunk: int = Field(default=8, ge=1, description="Prompts sampled before a first look.")
    judge_accuracy: float | None = Field(
        default=None,
        gt=0.5,
        le=1,
        description="Share of comparisons that the judge gets right, if known: tells reliability.",
    )
    judge_bias: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Half the largest difference of its accuracies on the two sides.",
    )
    judge_errors: JudgeErrors = Field(
        default="unknown",
        description="Where the judge errs: any-pair alike, close-pairs, or unknown (half each).",
    )
    overlap: float = Field(
        default=0.0, ge=0, lt=1, description="Share of responses that both sides would give."
    )

    @model_validator(mode="after")
    def _no_ignored_setting(self) -> Self:
        refuse(
            (
                self.ties == "off" and self.votes == "probability",
                "ties='off' has no effect with votes='probability'; expected ties='half', as a "
                "tie counts 1/2 there; set ties='half', or votes='hard'",
            ),
            *(
                (
                    self.judge_accuracy is None and is_set,
                    f"{name} is set without judge_accuracy; expected both, as it is read for the "
                    f"reliability alone; set judge_accuracy, or leave {name} out",
                )
                for name, is_set in (
                    ("judge_bias", self.judge_bias > 0),
                    ("judge_errors", self.judge_errors != "unknown"),
                    ("overlap", self.overlap > 0),
                )
            ),
            (
                self.judge_accuracy is not None and self.judge_accuracy + self.judge_bias > 1,
                f"judge_bias {self.judge_bias} and judge_accuracy {self.judge_accuracy} sum to "
                "more than 1; expected a bias that is part of the judge's errors; lower one",
            ),
        )
        return self


class MeasureSettings(MeasureConfig, PolicySettings, BadRowSettings):
    """The measurement's rules, and where policy, data and judge are found."""

    off_policy: str = Field(
        default="", description="Off-policy pairs or candidates: file, folder or Hub id."
    )
    judge: str = Field(
        default="",
        description="reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, "
        "python:module:function, or a checkpoint.",
    )
    policy: str | None = Field(
        default=None,
        description="The policy: model folder or Hub id, openai:MODEL@URL, serve:COMMAND; with "
        "on_policy, its name.",
    )
    on_policy: str | None = Field(
        default=None,
        description="The policy's responses, if they exist already; not sampled then.",
    )
    off_sources: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Writers whose off-policy responses take part [all].",
    )
    on_sources: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Writers whose responses of on_policy are the policy's [all].",
    )
    sampling: AnswerConfig = Field(default=AnswerConfig(), description="How it answers.")
    distinctness: bool = Field(
        default=False,
        description="Score both sides by the policy: distinctness, unsimplified consistency.",
    )

    @field_validator("off_sources", "on_sources", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        # Options give texts with commas.
        texts = [value] if isinstance(value, str) else value
        return texts and [name.strip() for text in texts for name in str(text).split(",")]

    @model_validator(mode="after")
    def _sides_are_named_and_every_setting_has_an_effect(self) -> Self:
        loading = PolicySettings.model_fields
        # Weights that score answers at hand are loaded like those that would write them.
        read = {*loading} - {"concurrency"} if self.distinctness else set[str]()
        ignored = [
            *(n for n in loading if n not in read and getattr(self, n) != loading[n].default),
            *(["sampling"] if self.sampling.model_fields_set else []),
        ]
        refuse(
            (
                not self.off_policy,
                "no off-policy data; expected pairs or candidates; give --off-policy",
            ),
            (not self.judge, "no judge; expected who says which response is better; give --judge"),
            (
                not (self.policy or self.on_policy),
                "no policy; expected who answers, or its answers; give --policy",
            ),
            *(
                (
                    self.on_policy is not None,
                    f"{name} is set and responses are given too; expected only one of them, "
                    f"as nothing is sampled then; leave {name} or --on-policy out",
                )
                for name in ignored
            ),
            (
                self.on_sources is not None and self.on_policy is None,
                "on_sources is set and no responses are given; expected both or neither; give "
                "--on-policy, or leave on_sources out",
            ),
            (
                self.distinctness and (self.policy is None or str(self.policy).startswith(_SERVED)),
                "distinctness is set; expected a policy that runs in this process, since it "
                "needs its weights; give --policy FOLDER, or leave distinctness out",
            ),
        )
        return self
