"""A diagnosis computed again, figure by figure: plain loops, numpy, one forward pass a response.

Nothing here uses the engine or the functions that the report is made by; random draws alone
(of the bootstrap and of own answers) are taken in the same order, and the interval of a win rate,
which has tests of its own, is taken as it is.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prefstage.core.files import seed_for
from prefstage.data.records import Candidates, Pair
from prefstage.measuring.rates import mean_interval
from tests.diagnosing.recomputing_figures import (
    bootstrap,
    correlation,
    distribution,
    diversity,
    histogram,
    kappa,
    softplus,
    vote,
    wilson,
)

NOT_FIGURES = {"dataset", "policy", "reference", "config", "warnings", "seconds"}
BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)

Forward = Callable[[Any, str], tuple[float, int]]
"""Log-prob of a response to a prompt, summed, and its tokens."""
Reward = Callable[[Any, str], float]


def plain_forward(model: Any, encoder: Any) -> Forward:
    """Log-probs by one plain forward pass of transformers a response."""

    def forward(prompt: Any, text: str) -> tuple[float, int]:
        tree = encoder.encode(prompt, [text])
        (ids,) = tree.response_ids
        with torch.no_grad():
            logits = model(torch.tensor([[*tree.prompt_ids, *ids]])).logits[0].float()
        start = len(tree.prompt_ids) - 1
        steps = logits[start : start + len(ids)].log_softmax(-1)
        return float(steps.gather(1, torch.tensor(ids)[:, None]).double().sum()), len(ids)

    return forward


def plain_reward(model: Any, tokenizer: Any, *, prompt_tokens: int, length: int) -> Reward:
    """Rewards as the small judge's README computes them, one text at a time."""

    def reward(prompt: Any, text: str) -> float:
        told = _told(prompt)
        spans = tokenizer(
            told,
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=True,
            max_length=prompt_tokens,
        )["offset_mapping"]
        batch = tokenizer(
            told[: spans[-1][1]],
            text,
            truncation="only_second",
            max_length=length,
            return_tensors="pt",
        )
        with torch.no_grad():
            return float(model(**batch).logits[0, 0])

    return reward


def expected_report(
    pairs: Sequence[Pair],
    forward: Forward,
    *,
    judge: tuple[str, Reward] | None = None,
    own: Sequence[Candidates] = (),
    resamples: int = 1000,
) -> dict[str, Any]:
    """Every figure of `diagnose(pairs, policy, judge, on_policy=own)` with default settings."""
    sides = [[forward(p.prompt, _text(side)) for side in (p.chosen, p.rejected)] for p in pairs]
    different = {
        (p.prompt_id, _text(side)): n
        for p, both in zip(pairs, sides, strict=True)
        for side, (_, n) in zip((p.chosen, p.rejected), both, strict=True)
    }
    tokens = sum(different.values())
    report = {
        "data": _data(pairs),
        "rankings": {
            **_rankings(pairs, sides, resamples),
            "tokens_scored": tokens,
            "tokens_unique": tokens,
            "counts": {"prompts": len({p.prompt_id for p in pairs}), "responses": len(different)},
        },
        "learnability": _learnability(pairs, sides),
        "judge": None,
        "second_judge": None,
        "consistency": None,
        "own_answers": None,
        "distinctness": _distinctness(pairs, sides, own, forward) if own else None,
        "diversity": diversity([row.responses for row in own]) if own else None,
        "left_out": _left_out(pairs),
    }
    if judge is not None:
        name, reward = judge
        rewards = [
            [reward(p.prompt, _text(side)) for side in (p.chosen, p.rejected)] for p in pairs
        ]
        report["judge"] = _judge(pairs, rewards, name)
        same = [(w > ell) == (a[0] > b[0]) for (w, ell), (a, b) in zip(rewards, sides, strict=True)]
        report["consistency"] = {"judge and policy": np.mean(same)}
        report["own_answers"] = _own(pairs, own, reward) if own else None
    return report


