"""Statistics computed again, from numbers and words alone: plain loops and numpy.

Nothing here uses prefstage's own functions, save for the seed of the bootstrap's draws.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefstage.core.files import seed_for


def distribution(values: Sequence[float], missing: int = 0) -> dict[str, Any]:
    low, q25, median, q75, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return {
        "mean": np.mean(values),
        "std": np.std(values, ddof=1) if len(values) > 1 else None,
        "min": low,
        "q25": q25,
        "median": median,
        "q75": q75,
        "max": high,
        "count": len(values),
        "missing": missing,
    }


def histogram(values: Sequence[float]) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=20)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def bootstrap(values: Sequence[float], ids: Sequence[str], resamples: int) -> dict[str, Any]:
    groups: dict[str, list[float]] = {}
    for value, prompt_id in zip(values, ids, strict=True):
        groups.setdefault(prompt_id, []).append(value)
    clusters = list(groups.values())
    draws = np.random.default_rng(seed_for(0, "bootstrap"))
    means = []
    for row in draws.integers(len(clusters), size=(resamples, len(clusters))):
        drawn = [value for place in row for value in clusters[place]]
        means.append(sum(drawn) / len(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": np.mean(values),
        "low": low,
        "high": high,
        "confidence": 0.95,
        "prompts": len(clusters),
    }


def wilson(share: float, count: int) -> list[float]:
    """The roots of (p - x)² = z² x(1 - x)/n."""
    z2 = 1.959963984540054**2 / count
    return sorted(np.roots([1 + z2, -(2 * share + z2), share**2]).real.tolist())


def correlation(apart: Sequence[float]) -> float | None:
    """Pearson's, of the difference and the label, each pair in both orders."""
    both = [(d, 1) for d in apart] + [(-d, -1) for d in apart]
    if not any(apart):
        return None
    return float(np.corrcoef(*zip(*both, strict=True))[0, 1])


def kappa(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Cohen's κ of three categories, each pair in both orders."""
    both = [*zip(first, second, strict=True)]
    both += [(1 - a, 1 - b) for a, b in both]
    observed = np.mean([a == b for a, b in both])
    shares = [
        [np.mean([each[k] == kind for each in both]) for kind in (0.0, 0.5, 1.0)] for k in (0, 1)
    ]
    chance = sum(a * b for a, b in zip(*shares, strict=True))
    return float((observed - chance) / (1 - chance)) if chance < 1 else None


def diversity(answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU

    several = [texts for texts in answers if len(texts) > 1]
    bleu = BLEU(effective_order=True)
    alike = [
        np.mean(
            [
                bleu.sentence_score(text, [t for k, t in enumerate(texts) if k != n]).score
                for n, text in enumerate(texts)
            ]
        )
        for texts in several
    ]
    return {
        "prompts": len(several),
        "prompts_with_one_response": len(answers) - len(several),
        "distinct_1": np.mean([_distinct(texts, 1) for texts in several]),
        "distinct_2": np.mean([_distinct(texts, 2) for texts in several]),
        "self_bleu": np.mean(alike),
    }


def _distinct(texts: Sequence[str], size: int) -> float:
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += [" ".join(words[n : n + size]) for n in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams)


def vote(apart: float) -> float:
    return 0.5 if apart == 0 else float(apart > 0)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
