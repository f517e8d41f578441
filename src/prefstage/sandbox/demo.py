"""The demo: an alignment in the sandbox's world, by stages and by fixed schedules."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from prefstage.aligning import align
from prefstage.core.files import read_json_lines, write_json
from prefstage.core.progress import progress
from prefstage.core.runs import RunFolder
from prefstage.data import Candidates, Pair, PairSet, ResponseEncoder
from prefstage.judging.base import Judge
from prefstage.judging.loading import CallableJudge, FunctionOptions
from prefstage.measuring import Stage
from prefstage.sampling import SamplingConfig, TransformersSampler, requests_for
from prefstage.sandbox.demo_report import (
    AUTO,
    FIXED,
    JUDGE,
    Answer,
    DemoConfig,
    DemoPart,
    DemoReport,
    IterationDone,
    PolicyTrained,
    PoolMade,
    ScheduleDone,
    Truth,
)
from prefstage.sandbox.policy import build_policy, build_tokenizer
from prefstage.sandbox.reward import true_preference, true_reward
from prefstage.sandbox.sft import train_sft
from prefstage.sandbox.world import World
from prefstage.sandbox.writers import CHATTY, GRUFF, WRITERS, Writer

TEACHERS = (CHATTY, GRUFF)
"""Whose answers the policy has learnt before the loop: skilled ones, of bad manners."""
SAMPLING = SamplingConfig(responses=4, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=32)
"""How policies answer; the longest right answer takes 13 tokens."""
_RESPONSES = 2  # of each policy to each prompt, for the truth: as many as measuring takes

_HALF = 0.5
_EXAMPLES = 30


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
        RunFolderError: If `out` holds something else.
    """
    config = config or DemoConfig()
    tell = tell or (lambda part: None)
    inputs = {**config.model_dump(mode="json"), "writers": [repr(writer) for writer in writers]}
    folder = RunFolder.open(out, command="demo", inputs=inputs).path
    world = World(config.seed)
    pairs = world.pairs(config.pairs, writers=writers)
    pool = _save_pool(pairs, folder / "world" / "pairs.jsonl")
    world.pairs(config.held_out, split="test").save(folder / "world" / "held_out.jsonl")
    tell(pool)
    with _one_thread():
        policy = train_policy(folder / "world" / "policy", config=config)
        tell(policy)
        found = _Found(folder, config, pairs, pool.example)
        auto = found.align(AUTO)
        iterations = found.iterations(auto)
        for done in iterations:
            tell(done)
        schedules = [found.done(AUTO, auto)]
        tell(schedules[0])
        for schedule in FIXED:
            schedules.append(found.done(schedule, found.align(schedule)))
            tell(schedules[-1])
        last = found.truth_of(auto["policy"])[1]
    report = DemoReport(config, folder, pool, policy, iterations, last, tuple(schedules))
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
    names = tuple(teacher.name for teacher in TEACHERS)
    trained = PolicyTrained(folder, names, model.num_parameters(), folder.exists())
    if trained.reused:
        return trained
    world, encoder, count = World(config.seed), ResponseEncoder(tokenizer), config.demonstrations
    taught = [world.demonstrations(count, writer=teacher) for teacher in TEACHERS]
    lessons = [taught[place % len(taught)][place] for place in range(count)]
    trees = [encoder.encode(prompt, [response]) for prompt, response in lessons]
    unfinished = folder.parent / f".{folder.name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with progress("training the policy", config.sft_steps) as tick:
        train_sft(
            model,
            trees,
            steps=config.sft_steps,
            seed=config.seed,
            on_step=lambda step, loss: tick(note=f"loss {loss:.2f}"),
        )
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)  # so that a killed training is no finished one
    return trained


def recipe(folder: Path, config: DemoConfig, schedule: str) -> dict[str, Any]:
    """The recipe of one schedule, as for `prefstage align`.

    Args:
        folder: The world's.
        config: Sizes and seed.
        schedule: As in a recipe.

    Returns:
        Its settings.
    """
    return {
        "policy": str(folder / "policy"),
        "off_policy": str(folder / "pairs.jsonl"),
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
            "prompts": str(folder / "held_out.jsonl"),
            "win_rate": {"length_controlled": False},
        },
        "seed": config.seed,
    }


