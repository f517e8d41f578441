"""The demo: an alignment in the sandbox's world, by stages and by fixed schedules."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from pydantic import Field

from prefstage.aligning import align
from prefstage.core import Config, progress, read_json_lines, run_folder, write_json
from prefstage.data import Candidates, Pair, PairSet, ResponseEncoder
from prefstage.judging.base import Judge
from prefstage.judging.loading import CallableJudge, FunctionOptions
from prefstage.measuring import Stage
from prefstage.sampling import SamplingConfig, TransformersSampler, requests_for
from prefstage.sandbox.language import CHATTY, GRUFF, WRITERS, Writer
from prefstage.sandbox.policy import build_policy, build_tokenizer, train_sft
from prefstage.sandbox.world import World, true_preference, true_reward

JUDGE = "python:prefstage.sandbox:true_preference"
"""The world's program as a judge, for ``--judge``."""

AUTO = "auto"
FIXED = ("off,off", "on,on", "on,off", "off,on")
"""Schedules that do not look: off-policy or on-policy pairs in each of two iterations."""

EVEN = 0.5
_EXAMPLES = 30
TEACHERS = (CHATTY, GRUFF)
"""Whose answers the policy has learnt before the loop: skilled ones, of bad manners."""
SAMPLING = SamplingConfig(responses=4, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=32)
"""How policies answer; the longest right answer takes 13 tokens."""
_RESPONSES = 2  # of each policy to each prompt, for the truth: as many as measuring takes

Crossing = Literal["crossed", "not crossed", "beyond from the start"]


class DemoConfig(Config):
    """What the demo makes; the defaults take a few minutes on two cores."""

    seed: int = Field(default=0, ge=0, description="Of world, training, sampling, measuring.")
    pairs: int = Field(default=1_024, ge=2, description="Off-policy pairs.")
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
class Truth:
    """What only the sandbox knows of a policy, from its answers to every prompt of the pairs.

    Attributes:
        boundary_score: Share of comparisons with the pairs that the policy's answers win by
            true reward; draws count half. In [0, 1].
        reward: Mean true reward of the policy's answers, in [0, 1].
        answer: Its first answer to the example.
        grade: That answer's true reward, in [0, 1].
    """

    boundary_score: float
    reward: float
    answer: str = ""
    grade: float = 0.0

    @property
    def stage(self) -> str:
        """The stage by the true boundary score."""
        return "injection" if self.boundary_score < EVEN else "fine-tuning"


@dataclass(frozen=True)
class IterationDone:
    """One iteration of `auto`.

    Attributes:
        number: From 1.
        data: What it trained on: "off" or "on".
        stage: As measured before its training.
        truth: What was so before its training.
        before: Mean true reward of its answers to the held-out prompts, in [0, 1].
        after: The same after its training.
        win_rate: Of the trained policy over the start, on the held-out prompts, in percent.
    """

    number: int
    data: str
    stage: Stage
    truth: Truth
    before: float
    after: float
    win_rate: float


@dataclass(frozen=True)
class ScheduleDone:
    """Two iterations by one schedule.

    Attributes:
        schedule: "auto", or as of `FIXED`.
        folder: The run folder of `prefstage align`.
        data: What each iteration trained on.
        rewards: Mean true reward of the answers to the held-out prompts: of the start, and
            after each iteration.
    """

    schedule: str
    folder: Path
    data: tuple[str, ...]
    rewards: tuple[float, ...]


DemoPart = PoolMade | PolicyTrained | IterationDone | ScheduleDone


@dataclass(frozen=True)
class DemoReport:
    """All that the demo found.

    Attributes:
        config: What was asked for.
        folder: Where everything lies.
        pool: The off-policy pairs.
        policy: The policy before the loop.
        iterations: Of `auto`.
        last: The truth about the last policy of `auto`.
        schedules: `auto` first, then the fixed ones.
    """

    config: DemoConfig
    folder: Path
    pool: PoolMade
    policy: PolicyTrained
    iterations: tuple[IterationDone, ...]
    last: Truth
    schedules: tuple[ScheduleDone, ...]

    @property
    def crossing(self) -> Crossing:
        """Whether the measured stage went from injection to fine-tuning."""
        stages = [iteration.stage.stage for iteration in self.iterations]
        if stages[0] == "fine-tuning":
            return "beyond from the start"
        return "crossed" if stages[0] == "injection" and "fine-tuning" in stages else "not crossed"

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
            "crossing": self.crossing,
            "iterations": [
                {
                    "iteration": iteration.number,
                    "data": iteration.data,
                    "stage": iteration.stage.as_dict(),
                    "truth": {
                        name: getattr(iteration.truth, name)
                        for name in ("boundary_score", "reward", "stage")
                    },
                    "true_reward": {"before": iteration.before, "after": iteration.after},
                    "win_rate": iteration.win_rate,
                }
                for iteration in self.iterations
            ],
            "schedules": {
                done.schedule: {
                    "run": str(done.folder),
                    "data": list(done.data),
                    "true_reward": list(done.rewards),
                }
                for done in self.schedules
            },
        }


