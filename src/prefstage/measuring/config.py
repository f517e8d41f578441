"""What a measurement may be told."""

from typing import Self

from pydantic import Field, model_validator

from prefstage.core.config import Config
from prefstage.measuring.boundary import TieRule, Votes
from prefstage.measuring.judge_errors import JudgeErrors


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
        if self.ties == "off" and self.votes == "probability":
            raise ValueError(
                "ties='off' has no effect with votes='probability'; expected ties='half', as a "
                "tie counts 1/2 there; set ties='half', or votes='hard'"
            )
        told = {
            "judge_bias": self.judge_bias > 0,
            "judge_errors": self.judge_errors != "unknown",
            "overlap": self.overlap > 0,
        }
        if self.judge_accuracy is None and any(told.values()):
            name = next(name for name, given in told.items() if given)
            raise ValueError(
                f"{name} is set without judge_accuracy; expected both, as it is read for the "
                f"reliability alone; set judge_accuracy, or leave {name} out"
            )
        if self.judge_accuracy is not None and self.judge_accuracy + self.judge_bias > 1:
            raise ValueError(
                f"judge_bias {self.judge_bias} and judge_accuracy {self.judge_accuracy} sum to "
                "more than 1; expected a bias that is part of the judge's errors; lower one"
            )
        return self
