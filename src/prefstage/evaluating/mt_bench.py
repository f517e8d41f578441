"""MT-bench by single-answer grading: two turns, a rating of 1 to 10 for each."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from pydantic import Field

from prefstage.core.config import Config
from prefstage.core.errors import DataError
from prefstage.core.hashing import digest
from prefstage.core.ledger import Ledger
from prefstage.data.records import Prompt, prompt_id_of
from prefstage.evaluating.mt_bench_prompt import (
    HIGHEST,
    LOWEST,
    grading_messages,
    prompt_fingerprint,
    read_rating,
)
from prefstage.evaluating.rates import mean_interval
from prefstage.sampling import Sampler, collect
from prefstage.sampling.base import SampleRequest, cut_thoughts
from prefstage.serving.client import ServerClient, ask_each

_log = logging.getLogger(__name__)

TURNS = 2
_AGAIN_TEMPERATURE = 0.7


class MtBenchConfig(Config):
    """How answers are graded."""

    repeats: int = Field(default=1, ge=1, description="Gradings of each answer.")
    attempts: int = Field(default=3, ge=1, description="Times asked until a rating is readable.")
    max_tokens: int = Field(default=1024, ge=1, description="Tokens of a grading.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of the score's interval.")


@dataclass(frozen=True)
class Question:
    """One question of two turns.

    Attributes:
        question_id: Its number.
        category: Such as "math".
        turns: What the user says.
        references: Reference answers by turn; empty where there are none.
    """

    question_id: int
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grade:
    """One grading of one turn's answer.

    Attributes:
        question_id: The question's.
        category: The question's.
        turn: From 1.
        repeat: From 0.
        rating: 1 to 10; None where no attempt was readable.
    """

    question_id: int
    category: str
    turn: int
    repeat: int
    rating: float | None


@dataclass(frozen=True)
class MtBench:
    """MT-bench of one model; scores from 1 to 10.

    Attributes:
        model: The model's name.
        judge: The judge's.
        score: Mean over turns of the mean over questions.
        interval: Of the score, for questions like these (see `mean_interval`); None for fewer
            than two questions with a rating.
        by_turn: Mean of each turn.
        by_category: category → mean.
        repeat_deviation: Standard deviation of the score over repeated gradings; None for
            one grading.
        grades: Every grading.
        missing: Gradings without a readable rating; they count nowhere else.
        counts: Answers of the judge: "calls", "reused", "unreadable".
    """

    model: str
    judge: str
    score: float | None
    interval: tuple[float, float] | None
    by_turn: tuple[float | None, ...]
    by_category: dict[str, float | None]
    repeat_deviation: float | None
    grades: tuple[Grade, ...]
    missing: int
    counts: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-serialisable values."""
        return asdict(self)