def run_demo(
    out: Path,
    *,
    config: DemoConfig | None = None,
    writers: Sequence[Writer] = WRITERS,
    tell: Callable[[DemoPart], None] | None = None,
) -> DemoReport:
    """Make the world and a policy, and align it in two iterations: by stage, and as fixed.

    Args:
        out: A run folder: ``world`` (data and policy), ``runs`` (a folder of `align` for each
            schedule), ``store`` (what they share) and ``demo.json``. The same demo goes on
            there after a kill, and uses what is there.
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
        auto, result = _aligned(folder, config, AUTO)
        iterations, schedules = list[IterationDone](), list[ScheduleDone]()
        start, steps = result["start"], folder / "store" / "steps"
        for row, (before, after) in zip(result["iterations"], pairwise(auto.rewards), strict=True):
            iterations.append(
                IterationDone(
                    row["iteration"],
                    row["data"],
                    Stage.load(steps / row["steps"]["measure"] / "stage.json"),
                    _truth(start, config, pairs, pool.example),
                    before,
                    after,
                    row["evaluation"]["win_rate"],
                )
            )
            tell(iterations[-1])
            start = str(steps / row["steps"]["train"] / "model")
        for schedule in (AUTO, *FIXED):
            schedules.append(auto if schedule == AUTO else _aligned(folder, config, schedule)[0])
            tell(schedules[-1])
        report = DemoReport(
            config,
            folder,
            pool,
            policy,
            tuple(iterations),
            _truth(result["policy"], config, pairs, pool.example),
            tuple(schedules),
        )
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


def _aligned(
    folder: Path, config: DemoConfig, schedule: str
) -> tuple[ScheduleDone, Mapping[str, Any]]:
    """Run a schedule by a recipe, as `prefstage align` takes it: what it came to, in two forms."""
    world, store = folder / "world", folder / "store"
    out = folder / "runs" / schedule.replace(",", "-")
    recipe = {
        "policy": str(world / "policy"),
        "off_policy": str(world / "pairs.jsonl"),
        "judge": JUDGE,
        "iterations": 2,
        "schedule": schedule,
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
    result = align(recipe, out=out, judge=true_judge(), store=store).result
    # Of the answers that were compared on the held-out prompts: nothing is sampled for it.
    steps = [result["start_answers"], *(row["steps"]["answer"] for row in result["iterations"])]
    rewards = tuple(reward_of(store / "steps" / step / "answers.jsonl") for step in steps)
    return ScheduleDone(
        schedule, out, tuple(row["data"] for row in result["iterations"]), rewards
    ), result


def _truth(policy: str, config: DemoConfig, pairs: Sequence[Pair], example: Candidates) -> Truth:
    sampling = SAMPLING.model_copy(update={"seed": config.seed, "responses": _RESPONSES})
    sampler = TransformersSampler.load(policy, sampling, device="cpu")
    requests = requests_for((pair.candidates() for pair in pairs), responses=_RESPONSES)
    texts = {}
    with progress("answers to all prompts, for the truth", len(requests)) as tick:
        for sample in sampler.sample(requests):
            texts[sample.prompt_id, sample.index] = sample.text
            tick()
    text = texts[example.prompt_id, 0]
    return replace(
        true_boundary(
            pairs, [[texts[pair.prompt_id, k] for k in range(_RESPONSES)] for pair in pairs]
        ),
        answer=text,
        grade=true_reward(example.prompt, text),
    )


def true_judge() -> Judge:
    """The program's own preference as a judge: `JUDGE`, asked in one order only."""
    return CallableJudge(true_preference, options=FunctionOptions(symmetric=True), name=JUDGE)


def reward_of(answers: Path) -> float:
    """The mean true reward of answers on file.

    Args:
        answers: As a step of `align` writes them: prompt and text in each line.

    Returns:
        The mean, in [0, 1].
    """
    return mean(true_reward(tuple(row["prompt"]), row["text"]) for row in read_json_lines(answers))


def true_boundary(pairs: Sequence[Pair], responses: Sequence[Sequence[str]]) -> Truth:
    """The truth about a policy, from true rewards alone (no judge, no measuring code).

    Args:
        pairs: The off-policy pairs, with their true rewards as scores.
        responses: The policy's responses to each pair's prompt, in order.

    Returns:
        The true boundary score and reward.
    """
    shares, rewards = [], []
    for pair, texts in zip(pairs, responses, strict=True):
        on = [true_reward(pair.prompt, text) for text in texts]
        off = [score for score in pair.candidates().scores if score is not None]
        shares.append(mean((a > b) + EVEN * (a == b) for a in on for b in off))
        rewards.append(mean(on))
    return Truth(boundary_score=mean(shares), reward=mean(rewards))


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
