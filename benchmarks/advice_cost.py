"""What advice costs beside a full training of the candidates, on the real chat model.

    python benchmarks/advice_cost.py [--model FOLDER] [--shared FOLDER] [--part 8] [--lora]

The model is a checkpoint folder (default PREFSTAGE_CHAT_MODEL; see prepare_chat_model.py), pairs
and prompts are HH's (default PREFSTAGE_SHARED or ../shared), DPO at the trainer's defaults: batches
of 8 pairs, 3 epochs. Advice at its defaults: gradients of 256 pairs a candidate, a target of 128
prompts with 8 answers each, pilots on one eighth of the pairs.

Every job runs in a process of its own, one after the other, in one run; its time is the processor's
(one thread), its memory the process's highest. Of every job one n-th is measured (`--part n`; 1:
all of it) and multiplied: a training of P pairs is measured on P/n of them, and so on; loading is
counted once. What does not shrink with it is said: batches and passes are as large as in full.

Rows:

- training: of one candidate, reference log-probs included; all candidates: times their number.
- forecast, gradients: of the target, once, and of each candidate's pairs.
- forecast, answers: sampling and judging the target's answers, once.
- pilots 1/8: training each, and scoring the target's answers with each, and once with the start.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import MIB, Setup, fresh, memory_now, memory_peak, tell

PAIRS, TARGET, ANSWERS = 256, 128, 8  # `advise.pairs`, `.target_prompts` and `.responses`
SHARE = 8  # of the pairs that pilots leave out but one part
BATCH = 8
LEAST_TARGET = 8  # prompts: the groups of the jackknife
RANK = 16


@dataclass(frozen=True)
class CostSetup(Setup):
    """Also how much there is of everything."""

    pairs: int
    epochs: int
    candidates: int
    tokens: int
    budget: int
    part: int
    lora: bool
    folder: str

    def of(self, count: int, *, least: int = BATCH) -> int:
        """So many of a number are measured: whole batches."""
        return min(count, max(least, round(count / self.part / BATCH) * BATCH))


class Worker:
    """A process's work. Seconds of its processor."""

    def __init__(self, setup: CostSetup) -> None:
        from prefstage.cli.main import tune_allocator

        tune_allocator()  # as the commands do
        import datasets
        import torch

        self.setup = setup
        torch.set_num_threads(setup.threads)
        datasets.disable_progress_bars()
        memory_now("cpu")

    def peak(self) -> int:
        """The process's highest memory. Bytes."""
        return memory_peak("cpu")

    def rows(self, first: int, count: int) -> list[Any]:
        """HH pairs, the same in every process."""
        from prefstage.data import load_pairs

        file = Path(self.setup.shared) / "data" / "hh_rlhf_harmless_test.jsonl.gz"
        pairs = load_pairs(str(file), on_bad_row="quarantine", quarantine_file=os.devnull)
        # Every n-th, so that few are as long on average as all.
        stride = max(1, len(pairs) // (first + count))
        return list(pairs)[::stride][first : first + count]

    def trainer(self, rows: list[Any], out: str, *, epochs: int = 1) -> Any:
        """A trainer at its defaults."""
        from peft import LoraConfig

        from prefstage.data import PairSet
        from prefstage.training import PreferenceArguments, PreferenceTrainer

        arguments = PreferenceArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            num_train_epochs=epochs,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            token_budget=self.setup.budget,
        )
        lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
        return PreferenceTrainer(
            self.setup.model,
            arguments,
            train_dataset=PairSet.of(rows),
            peft_config=lora if self.setup.lora else None,
        )

    def train(self, pairs: int) -> dict[str, float]:
        """Train on some of the pairs: seconds of loading, of references and of one epoch."""
        with tempfile.TemporaryDirectory() as out:
            clock = Clock()
            trainer = self.trainer(self.rows(0, pairs), out)
            loading = clock.lap()
            trainer.compute_references()
            references = clock.lap()
            trainer.train()
            return {"loading": loading, "references": references, "epoch": clock.lap()}

    def forecast(self, prompts: int, pairs: int) -> dict[str, float]:
        """Forecast one candidate: seconds of loading, of the target and of the pairs."""
        from prefstage.advising import forecast_gains
        from prefstage.data import PairSet, load_candidates

        answers = load_candidates(str(Path(self.setup.folder) / "answers.parquet"))
        laps: list[float] = []
        with tempfile.TemporaryDirectory() as out:
            clock = Clock()
            trainer = self.trainer(self.rows(0, BATCH), out)
            loading = clock.lap()
            data = {"data": PairSet.of(self.rows(0, pairs))}
            forecast_gains(trainer, answers, data, tick=lambda: laps.append(clock.lap()))
        # The target's batches come first: of up to 8 prompts, at least 8 of them.
        batches = -(-prompts // max(1, min(8, prompts // LEAST_TARGET)))
        return {"loading": loading, "target": sum(laps[:batches]), "pairs": sum(laps[batches:])}

    def answer(self, prompts: int) -> dict[str, float]:
        """Sample and judge the target's answers, and keep them: seconds of all parts."""
        from dataclasses import replace

        from prefstage.data import Candidates, CandidateSet
        from prefstage.judging import load_judge
        from prefstage.sampling import SamplingConfig, TransformersSampler, requests_for
        from prefstage.sampling.base import to_candidates

        setup = self.setup
        rows = [
            Candidates(pair.prompt_id, pair.prompt, (), (), ())
            for pair in self.rows(setup.of(setup.pairs), prompts)
        ]
        clock = Clock()
        config = SamplingConfig(responses=ANSWERS, max_new_tokens=setup.tokens)
        sampler = TransformersSampler.load(setup.model, config, device="cpu")
        judge = load_judge(
            f"reward:{setup.shared}/models/small-judge?max_length=256&max_prompt_tokens=96"
        )
        loading = clock.lap()
        samples = list(sampler.sample(requests_for(rows, responses=ANSWERS)))
        sampling = clock.lap()
        answered = to_candidates(rows, samples, source="start")
        items = [(row.prompt, text) for row in answered for text in row.responses]
        rewards = iter(judge.score(items))
        judging = clock.lap()
        CandidateSet.of(
            replace(
                row,
                responses=tuple(text.strip() or "-" for text in row.responses),
                scores=tuple(next(rewards) for _ in row.responses),
            )
            for row in answered
        ).save(Path(setup.folder) / "answers.parquet")
        return {
            "loading": loading,
            "sampling": sampling,
            "judging": judging,
            "tokens": sum(sample.response_tokens for sample in samples) / len(samples),
        }

    def score(self) -> dict[str, float]:
        """Score the target's answers: seconds of loading and of scoring."""
        from prefstage.data import ResponseEncoder, load_candidates, load_tokenizer
        from prefstage.scoring import Scorer

        clock = Clock()
        scorer = Scorer.load(self.setup.model, token_budget=self.setup.budget)
        encoder = ResponseEncoder(load_tokenizer(self.setup.model))
        answers = load_candidates(str(Path(self.setup.folder) / "answers.parquet"))
        trees = [encoder.encode(row.prompt, row.messages()) for row in answers]
        loading = clock.lap()
        scorer.score(trees, show_progress=False)
        return {"loading": loading, "scoring": clock.lap()}


class Clock:
    """Seconds of this process's processor time, lap by lap."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def lap(self) -> float:
        """Since the last lap."""
        last, self._last = self._last, time.process_time()
        return self._last - last


# --- The table -----------------------------------------------------------------------------------


def measure(setup: CostSetup) -> dict[str, Any]:
    """Every job once, each in a fresh process."""
    pairs, pilot = setup.of(setup.pairs), setup.of(setup.pairs // SHARE)
    target, sampled = setup.of(TARGET, least=LEAST_TARGET), setup.of(PAIRS)
    jobs: dict[str, tuple[str, tuple[int, ...]]] = {
        "answers": ("answer", (target,)),
        "training": ("train", (pairs,)),
        "forecast": ("forecast", (target, sampled)),
        "pilot": ("train", (pilot,)),
        "scoring": ("score", ()),
    }
    made: dict[str, Any] = {}
    for name, (call, counts) in jobs.items():
        seconds, peak = fresh(Worker, setup, call=call, given=counts)
        made[name] = {"counts": counts, "seconds": seconds, "peak": peak}
        tell(f"{name}: {json.dumps(seconds)}, {peak / MIB:.0f} MiB")
    return made


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Of the part.
        shown: What was measured of it.
        seconds: Of all of it, for all candidates.
        peak: Bytes.
    """

    name: str
    shown: str
    seconds: float
    peak: int


def rows_of(setup: CostSetup, made: dict[str, Any]) -> list[Row]:
    """What was measured, multiplied to what it stands for."""
    n = setup.candidates

    def job(name: str) -> tuple[tuple[int, ...], dict[str, float], int]:
        return made[name]["counts"], made[name]["seconds"], made[name]["peak"]

    def trained(name: str, pairs: int) -> float:
        (count,), s, _ = job(name)
        return s["loading"] + pairs / count * (s["references"] + setup.epochs * s["epoch"])

    (target, pairs), forecast, forecast_peak = job("forecast")
    (asked,), answers, answers_peak = job("answers")
    _, scoring, scoring_peak = job("scoring")
    scored = scoring["loading"] + TARGET / asked * scoring["scoring"]
    pilot = setup.pairs // SHARE
    gradients = (
        forecast["loading"]
        + TARGET / target * forecast["target"]
        + n * PAIRS / pairs * forecast["pairs"]
    )
    told = answers["loading"] + TARGET / asked * (answers["sampling"] + answers["judging"])
    return [
        Row(
            f"training, {n} × {setup.pairs} pairs × {setup.epochs} epochs",
            f"{made['training']['counts'][0]} pairs, 1 epoch",
            n * trained("training", setup.pairs),
            made["training"]["peak"],
        ),
        Row(
            f"forecast, gradients: {n} × {PAIRS} pairs, {TARGET} × {ANSWERS} answers",
            f"{pairs} pairs, {target} × {ANSWERS} answers",
            gradients,
            forecast_peak,
        ),
        Row(
            f"forecast, answers: {TARGET} × {ANSWERS} sampled and judged",
            f"{asked} × {ANSWERS}, {answers['tokens']:.0f} tokens each",
            told,
            answers_peak,
        ),
        Row(
            f"pilots 1/{SHARE}: {n} × {pilot} pairs × {setup.epochs} epochs, {n} + 1 scorings",
            f"{made['pilot']['counts'][0]} pairs, 1 epoch; {asked} × {ANSWERS} answers",
            n * trained("pilot", pilot) + (n + 1) * scored,
            max(made["pilot"]["peak"], scoring_peak),
        ),
    ]


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--model", default=os.environ.get("PREFSTAGE_CHAT_MODEL"))
    parser.add_argument("--shared", default=os.environ.get("PREFSTAGE_SHARED", "../shared"))
    parser.add_argument("--pairs", type=int, default=512, help="of a candidate")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--budget", type=int, default=2048, help="tokens a pass")
    parser.add_argument("--part", type=int, default=8, help="one n-th of every job is measured")
    parser.add_argument("--lora", action="store_true", help="adapters in place of all weights")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    asked = parser.parse_args()
    if asked.model is None:
        parser.error("name the policy's folder with --model or PREFSTAGE_CHAT_MODEL")
    from prefstage.core import markdown_table

    with tempfile.TemporaryDirectory() as folder:
        settings = {name: value for name, value in vars(asked).items() if name != "out"}
        setup = CostSetup(**settings, device="cpu", threads=1, folder=folder)
        made = measure(setup)
    rows = rows_of(setup, made)
    whole = rows[0]
    head = ("part", "measured", "time of the trainings", "peak memory of the training")
    print(
        markdown_table(
            head,
            [
                (
                    row.name,
                    row.shown,
                    f"{100 * row.seconds / whole.seconds:.1f} %",
                    f"{100 * row.peak / whole.peak:.0f} %",
                )
                for row in rows
            ],
        )
    )
    if asked.out is not None:
        asked.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    sys.exit()


if __name__ == "__main__":
    main()
