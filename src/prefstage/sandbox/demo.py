"""The demo: advice in the sandbox's world, the truth it is about, and an alignment by stages."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from pydantic import Field

from prefstage.aligning import Advised, advise, align
from prefstage.aligning.advice import DEPTHS
from prefstage.core import LEDGER, Config, Ledger, progress, read_json_lines, run_folder, write_json
from prefstage.data import Candidates, Pair, PairSet, ResponseEncoder
from prefstage.judging.base import Judge
from prefstage.judging.loading import CallableJudge, FunctionOptions
from prefstage.sampling import SamplingConfig, TransformersSampler, requests_for
from prefstage.sampling.base import collect
from prefstage.sandbox.language import CHATTY, GRUFF, WRITERS, Writer
from prefstage.sandbox.policy import build_policy, build_tokenizer, train_sft
from prefstage.sandbox.world import World, true_preference, true_reward

JUDGE = "python:prefstage.sandbox:true_preference"
"""The world's program as a judge, for ``--judge``."""

CANDIDATES: dict[str, Any] = {"off": "off", "on": "on", "mix: 0.5": {"mix": 0.5}}
"""Data to choose between, as recipes have them: the pairs, own answers, and both mixed."""

_Z_95 = 1.96
_EXAMPLES = 30
TEACHERS = (CHATTY, GRUFF)
"""Whose answers the policy has learnt before the loop: skilled ones, of bad manners."""
SAMPLING = SamplingConfig(responses=4, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=32)
"""How policies answer; the longest right answer takes 13 tokens."""
_RESPONSES = 2  # of each policy to each prompt, for the truth: as many as measuring takes


class DemoConfig(Config):
    """What the demo makes; the defaults take a few minutes on two cores."""

    seed: int = Field(default=0, ge=0, description="Of world, training, sampling, measuring.")
    pairs: int = Field(default=1_024, ge=24, description="Off-policy pairs; a third is for advice.")
    held_out: int = Field(default=1_000, ge=2, description="Prompts to evaluate on.")
    demonstrations: int = Field(default=6_000, ge=1, description="Answers to learn from.")
    sft_steps: int = Field(default=600, ge=1, description="Training steps before the loop.")
    epochs: float = Field(default=3, gt=0, description="Of each iteration's training.")


@dataclass(frozen=True)
class PoolMade:
    """The off-policy pairs are written.

    Attributes:
        path: Their file, for `load_pairs`.
        pairs: Their number.
        rewards: Mean true reward of each writer's answers, best first.
        example: One of them.
    """

    path: Path
    pairs: int
    rewards: dict[str, float]
    example: Candidates


@dataclass(frozen=True)
class PolicyTrained:
    """The policy to be aligned is there.

    Attributes:
        folder: Its checkpoint, for `from_pretrained`.
        parameters: Number of its weights.
        reused: Whether it lay there from an earlier run.
    """

    folder: Path
    parameters: int
    reused: bool


@dataclass(frozen=True)
class Gain:
    """A mean over held-out prompts.

    Attributes:
        gain: Of the true reward, in [-1, 1].
        error: Its standard error.
    """

    gain: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Gain":
        """The mean of two or more values, one a prompt."""
        return cls(mean(values), stdev(values) / math.sqrt(len(values)))

    def __str__(self) -> str:
        """With its 95 % interval."""
        return f"{self.gain:+.3f} ± {_Z_95 * self.error:.3f}"


@dataclass(frozen=True)
class AdviceChecked:
    """Advice beside the truth.

    Attributes:
        advice: At every depth.
        gains: Of a full training on every candidate, by the name that advice calls it: how much
            the true reward of the answer to each held-out prompt rose, in [-1, 1].
    """

    advice: tuple[Advised, ...]
    gains: dict[str, list[float]]

    @property
    def truth(self) -> dict[str, Gain]:
        """What every candidate gained, the best first."""
        gains = {name: Gain.of(values) for name, values in self.gains.items()}
        return dict(sorted(gains.items(), key=lambda entry: -entry[1].gain))

    @property
    def behind(self) -> dict[str, Gain]:
        """By depth: how much less the candidate that it named gained than the best."""
        best = self.gains[next(iter(self.truth))]
        return {
            advised.result["depth"]: Gain.of(
                [a - b for a, b in zip(best, self.gains[advised.choice], strict=True)]
            )
            for advised in self.advice
        }


