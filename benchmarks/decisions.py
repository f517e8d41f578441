"""The decision bench: which data should a policy train on next, and who names them rightly?

    python benchmarks/decisions.py [--out decisions] [--worlds 1 2 3] [--processes 2]

In worlds of the sandbox, whose reward is known, every policy is trained by every loss on every
candidate data set, in full and in part, with several seeds; and everything that could have told
beforehand which one gains most is measured: figures of the data, the boundary score, forecasts,
and pilots on a share of the pairs, valued by sampling and by scoring.

The folder gets one JSON file a measurement; what is there is not done again, so the bench may be
stopped at any time, and several processes share the work. Everything is decided by the seed of
the world.
"""

import argparse
import fcntl
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

PAIRS, BATCH, EPOCHS = 384, 16, 3
HELD_OUT, DEVELOPMENT, TARGET, VALUED = 400, 200, 512, 256  # prompts
TARGETS, GRADIENT_PAIRS = (64, 128, 256, TARGET), (48, 96, 192, PAIRS)  # that forecasts are made of
OWN, ANSWERS = 4, 8  # own answers a prompt: for pairs, and for the target direction and values
POLICIES = (100, 150, 250, 400, 600)  # steps of supervised training
GROUPS = 8  # of the jackknife
SHARES = (1 / 16, 1 / 8, 1 / 4)
FULL_SEEDS, PILOT_SEEDS = (0, 1, 2), (10, 11)
LOSSES: dict[str, tuple[Any, float]] = {
    "dpo": ("sigmoid", 2.5e-4),
    "dpo+sft": ("sigmoid + sft", 2e-3),
    "slic": ("slic", 1e-3),
    "ipo": ("ipo", 2.5e-4),
    "simpo": ("simpo", 2.5e-4),
}
"""Each loss with its learning rate: of `RATES`, that whose mean gain over all candidates is
largest, by one full training each from one policy of a world of which nothing else is used. The
rule does not ask which data gained more."""

