"""The pairs that the training benchmark trains on, in both trainers' format and order."""

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from machine import Setup, tell

HH, ANSWERS = "HH pairs", "AlpacaEval answers"
MAX_TOKENS = 1024


@dataclass(frozen=True)
class TrainingSetup(Setup):
    """Also what is trained on, and for how long."""

    batch: int
    steps: int
    workload: str
    seed: int = 0

    @property
    def pairs(self) -> int:
        """Pairs of one epoch: what is trained on, and no pair twice."""
        return self.batch * self.steps


def pairs_of(setup: TrainingSetup, *, quiet: bool = True) -> list[dict[str, Any]]:
    """Pairs in TRL's conversational format that stand for all of the data by their lengths.

    Pairs of more than 1,024 tokens a side are left out and counted, since TRL cuts them. The others
    are ordered by their different tokens (prompt, chosen and rejected response) and every n-th is
    taken, so that the sample is as long on average as all of them, whatever its size.
    """
    from prefstage.data import ResponseEncoder, load_candidates, load_pairs, load_tokenizer

    data = Path(setup.shared) / "data"
    skipped = {"on_bad_row": "quarantine", "quarantine_file": os.devnull}
    encoder = ResponseEncoder(load_tokenizer(setup.model))
    if setup.workload == HH:
        found = [
            {
                "prompt": p.prompt,
                "chosen": p.chosen[0]["content"],
                "rejected": p.rejected[0]["content"],
            }
            for p in load_pairs(str(data / "hh_rlhf_harmless_test.jsonl.gz"), **skipped)
        ]
    else:
        found = [
            {"prompt": c.prompt, "chosen": c.responses[i], "rejected": c.responses[i + 1]}
            for c in load_candidates(str(data / "alpacaeval_small.jsonl.gz"), **skipped)
            for i in range(0, len(c.responses) - 1, 2)
            if c.responses[i] != c.responses[i + 1]
        ]
    sizes = list[tuple[int, int]]()  # (different tokens, place in the data)
    for place, pair in enumerate(found):
        tree = encoder.encode(pair["prompt"], (pair["chosen"], pair["rejected"]))
        if len(tree.prompt_ids) + max(map(len, tree.response_ids)) <= MAX_TOKENS:
            sizes.append((len(tree.prompt_ids) + sum(map(len, tree.response_ids)), place))
    kept = spread(sorted(sizes), setup.pairs)
    if not quiet:
        tell(
            f"{setup.workload}: {len(kept)} pairs, {len(found) - len(sizes)} of {len(found):,} "
            f"left out as too long; {mean(size for size, _ in kept):.0f} different tokens a pair, "
            f"{mean(size for size, _ in sizes):.0f} in all"
        )
    return [as_row(found[place]) for place in sorted(place for _, place in kept)]


def spread(items: list[Any], count: int) -> list[Any]:
    """The middle one of each of `count` equal runs of sorted items; all if there are fewer."""
    count = min(count, len(items))
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def as_row(pair: dict[str, Any]) -> dict[str, Any]:
    """A pair as TRL and prefstage both read it."""

    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    prompt = [{"role": m["role"], "content": m["content"]} for m in pair["prompt"]]
    return {"prompt": prompt, "chosen": turn(pair["chosen"]), "rejected": turn(pair["rejected"])}


def in_our_order(rows: list[dict[str, Any]], setup: TrainingSetup) -> list[dict[str, Any]]:
    """The rows in the order in which prefstage trains on them."""
    from prefstage.training.batches import epoch_order

    return [rows[i] for i in epoch_order(len(rows), seed=setup.seed, epoch=0)]