class _Found:
    """Runs schedules, and looks up what is true of their policies."""

    def __init__(self, out: Path, config: DemoConfig, pairs: PairSet, example: Candidates) -> None:
        self._out = out
        self._config = config
        self._pairs = list(pairs)
        self._example = example
        self._truths: dict[str, tuple[Truth, Answer]] = {}

    def folder(self, schedule: str) -> Path:
        return self._out / "runs" / schedule.replace(",", "-")

    def align(self, schedule: str) -> dict[str, Any]:
        asked = recipe(self._out / "world", self._config, schedule)
        out = self.folder(schedule)
        return align(asked, out=out, judge=true_judge(), store=self._out / "store").result

    def done(self, schedule: str, result: Mapping[str, Any]) -> ScheduleDone:
        data = tuple(row["data"] for row in result["iterations"])
        return ScheduleDone(schedule, self.folder(schedule), data, self._rewards(result))

    def iterations(self, result: Mapping[str, Any]) -> tuple[IterationDone, ...]:
        rewards, found = self._rewards(result), []
        for place, row in enumerate(result["iterations"]):
            steps = result["iterations"][place - 1]["steps"] if place else {}
            policy = self._model(steps["train"]) if place else result["start"]
            truth, answer = self.truth_of(policy)
            measured = self._steps / row["steps"]["measure"] / "stage.json"
            before, after = rewards[place : place + 2]
            rate = row["evaluation"]["win_rate"]
            found.append(
                IterationDone(
                    *(place + 1, row["data"], Stage.load(measured), truth, answer),
                    *(before, after, rate),
                )
            )
        return tuple(found)

    @property
    def _steps(self) -> Path:
        return self._out / "store" / "steps"

    def _model(self, step: str) -> str:
        return str(self._steps / step / "model")

    def _rewards(self, result: Mapping[str, Any]) -> tuple[float, ...]:
        """True rewards on the held-out prompts, from the answers that were compared there."""
        rows = result["iterations"]
        steps = [result["start_answers"], *(row["steps"]["answer"] for row in rows)]
        return tuple(reward_of(self._steps / step / "answers.jsonl") for step in steps)

    def truth_of(self, policy: str) -> tuple[Truth, Answer]:
        """The truth about a policy, and its first answer to the example."""
        name = Path(policy).resolve().parent.name
        if name not in self._truths:
            config = SAMPLING.model_copy(
                update={"seed": self._config.seed, "responses": _RESPONSES}
            )
            sampler = TransformersSampler.load(policy, config, device="cpu")
            rows = [_asked(pair) for pair in self._pairs]
            requests = requests_for(rows, responses=_RESPONSES)
            texts = {}
            with progress("answers to all prompts, for the truth", len(requests)) as tick:
                for sample in sampler.sample(requests):
                    texts[sample.prompt_id, sample.index] = sample.text
                    tick()
            answers = [[texts[row.prompt_id, k] for k in range(_RESPONSES)] for row in rows]
            text = texts[self._example.prompt_id, 0]
            grade = true_reward(self._example.prompt, text)
            self._truths[name] = true_boundary(self._pairs, answers), Answer(text, grade)
        return self._truths[name]


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
        off = [score for score in (pair.score_chosen, pair.score_rejected) if score is not None]
        shares.append(mean((a > b) + _HALF * (a == b) for a in on for b in off))
        rewards.append(mean(on))
    return Truth(boundary_score=mean(shares), reward=mean(rewards))


def _asked(pair: Pair) -> Candidates:
    """A pair's prompt with its two answers, the better one first."""
    return Candidates(
        prompt_id=pair.prompt_id,
        prompt=pair.prompt,
        responses=tuple(str(side[-1]["content"]) for side in (pair.chosen, pair.rejected)),
        sources=(pair.source_chosen, pair.source_rejected),
        scores=(pair.score_chosen, pair.score_rejected),
    )


def _save_pool(pairs: PairSet, path: Path) -> PoolMade:
    """Write the pairs, and say how good their writers are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs.save(path)
    rows = [_asked(pair) for pair in pairs]
    found: dict[str, list[float]] = {}
    for row in rows:
        for source, score in zip(row.sources, row.scores, strict=True):
            found.setdefault(str(source), []).append(score or 0.0)
    means = {name: mean(scores) for name, scores in found.items()}
    ranked = dict(sorted(means.items(), key=lambda entry: -entry[1]))
    # the longest instruction of the first few shows much of the language
    example = max(rows[:_EXAMPLES], key=lambda row: len(row.prompt[-1]["content"]))
    return PoolMade(path=path, pairs=len(rows), rewards=ranked, example=example)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread while the block runs.

    So small a model gains nothing from more threads, and loses much on a busy machine; and
    on one thread its results do not depend on the number of cores.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
