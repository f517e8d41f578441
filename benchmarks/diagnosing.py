"""A full diagnosis of real pairs against the engine's raw scoring of the same pairs, in one run.

    python benchmarks/diagnosing.py [--pairs 200] [--judge reward:FOLDER] [--out FILE.json]

The HH-RLHF harmless pairs of the shared data (PREFSTAGE_SHARED) and the chat model
(PREFSTAGE_CHAT_MODEL; see prepare_chat_model.py). First the engine scores the pairs' token
trees and nothing else; then `diagnose` makes its whole report of the same pairs, from text:
encoding, scoring, rankings with intervals, learnability, all tables. Response tokens are
counted where they leave the forward pass, and must be those of the different responses: no
response is scored twice. With a judge a third run shows what judging adds. Seconds of the clock
are told on a machine that does nothing else; seconds of CPU time on any.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from prefstage.data import ResponseEncoder, load_pairs, load_tokenizer
from prefstage.data.records import Pair
from prefstage.diagnosing.diagnosis import diagnose
from prefstage.diagnosing.scoring import ScoredBy, pair_trees
from prefstage.judging import load_judge
from prefstage.scoring import Scorer, scorer as engine

WARM_UP = 4
LIMIT = 1.3


def main() -> None:
    """Measure, print a Markdown table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=None)
    parser.add_argument("--judge", default=None)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    shared = Path(os.environ["PREFSTAGE_SHARED"])
    chat = os.environ["PREFSTAGE_CHAT_MODEL"]
    file = shared / "data" / "hh_rlhf_harmless_test.jsonl.gz"
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "bad.jsonl"  # rows with an empty response: 9 of 2,312
        rows = load_pairs(file, on_bad_row="quarantine", quarantine_file=aside)
    pairs = list(islice(rows, given.pairs))
    scorer, encoder = Scorer.load(chat), ResponseEncoder(load_tokenizer(chat))
    scorer.score(pair_trees(pairs[:WARM_UP], encoder)[0])

    found = measure(pairs, scorer, encoder)
    if given.judge is not None:
        judge, started = load_judge(given.judge), now()
        diagnose(pairs, judge=judge)
        found["judge_seconds"], found["judge_cpu_seconds"] = since(started)
    print(table(found))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def now() -> tuple[float, float]:
    """Seconds by the clock, and of this process's CPU time."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """The same, since then."""
    clock, cpu = now()
    return clock - started[0], cpu - started[1]


def measure(pairs: list[Pair], scorer: Scorer, encoder: ResponseEncoder) -> dict[str, Any]:
    """Time raw scoring and the whole diagnosis, and count the tokens of both."""
    trees, _ = pair_trees(pairs, encoder)
    with forward_passes() as raw:
        started = now()
        scorer.score(trees)
        raw_seconds, raw_cpu = since(started)
    with forward_passes() as whole:
        started = now()
        report = diagnose(pairs, policy=ScoredBy("chat", scorer, encoder)).report
        seconds, cpu = since(started)
    unique = {(tree.prompt_ids, ids): len(ids) for tree in trees for ids in tree.response_ids}
    assert sum(raw) == sum(whole) == sum(unique.values()) == report["rankings"]["tokens_scored"]
    return {
        "pairs": len(pairs),
        "threads": torch.get_num_threads(),
        "raw_seconds": raw_seconds,
        "diagnose_seconds": seconds,
        "ratio": seconds / raw_seconds,
        "raw_cpu_seconds": raw_cpu,
        "diagnose_cpu_seconds": cpu,
        "cpu_ratio": cpu / raw_cpu,
        "response_tokens_through_the_model": sum(whole),
        "response_tokens_of_different_responses": sum(unique.values()),
        "responses": 2 * len(pairs),
        "different_responses": len(unique),
    }


@contextmanager
def forward_passes() -> Iterator[list[int]]:
    """Count the response tokens of every forward pass of the engine."""
    passed = list[int]()
    original: Callable[..., Any] = vars(engine)["score_pass"]

    def counting(*arguments: Any, **settings: Any) -> Any:
        result = original(*arguments, **settings)
        passed.append(len(result.log_probs))
        return result

    with patch.object(engine, "score_pass", counting):
        yield passed


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    verdict = "within" if found["cpu_ratio"] <= LIMIT else "beyond"

    def both(what: str) -> str:
        return f"{found[f'{what}_seconds']:.1f} ({found[f'{what}_cpu_seconds']:.1f})"

    rows = {
        "pairs": f"{found['pairs']:,}",
        "threads": found["threads"],
        "raw scoring, s (CPU s)": both("raw"),
        "full diagnosis, s (CPU s)": both("diagnose"),
        "ratio (of CPU s)": f"{found['ratio']:.3f} ({found['cpu_ratio']:.3f}): {verdict} {LIMIT}",
        "response tokens through the model": f"{found['response_tokens_through_the_model']:,}",
        "response tokens of different responses": (
            f"{found['response_tokens_of_different_responses']:,}"
        ),
        "responses, different ones": f"{found['responses']:,}, {found['different_responses']:,}",
    }
    if "judge_seconds" in found:
        rows["judge alone, s (CPU s)"] = both("judge")
    lines = ["| what | value |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])


if __name__ == "__main__":
    main()
