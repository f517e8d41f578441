"""What DPO does to rankings, on the sandbox world: a weakly trained policy, off-policy pairs.

Trains the sandbox's weak policy by DPO on the pool of other writers' pairs, follows a fixed
subsample through training, prints shares of the four flip groups, checks every recorded point
against Theorem 4.1 of arXiv:2405.19534, and draws the figures.

Run: python benchmarks/dynamics.py --out FOLDER [--beta 0.1] [--steps 120] [--seed 0]
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from prefstage.data import ResponseEncoder
from prefstage.diagnosing import FLIP_GROUPS, fluctuation_range
from prefstage.sandbox import World, build_policy, build_tokenizer, train_sft
from prefstage.training import (
    DisplacementWarning,
    DynamicsCallback,
    PreferenceArguments,
    PreferenceTrainer,
    draw_dynamics,
    read_dynamics,
    read_metrics,
)

DEMONSTRATIONS, WEAK_STEPS = 2_000, 60
TRAIN_PAIRS, TEST_PAIRS, FOLLOWED = 1_000, 300, 300
MEASUREMENTS = 10


def main() -> None:
    """Train, check, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DisplacementWarning)
        train(options)
    seconds = time.perf_counter() - began
    metrics = read_metrics(options.out / "dynamics")
    print_table(metrics)
    print_theorem(read_dynamics(options.out / "dynamics").to_pylist())
    wandered = fluctuation_range([entry["dynamics/intra_diversity/mean"] for entry in metrics])
    print(f"intra-diversity wandered by {wandered:.2f} nats")
    for each in told:
        if each.category is DisplacementWarning:
            print(f"warning: {each.message}")
    files = draw_dynamics(options.out / "dynamics", out=options.out / "figures")
    print(f"{seconds:.0f} s; figures: {', '.join(file.name for file in files)}")


def train(options: argparse.Namespace) -> None:
    """Train the weak policy by DPO with dynamics."""
    tokenizer, world = build_tokenizer(), World(options.seed)
    policy = build_policy(tokenizer, seed=options.seed)
    encoder = ResponseEncoder(tokenizer)
    shown = [
        encoder.encode(prompt, [text]) for prompt, text in world.demonstrations(DEMONSTRATIONS)
    ]
    train_sft(policy, shown, steps=WEAK_STEPS, seed=options.seed)
    trainer = PreferenceTrainer(
        policy,
        PreferenceArguments(
            output_dir=str(options.out / "run"),
            loss={"name": "sigmoid", "beta": options.beta},
            per_device_train_batch_size=32,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            eval_strategy="steps",
            eval_steps=max(1, options.steps // MEASUREMENTS),
            logging_steps=max(1, options.steps // MEASUREMENTS),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=options.seed,
        ),
        train_dataset=world.pairs(TRAIN_PAIRS),
        eval_dataset=world.pairs(TEST_PAIRS, split="test"),
        processing_class=tokenizer,
        callbacks=[DynamicsCallback(options.out / "dynamics", subsample=FOLLOWED)],
    )
    trainer.train()


def print_table(metrics: list[dict[str, float]]) -> None:
    """Print the training pairs' figures over training, and the end on test pairs."""
    print("step   loss     R    R~  reward acc.   ", "  ".join(FLIP_GROUPS), "  chosen  rejected")
    for entry in metrics:
        print_line(entry, "dynamics/")
    print("on test pairs:")
    print_line(metrics[-1], "eval_dynamics/")


def print_line(entry: dict[str, float], prefix: str) -> None:
    """Print one measurement."""
    shares = [entry[f"{prefix}flips/{group.replace('->', '_to_')}/share"] for group in FLIP_GROUPS]
    print(
        f"{entry['step']:4d} {entry[prefix + 'loss']:6.3f}"
        f" {entry[prefix + 'rankings/accuracy']:6.1%}"
        f" {entry[prefix + 'rankings/normalised_accuracy']:6.1%}"
        f" {entry[prefix + 'rewards/accuracies']:6.1%}    ",
        "  ".join(f"{share:15.1%}" for share in shares),
        f"{entry[prefix + 'displacement/chosen']:8.2f}"
        f" {entry[prefix + 'displacement/rejected']:8.2f}",
    )


def print_theorem(rows: list[dict[str, Any]]) -> None:
    """Compare sides of the threshold with rankings, from the recorded numbers alone."""
    wrong = sum((row["loss"] <= row["threshold"]) != row["correct"] for row in rows)
    nearest = min(abs(row["loss"] / row["threshold"] - 1) for row in rows)
    print(f"{len(rows)} points, {wrong} on the wrong side of their threshold;", end=" ")
    print(f"the nearest is {nearest:.1e} of its threshold away")
    wrong_at_first = [r for r in rows if r["reference_log_ratio"] > 0 and r["set"] == "train"]
    last = max(row["step"] for row in rows)
    flipped = [row for row in wrong_at_first if row["step"] == last and row["correct"]]
    before = [row for row in wrong_at_first if row["step"] == last]
    furthest = max((row["reference_log_ratio"] for row in flipped), default=0.0)
    print(f"flipped to right: {len(flipped)} of {len(before)} pairs", end=" ")
    print(f"that the reference has wrong, none beyond c = {furthest:.2f} nats")


if __name__ == "__main__":
    main()
