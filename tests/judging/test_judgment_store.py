import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from threading import Timer

import pytest

from prefstage.core.errors import InputError
from prefstage.data.records import Prompt
from prefstage.judging import Comparison, Judge, Judgment, JudgmentStore, PointwiseJudge, stored
from prefstage.judging.base import Reply, StreamingJudge
from prefstage.judging.function import CallableJudge, FunctionOptions
from tests.judging.tiny_judges import comparison

HERE = Path(__file__).parent


class Scorer:
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


class Chooser:
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
    with JudgmentStore(tmp_path / "store.db") as store:
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
        with JudgmentStore(tmp_path / f"{name}.db") as store:
            stored(judge, store).compare(first)
            found.append([each.probability for each in stored(judge, store).compare(asked)])
    assert found[0] == found[1]
    assert found[0] == pytest.approx(plain)


def test_a_pair_is_judged_once_whatever_its_order(tmp_path: Path) -> None:
    inner = Chooser()
    with JudgmentStore(tmp_path / "store.db") as store:
        judge = stored(inner, store)
        ab, ba = comparison("x", "a", "b"), comparison("x", "b", "a")
        assert [j.probability for j in judge.compare([ab, ba, ab])] == pytest.approx(
            [0.9, 0.1, 0.9]
        )
        assert len(inner.asked) == 1
        assert judge.compare([comparison("x", "same", "same")]) == [Judgment(0.5)]
    with JudgmentStore(tmp_path / "store.db") as store:
        again = stored(inner, store)
        assert [j.probability for j in again.compare([ba])] == pytest.approx([0.1])
        assert len(inner.asked) == 1
        assert store.count("judgments") == 1
        assert isinstance(again, StreamingJudge)
        assert again.counts["reused"] == 1  # type: ignore[attr-defined]  # of the wrapper


def test_rewards_are_stored_by_response(tmp_path: Path) -> None:
    inner = Scorer()
    with JudgmentStore(tmp_path / "store.db") as store:
        judge = stored(inner, store)
        assert isinstance(judge, PointwiseJudge)
        judge.compare([comparison("x", a, b) for a in ("a", "bb") for b in ("ccc", "dddd")])
        assert sorted(inner.asked) == ["a", "bb", "ccc", "dddd"]
        assert store.count("rewards") == 4
    with JudgmentStore(tmp_path / "store.db") as store:
        (judgment,) = stored(inner, store).compare([comparison("x", "a", "dddd")])
        assert judgment.probability == pytest.approx(1 / (1 + 2.718281828**0.3))
    assert len(inner.asked) == 4


def test_entries_are_kept_apart_by_judge_prompt_and_text(tmp_path: Path) -> None:
    with JudgmentStore(tmp_path / "store.db") as store:
        first = comparison("x", "a", "b")
        store.put_judgment("one", first, Judgment(0.75))
        assert store.get_judgment("two", first) is None
        assert store.get_judgment("one", comparison("y", "a", "b")) is None
        assert store.get_judgment("one", comparison("x", "a", "c")) is None
        assert store.get_judgment("one", comparison("x", "b", "a")) == Judgment(0.25)


def test_the_first_judgment_written_stands(tmp_path: Path) -> None:
    pair = comparison("x", "a", "b")
    with JudgmentStore(tmp_path / "s.db") as one, JudgmentStore(tmp_path / "s.db") as two:
        one.put_judgment("judge", pair, Judgment(0.75))
        assert two.put_judgment("judge", pair, Judgment(0.1)) == Judgment(0.75)
        one.put_reward("judge", pair.prompt, "a", 1.5)
        assert two.put_reward("judge", pair.prompt, "a", 2.5) == 1.5
        one.replies("judge").put(pair, 0, Reply("A", 0.9))
        two.replies("judge").put(pair, 0, Reply("B", 0.2))
        assert two.replies("judge").get(pair, 0) == Reply("A", 0.9)
        assert two.replies("judge").get(pair, 1) is None


def test_each_judgment_is_on_disk_before_the_next_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    seen = []

    def function(a: str, b: str, prompt: Prompt) -> float:
        with JudgmentStore(path) as other:
            seen.append(other.count("judgments"))
        return 0.8

    with JudgmentStore(path) as store:
        judge = stored(CallableJudge(function), store)
        judge.compare([comparison("x", "a", text) for text in "bcd"])
    assert seen == [0, 0, 1, 1, 2, 2]  # both orders of each


def test_several_processes_share_one_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    command = [sys.executable, HERE / "write_judgments.py", path, "40", "0", "20", "30", "30"]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert len(told.split()) == 160
    with JudgmentStore(path) as store:
        assert store.count("rewards") == 70
        rewards = [store.get_reward("judge", (), str(number)) for number in range(70)]
    assert rewards == [float(number) for number in range(70)]


def test_a_store_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # SQLite does not wait for this when it enters WAL mode
    with (
        closing(sqlite3.connect(path, timeout=60)) as impatient,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        impatient.execute("PRAGMA journal_mode = WAL")
    release = Timer(0.2, lambda: other.execute("ROLLBACK"))
    release.start()
    with JudgmentStore(path) as store:
        assert store.count("rewards") == 0
    release.join()
    other.close()


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    command = [sys.executable, HERE / "write_judgments.py", path, "100000", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        told = [int(worker.stdout.readline()) for _ in range(50)]
        os.kill(worker.pid, signal.SIGKILL)
        told += [int(line) for line in worker.stdout if line.endswith("\n")]
    assert worker.returncode == -signal.SIGKILL
    with JudgmentStore(path) as store:
        assert all(store.get_reward("judge", (), str(number)) == number for number in told)
        assert len(told) <= store.count("rewards") <= len(told) + 1


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 100)
    with pytest.raises(InputError, match="expected a judgment store"):
        JudgmentStore(text)
    with pytest.raises(InputError, match="expected a judgment store"):
        JudgmentStore(text / "below" / "store.db")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE things (name TEXT)")
    connection.close()
    with pytest.raises(InputError, match="another kind or version"):
        JudgmentStore(other)


def test_a_wrapped_judge_is_still_the_judge_it_wraps(tmp_path: Path) -> None:
    with JudgmentStore(tmp_path / "s.db") as store:
        for inner in (Scorer(), Chooser()):
            judge = stored(inner, store)
            assert isinstance(judge, Judge)
            assert (judge.name, judge.fingerprint) == (inner.name, inner.fingerprint)
