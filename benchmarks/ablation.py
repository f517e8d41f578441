"""What every CPU trick of the engine gives: time and memory of a step without it.

    python benchmarks/ablation.py [--model FOLDER] [--shared FOLDER] [--out FILE.json]

The model is a checkpoint folder (default PREFSTAGE_CHAT_MODEL; see prepare_chat_model.py), the
texts are those of the shared data (default PREFSTAGE_SHARED or ../shared). Two workloads:

- training: optimiser steps of DPO with AdamW at the trainer's defaults, on batches that differ
  in size as they do in training: HH pairs, and pairs of long answers beyond the token budget;
- scoring: prompts of about 400 tokens with eight responses of up to 60.

A trick is switched off in a process of its own, by replacing it before the first step. That
process and one with everything on take their steps in turns, and the table gives the median,
over the turns, of a turn's ratio: processor time and wall time of a step without the trick, over
those of the same turn with it. On a shared machine neither is steady for long, but what disturbs
a turn mostly disturbs both of its sides; the spread (middle half of the ratios) says how far to
trust a figure. Peak memory is the highest resident memory over that before the model is loaded.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import MIB, memory_now, memory_peak, tell, touched

TRAINING, SCORING = "training", "scoring"
WARM = 1  # first turns left out: memory still grows in them
LEAST_TIME, LEAST_MEMORY = 0.03, 0.05  # what a trick must give to stay


@dataclass(frozen=True)
class Setup:
    """What is run."""

    model: str
    shared: str
    threads: int
    turns: int
    pairs: int
    long_pairs: int
    joined: int
    prompts: int
    references: str  # folder of reference log-probs, which the first process computes for all


# --- The tricks, and how they are switched off ----------------------------------------------


def without_fused_norms() -> None:
    """Norms run as the model has them; nothing is there to be computed again."""
    from prefstage.scoring.cpu import fused

    fused._norm_forwards = lambda module: []


def without_fused_mlps() -> None:
    """Gated MLPs run as the model has them."""
    from prefstage.scoring.cpu import fused

    fused._mlp_forwards = lambda module: []


def without_savings(**off: Any) -> None:
    """Training passes leave out some fields of `lean.Savings`."""
    from prefstage.scoring.cpu import lean

    saving = lean.saving
    lean.saving = lambda **changes: saving(**{**changes, **off})


def without_direct_gradients() -> None:
    """Gradients are passed on and added by autograd."""
    without_savings(direct=False)


def without_pool() -> None:
    """Short-lived tensors come from the allocator, each anew."""
    without_savings(buffers=None)


def without_short_lived() -> None:
    """As above, and of the exact size."""
    from prefstage.scoring.cpu import fused

    without_pool()
    fused.short_lived = lambda shape, like: like.new_empty(shape)


def without_norms_recomputed() -> None:
    """Norms keep their results for the backward pass."""
    from prefstage.scoring.cpu.lean import Recipes

    Recipes.keeping = lambda self: nullcontext()


def without_recomputed_layers() -> None:
    """A micro-batch beyond the token budget keeps what every layer wants."""
    from prefstage.scoring.cpu import lean

    lean.recomputed_layers = lambda *_, **__: nullcontext()


def without_kept_logits() -> None:
    """The backward pass computes all logits again."""
    without_savings(room=0)


def without_tiles() -> None:
    """A block of attention's queries is one matrix a group of heads."""
    from prefstage.scoring.cpu import blockwise

    blockwise.MAX_TILES = 1


