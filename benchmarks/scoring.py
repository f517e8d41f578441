"""Speed, memory and exactness of scoring, against forward passes over whole sequences.

    python benchmarks/scoring.py [--model FOLDER] [--shared FOLDER] [--out FILE.json]

The model is a checkpoint folder (default PREFSTAGE_CHAT_MODEL; see prepare_chat_model.py), the
texts are those of the shared data (default PREFSTAGE_SHARED or ../shared).

The peer is what trainers do today: sequences of prompt and response sorted by length, padded
to the batch's longest, logits at all positions, log-probs picked from them by TRL's selective
log-softmax. Its batch size is the fastest of several, tried first. Both run in processes of
their own, in turns, and the table gives medians. Peak extra memory is the highest resident
memory over that after loading, in fresh processes (on a GPU, the allocator's).

The floor is the arithmetic that no exact method can leave out, at the machine's matrix rate:
every distinct text prefix once through the body, the vocabulary once a response token, and
attention over what each token sees. The rate is that of the model's own layers, sustained for
a second between the runs.
"""

import argparse
import gc
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import (
    MIB,
    Process,
    Setup,
    floor_flops,
    fresh,
    matrix_rate,
    memory_now,
    memory_peak,
    tell,
    touched,
)

VOCABULARIES = (8_192, 32_768, 131_072, 262_144)
K8, PAIRS = "8 responses a prompt", "HH pairs"
SIZES = {K8: 3, PAIRS: 96}
TRIAL = {K8: 1, PAIRS: 6}
BATCHES = (1, 2, 4, 8)
GPU_SIZES = {K8: 64, PAIRS: 512}
GPU_BATCHES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ScoringSetup(Setup):
    """Also how the runs go."""

    repeats: int
    scale: float

    @property
    def sizes(self) -> dict[str, int]:
        """Prompts of each workload."""
        sizes = GPU_SIZES if self.device == "cuda" else SIZES
        return {name: max(1, round(size * self.scale)) for name, size in sizes.items()}

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes that the peer tries."""
        return GPU_BATCHES if self.device == "cuda" else BATCHES


# --- Workloads ----------------------------------------------------------------------------


def workload(setup: ScoringSetup, name: str, count: int) -> list[Any]:
    """Token trees from the shared texts."""
    from prefstage.data import ResponseEncoder, load_candidates, load_pairs, load_tokenizer

    data = Path(setup.shared) / "data"
    skipped = {"on_bad_row": "quarantine", "quarantine_file": os.devnull}
    tokenizer = load_tokenizer(setup.model)
    if name == PAIRS:
        pairs = load_pairs(str(data / "hh_rlhf_harmless_test.jsonl.gz"), **skipped)
        encoder = ResponseEncoder(tokenizer)
        step = len(pairs) // count
        chosen = [pairs[i * step] for i in range(count)]
        return [encoder.encode(p.prompt, (*p.chosen, *p.rejected)) for p in chosen]
    encoder = ResponseEncoder(tokenizer, max_prompt_tokens=400, max_response_tokens=60)
    trees = []
    for one in load_candidates(str(data / "alpacaeval_small.jsonl.gz"), **skipped):
        # Two of the ten answers lengthen the prompt to the wanted size, eight are scored.
        *answers, first, second = one.responses
        text = "\n\n".join([one.prompt[-1]["content"], first, second])
        tree = encoder.encode([{"role": "user", "content": text}], answers[:8])
        long_enough = len(tree.prompt_ids) >= 380 and min(map(len, tree.response_ids)) >= 40
        if len(tree.response_ids) == 8 and long_enough:
            trees.append(tree)
        if len(trees) == count:
            break
    return trees


def pair_tokens(trees: Sequence[Any]) -> int:
    """Tokens of all whole sequences."""
    return sum(len(t.prompt_ids) + len(ids) for t in trees for ids in t.response_ids)


# --- What the worker processes do ---------------------------------------------------------


class Worker:
    """One side (ours or the peer) with its model loaded; answers calls from the parent."""

    def __init__(self, setup: ScoringSetup, side: str) -> None:
        if side == "ours":
            from prefstage.cli.main import tune_allocator

            tune_allocator()  # as the commands of prefstage do
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(setup.threads)
        self.setup, self.side = setup, side
        dtype = torch.bfloat16 if setup.device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=dtype)
        self.model = touched(model.eval().to(setup.device))
        self.trees = {name: workload(setup, name, n) for name, n in setup.sizes.items()}
        from prefstage.scoring import Scorer

        gc.collect()
        self.before = memory_now(setup.device)
        self.scorer: Any = None
        if side == "ours":
            self.scorer = Scorer(self.model)

    def run(self, name: str, batch: int, count: int | None = None) -> dict[str, Any]:
        """Score a workload once: seconds, and the sum of each response to compare by."""
        trees = self.trees[name][:count]
        start = time.perf_counter()
        if self.side == "ours":
            sums = [tree.sums.tolist() for tree in self.scorer.score(trees)]
        else:
            sums = peer_sums(self.model, trees, batch)
        return {"seconds": time.perf_counter() - start, "sums": sums}

    def peak(self) -> int:
        """Highest memory over that after loading. Bytes."""
        return memory_peak(self.setup.device) - self.before

    def rate(self) -> float:
        """Matrix rate of one layer's products on a row of 1,024 tokens. FLOP/s."""
        return matrix_rate(self.model, 1024 if self.setup.device == "cpu" else 16_384)

    def floor(self, name: str) -> dict[str, float]:
        """Arithmetic of the floor for a workload."""
        return floor_flops(self.model, self.trees[name])


