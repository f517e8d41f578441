"""A judge with a ledger: only what the ledger does not hold is asked."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from prefstage.core.ledger import Ledger
from prefstage.data.records import prompt_id_of
from prefstage.judging.base import TIE, Comparison, Item, Judge, Judgment, flipped

Question = TypeVar("Question")
Result = TypeVar("Result")


def stored(judge: Judge, ledger: Ledger) -> Judge:
    """Keep a judge's judgments, so that nothing is judged twice, in this run or later.

    Args:
        judge: Any judge. Pointwise judges stay pointwise, and their rewards are stored; of
            a judge that is paid by the reply, every raw reply is stored as it arrives.
        ledger: Where judgments are kept, under the judge's fingerprint.

    Returns:
        A judge with the same name and fingerprint that asks `judge` only for what the ledger
        lacks, and writes each judgment to the ledger as soon as it is known.
    """
    return judge.with_replies_in(ledger) or _StoredJudge(judge, ledger)


def stored_judgment(judge: str, comparison: Comparison, ledger: Ledger) -> Judgment | None:
    """Look a judgment up, in whichever order of the pair it was made.

    Args:
        judge: The judge's fingerprint.
        comparison: The pair, in the order in which to answer.
        ledger: Where to look.

    Returns:
        The judgment, or None if it is not known.
    """
    ordered = _in_kept_order(comparison)
    row = ledger.get("judgments", question_key(judge, ordered))
    if row is None:
        return None
    return _turned_back(Judgment(*row), comparison, ordered)


def stored_reward(judge: str, item: Item, ledger: Ledger) -> float | None:
    """Look a reward up.

    Args:
        judge: The judge's fingerprint.
        item: (prompt, response).
        ledger: Where to look.

    Returns:
        The reward that this judge gave, or None if it is not known.
    """
    row = ledger.get("rewards", _reward_key(judge, item))
    return None if row is None else float(row[0])


def question_key(judge: str, question: Comparison) -> tuple[str, str, str, str]:
    """A comparison's key in the ledger, in this order of its responses."""
    return judge, prompt_id_of(question.prompt), _hash(question.a), _hash(question.b)


class _StoredJudge(Judge):
    """Keeps the reward of each response, or one judgment per unordered pair of responses."""

    def __init__(self, judge: Judge, ledger: Ledger) -> None:
        self._judge, self._ledger = judge, ledger
        self._reused = 0
        self.name, self.fingerprint = judge.name, judge.fingerprint

    @property
    def pointwise(self) -> bool:
        return self._judge.pointwise

    @property
    def counts(self) -> Mapping[str, int]:
        return {**self._judge.counts, "reused": self._reused}

    def close(self) -> None:
        self._judge.close()

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        if self.pointwise:
            yield from super().stream(comparisons)
            return
        decided = [(i, TIE) for i, c in enumerate(comparisons) if c.a == c.b]
        yield from decided
        # Always asked in the order in which a pair is kept: (f(a, b) + 1 - f(b, a)) / 2 rounds
        # otherwise when a and b are exchanged, and a tie would depend on who asked first.
        ordered = [_in_kept_order(comparison) for comparison in comparisons]
        for position, judgment in self._missing_asked(
            [(i, c) for i, c in enumerate(ordered) if c.a != c.b],
            key=lambda c: question_key(self.fingerprint, c),
            get=lambda c: stored_judgment(self.fingerprint, c, self._ledger),
            ask=self._judge.stream,
            put=self._put_judgment,
        ):
            yield position, _turned_back(judgment, comparisons[position], ordered[position])

    def stream_scores(self, items: Sequence[Item]) -> Iterator[tuple[int, float]]:
        return self._missing_asked(
            list(enumerate(items)),
            key=lambda item: _reward_key(self.fingerprint, item),
            get=lambda item: stored_reward(self.fingerprint, item, self._ledger),
            ask=self._judge.stream_scores,
            put=self._put_reward,
        )

    def _missing_asked(
        self,
        questions: Sequence[tuple[int, Question]],
        *,
        key: Callable[[Question], Any],
        get: Callable[[Question], Result | None],
        ask: Callable[[Sequence[Question]], Iterator[tuple[int, Result]]],
        put: Callable[[Question, Result], Result],
    ) -> Iterator[tuple[int, Result]]:
        """What the ledger holds, then what the judge gives; equal questions are asked once."""
        missing: dict[Any, list[tuple[int, Question]]] = {}
        for position, question in questions:
            known = get(question)
            if known is None:
                missing.setdefault(key(question), []).append((position, question))
            else:
                self._reused += 1
                yield position, known
        waiting = list(missing.values())
        for index, result in ask([same[0][1] for same in waiting]):
            kept = put(waiting[index][0][1], result)
            yield from ((position, kept) for position, _ in waiting[index])

    def _put_judgment(self, comparison: Comparison, judgment: Judgment) -> Judgment:
        key = question_key(self.fingerprint, comparison)
        return Judgment(
            *self._ledger.put("judgments", key, (judgment.probability, judgment.status))
        )

    def _put_reward(self, item: Item, reward: float) -> float:
        if math.isnan(reward):  # no number: undecided, and the judge is asked again next time
            return reward
        return float(self._ledger.put("rewards", _reward_key(self.fingerprint, item), (reward,))[0])


def _reward_key(judge: str, item: Item) -> tuple[str, str, str]:
    prompt, response = item
    return judge, prompt_id_of(prompt), _hash(response)


def _hash(text: str) -> str:
    # Half of a surrogate pair can stand in a text that came as JSON; UTF-8 has no bytes for it.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _in_kept_order(comparison: Comparison) -> Comparison:
    """The pair in the order in which the ledger keeps it, whoever asks."""
    if _hash(comparison.b) < _hash(comparison.a):
        return replace(comparison, a=comparison.b, b=comparison.a)
    return comparison


def _turned_back(judgment: Judgment, asked: Comparison, ordered: Comparison) -> Judgment:
    return judgment if asked.a == ordered.a else flipped(judgment)
