"""A judge beside a store: asks only what the store does not know."""

from collections.abc import Iterator, Mapping, Sequence

from prefstage.data.records import Prompt, prompt_id_of
from prefstage.judging.base import (
    TIE,
    BuyingJudge,
    Comparison,
    CountingJudge,
    Judge,
    Judgment,
    PointwiseJudge,
    compare_by_rewards,
    flipped,
    gather,
)
from prefstage.judging.running import compare_each, score_each
from prefstage.judging.store import JudgmentStore, in_kept_order


def stored(judge: Judge, store: JudgmentStore) -> Judge:
    """Put a judge beside a store, so that nothing is judged twice, in this run or later.

    Args:
        judge: Any judge. Pointwise judges stay pointwise, and their rewards are stored; of
            a judge that is paid by the answer, every raw answer is stored as it arrives.
        store: Where judgments are kept, under the judge's fingerprint.

    Returns:
        A judge with the same name and fingerprint that asks `judge` only for what the store
        lacks and writes each answer to the store as soon as it is there.
    """
    if isinstance(judge, BuyingJudge):
        return judge.recorded_in(store.replies(judge.fingerprint))
    if isinstance(judge, PointwiseJudge):
        return _StoredPointwiseJudge(judge, store)
    return _StoredJudge(judge, store)


class _StoredJudge:
    """Keeps whole judgments, one per unordered pair of responses."""

    def __init__(self, judge: Judge, store: JudgmentStore) -> None:
        self._judge = judge
        self._store = store
        self._reused = 0
        self.name = judge.name
        self.fingerprint = judge.fingerprint

    @property
    def counts(self) -> Mapping[str, int]:
        return _counts(self._judge, self._reused)

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        return gather(self.compare_each(comparisons), len(comparisons))

    def compare_each(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        missing: dict[tuple[str, frozenset[str]], list[int]] = {}  # one entry a pair of texts
        for position, comparison in enumerate(comparisons):
            known = self._known(comparison)
            if known is None:
                pair = (prompt_id_of(comparison.prompt), frozenset((comparison.a, comparison.b)))
                missing.setdefault(pair, []).append(position)
            else:
                yield position, known
        waiting = list(missing.values())
        # Always in the order in which a pair is kept: (f(a, b) + 1 - f(b, a)) / 2 rounds
        # otherwise when a and b change places, and a tie would depend on who asked first.
        asked = [in_kept_order(comparisons[positions[0]]) for positions in waiting]
        for index, judgment in compare_each(self._judge, asked):
            kept = self._store.put_judgment(self.fingerprint, asked[index], judgment)
            for position in waiting[index]:
                same = comparisons[position].a == asked[index].a
                yield position, kept if same else flipped(kept)

    def _known(self, comparison: Comparison) -> Judgment | None:
        if comparison.a == comparison.b:
            return TIE
        known = self._store.get_judgment(self.fingerprint, comparison)
        self._reused += known is not None
        return known


class _StoredPointwiseJudge:
    """Keeps the reward of each response."""

    def __init__(self, judge: PointwiseJudge, store: JudgmentStore) -> None:
        self._judge = judge
        self._store = store
        self._reused = 0
        self.name = judge.name
        self.fingerprint = judge.fingerprint

    @property
    def counts(self) -> Mapping[str, int]:
        return _counts(self._judge, self._reused)

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        return compare_by_rewards(self.score, comparisons)

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        found = dict(self.score_each(items))
        return [found[position] for position in range(len(items))]

    def score_each(self, items: Sequence[tuple[Prompt, str]]) -> Iterator[tuple[int, float]]:
        missing: dict[tuple[str, str], list[int]] = {}
        for position, (prompt, response) in enumerate(items):
            known = self._store.get_reward(self.fingerprint, prompt, response)
            if known is None:
                missing.setdefault((prompt_id_of(prompt), response), []).append(position)
            else:
                self._reused += 1
                yield position, known
        waiting = list(missing.values())
        asked = [items[positions[0]] for positions in waiting]
        for index, reward in score_each(self._judge, asked):
            kept = self._store.put_reward(self.fingerprint, *asked[index], reward)
            yield from ((position, kept) for position in waiting[index])


def _counts(judge: Judge, reused: int) -> Mapping[str, int]:
    own = judge.counts if isinstance(judge, CountingJudge) else {}
    return {**own, "reused": reused}
