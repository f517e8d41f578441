"""Recorded judgments as judge: looked up by prompt and response texts, never computed."""

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from prefstage.core import Config, DataError, digest
from prefstage.data import Pair, load_candidates, load_pairs, prompt_id_of
from prefstage.judging.base import TIE, UNDECIDED, Comparison, Judge, Judgment, content_of, sigmoid

_Key = TypeVar("_Key")
_Records = dict[str, dict[_Key, list[float]]]


class TableOptions(Config):
    """How a table's numbers are read, and what happens to comparisons it lacks."""

    scores: Literal["baseline", "reward"] = Field(
        default="baseline",
        description="A response's score is P(response ≻ common baseline), or a reward.",
    )
    missing: Literal["error", "undecided"] = Field(
        default="error", description="What becomes of a comparison the table lacks."
    )
    clip: float = Field(
        default=1e-8, gt=0, lt=0.5, description="Probabilities are kept in [clip, 1 - clip]."
    )


class TableJudge(Judge):
    """Looks P(a ≻ b | x) up among recorded judgments.

    In order: the records of this very pair (averaged); the difference of both responses'
    recorded scores; and preferences of both over a response that both were compared with.
    With p_a = P(a ≻ baseline) and p_b likewise, P(a ≻ b) = σ(logit p_a - logit p_b): exact
    if preferences follow a Bradley-Terry model, whose rewards are the logits; otherwise an
    approximation. Counts comparisons "looked_up", "undecided" for lack of a record, rows not usable
    ("rows_skipped").
    """

    def __init__(self, path: str, *, options: TableOptions | None = None) -> None:
        """Read a table from one or several files.

        Args:
            path: Anything that `load_pairs` or `load_candidates` reads; several are
                separated by commas.
            options: How scores are read, and what a missing comparison means.

        Raises:
            DataError: If a file cannot be read as pairs or as scored responses, scores read as
                probabilities are none, or the table is empty.
        """
        self.name = f"table:{path}"
        self._options = options or TableOptions()
        self._counts: Counter[str] = Counter(looked_up=0, undecided=0, rows_skipped=0)
        # By prompt and unordered pair of texts (sorted): P(first ≻ second) as each record says it.
        self._pairs: _Records[tuple[str, str]] = defaultdict(lambda: defaultdict(list))
        # By prompt and text: the scores recorded for the response.
        self._scores: _Records[str] = defaultdict(lambda: defaultdict(list))
        fingerprints = [
            self._read(part) for part in ([path] if Path(path).exists() else path.split(","))
        ]
        scores = [s for texts in self._scores.values() for scores in texts.values() for s in scores]
        DataError.unless(
            scores or self._pairs,
            saw=f"{self.name} holds no judgment ({self._counts['rows_skipped']} rows unusable)",
            expected="pairs with a preference, or responses with a score",
            cure="check the file's columns",
        )
        outside = [score for score in scores if not 0.0 <= score <= 1.0]
        if outside and self._options.scores == "baseline":
            raise DataError.of(
                saw=f"{self.name}: {len(outside)} of {len(scores)} scores outside [0, 1],"
                f" such as {outside[0]}",
                expected="scores that are P(response ≻ common baseline)",
                cure="write ?scores=reward if they are rewards, P(a ≻ b) = σ(r_a - r_b)",
            )
        self.fingerprint = digest(
            {"tables": fingerprints, **self._options.model_dump(exclude={"missing"})}
        )

    def _read(self, path: str) -> str:
        """Read one file as pairs, or else as scored responses; unusable rows are counted."""
        with tempfile.TemporaryDirectory(prefix="prefstage-") as folder:
            how: Any = {
                "on_bad_row": "quarantine",
                "quarantine_file": Path(folder) / "unusable.jsonl",
            }
            try:
                rows: Any = load_pairs(path, **how)
            except DataError:
                rows = load_candidates(path, **how)
        for row in rows:
            if isinstance(row, Pair):
                first, second = (content_of(m[-1]).strip() for m in (row.chosen, row.rejected))
                # Without an agreement the label counts as certain.
                share = 1.0 if row.agreement is None else row.agreement
                if second < first:
                    first, second, share = second, first, 1.0 - share
                self._pairs[row.prompt_id][first, second].append(share)
            else:
                scored = [
                    both
                    for both in zip(row.responses, row.scores, strict=True)
                    if both[1] is not None
                ]
                self._counts["rows_skipped"] += len(row.responses) - len(scored)
                for response, score in scored:
                    self._scores[row.prompt_id][response.strip()].append(score)
        self._counts["rows_skipped"] += rows.report.quarantined
        return str(rows.fingerprint)

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Look each comparison up.

        Raises:
            DataError: If some are not in the table and `missing` is "error".
        """
        shares = [self._find(comparison) for comparison in comparisons]
        missing = [c for c, p in zip(comparisons, shares, strict=True) if p is None]
        if missing and self._options.missing == "error":
            first = missing[0]
            prompt = content_of(first.prompt[-1]) if first.prompt else ""
            raise DataError.of(
                saw=f"{len(missing)} of {len(comparisons)} comparisons are not in {self.name}; the"
                f" first: prompt {prompt[:60]!r}, responses {first.a[:40]!r} and {first.b[:40]!r}",
                expected="a record for every comparison",
                cure="add the records, or count missing ones as undecided with ?missing=undecided",
            )
        self._counts["looked_up"] += len(comparisons) - len(missing)
        self._counts["undecided"] += len(missing)
        return [UNDECIDED if p is None else Judgment(p) for p in shares]

    def _find(self, comparison: Comparison) -> float | None:
        a, b = comparison.a.strip(), comparison.b.strip()
        if a == b:
            return TIE.probability
        prompt = prompt_id_of(comparison.prompt)
        pairs, scores = self._pairs.get(prompt, {}), self._scores.get(prompt, {})
        direct = _preference(pairs, a, b)
        if direct is not None:
            return direct
        # fsum is exact, so that a mean does not depend on the order of records or of a set.
        if a in scores and b in scores:
            means = [math.fsum(scores[text]) / len(scores[text]) for text in (a, b)]
            as_reward = float if self._options.scores == "reward" else self._logit
            return sigmoid(as_reward(means[0]) - as_reward(means[1]))
        # Over the responses both were compared with, in logits.
        others = {text for key in pairs for text in key} - {a, b}
        over = [[_preference(pairs, text, other) for text in (a, b)] for other in others]
        differences = [
            self._logit(over_a) - self._logit(over_b)
            for over_a, over_b in over
            if over_a is not None and over_b is not None
        ]
        return sigmoid(math.fsum(differences) / len(differences)) if differences else None

    def _logit(self, probability: float) -> float:
        kept = min(max(probability, self._options.clip), 1.0 - self._options.clip)
        return math.log(kept) - math.log1p(-kept)


def _preference(pairs: Mapping[tuple[str, str], Sequence[float]], a: str, b: str) -> float | None:
    """Mean P(a ≻ b) of the records of this very pair."""
    shares = pairs.get((min(a, b), max(a, b)))
    mean = math.fsum(shares) / len(shares) if shares else None
    return mean if mean is None or a < b else 1.0 - mean
