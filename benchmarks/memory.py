"""Does the doctor's memory estimate hold? Estimate against measured peak, on a real model.

    python benchmarks/memory.py MODEL_FOLDER [--out FILE.json]

Each job runs in a process of its own, once without its work (the libraries alone) and once
with it; the measured need is the difference of their peak resident memory.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prefstage.scoring.memory import JobSize, ModelShape, estimate_memory

SIZES = (
    JobSize("score", batch=4, responses=8, prompt_tokens=400, max_tokens=60),
    JobSize("score", batch=16, responses=2, prompt_tokens=150, max_tokens=50),
    JobSize("sample", batch=8, responses=2, prompt_tokens=128, max_tokens=64),
    JobSize("sample", batch=16, responses=4, prompt_tokens=256, max_tokens=32),
    JobSize("train", batch=1, responses=2, prompt_tokens=128, max_tokens=64),
    JobSize("train", batch=8, responses=2, prompt_tokens=128, max_tokens=64),
    JobSize("train", batch=2, responses=2, prompt_tokens=256, max_tokens=512),
)
MIB = 2**20
STEPS = 2


def main() -> None:
    """Run every job, print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(peak_of(given.model, JobSize(**json.loads(given.one))))
        return
    rows = [compare(given.model, size) for size in SIZES]
    print("| job | prompts × (tokens + responses × tokens) | estimate MiB | measured MiB | ratio |")
    print("|---|---|---|---|---|")
    for row in rows:
        shape = "{batch} × ({prompt_tokens} + {responses} × {max_tokens})".format(**row)
        print(
            f"| {row['job']} | {shape} | {row['estimate_mib']:.0f} | {row['measured_mib']:.0f} "
            f"| {row['ratio']:.2f} |"
        )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def compare(model: Path, size: JobSize) -> dict[str, object]:
    """Estimate and measure one job."""
    from transformers import AutoConfig

    from prefstage.scoring.memory import CPU_TOKENS, TRAINING_CPU_TOKENS

    shape = ModelShape.of_config(AutoConfig.from_pretrained(model), dtype="float32")
    tokens = TRAINING_CPU_TOKENS if size.job == "train" else CPU_TOKENS
    estimate = estimate_memory(shape, size, pass_tokens=tokens).total / MIB
    measured = (measure(model, size) - measure(model, size, libraries_only=True)) / MIB
    return {
        **vars(size),
        "estimate_mib": round(estimate, 1),
        "measured_mib": round(measured, 1),
        "ratio": round(estimate / measured, 3),
    }


def measure(model: Path, size: JobSize, *, libraries_only: bool = False) -> int:
    """Peak resident bytes of a process that does the job, or only loads the libraries."""
    if libraries_only:
        modules = ["torch", "transformers", "datasets", "prefstage.scoring.scorer"]
        modules += ["prefstage.training.trainer"] if size.job == "train" else []
        script = f"import resource, {', '.join(modules)}\n"
        script += "from transformers import LlamaForCausalLM\n"
        script += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
        command = [sys.executable, "-c", script]
    else:
        command = [sys.executable, __file__, str(model), "--one", json.dumps(vars(size))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak_of(model: Path, size: JobSize) -> int:
    """Do the job in this process."""
    {"score": score, "sample": sample, "train": train}[size.job](model, size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trees_of(size: JobSize) -> list[object]:
    """Token trees of random tokens, of exactly the job's size."""
    from prefstage.data import TokenTree

    source = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(source.randrange(1000, 40_000) for _ in range(count))

    return [
        TokenTree(
            str(index),
            tokens(size.prompt_tokens),
            tuple(tokens(size.max_tokens) for _ in range(size.responses)),
        )
        for index in range(size.batch)
    ]


def score(model: Path, size: JobSize) -> None:
    """Score the trees without gradient."""
    from prefstage.scoring import Scorer

    Scorer.load(str(model), dtype="float32").score(trees_of(size))


def train(model: Path, size: JobSize) -> None:
    """Two steps of DPO by the trainer at its defaults."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefstage.training import PreferenceArguments, PreferenceTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = PreferenceArguments(
            output_dir=folder,
            per_device_train_batch_size=size.batch,
            max_steps=STEPS,
            report_to=[],
            save_strategy="no",
            loss={"name": "sigmoid"},
        )
        trainer = PreferenceTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            arguments,
            train_dataset=Dataset.from_list(pairs_of(tokenizer, size)),
            processing_class=tokenizer,
        )
        trainer.train()


def pairs_of(tokenizer: Any, size: JobSize) -> list[dict[str, str]]:
    """Pairs of texts for the steps, of the job's size to a few tokens of the chat template."""
    source = random.Random(0)
    words = [tokenizer.decode([token]) for token in range(1000, 20_000)]
    words = [word for word in words if word[:1] == " " and word[1:].isalpha()]

    def text(tokens: int) -> str:
        return "".join(source.choices(words, k=tokens)).strip()

    return [
        {
            "prompt": text(size.prompt_tokens),
            "chosen": text(size.max_tokens),
            "rejected": text(size.max_tokens),
        }
        for _ in range(size.batch * STEPS)
    ]


def sample(model: Path, size: JobSize) -> None:
    """Generate rows that never stop before their limit."""
    from transformers import AutoModelForCausalLM

    from prefstage.sampling import SamplingConfig
    from prefstage.sampling.decoding import Row, generate_rows

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    prompts = [tree.prompt_ids for tree in trees_of(size)]
    rows = [
        Row(prompt, seed, size.max_tokens)
        for prompt in range(size.batch)
        for seed in range(size.responses)
    ]
    list(generate_rows(loaded, prompts, rows, config=SamplingConfig(), stop_ids=frozenset()))


if __name__ == "__main__":
    main()
