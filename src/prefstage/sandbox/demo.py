"""The demo: two policies of the sandbox's world, their measured stages, and the truth."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

from prefstage.core.files import write_json
from prefstage.core.progress import progress
from prefstage.core.runs import RunFolder
from prefstage.data import Candidates, CandidateSet, ResponseEncoder
from prefstage.judging.base import Judge
from prefstage.judging.function import CallableJudge, FunctionOptions
from prefstage.measuring import MeasureConfig, measure_stage
from prefstage.sampling import Sampler, SamplingConfig, TransformersSampler, requests_for
from prefstage.sandbox.demo_report import (
    JUDGE,
    DemoConfig,
    DemoPart,
    DemoReport,
    PoliciesTrained,
    PolicyMeasured,
    PoolMade,
    Truth,
)
from prefstage.sandbox.policy import build_policy, build_tokenizer
from prefstage.sandbox.reward import true_preference, true_reward
from prefstage.sandbox.sft import train_sft
from prefstage.sandbox.world import World
from prefstage.sandbox.writers import WRITERS, Writer

MAX_NEW_TOKENS = 32  # the longest right response takes 13

_HALF = 0.5
_EXAMPLES = 30


def run_demo(
    out: Path,
    *,
    config: DemoConfig | None = None,
    writers: Sequence[Writer] = WRITERS,
    tell: Callable[[DemoPart], None] | None = None,
) -> DemoReport:
    """Make the world, train two policies, and measure the stage of each.

    Args:
        out: A run folder: ``pool.jsonl``, ``policies/``, ``measurements/`` and ``demo.json``.
            The same demo goes on there after a kill, and uses what is there.
        config: Sizes and seed.
        writers: Who writes the off-policy pool.
        tell: Called with each part as soon as it is done.

    Returns:
        Everything found; nothing in it is decided beforehand.

    Raises:
        RunFolderError: If `out` holds something else.
    """
    config = config or DemoConfig()
    tell = tell or (lambda part: None)
    inputs = {**config.model_dump(mode="json"), "writers": [repr(writer) for writer in writers]}
    folder = RunFolder.open(out, command="demo", inputs=inputs)
    candidates = World(config.seed).candidates(config.prompts, writers=writers)
    pool = _save_pool(candidates, folder.file("pool.jsonl"))
    tell(pool)
    policies = []
    with _one_thread():
        training = train_policies(folder.file("policies"), config=config)
        tell(training)
        for name, checkpoint in training.folders.items():
            run = folder.file("measurements") / name
            policies.append(measure_policy(name, checkpoint, candidates, out=run, seed=config.seed))
            tell(policies[-1])
    report = DemoReport(config, folder.path, pool, training, tuple(policies))
    write_json(folder.file("demo.json"), report.as_dict())
    return report


def train_policies(folder: Path, *, config: DemoConfig) -> PoliciesTrained:
    """Train one policy and keep it early ("weak") and at the end ("strong").

    Args:
        folder: Where the checkpoints shall lie; if it exists, they are taken from there.
        config: Sizes, steps and seed.

    Returns:
        Where they are.
    """
    steps = {"weak": config.weak_steps, "strong": config.strong_steps}
    names = {count: name for name, count in steps.items()}
    tokenizer = build_tokenizer()
    model = build_policy(tokenizer, seed=config.seed)
    trained = PoliciesTrained(
        folders={name: folder / name for name in steps},
        steps=steps,
        parameters=model.num_parameters(),
        reused=folder.exists(),
    )
    if trained.reused:
        return trained
    encoder = ResponseEncoder(tokenizer)
    trees = [
        encoder.encode(prompt, [response])
        for prompt, response in World(config.seed).demonstrations(config.demonstrations)
    ]
    # Both checkpoints move to their place together, so a killed training is no finished one.
    unfinished = folder.parent / f".{folder.name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with progress("training", config.strong_steps) as tick:

        def after_step(step: int, loss: float) -> None:
            tick(note=f"loss {loss:.2f}")
            if step in names:
                model.save_pretrained(unfinished / names[step])
                tokenizer.save_pretrained(unfinished / names[step])

        train_sft(model, trees, steps=config.strong_steps, seed=config.seed, on_step=after_step)
    unfinished.rename(folder)
    return trained


def measure_policy(
    name: str, checkpoint: Path, pool: CandidateSet, *, out: Path, seed: int
) -> PolicyMeasured:
    """Measure one policy against the pool as `prefstage measure` does, and look up the truth.

    Args:
        name: The policy's name.
        checkpoint: Its folder.
        pool: The off-policy responses.
        out: The measurement's run folder.
        seed: Of sampling and measuring.

    Returns:
        The stage and the truth.
    """
    sampler = TransformersSampler.load(
        str(checkpoint),
        SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, seed=seed),
        device="cpu",
    )
    stage = measure_stage(
        pool, judge=true_judge(), sampler=sampler, config=MeasureConfig(seed=seed), out=out
    )
    responses = _sample_all(sampler, pool)
    example = _example(list(pool))
    response = responses[example][0]
    return PolicyMeasured(
        name=name,
        folder=out,
        response=response,
        grade=true_reward(pool[example].prompt, response),
        stage=stage,
        truth=true_boundary(pool, responses),
    )


def true_judge() -> Judge:
    """The program's own preference as a judge: `JUDGE`, asked in one order only."""
    return CallableJudge(true_preference, options=FunctionOptions(symmetric=True), name=JUDGE)


def true_boundary(pool: CandidateSet, responses: Sequence[Sequence[str]]) -> Truth:
    """The truth about a policy, from true rewards alone (no judge, no measuring code).

    Args:
        pool: The off-policy responses, with their true rewards as scores.
        responses: The policy's responses to each prompt of the pool, in order.

    Returns:
        The true boundary score and reward.
    """
    shares, rewards = [], []
    for row, texts in zip(pool, responses, strict=True):
        on = [true_reward(row.prompt, text) for text in texts]
        off = [score for score in row.scores if score is not None]
        shares.append(mean((a > b) + _HALF * (a == b) for a in on for b in off))
        rewards.append(mean(on))
    return Truth(boundary_score=mean(shares), reward=mean(rewards))


def _sample_all(sampler: Sampler, pool: CandidateSet) -> list[list[str]]:
    """The policy's responses to every prompt: the same as measuring gets, and the rest."""
    count = MeasureConfig().on_responses
    requests = requests_for(pool, responses=count)
    with progress("sampling all prompts, for the truth", len(requests)) as tick:
        texts = {}
        for sample in sampler.sample(requests):
            texts[sample.prompt_id, sample.index] = sample.text
            tick()
    return [[texts[row.prompt_id, index] for index in range(count)] for row in pool]


def _save_pool(candidates: CandidateSet, path: Path) -> PoolMade:
    """Write the pool, and say how good its writers are."""
    candidates.save(path)
    rows = list(candidates)
    found: dict[str, list[float]] = {}
    for row in rows:
        for source, score in zip(row.sources, row.scores, strict=True):
            found.setdefault(str(source), []).append(score or 0.0)
    means = {name: mean(scores) for name, scores in found.items()}
    ranked = dict(sorted(means.items(), key=lambda entry: -entry[1]))
    return PoolMade(path=path, prompts=len(rows), rewards=ranked, example=rows[_example(rows)])


def _example(rows: Sequence[Candidates]) -> int:
    """A row that shows much of the language: the longest instruction of the first few."""
    return max(
        range(min(_EXAMPLES, len(rows))), key=lambda place: len(rows[place].prompt[-1]["content"])
    )


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