@dataclass(frozen=True)
class IterationDone:
    """One iteration of the alignment.

    Attributes:
        row: As in align.json: the stage as measured before its training, what it trained on and
            why, and how its answers to the held-out prompts compare with the start's.
        boundary: The true boundary score before its training, in [0, 1].
        before: Mean true reward of its answers to the held-out prompts, in [0, 1].
        after: The same after its training.
    """

    row: Mapping[str, Any]
    boundary: float
    before: float
    after: float


DemoPart = PoolMade | PolicyTrained | Advised | AdviceChecked | IterationDone


@dataclass(frozen=True)
class DemoReport:
    """All that the demo found.

    Attributes:
        config: What was asked for.
        folder: Where everything lies.
        pool: The off-policy pairs.
        policy: The policy before the loop.
        checked: Advice, and what is true.
        iterations: Of the alignment.
        answers: By the start and the last policy, to the example.
    """

    config: DemoConfig
    folder: Path
    pool: PoolMade
    policy: PolicyTrained
    checked: AdviceChecked
    iterations: tuple[IterationDone, ...]
    answers: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "config": self.config.model_dump(mode="json"),
            "folder": str(self.folder),
            "pairs": {
                "file": str(self.pool.path),
                "pairs": self.pool.pairs,
                "true_rewards": self.pool.rewards,
            },
            "policy": str(self.policy.folder),
            "parameters": self.policy.parameters,
            "judge": JUDGE,
            "advice": {
                advised.result["depth"]: {
                    **advised.result,
                    "behind_the_best": vars(self.checked.behind[advised.result["depth"]]),
                }
                for advised in self.checked.advice
            },
            "truth": {name: vars(gain) for name, gain in self.checked.truth.items()},
            "iterations": [
                {
                    **{name: done.row[name] for name in ("iteration", "data", "reason", "stage")},
                    "true_boundary_score": done.boundary,
                    "true_reward": {"before": done.before, "after": done.after},
                    "win_rate": done.row["evaluation"]["win_rate"],
                }
                for done in self.iterations
            ],
            "answers": list(self.answers),
        }


def run_demo(
    out: Path,
    *,
    config: DemoConfig | None = None,
    writers: Sequence[Writer] = WRITERS,
    tell: Callable[[DemoPart], None] | None = None,
) -> DemoReport:
    """Make the world and a policy, take advice, see what is true, and align by stages.

    Args:
        out: A run folder: ``world`` (data and policy), ``runs`` (a folder of `advise`, of a full
            training on each candidate, and of the alignment), ``store`` (what they share) and
            ``demo.json``. The same demo goes on there after a kill, and uses what is there.
        config: Sizes and seed.
        writers: Who writes the off-policy pairs.
        tell: Called with each part as soon as it is done.

    Returns:
        Everything found; nothing in it is decided beforehand.

    Raises:
        RunFolderError: If `out` holds something else, or another process works in it.
    """
    config, tell = config or DemoConfig(), tell or (lambda part: None)
    inputs = {**config.model_dump(mode="json"), "writers": [repr(writer) for writer in writers]}
    with run_folder(out, command="demo", inputs=inputs) as folder, ExitStack() as stack:
        # On one thread: so small a model gains nothing from more, and loses much on a busy
        # machine; and its results do not depend on the number of cores.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        world = World(config.seed)
        pairs = list(world.pairs(config.pairs, writers=writers))
        pool = _save_pool(pairs, folder / "world" / "pairs.jsonl")
        world.pairs(config.held_out, split="test").save(folder / "world" / "held_out.jsonl")
        tell(pool)
        policy = train_policy(folder / "world" / "policy", config=config)
        tell(policy)
        advice = list[Advised]()
        for depth in DEPTHS:
            advice.append(
                advise(
                    recipe_of(folder, config),
                    out=folder / "runs" / "advise",
                    judge=true_judge(),
                    depth=depth,
                    store=folder / "store",
                )
            )
            tell(advice[-1])
        checked = AdviceChecked(
            tuple(advice), {name: _gains(folder, config, name) for name in CANDIDATES}
        )
        tell(checked)
        iterations, last = _aligned(folder, config, pairs, tell)
        answers = tuple(
            _answers(folder, spec, config, [pool.example])[0][0]
            for spec in (str(policy.folder), last)
        )
        report = DemoReport(config, folder, pool, policy, checked, iterations, answers)
        write_json(folder / "demo.json", report.as_dict())
    return report


