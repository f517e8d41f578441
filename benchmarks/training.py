"""Speed and memory of a training step, against TRL's DPOTrainer, on the same pairs.

    python benchmarks/training.py [--model FOLDER] [--shared FOLDER] [--out FILE.json]

The model is a checkpoint folder (default PREFSTAGE_CHAT_MODEL; see prepare_chat_model.py), the
texts are those of the shared data (default PREFSTAGE_SHARED or ../shared). DPO, full
fine-tuning, AdamW, the same pairs, batch and precision on all sides:

- ours at its defaults;
- TRL at its defaults (the reference model beside the policy, gradient checkpointing on), on
  the batches that ours has, in the same order, so that the two loss trajectories are one curve;
- TRL at its best: reference log-probs computed beforehand, no checkpointing, and the batch in
  micro-batches of M pairs ("TRL best, M"), since smaller ones have less padding. M = 1 has
  nothing to group and keeps our order; others group by length through a length column.

TRL's head is fused in every setting. "..., huge pages" (with --sides) gives that side the allocator
setting that the commands of prefstage make (THP_MEM_ALLOC_ENABLE).

Each side trains one epoch in a process of its own; they take their optimiser steps in turns. A
step's time is from the end of the step before to its own end: data, forward and backward passes
and optimiser. The first two steps of each are left out: in them the process's memory still grows to
its full size. What is computed before training (reference
log-probs) is given in a column of its own. Peak memory is
the process's highest resident memory during training (on a GPU, the allocator's).

The floor is the arithmetic that no exact method can leave out, at the machine's matrix rate
(the median of what is measured before each step):
every distinct text prefix of a batch once through the body, the vocabulary once a response
token, attention over what each token sees; three times each, for forward and backward pass.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from machine import MIB, floor_flops, matrix_rate, memory_now, memory_peak, tell
from training_pairs import ANSWERS, HH, TrainingSetup, in_our_order, pairs_of

OURS = "prefstage"
DEFAULTS, BEST, HUGE = "TRL defaults", "TRL best, ", ", huge pages"
SIDES = (OURS, DEFAULTS, BEST + "1")
WARM = 2  # first steps left out: memory still grows in them


# --- What the processes do ----------------------------------------------------------------


class Turns:
    """Trainer callback: one optimiser step a word from the parent."""

    def __init__(self, end: Connection, device: str, model: Any) -> None:
        self.end, self.device, self.model = end, device, model

    def wait(self) -> None:
        """Wait for the parent's word."""
        self.end.recv()
        self.rate = matrix_rate(self.model, 1024)
        self.started = time.perf_counter()

    def finished(self) -> None:
        """Tell the parent what the step took, and wait for the next."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.end.send({"seconds": time.perf_counter() - self.started, "rate": self.rate})
        self.wait()


def work(end: Connection, setup: TrainingSetup, side: str) -> None:
    """A process: one side's training, step by step."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if side == OURS:
        from prefstage.cli.main import tune_allocator

        tune_allocator()  # as `prefstage train` does
    else:
        os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(side.endswith(HUGE)))
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    torch.set_num_threads(setup.threads)
    dtype = torch.bfloat16 if setup.device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=dtype).to(setup.device)
    tokenizer = AutoTokenizer.from_pretrained(setup.model)
    rows = pairs_of(setup, quiet=side != OURS)
    turns = Turns(end, setup.device, model)

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            memory_now(setup.device)
            turns.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.finished()

    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "per_device_train_batch_size": setup.batch,
            "num_train_epochs": 1,
            "learning_rate": 5e-7,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "seed": setup.seed,
            "bf16": setup.device == "cuda",
            "use_cpu": setup.device == "cpu",
            "disable_tqdm": True,
        }
        started = time.perf_counter()
        if side == OURS:
            trainer = our_trainer(model, tokenizer, rows, common)
        else:
            trainer = peer_trainer(model, tokenizer, rows, setup, common, side=side)
        trainer.add_callback(Steps())
        end.send({"ready": time.perf_counter() - started})
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        end.send({"losses": losses, "peak": memory_peak(setup.device)})


def our_trainer(model: Any, tokenizer: Any, rows: list[Any], common: dict[str, Any]) -> Any:
    """PreferenceTrainer at its defaults."""
    from datasets import Dataset

    from prefstage.training import PreferenceArguments, PreferenceTrainer

    arguments = PreferenceArguments(**common, loss={"name": "sigmoid", "beta": 0.1})
    trainer = PreferenceTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.compute_references()
    return trainer


def peer_trainer(
    model: Any,
    tokenizer: Any,
    rows: list[Any],
    setup: TrainingSetup,
    common: dict[str, Any],
    *,
    side: str,
) -> Any:
    """TRL's DPOTrainer at its defaults or at its best."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    ordered = in_our_order(rows, setup)
    settings: dict[str, Any] = {"train_sampling_strategy": "sequential"}
    if side.startswith(BEST):
        micro = int(side.removeprefix(BEST).removesuffix(HUGE))
        if micro > 1:
            ordered = [row | {"length": peer_length(tokenizer, row)} for row in ordered]
            settings = {
                "train_sampling_strategy": "group_by_length",
                "remove_unused_columns": False,  # it would remove the length column
            }
        settings |= {
            "precompute_ref_log_probs": True,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": setup.batch // micro,
        }
    arguments = DPOConfig(**common | settings, beta=0.1, max_length=None)
    return DPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(ordered), processing_class=tokenizer
    )


def peer_length(tokenizer: Any, row: dict[str, Any]) -> int:
    """Tokens of a pair's longer side, which decide how far its batch is padded."""
    sides = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
    return max(len(tokenizer.apply_chat_template(side, return_dict=False)) for side in sides)