def without_huge_pages() -> None:
    """Large buffers in pages of 4 KiB (read by PyTorch at its first allocation)."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = "0"


def without_kept_memory() -> None:
    """Freed activations go back to the system, as glibc does it by itself."""
    os.environ["GLIBC_TUNABLES"] = ""  # which tells the commands to leave it alone


TRICKS: dict[str, Callable[[], None]] = {
    "fused norms": without_fused_norms,
    "fused MLPs": without_fused_mlps,
    "direct gradients": without_direct_gradients,
    "pooled buffers": without_pool,
    "pooled and padded buffers": without_short_lived,
    "norms computed again": without_norms_recomputed,
    "recomputed layers": without_recomputed_layers,
    "kept logits": without_kept_logits,
    "tiles of attention": without_tiles,
    "huge pages": without_huge_pages,
    "kept free memory (mallopt)": without_kept_memory,
}
TRAINING_ONLY = {
    "direct gradients",
    "pooled buffers",
    "norms computed again",
    "recomputed layers",
    "kept logits",
}


# --- What the processes do ------------------------------------------------------------------


class Turns:
    """Steps at the parent's word, each with what it took."""

    def __init__(self, end: Connection, before: int) -> None:
        self.end, self.before = end, before

    def ready(self) -> None:
        """Tell the parent that steps can begin; loading, which reads weights twice, is no part."""
        memory_now("cpu")
        self.end.send("ready")

    def wait(self) -> bool:
        """Wait for the word; False ends the run."""
        if not self.end.recv():
            return False
        self.wall, self.processor = time.perf_counter(), time.process_time()
        return True

    def finished(self) -> None:
        """Report a step."""
        wall, processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        peak = memory_peak("cpu") - self.before
        self.end.send({"wall": wall, "processor": processor, "peak": peak})


