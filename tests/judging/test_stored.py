import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.data.records import Prompt
from prefstage.judging import Comparison, Judge, Judgment, stored
from prefstage.judging.judged import stored_judgment
from prefstage.judging.loading import CallableJudge, FunctionOptions
from tests.judging.tiny_judges import comparison

HERE = Path(__file__).parent


class Scorer(Judge):
    """A pointwise judge that counts what it is asked."""

    name = "length"
    fingerprint = "length-1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        self.asked += [response for _, response in items]
        return [0.1 * len(response) for _, response in items]

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        raise AssertionError("a stored pointwise judge is asked for rewards")


class Chooser(Judge):
    """A judge that cannot stream, and counts what it is asked."""

    name = "chooser"
    fingerprint = "chooser-1"

    def __init__(self) -> None:
        self.asked: list[Comparison] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        self.asked += comparisons
        return [Judgment(0.9 if c.a < c.b else 0.1) for c in comparisons]


def test_a_judgment_is_the_same_to_the_last_bit_whenever_it_is_read(tmp_path: Path) -> None:
    """1 - (1 - p) is p but for rounding, and a resumed run must not see the difference."""
    shares = [n / 997 for n in range(1, 997)]
    judge = CallableJudge(
        lambda a, b, prompt: float(a) if a < b else 1 - float(b),
        options=FunctionOptions(symmetric=True),
    )
    asked = [comparison("x", str(share), f"9{share}") for share in shares]
    asked += [comparison("x", each.b, each.a) for each in asked]
    with Ledger(tmp_path / "store.db") as store:
        first = [each.probability for each in stored(judge, store).compare(asked)]
        again = [each.probability for each in stored(judge, store).compare(asked)]
        alone = [stored(judge, store).compare([each])[0].probability for each in asked]
    assert first == again == alone


def test_a_judgment_does_not_depend_on_which_order_was_asked_first(tmp_path: Path) -> None:
    """½·(f(a, b) + 1 - f(b, a)) rounds in another way when a and b change places."""
    shares = [n / 997 for n in range(1, 997)]
    judge = CallableJudge(lambda a, b, prompt: float(a) if len(a) < len(b) else 1 - 0.3 * float(b))
    asked = [comparison("x", str(share), f"{share}00000") for share in shares]
    turned = [comparison("x", each.b, each.a) for each in asked]
    plain = [each.probability for each in judge.compare(asked)]
    other = [1 - each.probability for each in judge.compare(turned)]
    assert plain != other  # what the store has to even out
    found = []
    for name, first in (("one", asked), ("two", turned)):
        with Ledger(tmp_path / f"{name}.db") as store:
            stored(judge, store).compare(first)
            found.append([each.probability for each in stored(judge, store).compare(asked)])
    assert found[0] == found[1]
    assert found[0] == pytest.approx(plain)


def test_a_pair_is_judged_once_whatever_its_order(tmp_path: Path) -> None:
    inner = Chooser()
    with Ledger(tmp_path / "store.db") as store:
        judge = stored(inner, store)
        ab, ba = comparison("x", "a", "b"), comparison("x", "b", "a")
        assert [j.probability for j in judge.compare([ab, ba, ab])] == pytest.approx(
            [0.9, 0.1, 0.9]
        )
        assert len(inner.asked) == 1
        assert judge.compare([comparison("x", "same", "same")]) == [Judgment(0.5)]
    with Ledger(tmp_path / "store.db") as store:
        again = stored(inner, store)
        assert [j.probability for j in again.compare([ba])] == pytest.approx([0.1])
        assert len(inner.asked) == 1
        assert store.count("judgments") == 1
        assert again.counts["reused"] == 1


def test_rewards_are_stored_by_response(tmp_path: Path) -> None:
    inner = Scorer()
    with Ledger(tmp_path / "store.db") as store:
        judge = stored(inner, store)
        assert judge.pointwise
        judge.compare([comparison("x", a, b) for a in ("a", "bb") for b in ("ccc", "dddd")])
        assert sorted(inner.asked) == ["a", "bb", "ccc", "dddd"]
        assert store.count("rewards") == 4
    with Ledger(tmp_path / "store.db") as store:
        (judgment,) = stored(inner, store).compare([comparison("x", "a", "dddd")])
        assert judgment.probability == pytest.approx(1 / (1 + 2.718281828**0.3))
    assert len(inner.asked) == 4


def test_each_judgment_is_on_disk_before_the_next_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    seen = []

    def function(a: str, b: str, prompt: Prompt) -> float:
        with Ledger(path) as other:
            seen.append(other.count("judgments"))
        return 0.8

    with Ledger(path) as store:
        judge = stored(CallableJudge(function), store)
        judge.compare([comparison("x", "a", text) for text in "bcd"])
    assert seen == [0, 0, 1, 1, 2, 2]  # both orders of each


def test_a_wrapped_judge_is_still_the_judge_it_wraps(tmp_path: Path) -> None:
    with Ledger(tmp_path / "s.db") as store:
        for inner in (Scorer(), Chooser()):
            judge = stored(inner, store)
            assert isinstance(judge, Judge)
            assert (judge.name, judge.fingerprint) == (inner.name, inner.fingerprint)


def test_a_judgment_is_looked_up_by_judge_prompt_and_texts_in_either_order(tmp_path: Path) -> None:
    pair = comparison("x", "a", "b")
    with Ledger(tmp_path / "store.db") as ledger:
        judge = stored(Chooser(), ledger)
        judge.compare([pair])
        assert stored_judgment("another", pair, ledger) is None
        assert stored_judgment(judge.fingerprint, comparison("y", "a", "b"), ledger) is None
        assert stored_judgment(judge.fingerprint, comparison("x", "a", "c"), ledger) is None
        assert stored_judgment(judge.fingerprint, pair, ledger) == Judgment(0.9)
        turned = stored_judgment(judge.fingerprint, comparison("x", "b", "a"), ledger)
        assert turned is not None
        assert turned.probability == pytest.approx(0.1)


def test_a_reward_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    class Unsure(Scorer):
        def score(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
            return [math.nan if response == "?" else 1.0 for _, response in items]

    with Ledger(tmp_path / "store.db") as ledger:
        (judgment,) = stored(Unsure(), ledger).compare([comparison("x", "a", "?")])
        assert judgment.status == "undecided"
        assert ledger.count("rewards") == 1


def test_a_probability_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    class Sure(Chooser):
        def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
            return [Judgment(1.5) for _ in comparisons]

    with (
        Ledger(tmp_path / "store.db") as ledger,
        pytest.raises(InputError, match=r"judgments with (1\.5|-0\.5)"),
    ):
        stored(Sure(), ledger).compare([comparison("x", "a", "b")])