def peer_sums(model: Any, trees: Sequence[Any], batch: int) -> list[list[float]]:
    """Whole padded sequences, logits at all positions, as preference trainers do it."""
    import torch

    sequences = [(i, j) for i, tree in enumerate(trees) for j in range(len(tree.response_ids))]
    texts = {(i, j): trees[i].prompt_ids + trees[i].response_ids[j] for i, j in sequences}
    sequences.sort(key=lambda key: len(texts[key]), reverse=True)
    sums = [[0.0] * len(tree.response_ids) for tree in trees]
    with torch.inference_mode():
        for start in range(0, len(sequences), batch):
            keys = sequences[start : start + batch]
            longest = len(texts[keys[0]])
            ids = torch.zeros(len(keys), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, key in enumerate(keys):
                ids[row, : len(texts[key])] = torch.tensor(texts[key])
                mask[row, : len(texts[key])] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            log_probs = selective_log_softmax(logits, ids[:, 1:]).cpu()
            for row, (i, j) in enumerate(keys):
                first = len(trees[i].prompt_ids) - 1
                stop = first + len(trees[i].response_ids[j])
                sums[i][j] = float(log_probs[row, first:stop].float().sum())
    return sums


def selective_log_softmax(logits: Any, ids: Any) -> Any:
    """As in TRL (trl.trainer.utils), whose rows bound the second copy of the logits."""
    import torch

    if logits.dtype in (torch.float32, torch.float64):
        picked = logits.gather(-1, ids[..., None]).squeeze(-1)
        return picked - torch.stack([row.logsumexp(-1) for row in logits])
    rows = zip(logits, ids, strict=True)
    return torch.stack([a.log_softmax(-1).gather(-1, b[:, None]).squeeze(-1) for a, b in rows])


def vocabulary_peak(setup: ScoringSetup, vocabulary: int) -> int:
    """Peak extra memory of scoring with a small body and a given vocabulary. Bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prefstage.data import TokenTree
    from prefstage.scoring import Scorer

    torch.set_num_threads(setup.threads)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = touched(LlamaForCausalLM(config).eval().to(setup.device))
    tree = TokenTree("", tuple(range(400)), tuple(tuple(range(i, i + 60)) for i in range(8)))
    before = memory_now(setup.device)
    Scorer(model).score([tree] * 2)
    return memory_peak(setup.device) - before


# --- The parent ---------------------------------------------------------------------------


def compare(setup: ScoringSetup, name: str, ours: Process, peer: Process) -> dict[str, Any]:
    """One workload: the peer at its best batch size and ours, in turns, then memory."""
    trial = trial_size(setup, name)
    ours.call("run", name, 0, 1)
    ours_trial_s = ours.call("run", name, 0, trial)["seconds"]
    tried = {b: peer.call("run", name, b, trial)["seconds"] for b in setup.batches}
    best = min(tried, key=lambda batch: tried[batch])
    tell(f"{name}: the peer's seconds by batch size {tried}; ours {ours_trial_s:.2f}")
    runs, rates = [], []
    for _ in range(setup.repeats):
        rates.append(ours.call("rate"))
        runs.append((ours.call("run", name, 0), peer.call("run", name, best)))
        tell(f"{name}: ours {runs[-1][0]['seconds']:.2f} s, peer {runs[-1][1]['seconds']:.2f} s")
    ours_s, peer_s = (statistics.median(run[side]["seconds"] for run in runs) for side in (0, 1))
    floor, rate = ours.call("floor", name), statistics.median(rates)
    floor_s = (floor["body"] + floor["vocabulary"] + floor["attention"]) / rate
    given = (name, best, None if setup.device == "cuda" else 2)
    _, ours_peak = fresh(Worker, setup, "ours", call="run", given=given)
    _, peer_peak = fresh(Worker, setup, "peer", call="run", given=given)
    prompts = setup.sizes[name]
    return {
        "workload": name,
        "prompts": prompts,
        "tokens_computed": floor["tokens"],
        "response_tokens": floor["targets"],
        "ours_s": ours_s,
        "peer_s": peer_s,
        "peer_batch": best,
        "times_as_fast_by_batch": {str(b): s / ours_trial_s for b, s in tried.items()},
        "ours_prompts_a_s": prompts / ours_s,
        "peer_prompts_a_s": prompts / peer_s,
        "times_as_fast": statistics.median(p["seconds"] / o["seconds"] for o, p in runs),
        "ours_peak_mib": ours_peak / MIB,
        "peer_peak_mib": peer_peak / MIB,
        "share_of_peer_memory": ours_peak / peer_peak,
        "matrix_rate_gflops": rate / 1e9,
        "floor_s": floor_s,
        "share_of_floor": floor_s / ours_s,
        "largest_difference_nats": max(
            abs(a - b)
            for x, y in zip(*(r["sums"] for r in runs[0]), strict=True)
            for a, b in zip(x, y, strict=True)
        ),
    }


def trial_size(setup: ScoringSetup, name: str) -> int:
    """Prompts on which the peer tries its batch sizes."""
    return TRIAL[name] * (1 if setup.device == "cpu" else 8)


def linearity(setup: ScoringSetup, ours: Process) -> dict[str, Any]:
    """Time against tokens, and the exponent of the line through them in logs."""
    total = setup.sizes[PAIRS]
    tokens, seconds = [], []
    for count in sorted({max(1, total // n) for n in (8, 4, 2, 1)}):
        best = min(ours.call("run", PAIRS, 0, count)["seconds"] for _ in range(2))
        tokens.append(pair_tokens(workload(setup, PAIRS, total)[:count]))
        seconds.append(best)
    fit = statistics.linear_regression(
        [math.log(t) for t in tokens], [math.log(s) for s in seconds]
    )
    return {"tokens": tokens, "seconds": seconds, "exponent": fit.slope}


def print_results(results: dict[str, Any]) -> None:
    """Print the tables."""
    print(
        "| workload | prompts/s ours | peer (batch) | ratio | peak MiB ours | peer | share "
        "| floor s | ours s | share of floor | matrix GFLOP/s | largest difference of a sum |"
    )
    print("|" + "---|" * 12)
    for r in results["workloads"]:
        print(
            f"| {r['workload']} | {r['ours_prompts_a_s']:.2f} "
            f"| {r['peer_prompts_a_s']:.2f} ({r['peer_batch']}) | {r['times_as_fast']:.2f} "
            f"| {r['ours_peak_mib']:.0f} | {r['peer_peak_mib']:.0f} "
            f"| {r['share_of_peer_memory']:.2f} | {r['floor_s']:.2f} | {r['ours_s']:.2f} "
            f"| {r['share_of_floor']:.0%} | {r['matrix_rate_gflops']:.0f} "
            f"| {r['largest_difference_nats']:.1e} |"
        )
    print("\n| workload | ratio on a few prompts, by the peer's batch size |\n|---|---|")
    for r in results["workloads"]:
        by_batch = (f"{b}: {x:.2f}" for b, x in r["times_as_fast_by_batch"].items())
        print(f"| {r['workload']} | {', '.join(by_batch)} |")
    print("\n| vocabulary | peak extra MiB |\n|---|---|")
    for vocabulary, peak in results["vocabulary_peak_mib"].items():
        print(f"| {vocabulary} | {peak:.1f} |")
    line = results["linearity"]
    print("\n| tokens of the sequences | seconds |\n|---|---|")
    for tokens, seconds in zip(line["tokens"], line["seconds"], strict=True):
        print(f"| {tokens} | {seconds:.2f} |")
    print(f"\ntime grows as tokens to the power of {line['exponent']:.2f}")


def main() -> None:
    """Run everything, print the tables, and write them as JSON if asked to."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--model", default=os.environ.get("PREFSTAGE_CHAT_MODEL"))
    parser.add_argument("--shared", default=os.environ.get("PREFSTAGE_SHARED", str(beside)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the prompts")
    parser.add_argument("--out", type=Path)
    given = vars(parser.parse_args())
    out = given.pop("out")
    setup = ScoringSetup(**given)
    if not setup.model or not (Path(setup.shared) / "data").is_dir():
        parser.error("name a checkpoint with --model and the shared data with --shared")
    ours, peer = Process(Worker, setup, "ours"), Process(Worker, setup, "peer")
    results = {
        "setup": asdict(setup),
        "workloads": [compare(setup, name, ours, peer) for name in (K8, PAIRS)],
        "linearity": linearity(setup, ours),
    }
    ours.close()
    peer.close()
    results["vocabulary_peak_mib"] = {
        str(v): fresh(vocabulary_peak, setup, v) / MIB for v in VOCABULARIES
    }
    print_results(results)
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