def work(end: Connection, setup: Setup, workload: str, trick: str | None) -> None:
    """A process: one workload with everything on, or without one trick."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from prefstage.cli.main import tune_allocator

    if trick:
        TRICKS[trick]()
    tune_allocator()
    import datasets
    import torch
    from transformers import AutoModelForCausalLM

    datasets.disable_progress_bars()
    torch.set_num_threads(setup.threads)
    turns = Turns(end, memory_now("cpu"))
    model = touched(AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32))
    {TRAINING: train, SCORING: score}[workload](model, setup, turns)


def score(model: Any, setup: Setup, turns: Turns) -> None:
    """Score the same trees, turn by turn."""
    from scoring import K8, ScoringSetup, workload as trees_of

    from prefstage.scoring import Scorer

    inner = ScoringSetup(setup.model, setup.shared, "cpu", setup.threads, 1, 1.0)
    trees = trees_of(inner, K8, setup.prompts)
    scorer = Scorer(model.eval())
    turns.ready()
    while turns.wait():
        scorer.score(trees, show_progress=False)
        turns.finished()


def train(model: Any, setup: Setup, turns: Turns) -> None:
    """Train, step by step."""
    from datasets import Dataset
    from training_pairs import ANSWERS, HH, TrainingSetup, pairs_of
    from transformers import AutoTokenizer, TrainerCallback

    from prefstage.training import PreferenceArguments, PreferenceTrainer

    common = (setup.model, setup.shared, "cpu", setup.threads)
    steps = setup.turns + WARM
    rows = pairs_of(TrainingSetup(*common, setup.pairs, steps, HH)) if setup.pairs else []
    if setup.long_pairs:
        # The longer half of a spread: larger than the token budget.
        answers = pairs_of(TrainingSetup(*common, 2 * setup.long_pairs, steps, ANSWERS))
        answers.sort(
            key=lambda row: -len(row["chosen"][0]["content"] + row["rejected"][0]["content"])
        )
        for row in answers[: setup.long_pairs * steps]:
            for side in ("chosen", "rejected"):
                row[side][0]["content"] *= setup.joined
            rows.append(row)

    class Steps(TrainerCallback):
        def on_step_begin(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            control.should_training_stop = not turns.wait()

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            if not control.should_training_stop:
                turns.finished()

    with TemporaryDirectory() as folder:
        arguments = PreferenceArguments(
            output_dir=folder,
            per_device_train_batch_size=setup.pairs + setup.long_pairs,
            max_steps=steps + 1,
            learning_rate=5e-7,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            loss={"name": "sigmoid", "beta": 0.1},
            reference_cache=setup.references,
        )
        trainer = PreferenceTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(setup.model),
        )
        trainer.compute_references()
        trainer.add_callback(Steps())
        turns.ready()
        trainer.train()


# --- The parent -----------------------------------------------------------------------------


def compare(setup: Setup, workload: str, tricks: list[str]) -> list[dict[str, Any]]:
    """Steps without each of some tricks beside steps with all, in turns."""
    context = get_context("spawn")
    ends = []
    for trick in (None, *tricks):
        end, far = context.Pipe()
        arguments = (far, setup, workload, trick)
        context.Process(target=work, args=arguments, daemon=True).start()
        far.close()
        end.recv()
        ends.append(end)
    taken: list[list[dict[str, float]]] = [[] for _ in ends]
    for turn in range(WARM + setup.turns):
        order = list(zip(ends, taken, strict=True))
        for end, steps in order if turn % 2 else reversed(order):
            end.send(True)
            steps.append(end.recv())
    for end in ends:
        end.send(False)
    results = []
    for trick, steps in zip(tricks, taken[1:], strict=True):
        result: dict[str, Any] = {"workload": workload, "trick": trick}
        for what in ("processor", "wall"):
            pairs = zip(steps[WARM:], taken[0][WARM:], strict=True)
            ratios = [without[what] / full[what] - 1 for without, full in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            result[what] = middle
            result[f"{what}_spread"] = (low, high)
            result[f"{what}_s"] = statistics.median(step[what] for step in taken[0][WARM:])
        result["peak_mib"] = taken[0][-1]["peak"] / MIB
        result["peak"] = steps[-1]["peak"] / taken[0][-1]["peak"] - 1
        tell(line(result))
        results.append(result)
    return results


def line(result: dict[str, Any]) -> str:
    """A row of the table."""

    def change(what: str) -> str:
        low, high = result[f"{what}_spread"]
        return f"{result[what]:+.1%} ({low:+.1%} to {high:+.1%})"

    stays = max(result["processor"], result["wall"]) >= LEAST_TIME or result["peak"] >= LEAST_MEMORY
    return (
        f"| {result['workload']} | {result['trick']} | {change('processor')} | {change('wall')} "
        f"| {result['peak']:+.1%} | {'yes' if stays else 'no'} |"
    )


def main() -> None:
    """Run everything, print the table, and write it as JSON if asked to."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--model", default=os.environ.get("PREFSTAGE_CHAT_MODEL"))
    parser.add_argument("--shared", default=os.environ.get("PREFSTAGE_SHARED", str(beside)))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=4, help="HH pairs of a step")
    parser.add_argument("--long-pairs", type=int, default=1, help="long pairs of a step")
    parser.add_argument("--joined", type=int, default=1, help="times a long answer is repeated")
    parser.add_argument("--prompts", type=int, default=1, help="prompts scored in a turn")
    parser.add_argument("--workloads", nargs="+", default=[TRAINING, SCORING])
    parser.add_argument("--tricks", nargs="+", choices=list(TRICKS), default=list(TRICKS))
    parser.add_argument("--together", type=int, default=3, help="tricks tried in one run of turns")
    parser.add_argument("--out", type=Path)
    options = vars(parser.parse_args())
    out, tricks, together = (options.pop(name) for name in ("out", "tricks", "together"))
    workloads = options.pop("workloads")
    references = TemporaryDirectory()
    setup = Setup(**options, references=references.name)
    if not setup.model or not (Path(setup.shared) / "data").is_dir():
        parser.error("name a checkpoint with --model and the shared data with --shared")
    results: list[dict[str, Any]] = []
    for workload in workloads:
        tried = [t for t in tricks if workload == TRAINING or t not in TRAINING_ONLY]
        for start in range(0, len(tried), together):
            results += compare(setup, workload, tried[start : start + together])
            if out:
                written = {"setup": asdict(setup), "results": results}
                out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print("| workload | without | processor time | wall time | peak memory | pays |")
    print("|---|---|---|---|---|---|")
    for result in results:
        print(line(result))


if __name__ == "__main__":
    main()
