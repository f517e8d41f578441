"""The real decision bench: which data should a real chat model train on next, by a real judge?

    python benchmarks/real_decisions.py [--out real_decisions] [--losses dpo --modes lora ...]
    python benchmarks/real_decisions.py --out real_decisions --table

The policy is a checkpoint folder (default PREFSTAGE_CHAT_MODEL; see prepare_chat_model.py), texts
and judge are the shared ones (default PREFSTAGE_SHARED or ../shared). It is trained on data sets of
different strength and on pairs of its own answers, in full and in part, with several seeds; the
truth is the win rate over the start on held-out prompts, raw and length-controlled, by the small
judge. Beside it stands what could have told beforehand. Texts are cut at 400 characters.

As in `benchmarks/decisions.py`, the folder gets one JSON file a measurement, and what is there is
not done again; answers are kept one by one. The command may run several times at once. Cheap
measurements come first, and those of the first mode, seed and loss before others, so that a part of
the bench says something already.

`--table` prints what is there: see `real_decision_table.py`.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from decisions import best_against_worst, figures, fill, log_probs, mixed, share_of, sigmoid

MODELS = {
    "weak": ("alpaca-7b", "phi-2"),
    "strong": ("gpt-3.5-turbo-0301", "OpenHermes-2.5-Mistral-7B"),
}
CANDIDATES = ("weak", "strong", "spread", "hh", "own", "mixed")
"""Two weak models' answers; two strong ones'; best against worst of ten models; the HH pairs with
their own labels; own answers, best against worst of four; those mixed into "spread". All labels but
HH's are the judge's."""

LOSSES = {"dpo": "sigmoid", "dpo+sft": "sigmoid + sft"}
RATES = {"lora": 2e-4, "full": 1e-5}
RANK = 16  # of the adapters, on all linear layers
EPOCHS = 1
SHARES = (1 / 8, 1 / 4)
FORMS = ("self-normalised", "clipped", "first-order")
LONGEST = 400  # characters of a text
PILOT_SEED = 10  # of the first seed's pilots
VOTING = 2  # own answers a prompt in a boundary score
SEEDS = {"own": 1, "target": 2, "start": 3, "trained": 4, "pilot": 5}  # of sampling


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Attributes:
        pairs: Prompts of every candidate.
        gradients: Pairs of each that forecasts are made of.
        held_out: Prompts of the truth.
        target: Prompts of the target direction, on which pilots are valued too.
        answers: The start's answers to each of them.
        own: Own answers that pairs are made of.
        repeats: Answers a held-out prompt, of the start and of every trained policy.
        tokens: Of an answer at most.
        batch: Pairs an optimiser step.
        budget: Tokens a forward and backward pass.
    """

    pairs: int = 112
    gradients: int = 64
    held_out: int = 104
    target: int = 60
    answers: int = 4
    own: int = 4
    repeats: int = 2
    tokens: int = 88
    batch: int = 4
    budget: int = 2048


