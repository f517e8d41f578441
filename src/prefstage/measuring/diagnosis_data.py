"""What is seen in pairs without any model: lengths, scores, what length explains."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefstage.core.errors import MissingDependencyError
from prefstage.data.records import Candidates, Pair
from prefstage.judging.texts import content_of
from prefstage.measuring.diagnosis_numbers import Histogram, Numbers, describe, histogram

HALF = 0.5


@dataclass(frozen=True)
class DataFigures:
    """A dataset of pairs by itself.

    Attributes:
        pairs: How many.
        prompts: Different prompts.
        ties: Pairs whose raters are split evenly.
        votes: Pairs with an agreement.
        identical: Pairs whose two sides have the same text.
        characters: Length of prompts, chosen and rejected responses.
        longer_wins: How often "the longer response is better" gives the label, equal
            lengths half, over pairs that are no ties; None without such pairs.
        length_correlation: Correlation of the difference in length with the label, both
            presentation orders taken: Σd / √(n Σd²); None where lengths never differ.
        scores: Distribution of chosen and rejected scores and of their gap; empty without.
        gap_histogram: Counts of gaps: the figure's data; None without scores.
    """

    pairs: int
    prompts: int
    ties: int
    votes: int
    identical: int
    characters: dict[str, dict[str, Any]]
    longer_wins: float | None
    length_correlation: float | None
    scores: dict[str, dict[str, Any]]
    gap_histogram: Histogram | None


def data_figures(pairs: Sequence[Pair]) -> DataFigures:
    """Count, measure lengths and scores, and see how far length explains the labels.

    Args:
        pairs: The pairs.

    Returns:
        The figures.
    """
    texts = [[_text(each) for each in (p.prompt, p.chosen, p.rejected)] for p in pairs]
    lengths = np.array([[len(text) for text in row] for row in texts], dtype=np.float64)
    labelled = np.array([pair.agreement != HALF for pair in pairs])
    apart = (lengths[:, 1] - lengths[:, 2])[labelled]
    scores = np.array(
        [
            [np.nan if value is None else value for value in (p.score_chosen, p.score_rejected)]
            for p in pairs
        ],
        dtype=np.float64,
    )
    gaps = scores[:, 0] - scores[:, 1]
    sides = {"chosen": scores[:, 0], "rejected": scores[:, 1], "gap": gaps}
    known = not np.isnan(gaps).all()
    return DataFigures(
        pairs=len(pairs),
        prompts=len({pair.prompt_id for pair in pairs}),
        ties=int((~labelled).sum()),
        votes=sum(pair.agreement is not None for pair in pairs),
        identical=sum(row[1] == row[2] for row in texts),
        characters={
            name: asdict(describe(lengths[:, place]))
            for place, name in enumerate(("prompt", "chosen", "rejected"))
        },
        longer_wins=float(longer_votes(apart).mean()) if len(apart) else None,
        length_correlation=_correlation(apart),
        scores={name: asdict(describe(values)) for name, values in sides.items()} if known else {},
        gap_histogram=histogram(gaps) if known else None,
    )


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
    several = [row for row in rows if len(row.responses) > 1]
    bleu = [
        float(
            np.mean(
                [
                    _against_others(row.responses, n, sentence_bleu)
                    for n in range(len(row.responses))
                ]
            )
        )
        for row in several
    ]
    return {
        "prompts": len(several),
        "prompts_with_one_response": len(rows) - len(several),
        "distinct_1": _mean([_distinct(row.responses, 1) for row in several]),
        "distinct_2": _mean([_distinct(row.responses, 2) for row in several]),
        "self_bleu": _mean(bleu),
    }


def _against_others(texts: Sequence[str], place: int, bleu: Any) -> float:
    others = [text for number, text in enumerate(texts) if number != place]
    return float(bleu(texts[place], others).score)


def _distinct(texts: Sequence[str], size: int) -> float:
    words = [text.lower().split() for text in texts]
    grams = [tuple(w[i : i + size]) for w in words for i in range(len(w) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _correlation(apart: Numbers) -> float | None:
    squares = float((apart**2).sum())
    return float(apart.sum() / np.sqrt(len(apart) * squares)) if squares > 0 else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _text(messages: Sequence[Any]) -> str:
    return "\n".join(map(content_of, messages))
