"""What is seen in pairs without any model: lengths, scores, what length explains."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from prefstage.core.errors import MissingDependencyError
from prefstage.data.records import Candidates, Pair
from prefstage.data.storage import DiskNumbers, Numbers, count_different, text_number
from prefstage.diagnosing.numbers import HALF, describe_sorted, histogram
from prefstage.judging.base import content_of

_LENGTHS = ("prompt", "chosen", "rejected")
_SCORES = ("score_chosen", "score_rejected", "gap")
_CHUNK = 1024


def data_figures(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Count, measure lengths and scores, and see how far length explains the labels.

    Memory does not grow with the pairs: lengths, scores and hashes of prompts wait on disk.

    Args:
        pairs: The pairs, read once.

    Returns:
        `pairs`; `prompts`, different ones; `ties`, pairs whose raters are split evenly;
        `votes`, pairs with an agreement; `identical`, pairs with the same text on both sides;
        `characters`, length of prompts, chosen and rejected responses; `longer_wins`, how often
        "the longer response is better" gives the label, equal lengths half, over pairs that are
        no ties (None without such pairs); `length_correlation`, of the difference in length with
        the label, both presentation orders taken, Σd / √(n Σd²) (None where lengths never
        differ); `scores`, distribution of chosen and rejected scores and of their gap (empty
        without); `gap_histogram`, the figure's data (None without). Quantiles are exact.
    """
    # By name, so that one loop over chunks raises them all; n, Σd and Σd² are of labelled pairs.
    count = dict.fromkeys(("pairs", "ties", "votes", "identical"), 0)
    labelled, longer, apart_sum, squares = 0, 0.0, 0.0, 0.0
    with ExitStack() as stack:
        columns = {name: stack.enter_context(DiskNumbers()) for name in (*_LENGTHS, *_SCORES)}
        prompts = stack.enter_context(DiskNumbers("uint64"))
        rest = iter(pairs)
        while chunk := list(islice(rest, _CHUNK)):
            rows = np.array([_row_of(pair) for pair in chunk], dtype=np.float64)
            for column, values in zip(columns.values(), rows.T, strict=True):
                column.extend(values)
            prompts.extend([text_number(pair.prompt_id) for pair in chunk])
            has_label = np.array([pair.agreement != HALF for pair in chunk])
            count["pairs"] += len(chunk)
            count["ties"] += int((~has_label).sum())
            count["votes"] += sum(pair.agreement is not None for pair in chunk)
            count["identical"] += sum(_text(p.chosen) == _text(p.rejected) for p in chunk)
            apart = (rows[:, 1] - rows[:, 2])[has_label]
            labelled += len(apart)
            longer += float(longer_votes(apart).sum())
            apart_sum += float(apart.sum())
            squares += float((apart**2).sum())
        scored = {name: columns[name].sort() for name in _SCORES}
        known = len(scored["gap"]) > 0 and not np.isnan(scored["gap"][0])  # NaN stand last
        shown = {name.removeprefix("score_"): values for name, values in scored.items() if known}
        return {
            **count,
            "prompts": count_different(prompts),
            "characters": {n: asdict(describe_sorted(columns[n].sort())) for n in _LENGTHS},
            "longer_wins": longer / labelled if labelled else None,
            "length_correlation": float(apart_sum / np.sqrt(labelled * squares))
            if squares
            else None,
            "scores": {name: asdict(describe_sorted(values)) for name, values in shown.items()},
            "gap_histogram": asdict(histogram(scored["gap"])) if known else None,
        }


def longer_votes(apart: Numbers) -> Numbers:
    """What "the longer one wins" says: 1 where chosen is longer, 0 where rejected is, else ½.

    Args:
        apart: Length of chosen less length of rejected. [pairs].

    Returns:
        The votes. [pairs].
    """
    return np.where(apart == 0, HALF, (apart > 0).astype(float))


def diversity_of(rows: Sequence[Candidates]) -> dict[str, float | int | None]:
    """How different the responses to one prompt are, averaged over prompts.

    Args:
        rows: Prompts with candidates; those with one response are counted and left out.

    Returns:
        distinct-1 and distinct-2 (different n-grams of words over all, of a prompt's
        responses together), self-BLEU (each response against the others, 0 to 100; high
        means alike), and the counts of prompts.

    Raises:
        MissingDependencyError: If sacrebleu is not installed.

    Source:
        distinct-n: Li et al. 2016, arXiv:1510.03055; self-BLEU: Zhu et al. 2018,
        arXiv:1802.01886, by sacrebleu's sentence BLEU.
    """
    try:
        from sacrebleu import sentence_bleu
    except ImportError:
        raise MissingDependencyError.of(
            saw="no package sacrebleu, which computes self-BLEU",
            expected="it installed",
            cure="pip install 'prefstage[build]'",
        ) from None
    several = [row.responses for row in rows if len(row.responses) > 1]
    bleu = [
        [sentence_bleu(text, texts[:n] + texts[n + 1 :]).score for n, text in enumerate(texts)]
        for texts in several
    ]
    return {
        "prompts": len(several),
        "prompts_with_one_response": len(rows) - len(several),
        "distinct_1": _mean([_distinct(texts, 1) for texts in several]),
        "distinct_2": _mean([_distinct(texts, 2) for texts in several]),
        "self_bleu": _mean([float(np.mean(scores)) for scores in bleu]),
    }


def _distinct(texts: Sequence[str], size: int) -> float:
    words = [text.lower().split() for text in texts]
    grams = [tuple(w[i : i + size]) for w in words for i in range(len(w) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _row_of(pair: Pair) -> list[float]:
    # A number for each of _LENGTHS and _SCORES.
    scores = [np.nan if s is None else s for s in (pair.score_chosen, pair.score_rejected)]
    lengths = [len(_text(part)) for part in (pair.prompt, pair.chosen, pair.rejected)]
    return [*lengths, *scores, scores[0] - scores[1]]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _text(messages: Sequence[Any]) -> str:
    return "\n".join(map(content_of, messages))