def train_policy(folder: Path, *, config: DemoConfig) -> PolicyTrained:
    """Train the policy that is to be aligned on answers of `TEACHERS`, in turn.

    Args:
        folder: Where the checkpoint shall lie; if it exists, it is taken from there.
        config: Sizes, steps and seed.

    Returns:
        Where it is.
    """
    tokenizer = build_tokenizer()
    model = build_policy(tokenizer, seed=config.seed)
    trained = PolicyTrained(folder, model.num_parameters(), folder.exists())
    if trained.reused:
        return trained
    world, encoder, count = World(config.seed), ResponseEncoder(tokenizer), config.demonstrations
    by_teacher = [world.demonstrations(count, writer=teacher) for teacher in TEACHERS]
    # Every instruction once, the teachers in turn.
    lessons = (by_teacher[number % len(TEACHERS)][number] for number in range(count))
    unfinished = folder.parent / f".{folder.name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with progress("training the policy", config.sft_steps) as tick:
        train_sft(
            model,
            [encoder.encode(prompt, [response]) for prompt, response in lessons],
            steps=config.sft_steps,
            seed=config.seed,
            on_step=lambda step, loss: tick(note=f"loss {loss:.2f}"),
        )
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    # Only a finished training gets the name, so that a killed one is not taken for it.
    unfinished.rename(folder)
    return trained


def recipe_of(
    folder: Path, config: DemoConfig, schedule: Any = "auto", *, iterations: int = 1
) -> dict[str, Any]:
    """The demo's recipe, as `prefstage advise` and `prefstage align` take it.

    Args:
        folder: The demo's, where its world lies.
        config: The demo's.
        schedule: As in any recipe.
        iterations: Likewise.

    Returns:
        The recipe's settings.
    """
    world = folder / "world"
    return {
        "policy": str(world / "policy"),
        "off_policy": str(world / "pairs.jsonl"),
        "judge": JUDGE,
        "iterations": iterations,
        "schedule": schedule,
        "advise": {"candidates": [*CANDIDATES.values()]},
        "sampling": SAMPLING.model_dump(exclude={"seed"}, exclude_defaults=True),
        "train": {
            "loss": [{"name": "sigmoid", "beta": 0.1}, {"name": "sft", "weight": 1.0}],
            "training": {
                "per_device_train_batch_size": 32,
                "num_train_epochs": config.epochs,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.1,
                "logging_steps": 8,
                "save_strategy": "no",
            },
        },
        "evaluate": {
            "prompts": str(world / "held_out.jsonl"),
            "win_rate": {"length_controlled": False},
        },
        "seed": config.seed,
    }


def _gains(folder: Path, config: DemoConfig, name: str) -> list[float]:
    """What a full training on a candidate gains, by held-out prompt."""
    recipe = recipe_of(folder, config, CANDIDATES[name])
    out, store = folder / "runs" / name.replace(": ", "-"), folder / "store"
    result = align(recipe, out=out, judge=true_judge(), store=store).result
    before, after = rewards_of(folder, result)
    return [b - a for a, b in zip(before, after, strict=True)]