def same(found: Any, expected: Any, *, close: Callable[[Any], Any], where: str = "") -> None:
    """Assert that two reports have the same figures, all of them."""
    if isinstance(expected, dict):
        assert {str(key) for key in found} == {str(key) for key in expected}, where
        found = {str(key): value for key, value in found.items()}
        for key, value in expected.items():
            same(found[str(key)], value, close=close, where=f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, close=close, where=f"{where}[{place}]")
    elif isinstance(expected, float | np.floating):
        assert found == close(float(expected)), where
    else:
        assert found == expected, where


def _data(pairs: Sequence[Pair]) -> dict[str, Any]:
    lengths = {
        "prompt": [len("\n".join(m["content"] for m in p.prompt)) for p in pairs],
        "chosen": [len(_text(p.chosen)) for p in pairs],
        "rejected": [len(_text(p.rejected)) for p in pairs],
    }
    labelled = [p for p in pairs if p.agreement != 0.5]
    apart = [len(_text(p.chosen)) - len(_text(p.rejected)) for p in labelled]
    scored = [p for p in pairs if p.score_chosen is not None and p.score_rejected is not None]
    gaps = [p.score_chosen - p.score_rejected for p in scored]
    scores: dict[str, Any] = {}
    if scored:
        missing = len(pairs) - len(scored)
        scores["chosen"] = distribution([p.score_chosen for p in scored], missing)
        scores["rejected"] = distribution([p.score_rejected for p in scored], missing)
        scores["gap"] = distribution(gaps, missing)
    return {
        "pairs": len(pairs),
        "prompts": len({p.prompt_id for p in pairs}),
        "ties": len(pairs) - len(labelled),
        "votes": sum(p.agreement is not None for p in pairs),
        "identical": sum(_text(p.chosen) == _text(p.rejected) for p in pairs),
        "characters": {name: distribution(values) for name, values in lengths.items()},
        "longer_wins": np.mean([vote(each) for each in apart]) if apart else None,
        "length_correlation": correlation(apart),
        "scores": scores,
        "gap_histogram": histogram(gaps) if scored else None,
    }


def _left_out(pairs: Sequence[Pair]) -> dict[str, int]:
    ties = sum(pair.agreement == 0.5 for pair in pairs)
    return {"rankings: ties of the raters": ties} if ties else {}