RATES = (6.25e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
TUNING_WORLD, TUNED_POLICY = 0, 250

CANDIDATES = ("best", "two", "poor", "own", "mixed", "other")
"""Best against worst of four writers; two writers at random; poor writers only; own answers, best
against worst; own answers mixed into "best"; best against worst of another model's answers."""


@dataclass(frozen=True)
class Bench:
    """One world with everything in it, made when needed and kept in its folder."""

    folder: Path
    seed: int

    @cached_property
    def world(self) -> Any:
        """Instructions, writers and their mistakes."""
        from prefstage.sandbox import World

        return World(self.seed)

    @cached_property
    def temperature(self) -> float:
        """What rewards are divided by to be log-odds."""
        from prefstage.sandbox.world import TEMPERATURE

        return TEMPERATURE

    @cached_property
    def pool(self) -> list[Any]:
        """Prompts of all candidates, with four writers' answers."""
        return list(self.world.candidates(PAIRS, responses=4))

    @cached_property
    def target_prompts(self) -> list[Any]:
        """Prompts that no candidate trains on."""
        return list(self.world.candidates(PAIRS + TARGET))[PAIRS:]

    @cached_property
    def held_out(self) -> list[Any]:
        """Prompts of the truth."""
        return list(self.world.candidates(HELD_OUT, split="test"))

    @cached_property
    def development(self) -> list[Any]:
        """Prompts on which pilots are valued by sampling: none of the truth's."""
        rows = self.world.candidates(HELD_OUT + DEVELOPMENT, split="test")
        return list(rows)[HELD_OUT:]

    def policy(self, steps: int, *, seed: int | None = None) -> Path:
        """The folder of a policy, trained if it is not there."""
        from prefstage.sandbox.demo import DemoConfig, train_policy

        seed = self.seed if seed is None else seed
        folder = self.folder / "policies" / f"{steps}-{seed}"
        with locked(folder):
            train_policy(folder, config=DemoConfig(seed=seed, sft_steps=steps))
        return folder

    @lru_cache(maxsize=8)  # noqa: B019 - benches live as long as the process
    def answers(self, policy: Path, prompts: str, count: int, seed: int) -> list[Any]:
        """A policy's answers with their true rewards."""
        return sampled(policy, getattr(self, prompts), count, seed=seed)

    @lru_cache(maxsize=8)  # noqa: B019
    def data(self, steps: int, candidate: str) -> Any:
        """The pairs of a candidate."""
        from prefstage.sandbox import GUESSER, HASTY

        if candidate == "two":
            return self.world.pairs(PAIRS)
        if candidate == "poor":
            return best_against_worst(
                self.world.candidates(PAIRS, writers=(HASTY, GUESSER), responses=4)
            )
        if candidate == "best":
            return best_against_worst(self.pool)
        if candidate == "other":
            other = self.policy(max(POLICIES), seed=self.seed + 1_000)
            return best_against_worst(self.answers(other, "pool", OWN, 1))
        own = self.answers(self.policy(steps), "pool", OWN, 1)
        return (
            best_against_worst(own) if candidate == "own" else mixed(self.data(steps, "best"), own)
        )

    @lru_cache(maxsize=8)  # noqa: B019
    def start(self, steps: int, prompts: str) -> float:
        """Mean true reward of the start's answers."""
        return reward(self.answers(self.policy(steps), prompts, 1, 3))

    @lru_cache(maxsize=8)  # noqa: B019
    def valued(self, steps: int) -> tuple[list[Any], Any, Any]:
        """The start's answers that pilots are valued on: encoded, rewards, log-probs."""
        import torch

        from prefstage.data import ResponseEncoder, load_tokenizer
        from prefstage.scoring import Scorer

        policy = self.policy(steps)
        rows = self.answers(policy, "target_prompts", ANSWERS, 2)[:VALUED]
        encoder = ResponseEncoder(load_tokenizer(str(policy)))
        trees = [
            encoder.encode(row.prompt, [row.message(n) for n in range(ANSWERS)]) for row in rows
        ]
        rewards = torch.tensor([row.scores for row in rows])
        return trees, rewards, log_probs(Scorer.load(str(policy)), trees)


# --- Data ----------------------------------------------------------------------------------------


def sampled(policy: Path, rows: Sequence[Any], count: int, *, seed: int) -> list[Any]:
    """Answers of a policy to prompts, every one with its true reward."""
    from prefstage.sampling import TransformersSampler, requests_for
    from prefstage.sampling.base import to_candidates
    from prefstage.sandbox import true_reward
    from prefstage.sandbox.demo import SAMPLING

    config = SAMPLING.model_copy(update={"seed": seed, "responses": count})
    sampler = TransformersSampler.load(str(policy), config, device="cpu")
    samples = list(sampler.sample(requests_for(rows, responses=count)))
    return [
        replace(row, scores=tuple(true_reward(row.prompt, text) for text in row.responses))
        for row in to_candidates(rows, samples, source="policy")
    ]


def log_probs(scorer: Any, trees: Sequence[Any]) -> Any:
    """Of every answer. [prompts, answers]."""
    import torch

    return torch.stack([scored.sums for scored in scorer.score(trees, show_progress=False)])


def reward(answers: Sequence[Any]) -> float:
    """Mean true reward."""
    return mean(score for row in answers for score in row.scores)


def best_against_worst(rows: Any) -> Any:
    """A pair of each prompt whose answers differ in reward."""
    from prefstage.data import Pair, PairSet

    pairs = []
    for row in rows:
        order = sorted(range(len(row.scores)), key=row.scores.__getitem__)
        low, high = order[0], order[-1]
        if row.scores[high] > row.scores[low]:
            pairs.append(
                Pair(
                    row.prompt_id,
                    row.prompt,
                    (row.message(high),),
                    (row.message(low),),
                    score_chosen=row.scores[high],
                    score_rejected=row.scores[low],
                )
            )
    return PairSet.of(pairs)


def mixed(pairs: Any, own: Sequence[Any]) -> Any:
    """DataDPO's Algorithm 1 on every second prompt: the best own answer joins its pair."""
    from prefstage.data import PairSet

    best = {row.prompt_id: row for row in own[::2]}
    made = []
    for pair in pairs:
        row = best.get(pair.prompt_id)
        if row is None:
            made.append(pair)
            continue
        top = max(range(len(row.scores)), key=row.scores.__getitem__)
        answer, score = (row.message(top),), row.scores[top]
        if score > pair.score_chosen:
            made.append(
                replace(
                    pair,
                    chosen=answer,
                    rejected=pair.chosen,
                    score_chosen=score,
                    score_rejected=pair.score_chosen,
                )
            )
        elif score < pair.score_chosen:
            made.append(replace(pair, rejected=answer, score_rejected=score))
        else:
            made.append(pair)
    return PairSet.of(made)


# --- Training ------------------------------------------------------------------------------------


def trainer_of(
    policy: Path, data: Any, loss: str, *, seed: int, out: str, rate: float | None = None
) -> Any:
    """A trainer with the bench's recipe."""
    from prefstage.training import PreferenceArguments, PreferenceTrainer

    arguments = PreferenceArguments(
        output_dir=out,
        loss=LOSSES[loss][0],
        learning_rate=rate or LOSSES[loss][1],
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = PreferenceTrainer(str(policy), arguments, train_dataset=data)
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def share_of(data: Any, share: float, seed: int, *, whole: int = PAIRS) -> Any:
    """The first part of the pairs in an order of the seed's; the share is of the whole's number."""
    import random

    from prefstage.data import PairSet

    rows = list(data)
    random.Random(seed).shuffle(rows)
    return data if share == 1 else PairSet.of(rows[: round(share * whole)])


def trained(
    bench: Bench,
    steps: int,
    loss: str,
    candidate: str,
    *,
    share: float,
    seed: int,
    rate: float | None = None,
) -> dict[str, Any]:
    """Train, and value what came out: by its true reward, by sampling, and by scoring."""
    from prefstage.advising.pilots import value_by_scoring
    from prefstage.data import load_tokenizer
    from prefstage.scoring import Scorer

    policy = bench.policy(steps)
    data = share_of(bench.data(steps, candidate), share, seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(policy, data, loss, seed=seed, out=folder, rate=rate)
        trainer.train()
        model = Path(folder, "trained")
        trainer.model.save_pretrained(model)
        load_tokenizer(str(policy)).save_pretrained(model)
        result: dict[str, Any] = {"pairs": len(data), "steps": trainer.state.global_step}
        if share == 1:
            answers = sampled(model, bench.held_out, 1, seed=3)
            result["gain"] = reward(answers) - bench.start(steps, "held_out")
            return result
        answers = sampled(model, bench.development, 1, seed=4)
        before = bench.answers(policy, "development", 1, 3)
        gains = [a.scores[0] - b.scores[0] for a, b in zip(answers, before, strict=True)]
        result["sampled"] = gains
        trees, rewards, start = bench.valued(steps)
        ratios = log_probs(Scorer(trainer.model.eval()), trees) - start
        for form in ("self-normalised", "clipped", "first-order"):
            value = value_by_scoring(ratios, rewards, form=form)
            result[form] = [round(v, 6) for v in value.by_prompt.tolist()]
            result["sample_size"] = value.sample_size
    return result


# --- What tells beforehand -----------------------------------------------------------------------


def figures(bench: Any, steps: int, candidate: str) -> dict[str, Any]:
    """Figures of a data set and of the policy on it, and its boundary score against it.

    DCRM as recalled: (σ(r_w - r_l) - ½) / (token edit distance + |log π(y_w) - log π(y_l)|).
    """
    from prefstage.data import ResponseEncoder, load_tokenizer
    from prefstage.diagnosing.flips import LEARNABILITY_GROUPS, learnability_groups
    from prefstage.scoring import Scorer

    pairs = list(bench.data(steps, candidate))
    policy = str(bench.policy(steps))
    encoder = ResponseEncoder(load_tokenizer(policy))
    trees = [encoder.encode(pair.prompt, [*pair.chosen, *pair.rejected]) for pair in pairs]
    chosen, rejected = log_probs(Scorer.load(policy), trees).double().unbind(1)
    easy = learnability_groups(rejected - chosen) == LEARNABILITY_GROUPS.index("easy to flip")
    margins = [sigmoid(pair.score_chosen - pair.score_rejected) - 0.5 for pair in pairs]
    distances = [edit_distance(*tree.response_ids) for tree in trees]
    own = {row.prompt_id: row.scores for row in bench.answers(bench.policy(steps), "pool", OWN, 1)}
    votes, probabilities = [], []
    for pair in pairs:
        mine = own[pair.prompt_id][:2]
        theirs = (pair.score_chosen, pair.score_rejected)
        votes += [(a > b) + 0.5 * (a == b) for a in mine for b in theirs]
        probabilities += [sigmoid((a - b) / bench.temperature) for a in mine for b in theirs]
    return {
        "chosen": mean(pair.score_chosen for pair in pairs),
        "difference": mean(pair.score_chosen - pair.score_rejected for pair in pairs),
        "intra_diversity": float((chosen - rejected).mean()),
        "ranked": float((chosen > rejected).double().mean()),
        "easy_to_flip": float(easy.double().mean()),
        "dcrm": mean(
            margin / (distance + apart + 1e-6)
            for margin, distance, apart in zip(
                margins, distances, (chosen - rejected).abs().tolist(), strict=True
            )
        ),
        "boundary_votes": mean(votes),
        "boundary_probabilities": mean(probabilities),
    }


def sigmoid(value: float) -> float:
    """1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-value))


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens inserted, removed or exchanged at least, from one text to the other."""
    row = list(range(len(b) + 1))
    for i, token in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (token != other))
    return row[-1]


def forecasts(bench: Bench, steps: int) -> dict[str, Any]:
    """Forecasts of every candidate by every loss, of several numbers of pairs and of prompts."""
    from prefstage.advising.forecast import (
        ExpectedReward,
        forecast,
    )
    from prefstage.advising.gradients import Basis, Gradients, halves_agree
    from prefstage.data import CandidateSet
    from prefstage.losses import LossMix, LossTerm
    from prefstage.training.datasets import item_set_of

    policy = bench.policy(steps)
    goal = LossMix((LossTerm(ExpectedReward()),))
    answers = CandidateSet.of(bench.answers(policy, "target_prompts", ANSWERS, 2))
    result: dict[str, Any] = {}
    targets: dict[int, Any] = {}
    for loss, (_, rate) in LOSSES.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(policy, bench.data(steps, "own"), loss, seed=0, out=folder)
            basis = Basis(trainer.model)
            gradients = Gradients(trainer, basis)
            if not targets:  # they do not depend on the loss
                items = item_set_of(answers, trainer.encoder, goal)
                batches = chunks(range(TARGET), 8)
                whole = gradients.drift(items, batches, groups=len(batches), loss=goal)
                targets = {count: first_of(whole, count // 8) for count in TARGETS}
                result["halves"] = {n: halves_agree(t, basis) for n, t in targets.items()}
            for candidate in CANDIDATES:
                items = item_set_of(bench.data(steps, candidate), trainer.encoder, trainer.loss)
                trainer.compute_references(items)
                batches = chunks(range(len(items)), BATCH)
                whole = gradients.drift(items, batches, groups=len(batches))
                recipe: dict[str, Any] = {"batch": BATCH, "epsilon": 1e-8, "largest_norm": 1.0}
                for pairs in GRADIENT_PAIRS:
                    drift = first_of(whole, pairs // BATCH)
                    for (prompts, target), family in product(targets.items(), ("adam", "sgd")):
                        made = forecast(target, drift, basis, family=family, **recipe)
                        key = f"{loss}|{candidate}|{pairs}|{prompts}|{family}"
                        result[key] = _figures(made, rate)
    return result


# With what each group of prompts or batches left out gives: two candidates share the prompts, so a
# difference has less noise than its parts.
def _figures(made: Any, rate: float) -> dict[str, Any]:
    figures = {}
    for name, factor in (("gain", rate), ("cosine", 1.0), ("agreement", 1.0)):
        estimate = getattr(made, name)
        (by_batches,) = estimate.by_batches
        figures |= {
            name: factor * estimate.value,
            f"{name}_prompts": [factor * value for value in estimate.by_prompts.tolist()],
            f"{name}_batches": [factor * value for value in by_batches.tolist()],
        }
    return figures


def first_of(drift: Any, batches: int) -> Any:
    """The first batches of a drift that has a group a batch, in up to eight groups."""
    import torch

    from prefstage.advising.gradients import Drift

    batches = min(batches, len(drift.counts))
    spans = chunks(range(batches), math.ceil(batches / GROUPS))
    sums, squares, counts = (
        torch.stack([values[span].sum(0) for span in spans])
        for values in (drift.sums, drift.squares, drift.counts)
    )
    return Drift(sums, squares, counts, drift.size)


def chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive parts."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


# --- Running -------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes what stands at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


Measurements = Iterator[tuple[str, Callable[[], dict[str, Any]]]]
"""Of each measurement the name of its file, and how it is made."""


def trials(bench: Bench) -> Measurements:
    """Full trainings of one policy with every rate, from which the rule chooses one a loss."""
    for loss, rate, candidate in product(LOSSES, RATES, CANDIDATES):
        task = (bench, TUNED_POLICY, loss, candidate)
        yield (
            f"rates/{loss}-{rate:g}-{candidate}",
            partial(trained, *task, share=1.0, seed=FULL_SEEDS[0], rate=rate),
        )


def chosen_rates(out: Path) -> dict[str, dict[float, float]]:
    """For each loss and rate, the mean gain over all candidates in the tuning world."""
    folder = out / f"world-{TUNING_WORLD}" / "rates"

    def gain(loss: str, rate: float, candidate: str) -> float:
        text = (folder / f"{loss}-{rate:g}-{candidate}.json").read_text("utf-8")
        return float(json.loads(text)["gain"])

    return {
        loss: {rate: mean(gain(loss, rate, c) for c in CANDIDATES) for rate in RATES}
        for loss in LOSSES
    }


def measurements(bench: Bench) -> Measurements:
    """Every measurement of a world: the name of its file, and how it is made; cheap ones first."""
    for steps in POLICIES:
        for candidate in CANDIDATES:
            yield f"figures/{steps}-{candidate}", partial(figures, bench, steps, candidate)
    for steps in POLICIES:
        yield f"forecasts/{steps}", partial(forecasts, bench, steps)
    runs = [(1.0, seed) for seed in FULL_SEEDS]
    runs += [(share, seed) for share in SHARES for seed in PILOT_SEEDS]
    for share, seed in runs:
        for steps in POLICIES:
            for loss in LOSSES:
                for candidate in CANDIDATES:
                    name = f"runs/{steps}-{loss}-{candidate}-{share:g}-{seed}"
                    task = (bench, steps, loss, candidate)
                    yield name, partial(trained, *task, share=share, seed=seed)


def fill(folder: Path, wanted: Measurements, *, label: str) -> None:
    """Make what is missing, one measurement after another."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import datasets
    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)  # so small a model gains nothing from more
    datasets.disable_progress_bars()
    disable_progress_bar()
    for name, make in wanted:
        file = folder / f"{name}.json"
        claim = file.with_suffix(".claimed")
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(claim, "w", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another process is at it
            if file.exists():
                continue
            made = make()
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(made), encoding="utf-8")
            temporary.replace(file)
        print(f"{label}: {name}", flush=True)


def work(out: Path, worlds: Sequence[int]) -> None:
    """Make what is missing in worlds."""
    for seed in worlds:
        bench = Bench(out / f"world-{seed}", seed)
        wanted = trials(bench) if seed == TUNING_WORLD else measurements(bench)
        fill(bench.folder, wanted, label=f"world {seed}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("decisions"))
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    context = get_context("spawn")
    processes = [
        context.Process(target=work, args=(asked.out, asked.worlds)) for _ in range(asked.processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if TUNING_WORLD in asked.worlds:
        for loss, gains in chosen_rates(asked.out).items():
            print(loss, {rate: round(gain, 4) for rate, gain in gains.items()})
    sys.exit(max(abs(process.exitcode or 0) for process in processes))


if __name__ == "__main__":
    main()