# --- The parent ---------------------------------------------------------------------------


def run(setup: TrainingSetup, sides: tuple[str, ...]) -> dict[str, Any]:
    """All sides' steps, in turns."""
    from multiprocessing import get_context

    context = get_context("spawn")
    ends, ready = {}, {}
    for side in sides:
        ends[side], far = context.Pipe()
        context.Process(target=work, args=(far, setup, side), daemon=True).start()
        far.close()
        ready[side] = ends[side].recv()
        tell(f"{side}: ready after {ready[side]['ready']:.1f} s")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for step in range(setup.steps):
        order = sides if step % 2 else sides[::-1]
        for side in order:
            ends[side].send("go")
            told = ends[side].recv()
            seconds[side].append(told["seconds"])
            rates[side].append(told["rate"])
        tell(f"step {step}: " + ", ".join(f"{side} {seconds[side][-1]:.2f} s" for side in sides))
    ended = {}
    for side in sides:
        ends[side].send("go")
        ended[side] = ends[side].recv()
    return {
        side: {
            "seconds": seconds[side],
            "before_s": ready[side]["ready"],
            "rates": rates[side],
            **ended[side],
        }
        for side in sides
    }


def floor_seconds(setup: TrainingSetup, rate: float) -> list[float]:
    """The floor of each of our steps, and the tokens that it counts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefstage.data import ResponseEncoder

    rows = in_our_order(pairs_of(setup), setup)
    encoder = ResponseEncoder(AutoTokenizer.from_pretrained(setup.model))
    trees = [
        encoder.encode(row["prompt"], [row[s][0]["content"] for s in ("chosen", "rejected")])
        for row in rows
    ]
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)
    floors = []
    for start in range(0, len(trees), setup.batch):
        flops = floor_flops(model, trees[start : start + setup.batch])
        work_flops = flops["body"] + flops["vocabulary"] + flops["attention"]
        floors.append(3 * work_flops / rate)
    return floors


def summary(setup: TrainingSetup, found: dict[str, Any]) -> dict[str, Any]:
    """Rates and ratios, the first `WARM` steps left out."""
    rate = statistics.median(rate for side in found.values() for rate in side["rates"])
    floor_s = sum(floor_seconds(setup, rate)[WARM:])
    pairs = setup.batch * (setup.steps - WARM)
    result: dict[str, Any] = {
        "workload": setup.workload,
        "steps": setup.steps,
        "batch": setup.batch,
        "matrix_gflop_s": rate / 1e9,
        "sides": {},
    }
    for side, got in found.items():
        total = sum(got["seconds"][WARM:])
        result["sides"][side] = {
            "pairs_per_s": pairs / total,
            "before_s": got["before_s"],
            "peak_mib": got["peak"] / MIB,
            "floor_share": floor_s / total,
            "losses": got["losses"],
            "seconds": got["seconds"],
        }
    return result


def print_results(results: list[dict[str, Any]]) -> None:
    """The tables."""
    print(
        "\n| workload | side | pairs/s | prefstage is faster by | before training s | peak MiB |"
        " share of peak | share of floor |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        ours = result["sides"][OURS]
        for side, one in result["sides"].items():
            ratio = ours["pairs_per_s"] / one["pairs_per_s"]
            print(
                f"| {result['workload']} | {side} | {one['pairs_per_s']:.3f} | {ratio:.2f}× "
                f"| {one['before_s']:.0f} | {one['peak_mib']:.0f} "
                f"| {ours['peak_mib'] / one['peak_mib']:.2f} | {one['floor_share']:.0%} |"
            )
    for result in results:
        print(
            f"\n{result['workload']}: loss of each step "
            f"({result['matrix_gflop_s']:.0f} GFLOP/s in matrix products)"
        )
        print("| step | " + " | ".join(result["sides"]) + " |")
        print("|---" * (1 + len(result["sides"])) + "|")
        for step in range(result["steps"]):
            losses = (f"{one['losses'][step]:.4f}" for one in result["sides"].values())
            print(f"| {step + 1} | " + " | ".join(losses) + " |")


def main() -> None:
    """Run every workload, print the tables, and write them as JSON if asked to."""
    import torch

    beside = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default=os.environ.get("PREFSTAGE_CHAT_MODEL"))
    parser.add_argument("--shared", default=os.environ.get("PREFSTAGE_SHARED", str(beside)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--workloads", nargs="+", choices=[HH, ANSWERS], default=[HH, ANSWERS])
    parser.add_argument("--sides", nargs="*", default=list(SIDES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.steps <= WARM:
        sys.exit(
            f"--steps {given.steps}: the first {WARM} are left out, so take {WARM + 1} or more"
        )
    if not given.model:
        sys.exit("name a model: --model FOLDER, or PREFSTAGE_CHAT_MODEL")
    results = []
    for workload in given.workloads:
        setup = TrainingSetup(
            given.model,
            given.shared,
            given.device,
            given.threads,
            given.batch,
            given.steps,
            workload,
        )
        results.append(summary(setup, run(setup, tuple(given.sides))))
        if given.out:
            given.out.write_text(json.dumps(results, indent=2), encoding="utf-8")
    print_results(results)


if __name__ == "__main__":
    main()