def _rankings(pairs: Sequence[Pair], sides: Any, resamples: int) -> dict[str, Any]:
    kept = [n for n, p in enumerate(pairs) if p.agreement != 0.5]
    ids = [p.prompt_id for p in pairs]
    plain = [float(w >= ell) for (w, _), (ell, _) in sides]
    means = [(w / m, ell / n) for (w, m), (ell, n) in sides]
    normalised = [float(w >= ell) for w, ell in means]

    def interval(values: Sequence[float], over: Sequence[int]) -> dict[str, Any] | None:
        return bootstrap([values[n] for n in over], [ids[n] for n in over], resamples)

    ties = {}
    if len(kept) < len(pairs):
        scales = {
            "probability": [(math.exp(w), math.exp(ell)) for (w, _), (ell, _) in sides],
            "normalised_probability": [(math.exp(w), math.exp(ell)) for w, ell in means],
            "normalised_log_prob": means,
        }
        for name, values in scales.items():
            right = [_tied(p, *value) for p, value in zip(pairs, values, strict=True)]
            ties[name] = interval(right, range(len(pairs)))
    apart, apart_mean = [w - ell for (w, _), (ell, _) in sides], [w - ell for w, ell in means]
    return {
        "accuracy": interval(plain, kept) if kept else None,
        "accuracy_normalised": interval(normalised, kept) if kept else None,
        "with_ties": ties,
        "left_out": _left_out(pairs),
        "reward_accuracy": None,
        "idealized": _idealized(
            pairs,
            {
                "plain": (
                    apart,
                    plain,
                    [math.exp(w) - math.exp(ell) for (w, _), (ell, _) in sides],
                ),
                "normalised": (apart_mean, normalised, apart_mean),
            },
        ),
        "intra_diversity": {
            "mean": np.mean(apart),
            "std": np.std(apart),
            "quantiles": {q: np.quantile(apart, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
            "pairs": len(pairs),
        },
    }


def _tied(pair: Pair, first: float, second: float) -> float:
    alpha = 1.0 if pair.agreement is None else pair.agreement
    if alpha == 0.5:
        return float(abs(first - second) < 0.01)
    return float(first > second) if alpha > 0.5 else float(first < second)


def _idealized(pairs: Sequence[Pair], kinds: Mapping[str, Any]) -> dict[str, Any]:
    votes = [n for n, p in enumerate(pairs) if p.agreement not in (None, 0.5)]
    if not any(0.5 < p.agreement < 1 for p in pairs if p.agreement is not None):
        return {
            "missing": "needs votes (column agreement) that are not all unanimous; "
            "the labels here are bare"
        }
    ties = [n for n, p in enumerate(pairs) if p.agreement == 0.5]
    found: dict[str, Any] = {"pairs": len(votes), "ties": len(ties)}
    for kind, (ratio, correct, distance) in kinds.items():
        by_beta = {}
        for beta in BETAS:
            hits = []
            for n in votes:
                alpha = min(pairs[n].agreement, 0.999) if pairs[n].agreement == 1 else None
                alpha = pairs[n].agreement if alpha is None else alpha
                hits.append(ratio[n] + math.log(alpha / (1 - alpha)) / beta > 0)
            by_beta[str(beta)] = np.mean(hits)
        values, now = list(by_beta.values()), np.mean([correct[n] for n in votes])
        found[kind] = {
            "by_beta": by_beta,
            "min": min(values),
            "median": np.median(values),
            "max": max(values),
            "ranking_accuracy": now,
            "alignment_gap": np.median(values) - now,
        }
        if ties:
            even = [float(abs(distance[n]) < 0.01) for n in ties]
            found[kind]["with_ties"] = {
                name: np.mean([found[kind][name]] * len(votes) + even)
                for name in ("min", "median", "max")
            }
    return found


def _learnability(pairs: Sequence[Pair], sides: Any) -> dict[str, Any]:
    kept = [n for n, pair in enumerate(pairs) if pair.agreement != 0.5]
    pairs, sides = [pairs[n] for n in kept], [sides[n] for n in kept]
    c = [ell - w for (w, _), (ell, _) in sides]
    limit = -math.log(math.expm1(0.5)) / 0.1
    wrong = [each for each in c if each > 0]
    group = [
        "easy" if x <= -50 else "hard" if x >= 50 else "easy to flip" if 0 < x <= 5 else "between"
        for x in c
    ]
    names = ("easy", "easy to flip", "between", "hard")
    shown = histogram(c)
    examples = {}
    for name in ("easy", "easy to flip", "hard"):
        inside = sorted((x, n) for n, x in enumerate(c) if group[n] == name)
        inside = inside[::-1] if name == "hard" else inside
        examples[name] = [_example(pairs[n], x) for x, n in inside[:3]]
    return {
        "groups": {name: group.count(name) for name in names},
        "wrong": len(wrong),
        "flippable_at_loss": {
            "loss": 0.5,
            "beta": 0.1,
            "largest_log_ratio": limit,
            "share_of_wrong": np.mean([x <= limit for x in wrong]) if wrong else None,
            "share_right": np.mean([x <= limit for x in c]),
        },
        "log_ratio": distribution(c),
        "histogram": shown,
        "thresholds": [softplus(-0.1 * edge) for edge in shown["edges"]],
        "examples": examples,
    }


def _example(pair: Pair, c: float) -> dict[str, Any]:
    told = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    cut = {name: " ".join(side[-1]["content"].split()) for name, side in told.items()}
    shown = {name: t if len(t) <= 100 else t[:99] + "…" for name, t in cut.items()}
    return {"prompt_id": pair.prompt_id, "log_ratio_nats": c, **shown}


def _judge(pairs: Sequence[Pair], rewards: Any, name: str) -> dict[str, Any]:
    labelled = [n for n, p in enumerate(pairs) if p.agreement != 0.5]
    votes = [vote(w - ell) for w, ell in rewards]
    apart = [len(_text(p.chosen)) - len(_text(p.rejected)) for p in pairs]
    agreement = np.mean([votes[n] for n in labelled])
    longer = [votes[n] if apart[n] > 0 else 1 - votes[n] for n in labelled if apart[n]]
    labels = [0.5 if p.agreement == 0.5 else 1.0 for p in pairs]
    return {
        "judge": name,
        "agreement": {
            "pairs": len(pairs),
            "label_ties": len(pairs) - len(labelled),
            "judge_ties": sum(votes[n] == 0.5 for n in labelled),
            "undecided": 0,
            "agreement": agreement,
            "interval": wilson(agreement, len(labelled)),
            "longer_wins": np.mean([vote(apart[n]) for n in labelled]),
            "prefers_longer": np.mean(longer) if longer else None,
        },
        "kappa": kappa(labels, votes),
        "position_bias": None,
        "position_note": "scores each response by itself: no place to prefer",
        "scores": {
            "chosen": distribution([w for w, _ in rewards]),
            "rejected": distribution([ell for _, ell in rewards]),
            "gap": distribution([w - ell for w, ell in rewards]),
        },
    }


def _own(pairs: Sequence[Pair], own: Sequence[Candidates], reward: Reward) -> dict[str, Any]:
    against, longer, graded = [list[float](), list[float]()], list[float](), dict[str, float]()
    for prompt_id in dict.fromkeys(p.prompt_id for p in pairs):
        theirs = [p for p in pairs if p.prompt_id == prompt_id]
        rows = [row for row in own if row.prompt_id == prompt_id]
        if not rows:
            continue
        mine, pair = (
            random.Random(seed_for(0, "answer-quality", prompt_id)).choice(options)
            for options in (rows[0].responses, theirs)
        )
        for place, side in enumerate((pair.chosen, pair.rejected)):
            gap = reward(pair.prompt, mine) - reward(pair.prompt, _text(side))
            against[place].append(0.5 if mine == _text(side) else vote(gap))
            if place == 0:
                graded[prompt_id] = 0.5 if mine == _text(side) else 1 / (1 + math.exp(-gap))
        apart = len(mine) - len(_text(pair.chosen))
        if apart:
            longer.append(against[0][-1] if apart > 0 else 1 - against[0][-1])
    drawn = sorted(graded, key=lambda prompt_id: seed_for(0, "prompt order", prompt_id))
    values = np.array([graded[prompt_id] for prompt_id in drawn])
    return {
        "prompts": len(graded),
        "undecided": 0,
        "win_rate": np.mean(values),
        "interval": mean_interval(values, resamples=1000) if len(graded) > 1 else None,
        "length_controlled_win_rate": None,  # of fewer than thirty prompts
        "length_controlled_interval": None,
        "wins_over_both": np.mean(against),
        "longer_wins": np.mean(longer) if longer else None,
    }


def _distinctness(
    pairs: Sequence[Pair], sides: Any, own: Sequence[Candidates], forward: Forward
) -> dict[str, Any]:
    shares, comparisons = [], 0
    for row in own:
        off = {}
        for p, both in zip(pairs, sides, strict=True):
            if p.prompt_id == row.prompt_id:
                off |= {_text(p.chosen): both[0][0], _text(p.rejected): both[1][0]}
        if not off:
            continue
        on = [forward(row.prompt, text)[0] for text in row.responses]
        shares.append(np.mean([mine > theirs for mine in on for theirs in off.values()]))
        comparisons += len(on) * len(off)
    return {"prompts": len(shares), "comparisons": comparisons, "share": np.mean(shares)}


def _text(side: Any) -> str:
    return "\n".join(message["content"] for message in side)


def _told(prompt: Any) -> str:
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return str(prompt[0]["content"])
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