def load_questions(path: Path, references: Path | None = None) -> list[Question]:
    """Read questions and reference answers in FastChat's layout.

    Args:
        path: Questions, one JSON object a line: question_id, category, turns.
        references: Reference answers: question_id, choices[0].turns.

    Returns:
        The questions, in order.

    Raises:
        DataError: If a line is no such object, or a question has not two turns.
    """
    try:
        known = {
            line["question_id"]: tuple(line["choices"][0]["turns"])
            for line in (_lines(references) if references else ())
        }
        found = [
            Question(
                int(line["question_id"]),
                str(line["category"]),
                tuple(line["turns"]),
                known.get(line["question_id"], ()),
            )
            for line in _lines(path)
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError.of(
            saw=f"{path}: {type(error).__name__} {error}",
            expected="question_id, category and turns in every line",
            cure="give MT-bench's question.jsonl and its reference answers",
        ) from None
    wrong = [each.question_id for each in found if len(each.turns) != TURNS]
    if wrong or not found:
        raise DataError.of(
            saw=f"{path}: {len(found)} questions, {len(wrong)} of them without two turns",
            expected=f"questions of {TURNS} turns",
            cure="repair the file",
        )
    return found


def run_mt_bench(
    questions: Sequence[Question],
    *,
    sampler: Sampler,
    judge: ServerClient,
    folder: Path,
    config: MtBenchConfig | None = None,
) -> MtBench:
    """Let a model answer both turns of each question, and a judge rate each answer.

    Every answer and every grading is on disk, in `folder`, as soon as it arrives: a repeated
    call buys only what is not there.

    Args:
        questions: What is asked.
        sampler: Who answers.
        judge: A chat model on any OpenAI-compatible server.
        folder: Where answers and gradings are kept.
        config: How to grade.

    Returns:
        Scores by turn and category, with every grading.

    Raises:
        ServiceError: If a server fails for good; everything until then is kept.

    Source:
        Zheng et al. 2023, arXiv:2306.05685, Fig. 6 (single-answer grading); the wording is
        our own. Repeated grading: arXiv:2505.12435, App. E.
    """
    config = config or MtBenchConfig()
    with Ledger.in_folder(folder, alone=True) as ledger:
        answers = _answer(questions, sampler, ledger)
        grader = _Grader(judge, ledger, config)
        grades = grader.grade(questions, answers)
    grades.sort(key=lambda each: (each.repeat, each.question_id, each.turn))
    turns = [_mean(each for each in grades if each.turn == t) for t in range(1, TURNS + 1)]
    scores = [_score([each for each in grades if each.repeat == r]) for r in range(config.repeats)]
    told = [each for each in scores if each is not None]
    return MtBench(
        model=sampler.name,
        judge=f"openai:{judge.model or ''}@{judge.base_url}",
        score=_score(grades),
        interval=score_interval(grades, config.confidence),
        by_turn=tuple(turns),
        by_category={
            name: _mean(each for each in grades if each.category == name)
            for name in dict.fromkeys(each.category for each in questions)
        },
        repeat_deviation=stdev(told) if len(told) > 1 else None,
        grades=tuple(grades),
        missing=sum(each.rating is None for each in grades),
        counts=dict(grader.counts),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _answer(
    questions: Sequence[Question], sampler: Sampler, ledger: Ledger
) -> dict[int, tuple[str, ...]]:
    """The answers to each question, turn by turn; the second sees the first, without thought."""
    answers: dict[int, tuple[str, ...]] = {each.question_id: () for each in questions}
    for _ in range(TURNS):
        prompts = {
            each.question_id: _conversation(each, answers[each.question_id]) for each in questions
        }
        ids = {number: prompt_id_of(prompt) for number, prompt in prompts.items()}
        wanted = {ids[n]: SampleRequest(ids[n], prompt, 0) for n, prompt in prompts.items()}
        found = {each.prompt_id: each for each in collect(sampler, [*wanted.values()], ledger)}
        for line in cut_thoughts(found.values()):
            _log.warning("%s: %s", sampler.name, line)
        answers = {n: (*done, found[ids[n]].text) for n, done in answers.items()}
    return answers


def _conversation(question: Question, answers: Sequence[str]) -> Prompt:
    messages: list[dict[str, Any]] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return (*messages, {"role": "user", "content": question.turns[len(answers)]})


@dataclass(frozen=True)
class _Task:
    question: Question
    turn: int
    repeat: int
    answers: tuple[str, ...]


class _Grader:
    """Asks a judge for ratings, keeping each reply before it is read."""

    def __init__(self, judge: ServerClient, ledger: Ledger, config: MtBenchConfig) -> None:
        self._judge, self._ledger, self._config = judge, ledger, config
        self.counts: Counter[str] = Counter(calls=0, reused=0, unreadable=0)

    def grade(
        self, questions: Sequence[Question], answers: dict[int, tuple[str, ...]]
    ) -> list[Grade]:
        tasks = list(_tasks(questions, answers, self._config.repeats))
        return list(ask_each(self._judge, tasks, self._rate))

    async def _rate(self, task: _Task) -> Grade:
        key = digest(
            {
                "judge": self._judge.model or self._judge.base_url,
                "prompt": prompt_fingerprint(),
                "max_tokens": self._config.max_tokens,
                "question": asdict(task.question),
                "answers": task.answers[: task.turn],
                "turn": task.turn,
                "repeat": task.repeat,
            }
        )
        rating = None
        for attempt in range(self._config.attempts):
            known = self._ledger.get("gradings", (key, attempt))
            self.counts["calls" if known is None else "reused"] += 1
            if known is None:
                text = await self._buy(task, attempt)
                known = self._ledger.put("gradings", (key, attempt), (text,))
            rating = read_rating(known[0])
            if rating is not None:
                break
            self.counts["unreadable"] += 1
        question = task.question
        return Grade(question.question_id, question.category, task.turn, task.repeat, rating)

    async def _buy(self, task: _Task, attempt: int) -> str:
        messages = grading_messages(
            task.question.turns[: task.turn],
            task.answers[: task.turn],
            task.question.references[: task.turn],
            reminded=attempt > 0,
        )
        wanted: dict[str, Any] = {"temperature": 0.0, "max_tokens": self._config.max_tokens}
        if attempt or task.repeat:  # the same question again would get the same answer
            seed = task.repeat * self._config.attempts + attempt
            wanted |= {"temperature": _AGAIN_TEMPERATURE, "seed": seed}
        return (await self._judge.chat(messages, **wanted)).text


def _tasks(
    questions: Sequence[Question], answers: dict[int, tuple[str, ...]], repeats: int
) -> Iterator[_Task]:
    for repeat in range(repeats):
        for question in questions:
            for turn in range(1, TURNS + 1):
                yield _Task(question, turn, repeat, answers[question.question_id])


def _mean(grades: Any) -> float | None:
    ratings = [each.rating for each in grades if each.rating is not None]
    return fmean(ratings) if ratings else None


def _score(grades: Sequence[Grade]) -> float | None:
    """Mean over the turns that have ratings."""
    turns = [_mean(each for each in grades if each.turn == t) for t in range(1, TURNS + 1)]
    told = [each for each in turns if each is not None]
    return fmean(told) if told else None


def score_interval(grades: Sequence[Grade], confidence: float) -> tuple[float, float] | None:
    """Interval of the mean over questions: gradings of one question are not independent.

    Args:
        grades: Gradings of several questions.
        confidence: In (0, 1).

    Returns:
        (low, high) from 1 to 10; None where fewer than two questions have a rating.
    """
    questions = dict.fromkeys(each.question_id for each in grades)
    means = [_mean(each for each in grades if each.question_id == one) for one in questions]
    told = np.array([each for each in means if each is not None])
    if len(told) < 2:  # noqa: PLR2004 - a spread needs two
        return None
    span = HIGHEST - LOWEST
    low, high = mean_interval((told - LOWEST) / span, confidence=confidence)
    return LOWEST + span * low, LOWEST + span * high