@dataclass(frozen=True)
class RealBench:
    """The policy with everything around it, made when needed and kept in its folder."""

    folder: Path
    model: Path
    shared: Path
    sizes: Sizes

    temperature = 1.0  # of the judge's probabilities: its rewards are log-odds

    def policy(self, _steps: int = 0) -> Path:
        """The start."""
        return self.model

    @cached_property
    def judge(self) -> Any:
        """The small judge."""
        from prefstage.judging import load_judge

        folder = self.shared / "models" / "small-judge"
        return load_judge(f"reward:{folder}?max_length=256&max_prompt_tokens=96")

    @cached_property
    def prompts(self) -> tuple[list[Any], list[Any]]:
        """AlpacaEval prompts with the ten models' cut answers: of the held-out, and the others.

        Held-out ones begin with those that the judge was not trained on.
        """
        import random

        from prefstage.data import load_candidates

        file = self.shared / "data" / "alpacaeval_small.jsonl.gz"
        unseen = {row["instruction"] for row in json_rows(file) if row["split"] == "heldout"}
        rows = [
            replace(
                row,
                responses=tuple(text[:LONGEST].strip() for text in row.responses),
                scores=(None,) * len(row.responses),
            )
            for row in load_candidates(str(file), **skipping())
            if len(row.prompt[-1]["content"]) <= LONGEST
        ]
        random.Random(0).shuffle(rows)
        rows.sort(key=lambda row: row.prompt[-1]["content"] not in unseen)
        held_out = rows[: self.sizes.held_out]
        everyone = max(len(row.responses) for row in rows)
        others = [row for row in rows[self.sizes.held_out :] if len(row.responses) == everyone]
        needed = self.sizes.pairs + self.sizes.target
        if len(others) < needed:
            raise SystemExit(
                f"{len(others)} prompts are left for pairs and target, {needed} are asked for: "
                "lower --pairs, --target or --held-out"
            )
        return held_out, others[:needed]

    @cached_property
    def held_out(self) -> list[Any]:
        """Prompts of the truth."""
        return self.prompts[0]

    @cached_property
    def target_prompts(self) -> list[Any]:
        """Prompts that no candidate trains on, and that are not of the truth."""
        return self.prompts[1][self.sizes.pairs :]

    @cached_property
    def pool(self) -> list[Any]:
        """Prompts of the candidates, with the ten models' answers and the judge's rewards."""
        rows = self.prompts[1][: self.sizes.pairs]
        return judged(self.judge, rows)

    @cached_property
    def hh(self) -> Any:
        """HH pairs with short prompts, their own labels, and the judge's rewards."""
        from prefstage.data import PairSet, load_pairs

        file = self.shared / "data" / "hh_rlhf_harmless_test.jsonl.gz"
        pairs = []
        for pair in load_pairs(str(file), **skipping()):
            texts = [side[0]["content"][:LONGEST].strip() for side in (pair.chosen, pair.rejected)]
            length = sum(len(message["content"]) for message in pair.prompt)
            if length <= LONGEST and all(texts) and texts[0] != texts[1]:
                sides = [({"role": "assistant", "content": text},) for text in texts]
                pairs.append(replace(pair, chosen=sides[0], rejected=sides[1]))
        pairs = pairs[:: max(1, len(pairs) // self.sizes.pairs)][: self.sizes.pairs]
        texts = [(p.prompt, side[0]["content"]) for p in pairs for side in (p.chosen, p.rejected)]
        rewards = self.judge.score(texts)
        return PairSet.of(
            replace(pair, score_chosen=high, score_rejected=low)
            for pair, high, low in zip(pairs, rewards[::2], rewards[1::2], strict=True)
        )

    @lru_cache(maxsize=8)  # noqa: B019 - the bench lives as long as the process
    def data(self, _steps: int, candidate: str) -> Any:
        """The pairs of a candidate."""
        if candidate == "hh":
            return self.hh
        if candidate in MODELS:
            names = MODELS[candidate]
            return best_against_worst(
                row.only([row.sources.index(name) for name in names]) for row in self.pool
            )
        if candidate == "spread":
            return best_against_worst(self.pool)
        mine = self.own("pool")
        return (
            best_against_worst(mine) if candidate == "own" else mixed(self.data(0, "spread"), mine)
        )

    # --- Answers ------------------------------------------------------------------------------

    @lru_cache(maxsize=8)  # noqa: B019
    def own(self, prompts: str) -> list[Any]:
        """The start's judged answers to the prompts of a name; those sampled before are read."""
        from prefstage.sampling import TransformersSampler

        sizes = self.sizes
        seed, count = {
            "pool": ("own", sizes.own),
            "hh": ("own", VOTING),
            "target_prompts": ("target", sizes.answers),
            "held_out": ("start", sizes.repeats),
        }[prompts]
        config = self.sampling(seed, count)
        return self.answered(
            lambda: TransformersSampler.load(str(self.model), config, device="cpu"), prompts, config
        )

    def sampling(self, seed: str, count: int) -> Any:
        """How answers are sampled."""
        from prefstage.sampling import SamplingConfig

        tokens = self.sizes.tokens
        return SamplingConfig(seed=SEEDS[seed], responses=count, max_new_tokens=tokens)

    def answered(self, sampler: Callable[[], Any], prompts: str, config: Any) -> list[Any]:
        """Judged answers to prompts; each is on disk before the next, under the sampler's name."""
        from prefstage.core import Ledger
        from prefstage.sampling import collect, requests_for
        from prefstage.sampling.base import to_candidates

        rows = getattr(self, prompts)
        if prompts == "hh":
            from prefstage.data import pairs_to_candidates

            rows = list(pairs_to_candidates(self.hh))
        requests = requests_for(rows, responses=config.responses)
        with Ledger(self.folder / "answers.sqlite") as ledger, sampler() as policy:
            samples = list(collect(policy, requests, ledger, key=policy.fingerprint))
        return judged(self.judge, to_candidates(rows, samples, source="start"))

    def answers(self, _policy: Path, _prompts: str, _count: int, _seed: int) -> list[Any]:
        """Own answers to the prompts of all candidates, as `decisions.figures` asks for them."""
        return [*self.own("pool"), *self.own("hh")]

    @cached_property
    def target(self) -> list[Any]:
        """Judged answers of the start, all of which say something."""
        return [row for row in self.own("target_prompts") if all(map(str.strip, row.responses))]

    @cached_property
    def valued(self) -> tuple[list[Any], Any, Any]:
        """The start's answers that pilots are valued on: encoded, rewards, log-probs."""
        import torch

        from prefstage.data import ResponseEncoder, load_tokenizer
        from prefstage.scoring import Scorer

        encoder = ResponseEncoder(load_tokenizer(str(self.model)))
        trees = [encoder.encode(row.prompt, row.messages()) for row in self.target]
        rewards = torch.tensor([row.scores for row in self.target])
        scorer = Scorer.load(str(self.model), token_budget=self.sizes.budget)
        return trees, rewards, log_probs(scorer, trees)


def json_rows(file: Path) -> Iterator[Any]:
    """Rows of a compressed file of JSON lines."""
    import gzip

    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def skipping() -> dict[str, str]:
    """Loader's settings that leave bad rows out."""
    return {"on_bad_row": "quarantine", "quarantine_file": os.devnull}


def judged(judge: Any, rows: Sequence[Any]) -> list[Any]:
    """The rows with the judge's rewards."""
    rewards = iter(judge.score([(row.prompt, text) for row in rows for text in row.responses]))
    return [replace(row, scores=tuple(next(rewards) for _ in row.responses)) for row in rows]


# --- Measurements --------------------------------------------------------------------------------


def trainer_of(bench: RealBench, data: Any, *, mode: str, loss: str, seed: int, out: str) -> Any:
    """A trainer with the bench's recipe."""
    from transformers import PrinterCallback

    from prefstage.training import PreferenceArguments, PreferenceTrainer

    arguments = PreferenceArguments(
        output_dir=out,
        loss=LOSSES[loss],
        learning_rate=RATES[mode],
        per_device_train_batch_size=bench.sizes.batch,
        num_train_epochs=EPOCHS,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
        token_budget=bench.sizes.budget,
        # Of the start, so that no pair is scored twice.
        reference_cache=str(bench.folder / "references"),
    )
    adapter = None
    if mode == "lora":
        import torch
        from peft import LoraConfig

        torch.manual_seed(seed)  # the adapter begins with random numbers
        adapter = LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"
        )
    trainer = PreferenceTrainer(
        str(bench.model), arguments, train_dataset=data, peft_config=adapter
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sampled(bench: RealBench, prompts: str) -> dict[str, Any]:
    """Answers of the start; they are kept beside, and only their figures here."""
    rows = bench.own(prompts)
    return {
        "prompts": len(rows),
        "answers": sum(len(row.responses) for row in rows),
        "reward": mean(score for row in rows for score in row.scores),
        "characters": mean(len(text) for row in rows for text in row.responses),
    }


def forecasts(bench: RealBench, mode: str, loss: str, candidates: Sequence[str]) -> dict[str, Any]:
    """Forecasts of every candidate."""
    from prefstage.advising import forecast_gains
    from prefstage.data import CandidateSet, PairSet

    most = bench.sizes.gradients
    data = {c: PairSet.of(list(bench.data(0, c))[:most]) for c in candidates}
    with tempfile.TemporaryDirectory() as out:
        first = next(iter(data.values()))
        trainer = trainer_of(bench, first, mode=mode, loss=loss, seed=0, out=out)
        made = forecast_gains(trainer, CandidateSet.of(bench.target), data)
    return {
        "agreement": made.agreement,
        "rate": made.rate,
        "candidates": {
            name: {
                kind: {
                    "value": estimate.value,
                    "error": estimate.error,
                    "prompts": estimate.by_prompts.tolist(),
                    "batches": estimate.by_batches[0].tolist(),
                }
                for kind, estimate in (("gain", found.gain), ("cosine", found.cosine))
            }
            for name, found in made.by_name.items()
        },
    }


def trained(
    bench: RealBench, mode: str, loss: str, candidate: str, *, share: float, seed: int
) -> dict[str, Any]:
    """Train, and value what came out: in full by win rate, in part by rewards and by scoring."""
    import torch

    from prefstage.advising import value_by_scoring
    from prefstage.data import load_tokenizer
    from prefstage.sampling import TransformersSampler
    from prefstage.scoring import Scorer

    prompts, name = ("held_out", "trained") if share == 1 else ("target_prompts", "pilot")
    before = bench.own(prompts)
    data = share_of(bench.data(0, candidate), share, seed, whole=bench.sizes.pairs)
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(bench, data, mode=mode, loss=loss, seed=seed, out=out)
        trainer.train()
        model = trainer.model
        if mode == "lora":
            model = model.merge_and_unload()
    for parameter in model.parameters():
        parameter.grad = None
    config = bench.sampling(name, bench.sizes.repeats if share == 1 else 1)
    tokenizer = load_tokenizer(str(bench.model))
    after = bench.answered(lambda: TransformersSampler(model, tokenizer, config), prompts, config)
    result: dict[str, Any] = {
        "pairs": len(data),
        "steps": trainer.state.global_step,
        **compared(after, before),
    }
    if share < 1:
        trees, rewards, start = bench.valued
        scorer = Scorer(model, token_budget=bench.sizes.budget)
        with torch.no_grad():
            ratios = log_probs(scorer, trees) - start
        for form in FORMS:
            value = value_by_scoring(ratios, rewards, form=form)
            result[form] = [round(v, 6) for v in value.by_prompt.tolist()]
            result["sample_size"] = value.sample_size
    return result


def compared(after: Sequence[Any], before: Sequence[Any]) -> dict[str, Any]:
    """By prompt: how often new answers win over old ones, the gain in reward, and lengths."""
    old = {row.prompt_id: row for row in before}
    sides = [(row, old[row.prompt_id]) for row in after]

    def characters(row: Any) -> float:
        return mean(map(len, row.responses))

    return {
        "preference": [
            mean(sigmoid(a - b) for a, b in product(new.scores, base.scores)) for new, base in sides
        ],
        "sampled": [mean(new.scores) - mean(base.scores) for new, base in sides],
        "length": [characters(new) for new, _ in sides],
        "length_start": [characters(base) for _, base in sides],
    }


Measurements = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def measurements(bench: RealBench | None, asked: Any) -> Measurements:
    """Every measurement: the name of its file, and how it is made."""
    for prompts in ("pool", "hh", "target_prompts", "held_out"):
        yield f"start/{prompts}", partial(sampled, bench, prompts)
    for candidate in asked.candidates:
        yield f"figures/{candidate}", partial(figures, bench, 0, candidate)
    for mode, seed, loss in product(asked.modes, range(asked.seeds), asked.losses):
        if seed == 0:
            task = partial(forecasts, bench, mode, loss, asked.candidates)
            yield f"forecasts/{mode}-{loss}", task
        runs = [(1.0, seed), *((share, PILOT_SEED + seed) for share in SHARES)]
        for (share, of_run), candidate in product(runs, asked.candidates):
            task = partial(trained, bench, mode, loss, candidate, share=share, seed=of_run)
            yield f"runs/{mode}-{loss}-{candidate}-{share:g}-{of_run}", task


def check_sizes(file: Path, sizes: Sizes) -> None:
    """Measurements of different sizes do not go into one folder."""
    text = json.dumps(vars(sizes))
    if file.exists() and file.read_text("utf-8") != text:
        raise SystemExit(
            f"saw {text}, expected the sizes in {file}; name them or another folder with --out"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("real_decisions"))
    parser.add_argument("--model", type=Path, default=os.environ.get("PREFSTAGE_CHAT_MODEL"))
    parser.add_argument(
        "--shared", type=Path, default=os.environ.get("PREFSTAGE_SHARED", "../shared")
    )
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES[:-1])
    parser.add_argument("--modes", nargs="+", choices=[*RATES], default=["lora"])
    parser.add_argument("--losses", nargs="+", choices=[*LOSSES], default=[*LOSSES])
    parser.add_argument("--seeds", type=int, default=2, help="of training")
    for name, value in vars(Sizes()).items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=value, help=f"default {value}")
    parser.add_argument("--table", action="store_true", help="print what is measured, and stop")
    asked = parser.parse_args()
    if asked.table:
        from real_decision_table import print_table

        wanted = [name for name, _ in measurements(None, asked)]
        print_table(asked.out, wanted, asked.modes, asked.losses, asked.candidates)
        return
    if asked.model is None:
        parser.error("name the policy's folder with --model or PREFSTAGE_CHAT_MODEL")
    sizes = Sizes(**{name: getattr(asked, name) for name in vars(Sizes())})
    check_sizes(asked.out / "sizes.json", sizes)
    bench = RealBench(asked.out, asked.model, asked.shared, sizes)
    fill(bench.folder, measurements(bench, asked), label="real")


if __name__ == "__main__":
    main()
