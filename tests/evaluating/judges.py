"""Judges whose verdicts are known, and answers for them."""

from collections.abc import Sequence

from prefstage.evaluating.answers import Answers, gather_answers, user_prompt
from prefstage.judging import Judge
from prefstage.judging.base import UNDECIDED, Comparison, Judgment


class WordJudge(Judge):
    """Prefers the answer with more "good"; undecided where one says "odd"; counts calls."""

    name = "words"
    fingerprint = "words"

    def __init__(self) -> None:
        self.calls = 0

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        self.calls += len(comparisons)
        return [self._one(each) for each in comparisons]

    def _one(self, each: Comparison) -> Judgment:
        if "odd" in each.a + each.b:
            return UNDECIDED
        difference = each.a.count("good") - each.b.count("good")
        return Judgment(0.5 + 0.4 * (difference > 0) - 0.4 * (difference < 0))


def answers(name: str, texts: Sequence[str]) -> Answers:
    """Answers to "question 0", "question 1", ..."""
    return gather_answers(name, [(user_prompt(f"question {k}"), t) for k, t in enumerate(texts)])
