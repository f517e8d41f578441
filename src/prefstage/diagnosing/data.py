"""What is seen in pairs without any model: lengths, scores, what length explains."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from prefstage.core.errors import MissingDependencyError
from prefstage.data.disk_numbers import DiskNumbers, Numbers, count_different, text_number
from prefstage.data.records import Candidates, Pair
from prefstage.diagnosing.numbers import Histogram, describe_sorted, histogram
from prefstage.judging.base import content_of

HALF = 0.5
_LENGTHS = ("prompt", "chosen", "rejected")
_SCORES = ("score_chosen", "score_rejected", "gap")
_CHUNK = 1024


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


def data_figures(pairs: Iterable[Pair]) -> DataFigures:
    """Count, measure lengths and scores, and see how far length explains the labels.

    Memory does not grow with the pairs: lengths, scores and hashes of prompts wait on disk.

    Args:
        pairs: The pairs, read once.

    Returns:
        The figures; quantiles are exact.
    """
    with ExitStack() as stack:
        columns = {name: stack.enter_context(DiskNumbers()) for name in (*_LENGTHS, *_SCORES)}
        prompts = stack.enter_context(DiskNumbers("uint64"))
        seen, rest = _Seen(), iter(pairs)
        while chunk := list(islice(rest, _CHUNK)):
            rows = np.array([_row_of(pair) for pair in chunk], dtype=np.float64)
            for place, name in enumerate(columns):
                columns[name].extend(rows[:, place])
            prompts.extend([text_number(pair.prompt_id) for pair in chunk])
            seen.add(chunk, rows[:, 1] - rows[:, 2])
        scored = {name: columns[name].sort() for name in _SCORES}
        known = len(scored["gap"]) > 0 and not np.isnan(scored["gap"][0])  # NaN stand last
        return DataFigures(
            pairs=seen.pairs,
            prompts=count_different(prompts),
            ties=seen.ties,
            votes=seen.votes,
            identical=seen.identical,
            characters={name: asdict(describe_sorted(columns[name].sort())) for name in _LENGTHS},
            longer_wins=seen.longer / seen.labelled if seen.labelled else None,
            length_correlation=seen.correlation,
            scores={
                name.removeprefix("score_"): asdict(describe_sorted(values))
                for name, values in scored.items()
                if known
            },
            gap_histogram=histogram(scored["gap"]) if known else None,
        )


@dataclass
class _Seen:
    """Counts and sums over the pairs so far."""

    pairs: int = 0
    ties: int = 0
    votes: int = 0
    identical: int = 0
    labelled: int = 0
    longer: float = 0.0
    apart: float = 0.0
    squares: float = 0.0

    def add(self, pairs: Sequence[Pair], apart: Numbers) -> None:
        """Take in pairs, and by how much each one's chosen side is longer."""
        labelled = np.array([pair.agreement != HALF for pair in pairs])
        self.pairs += len(pairs)
        self.ties += int((~labelled).sum())
        self.votes += sum(pair.agreement is not None for pair in pairs)
        self.identical += sum(_text(pair.chosen) == _text(pair.rejected) for pair in pairs)
        self.labelled += int(labelled.sum())
        self.longer += float(longer_votes(apart[labelled]).sum())
        self.apart += float(apart[labelled].sum())
        self.squares += float((apart[labelled] ** 2).sum())

    @property
    def correlation(self) -> float | None:
        """Of the difference in length with the label: Σd / √(n Σd²)."""
        if not self.squares:
            return None
        return float(self.apart / np.sqrt(self.labelled * self.squares))


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


def _row_of(pair: Pair) -> list[float]:
    """Lengths of prompt, chosen and rejected; scores of both sides and their gap."""
    scores = [np.nan if s is None else s for s in (pair.score_chosen, pair.score_rejected)]
    lengths = [len(_text(each)) for each in (pair.prompt, pair.chosen, pair.rejected)]
    return [*lengths, *scores, scores[0] - scores[1]]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _text(messages: Sequence[Any]) -> str:
    return "\n".join(map(content_of, messages))
