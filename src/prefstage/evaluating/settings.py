"""What an evaluation may be told."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prefstage.core.config import Config
from prefstage.data.settings import ChatSettings
from prefstage.sampling.base import AnswerConfig


class WinRateConfig(Config):
    """How a win rate is measured."""

    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of every interval.")
    stop_early: bool = Field(
        default=False, description="Stop when it is decided which of the two is better."
    )
    max_prompts: int | None = Field(default=None, ge=2, description="Prompts judged at most.")
    length_controlled: bool = Field(default=True, description="Also control for length.")
    resamples: int = Field(default=1000, ge=1, description="Of the bootstrap.")
    seed: int = Field(default=0, ge=0, description="Of the prompts' order and the bootstrap.")


class MtBenchConfig(Config):
    """How answers are graded."""

    repeats: int = Field(default=1, ge=1, description="Gradings of each answer.")
    attempts: int = Field(default=3, ge=1, description="Times asked until a rating is readable.")
    max_tokens: int = Field(default=1024, ge=1, description="Tokens of a grading.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of the score's interval.")


class EvaluateConfig(ChatSettings):
    """How answers or a policy are evaluated; a setting of another kind of evaluation is refused."""

    prompt_order: Path | None = Field(
        default=None,
        description="AlpacaEval's alpaca_eval.json, for its difficulties [local Hub cache].",
    )
    joint_difficulty: bool = Field(
        default=False,
        description="Estimate the prompts' difficulty from all models together (three or more), "
        "for length control on prompts other than AlpacaEval's.",
    )
    lookup: Literal["instruction", "as-published"] = Field(
        default="instruction",
        description="Difficulty by instruction, or by row, with annotations.",
    )
    references: Path | None = Field(
        default=None, description="Reference answers of MT-bench, for math, coding and reasoning."
    )
    repeats: int = Field(default=1, ge=1, description="Gradings of each answer of MT-bench.")
    rating_tokens: int = Field(default=1024, ge=1, description="Tokens of a grading at most.")
    dynamics: Path | None = Field(
        default=None,
        description="Records of the run whose checkpoints these are: rankings beside.",
    )
    task_data: tuple[str, ...] = Field(
        default=(), description="TASK=FILE: the task's rows from a local file, JSON lines or gzip."
    )
    apply_chat_template: bool = Field(
        default=False, description="Put the task's prompts into the model's chat template."
    )
    stop_early: bool = Field(
        default=False, description="Stop when it is decided which of the two is better."
    )
    max_prompts: int | None = Field(
        default=None, ge=1, description="Prompts, questions or a task's rows at most."
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of all intervals.")
    seed: int = Field(default=0, ge=0, description="Of order, bootstrap and sampling.")
    sampling: AnswerConfig = Field(default=AnswerConfig(), description="How a policy answers.")


class EvaluateSettings(EvaluateConfig):
    """As YAML and the command have it: with who is evaluated, and by what."""

    answers: tuple[Any, ...] = Field(
        default=(),
        description="Answers of a model: model_outputs.json, or any candidates; FILE#WRITER for "
        "one of several writers. Repeat it to compare checkpoints.",
    )
    policy: tuple[Any, ...] = Field(
        default=(),
        description="A policy that answers the baseline's prompts: model folder or Hub id, "
        "openai:MODEL@URL, serve:COMMAND. Repeat it to compare checkpoints.",
    )
    baseline: Any = Field(default=None, description="The baseline's answers, as for answers.")
    judge: Any = Field(
        default=None,
        description="reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, "
        "python:module:function, or a checkpoint.",
    )
    annotations: Path | None = Field(
        default=None,
        description="AlpacaEval's annotations.json: judged already; nothing is bought.",
    )
    mt_bench: Path | None = Field(
        default=None,
        description="MT-bench's question.jsonl: the policy answers both turns, the judge rates "
        "each.",
    )
    task: tuple[str, ...] = Field(
        default=(),
        description="Task of lm-evaluation-harness, TASK or TASK:SHOTS, or the suite data-dpo. "
        "Repeat it.",
    )
