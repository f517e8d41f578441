"""Recorded judgments as judge: looked up by prompt and response texts, never computed."""

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from prefstage.core.config import Config
from prefstage.core.errors import DataError
from prefstage.core.hashing import digest
from prefstage.data import load_candidates, load_pairs
from prefstage.data.records import Candidates, Pair, prompt_id_of
from prefstage.judging.base import TIE, UNDECIDED, Comparison, Judge, Judgment, content_of, sigmoid


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


@dataclass
class JudgmentTable:
    """What was read from the files.

    Attributes:
        pairs: By prompt and unordered pair of texts (sorted): P(first ≻ second) as each
            record says it; several records of a pair are averaged when asked.
        scores: By prompt and text: the scores recorded for the response.
        rows_skipped: Rows that could not be used (such as empty responses).
        fingerprints: Of the datasets read.
    """

    pairs: dict[str, dict[tuple[str, str], list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    scores: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    rows_skipped: int = 0
    fingerprints: list[str] = field(default_factory=list)

    def add_pairs(self, pairs: Iterable[Pair]) -> None:
        """Add recorded preferences; without an agreement the label counts as certain."""
        for pair in pairs:
            texts = (_text(pair.chosen[-1]), _text(pair.rejected[-1]))
            share = 1.0 if pair.agreement is None else pair.agreement
            key, swapped = _sorted(*texts)
            self.pairs[pair.prompt_id][key].append(1.0 - share if swapped else share)

    def add_candidates(self, candidates: Iterable[Candidates]) -> None:
        """Add recorded scores; responses without one are skipped and counted."""
        for row in candidates:
            for response, score in zip(row.responses, row.scores, strict=True):
                if score is None:
                    self.rows_skipped += 1
                else:
                    self.scores[row.prompt_id][response.strip()].append(score)


class TableJudge(Judge):
    """Looks P(a ≻ b | x) up among recorded judgments.

    In order: the records of this very pair (averaged); the difference of both responses'
    recorded scores; and preferences of both over a response that both were compared with.
    With p_a = P(a ≻ baseline) and p_b likewise, P(a ≻ b) = σ(logit p_a - logit p_b): exact
    if preferences follow a Bradley-Terry model, whose rewards are the logits; otherwise an
    approximation.
    """

    def __init__(
        self, table: JudgmentTable, *, options: TableOptions | None = None, name: str = "table"
    ) -> None:
        """Judge by a table.

        Args:
            table: The recorded judgments.
            options: How scores are read, and what a missing comparison means.
            name: Short name for people.

        Raises:
            DataError: If scores read as probabilities are none, or the table is empty.
        """
        self.name = name
        self._table = table
        self._options = options or TableOptions()
        self._counts: Counter[str] = Counter(
            looked_up=0, undecided=0, rows_skipped=table.rows_skipped
        )
        self._check()
        settings = self._options.model_dump(exclude={"missing"})
        self.fingerprint = digest({"tables": table.fingerprints, **settings})

    @classmethod
    def load(cls, path: str, *, options: TableOptions | None = None) -> Self:
        """Read a table from one or several files.

        Args:
            path: Anything that `load_pairs` or `load_candidates` reads; several are
                separated by commas.
            options: How scores are read, and what a missing comparison means.

        Returns:
            The judge.

        Raises:
            DataError: If a file cannot be read as pairs or as scored responses.
        """
        table = JudgmentTable()
        for part in [path] if Path(path).exists() else path.split(","):
            _read_into(table, part)
        return cls(table, options=options, name=f"table:{path}")

    @property
    def counts(self) -> Mapping[str, int]:
        """Comparisons "looked_up", "undecided" for lack of a record, rows not usable."""
        return dict(self._counts)

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Look each comparison up.

        Raises:
            DataError: If some are not in the table and `missing` is "error".
        """
        shares = [self._find(comparison) for comparison in comparisons]
        missing = [c for c, p in zip(comparisons, shares, strict=True) if p is None]
        if missing and self._options.missing == "error":
            raise self._lacks(missing, len(comparisons))
        self._counts["looked_up"] += len(comparisons) - len(missing)
        self._counts["undecided"] += len(missing)
        return [UNDECIDED if p is None else Judgment(p) for p in shares]

    def _find(self, comparison: Comparison) -> float | None:
        a, b = comparison.a.strip(), comparison.b.strip()
        if a == b:
            return TIE.probability
        prompt = prompt_id_of(comparison.prompt)
        direct = self._preference(prompt, a, b)
        if direct is not None:
            return direct
        scores = self._table.scores.get(prompt, {})
        if a in scores and b in scores:
            return sigmoid(self._reward(scores[a]) - self._reward(scores[b]))
        return self._through_others(prompt, a, b)

    def _preference(self, prompt: str, a: str, b: str) -> float | None:
        key, swapped = _sorted(a, b)
        shares = self._table.pairs.get(prompt, {}).get(key)
        if not shares:
            return None
        mean = math.fsum(shares) / len(shares)
        return 1.0 - mean if swapped else mean

    def _reward(self, scores: Sequence[float]) -> float:
        mean = math.fsum(scores) / len(scores)
        return mean if self._options.scores == "reward" else self._logit(mean)

    def _through_others(self, prompt: str, a: str, b: str) -> float | None:
        """Mean over the responses both were compared with, in logits."""
        others = {text for key in self._table.pairs.get(prompt, {}) for text in key} - {a, b}
        over = [[self._preference(prompt, text, other) for text in (a, b)] for other in others]
        # fsum is exact, so that the sum does not depend on the order of a set.
        differences = [
            self._logit(over_a) - self._logit(over_b)
            for over_a, over_b in over
            if over_a is not None and over_b is not None
        ]
        return sigmoid(math.fsum(differences) / len(differences)) if differences else None

    def _logit(self, probability: float) -> float:
        kept = min(max(probability, self._options.clip), 1.0 - self._options.clip)
        return math.log(kept) - math.log1p(-kept)

    def _check(self) -> None:
        scores = [
            s for texts in self._table.scores.values() for scores in texts.values() for s in scores
        ]
        if not scores and not self._table.pairs:
            raise DataError.of(
                saw=f"{self.name} holds no judgment ({self._table.rows_skipped} rows unusable)",
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

    def _lacks(self, missing: Sequence[Comparison], total: int) -> DataError:
        first = missing[0]
        prompt = content_of(first.prompt[-1]) if first.prompt else ""
        return DataError.of(
            saw=f"{len(missing)} of {total} comparisons are not in {self.name}; the first:"
            f" prompt {prompt[:60]!r}, responses {first.a[:40]!r} and {first.b[:40]!r}",
            expected="a record for every comparison",
            cure="add the records, or count missing ones as undecided with ?missing=undecided",
        )


def _read_into(table: JudgmentTable, path: str) -> None:
    """Read one file as pairs, or else as scored responses; unusable rows are counted."""
    with tempfile.TemporaryDirectory(prefix="prefstage-") as folder:
        aside = Path(folder) / "unusable.jsonl"
        try:
            pairs = load_pairs(path, on_bad_row="quarantine", quarantine_file=aside)
        except DataError:
            candidates = load_candidates(path, on_bad_row="quarantine", quarantine_file=aside)
            table.add_candidates(candidates)
            read = candidates.report, candidates.fingerprint
        else:
            table.add_pairs(pairs)
            read = pairs.report, pairs.fingerprint
    report, fingerprint = read
    table.rows_skipped += report.quarantined
    table.fingerprints.append(fingerprint)


def _text(message: Mapping[str, object]) -> str:
    return content_of(dict(message)).strip()


def _sorted(a: str, b: str) -> tuple[tuple[str, str], bool]:
    return ((b, a), True) if b < a else ((a, b), False)
