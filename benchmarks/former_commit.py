"""Training and scoring beside a former commit: the same work by both, in turns.

    python benchmarks/former_commit.py COMMIT [--model FOLDER] [--shared FOLDER] [--steps N]

The former commit is checked out into a temporary folder. Both commits work in processes of their
own at the same time, and only one of them at a time computes: one optimiser step (DPO, full
fine-tuning, AdamW) or one round of scoring here, then the same there, so that what else the machine
does falls on both alike. A table gives the medians, their ratio (this commit / former commit), and
the ratio of peak memory. The losses of both and the scored log-probs are compared too: a commit
that is faster because it computes something else would show.

The allocator settings that the commands of prefstage make (huge pages, freed memory kept) are made
for both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import MIB, memory_now, memory_peak, tell

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS = ("training", "scoring")
WARM = 2  # first turns left out: memory still grows in them


# --- What a process does ------------------------------------------------------------------


def worker(workload: str, model: str, shared: str, steps: int, batch: int) -> None:
    """Work in turns: a line on standard input is a turn, a line on standard output its figures."""
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the figures
    turns = Turns(talk)
    rows = pairs_of(shared, steps * batch)
    run = train if workload == "training" else score
    run(turns, model, rows, steps, batch)


class Turns:
    """Waits for a turn, and tells what it took."""

    def __init__(self, talk: Any) -> None:
        self.talk = talk

    def wait(self) -> None:
        """Wait for the parent's word."""
        if not sys.stdin.readline():
            raise SystemExit(0)
        self.started = time.perf_counter(), time.process_time()

    def finished(self, **figures: Any) -> None:
        """Tell what the turn took."""
        wall, processor = self.started
        took = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        self.talk.write(json.dumps(took | figures) + "\n")


def pairs_of(shared: str, count: int) -> list[Any]:
    """Real pairs, spread over the data."""
    from prefstage import load_pairs

    data = Path(shared) / "data" / "hh_rlhf_harmless_test.jsonl.gz"
    pairs = list(load_pairs(str(data), on_bad_row="quarantine", quarantine_file=os.devnull))
    pairs = [pair for pair in pairs if len(str(pair.prompt) + str(pair.chosen)) < 2000]
    return [pairs[i * len(pairs) // count] for i in range(count)]


def train(turns: Turns, model: str, pairs: list[Any], steps: int, batch: int) -> None:
    """One optimiser step a turn."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from prefstage import PreferenceArguments, PreferenceTrainer

    rows = [
        {side: list(getattr(pair, side)) for side in ("prompt", "chosen", "rejected")}
        for pair in pairs
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = PreferenceArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=5e-7,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            loss={"name": "sigmoid", "beta": 0.1},
        )
        trainer = PreferenceTrainer(
            AutoModelForCausalLM.from_pretrained(model),
            arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.compute_references()

        class Steps(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                memory_now("cpu")
                turns.wait()

            def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
                if "loss" in logs:
                    turns.finished(value=logs["loss"], peak=memory_peak("cpu"))
                    turns.wait()

        trainer.add_callback(Steps())
        trainer.train()


def score(turns: Turns, model: str, pairs: list[Any], steps: int, batch: int) -> None:
    """One round of scoring a turn: the sums of a batch's log-probs."""
    from transformers import AutoTokenizer

    from prefstage import Scorer
    from prefstage.data import ResponseEncoder

    encoder = ResponseEncoder(AutoTokenizer.from_pretrained(model))
    trees = [
        encoder.encode(pair.prompt, [pair.chosen[0]["content"], pair.rejected[0]["content"]])
        for pair in pairs
    ]
    scorer = Scorer.load(model)
    memory_now("cpu")
    for step in range(steps):
        turns.wait()
        scores = scorer.score(trees[step * batch : (step + 1) * batch])
        total = sum(float(value) for tree in scores for value in tree.sums)
        turns.finished(value=total, peak=memory_peak("cpu"))


# --- The parent ---------------------------------------------------------------------------


def main() -> None:
    """Run both commits' turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("commit", nargs="?", help="the former commit")
    parser.add_argument("--model", default=os.environ.get("PREFSTAGE_CHAT_MODEL"))
    parser.add_argument("--shared", default=os.environ.get("PREFSTAGE_SHARED", "../shared"))
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=WORKLOADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.model, options.shared, options.steps, options.batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        former = Path(folder) / "former"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run(
            [*git, "add", "--quiet", "--detach", str(former), options.commit], check=True
        )
        try:
            rows = {name: compare(name, former, options) for name in WORKLOADS}
        finally:
            subprocess.run([*git, "remove", "--force", str(former)], check=True)
    show(rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def compare(workload: str, former: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One workload by both commits in turns; who begins changes from turn to turn."""
    sides = {"this": start(workload, ROOT, options), "former": start(workload, former, options)}
    turns: dict[str, list[dict[str, float]]] = {"this": [], "former": []}
    try:
        for step in range(options.steps):
            order = list(sides) if step % 2 else list(reversed(sides))
            for side in order:
                turns[side].append(turn(sides[side]))
            tell(
                f"{workload}, turn {step + 1} of {options.steps}: "
                + ", ".join(f"{side} {turns[side][-1]['wall']:.2f} s" for side in sides)
            )
    finally:
        for process in sides.values():
            process.terminate()
            process.wait()
    return summary(turns)


def start(workload: str, root: Path, options: argparse.Namespace) -> "subprocess.Popen[str]":
    """A worker that imports prefstage from a checkout."""
    words = [__file__, "--worker", workload, "--model", options.model]
    words += ["--shared", options.shared, "--steps", str(options.steps)]
    words += ["--batch", str(options.batch)]
    environment = os.environ | {
        "PYTHONPATH": str(root / "src"),
        "THP_MEM_ALLOC_ENABLE": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def turn(process: "subprocess.Popen[str]") -> dict[str, float]:
    """One turn of a worker."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended with status {process.wait()}")
    figures: dict[str, float] = json.loads(line)
    return figures


def summary(turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians without the first turns, the ratios of turns made together, and the peaks."""
    result: dict[str, Any] = {}
    for clock in ("wall", "processor"):
        here, there = ([t[clock] for t in turns[side][WARM:]] for side in ("this", "former"))
        ratios = [a / b for a, b in zip(here, there, strict=True)]
        result[clock] = {
            "this": statistics.median(here),
            "former": statistics.median(there),
            "ratio": statistics.median(ratios),
        }
    peaks = {side: max(t["peak"] for t in turns[side]) for side in turns}
    result["peak"] = peaks | {"ratio": peaks["this"] / peaks["former"]}
    values = zip(turns["this"], turns["former"], strict=True)
    result["largest difference"] = max(abs(a["value"] - b["value"]) for a, b in values)
    return result


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    print("| work | figure | this | former | this / former |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        for clock in ("wall", "processor"):
            cells = row[clock]
            print(
                f"| {name} | {clock} seconds, median | {cells['this']:.3f} | {cells['former']:.3f} "
                f"| {cells['ratio']:.3f} |"
            )
        peak = row["peak"]
        print(
            f"| {name} | peak memory, MiB | {peak['this'] / MIB:.0f} | {peak['former'] / MIB:.0f} "
            f"| {peak['ratio']:.3f} |"
        )
        print(f"| {name} | largest difference of values | {row['largest difference']:.1e} | | |")


if __name__ == "__main__":
    main()