def _aligned(
    folder: Path, config: DemoConfig, pairs: Sequence[Pair], tell: Callable[[DemoPart], None]
) -> tuple[tuple[IterationDone, ...], str]:
    """Align in two iterations, by the measured stage: they, and the last policy."""
    recipe = recipe_of(folder, config, iterations=2)
    out, store = folder / "runs" / "align", folder / "store"
    result = align(recipe, out=out, judge=true_judge(), store=store).result
    start, iterations = result["start"], list[IterationDone]()
    rewards = pairwise(map(mean, rewards_of(folder, result)))
    for row, (before, after) in zip(result["iterations"], rewards, strict=True):
        answers = _answers(folder, start, config, [pair.candidates() for pair in pairs])
        iterations.append(IterationDone(row, true_boundary(pairs, answers), before, after))
        tell(iterations[-1])
        start = str(store / "steps" / row["steps"]["train"] / "model")
    return tuple(iterations), start


def rewards_of(folder: Path, result: Mapping[str, Any]) -> list[list[float]]:
    """True rewards of the answers to the held-out prompts, which an alignment compared.

    Args:
        folder: The demo's.
        result: As in the alignment's align.json.

    Returns:
        Of the start, and after every iteration: the reward of each answer, in [0, 1].
    """
    steps = [result["start_answers"], *(row["steps"]["answer"] for row in result["iterations"])]
    files = (folder / "store" / "steps" / step / "answers.jsonl" for step in steps)
    return [
        [true_reward(tuple(row["prompt"]), row["text"]) for row in read_json_lines(file)]
        for file in files
    ]


def _answers(
    folder: Path, policy: str, config: DemoConfig, rows: Sequence[Candidates]
) -> list[list[str]]:
    """A policy's answers to each row's prompt, from the store as far as it has them."""
    sampling = SAMPLING.model_copy(update={"seed": config.seed})
    sampler = TransformersSampler.load(policy, sampling)
    requests = requests_for(rows, responses=_RESPONSES)
    texts = {}
    with (
        Ledger(folder / "store" / LEDGER) as ledger,
        progress("answers to all prompts, for the truth", len(requests)) as tick,
    ):
        for sample in collect(sampler, requests, ledger, key=sampler.fingerprint):
            texts[sample.prompt_id, sample.index] = sample.text
            tick()
    return [[texts[row.prompt_id, k] for k in range(_RESPONSES)] for row in rows]


def true_judge() -> Judge:
    """The program's own preference as a judge: `JUDGE`, asked in one order only."""
    return CallableJudge(true_preference, options=FunctionOptions(symmetric=True), name=JUDGE)


def true_boundary(pairs: Sequence[Pair], responses: Sequence[Sequence[str]]) -> float:
    """A policy's boundary score, from true rewards alone (no judge, no measuring code).

    Args:
        pairs: The off-policy pairs, with their true rewards as scores.
        responses: The policy's responses to each pair's prompt, in order.

    Returns:
        The share of comparisons with the pairs that the responses win by true reward; draws count
        half. In [0, 1].
    """
    shares = []
    for pair, texts in zip(pairs, responses, strict=True):
        on = [true_reward(pair.prompt, text) for text in texts]
        off = [score for score in pair.candidates().scores if score is not None]
        shares.append(mean((a > b) + (a == b) / 2 for a in on for b in off))
    return mean(shares)


def _save_pool(pairs: Sequence[Pair], path: Path) -> PoolMade:
    """Write the pairs, and say how good their writers are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PairSet.of(pairs).save(path)
    rewards = dict[str, list[float]]()
    for pair in pairs:
        rewards.setdefault(str(pair.source_chosen), []).append(pair.score_chosen or 0.0)
        rewards.setdefault(str(pair.source_rejected), []).append(pair.score_rejected or 0.0)
    # The longest instruction of the first few shows much of the language
    example = max(pairs[:_EXAMPLES], key=lambda pair: len(pair.prompt[-1]["content"]))
    means = {name: mean(scores) for name, scores in rewards.items()}
    ranked = dict(sorted(means.items(), key=lambda entry: -entry[1]))
    return PoolMade(path=path, pairs=len(pairs), rewards=ranked, example=example.candidates())
