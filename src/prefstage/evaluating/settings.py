"""What an evaluation may be told, and which settings go together."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prefstage.core import Config, InputError
from prefstage.data.settings import ChatSettings
from prefstage.measuring.settings import ENOUGH_MODELS, FEWEST_MODELS
from prefstage.sampling.base import AnswerConfig

# What has no effect on a kind of evaluation, and what has one on a single kind only.
_IDLE = {
    "annotations": ("dynamics", "joint_difficulty"),
    "mt_bench": (
        *("answers", "baseline", "prompt_order", "stop_early", "dynamics"),
        "joint_difficulty",
    ),
    "task": (
        *("answers", "baseline", "judge", "prompt_order", "stop_early", "references", "repeats"),
        *("temperature", "top_p", "top_k", "beams", "dynamics", "joint_difficulty"),
    ),
}
_ONLY = {
    **dict.fromkeys(("references", "repeats", "rating_tokens"), "mt_bench"),
    **dict.fromkeys(("task_data", "apply_chat_template"), "task"),
}


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
        "one of several writers, FILE#random for one answer a prompt by chance, FILE#chosen for "
        "that side of pairs. Repeat it to compare checkpoints.",
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


def kind_of(settings: EvaluateSettings, out: Path | None) -> str:
    """The kind of evaluation that is asked for; settings of another, or of none, are refused.

    Args:
        settings: What is evaluated, and by what.
        out: The run folder, if any.

    Returns:
        "annotations", "mt_bench", "task", or "" where answers are judged against a baseline's.

    Raises:
        InputError: If a setting is of another kind, or one is missing.
    """
    named = {
        *(name for name in settings.model_fields_set if getattr(settings, name)),
        *settings.sampling.model_fields_set,
        *(["out"] if out is not None else []),
    }
    kind, *others = [name for name in _IDLE if name in named] or [""]
    wrong = [
        *others,
        *(name for name in _IDLE.get(kind, ()) if name in named),
        *(name for name, only in _ONLY.items() if name in named and kind != only),
    ]
    if wrong:
        raise InputError.of(
            saw=f"{_flag(wrong[0])} and {_flag(kind)}"
            if kind
            else f"{_flag(wrong[0])} without {_flag(_ONLY[wrong[0]])}",
            expected="options of one kind of evaluation",
            cure=f"leave {_flag(wrong[0])} out",
        )
    if kind in ("", "annotations"):
        _check_win_rate(settings, named, kind)
        return kind
    needed = ("policy", "judge", "out") if kind == "mt_bench" else ("policy",)
    missing = [name for name in needed if name not in named]
    InputError.unless(
        not missing and len(settings.policy) <= 1,
        saw=f"{_flag(kind)} without {_flag(missing[0])}" if missing else "two policies",
        expected=f"one {', one '.join(map(_flag, needed))}",
        cure=f"add {_flag(missing[0])}" if missing else "evaluate them one by one",
    )
    return kind


def _check_win_rate(settings: EvaluateSettings, named: set[str], kind: str) -> None:
    models = len(settings.answers) + len(settings.policy)
    sampling = next(iter((*settings.sampling.model_fields_set, *settings.encoding)), "")
    judged = next(
        (name for name in ("answers", "policy", "baseline", "judge") if name in named), ""
    )
    # Of each fault whether it is there, what was seen, what was expected, and what to do.
    nothing, what = "nothing of the kind", "a model to evaluate"
    faults: list[tuple[Any, str, str, str]] = [
        (
            sampling and not settings.policy,
            f"{_flag(sampling)} without --policy",
            "options of sampling beside a policy that answers",
            f"leave {_flag(sampling)} out, or give --policy MODEL",
        ),
        (
            settings.joint_difficulty and models < FEWEST_MODELS,
            f"--joint-difficulty with {models} model{'s' if models > 1 else ''}",
            ENOUGH_MODELS,
            "give more --answers or --policy, or leave --joint-difficulty out",
        ),
        (
            kind and judged,
            f"--annotations and --{judged}",
            "annotations, which are judged, or answers that are to be judged",
            "leave one of them out",
        ),
        (not kind and not models, nothing, what, "give --answers FILE or --policy MODEL"),
        *(
            (not kind and name not in named, nothing, f"--{name}", f"add --{name}")
            for name in ("baseline", "judge", "out")
        ),
        (
            not kind and settings.lookup != "instruction",
            f"--lookup {settings.lookup} without --annotations",
            "a file whose row numbers were published",
            "leave it out",
        ),
    ]
    for wrong, saw, expected, cure in faults:
        InputError.unless(
            not wrong,
            saw=saw,
            expected=expected,
            cure=cure,
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
