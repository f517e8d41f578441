import math
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Timer

import pytest

from prefstage.core.errors import InputError, ServiceError
from prefstage.core.ledger import Ledger, kept_ledger

WRITER = Path(__file__).parent / "write_rewards.py"
KEY = ("judge", "prompt", "a", "b")


def rewards(ledger: Ledger) -> dict[str, float]:
    return {response: reward for _, _, response, reward in ledger.rows("rewards")}


def test_the_first_record_written_stands(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as mine, Ledger(tmp_path / "l.sqlite") as other:
        assert mine.get("judgments", KEY) is None
        assert mine.put("judgments", KEY, (0.75, "decided")) == (0.75, "decided")
        assert other.put("judgments", KEY, (0.1, "decided")) == (0.75, "decided")
        assert other.get("judgments", KEY) == (0.75, "decided")
        assert other.get("judgments", (*KEY[:3], "c")) is None
        assert other.count("judgments") == 1
        assert other.count("rewards") == 0


def test_without_a_file_all_is_kept_in_memory() -> None:
    with Ledger(None) as ledger:
        ledger.put("gradings", ("question", 0), ("Rating: [[3]]", 3.0, ""))
        assert ledger.get("gradings", ("question", 0)) == ("Rating: [[3]]", 3.0, "")
    with Ledger(None) as ledger:
        assert ledger.count("gradings") == 0


def test_records_come_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for response in "cab":
            ledger.put("rewards", ("judge", "prompt", response), (1.0,))
        assert list(rewards(ledger)) == ["c", "a", "b"]


@pytest.mark.parametrize("probability", [1.2, -0.1, math.nan, math.inf, None])
def test_what_is_no_probability_is_refused(tmp_path: Path, probability: float | None) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        with pytest.raises(InputError, match="probabilities from 0 to 1"):
            ledger.put("judgments", KEY, (probability, "decided"))
        assert ledger.count("judgments") == 0
        # A reply may be without one.
        ledger.put("replies", (*KEY, 0), ("unreadable", None, "no verdict"))


def test_several_processes_share_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    command = [sys.executable, WRITER, path, "40", "0", "20", "30", "30"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert len(lines.split()) == 160
    with Ledger(path) as ledger:
        assert rewards(ledger) == {str(number): float(number) for number in range(70)}


def test_a_ledger_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # SQLite does not wait for this when it enters WAL mode
    with (
        closing(sqlite3.connect(path, timeout=60)) as impatient,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        impatient.execute("PRAGMA journal_mode = WAL")
    release = Timer(0.2, lambda: other.execute("ROLLBACK"))
    release.start()
    with Ledger(path) as ledger:
        assert ledger.count("rewards") == 0
    release.join()
    other.close()


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    command = [sys.executable, WRITER, path, "100000", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        written = [int(worker.stdout.readline()) for _ in range(50)]
        os.kill(worker.pid, signal.SIGKILL)
        written += [int(line) for line in worker.stdout if line.endswith("\n")]
    assert worker.returncode == -signal.SIGKILL
    with Ledger(path) as ledger:
        kept = rewards(ledger)
    assert all(kept[str(number)] == number for number in written)
    assert len(written) <= len(kept) <= len(written) + 1


def test_a_full_disk_is_an_error_that_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put("gradings", ("first", 0), ("x", None, ""))
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ServiceError, match=r"l\.sqlite: .*full.*what was bought.* is kept"):
            ledger.put("gradings", ("second", 0), ("x" * 100_000, None, ""))
    with Ledger(path) as ledger:
        assert ledger.rows("gradings") == [("first", 0, "x", None, "")]
        ledger.put("gradings", ("second", 0), ("x" * 100_000, None, ""))


def test_a_damaged_file_is_named_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        for number in range(500):
            ledger.put("gradings", (f"question {number}", 0), ("some text " * 20, None, ""))
    whole = path.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:middle] + b"\x55" * 4096 + whole[middle + 4096 :])
    with pytest.raises(InputError, match=r"l\.sqlite(: | is damaged)"):
        Ledger(path)
    path.write_bytes(whole[:middle])
    with pytest.raises(InputError, match=r"l\.sqlite(: | is damaged)"):
        Ledger(path)
    path.write_bytes(whole)
    with Ledger(path) as ledger:
        assert ledger.count("gradings") == 500


def test_a_probability_that_was_altered_is_noticed_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put("judgments", KEY, (0.75, "decided"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE judgments SET probability = 7.5")
    with pytest.raises(InputError, match=r"damaged \(CHECK constraint failed in judgments\)"):
        Ledger(path)


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    for content in (b"not a database " * 100, b"\xff\xfe", b"[1]\n", b'{"prompt": "x"}\n'):
        text.write_bytes(content)
        with pytest.raises(InputError, match="expected a ledger"):
            Ledger(text)
        assert text.read_bytes() == content
    with pytest.raises(InputError, match="expected a ledger"):
        Ledger(text / "below" / "l.sqlite")
    with pytest.raises(InputError, match="expected a ledger"):
        Ledger(tmp_path)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE things (name TEXT)")
    with pytest.raises(InputError, match="another kind or version"):
        Ledger(other)
    former = tmp_path / "judgments.sqlite"
    with closing(sqlite3.connect(former)) as connection, connection:
        connection.execute("PRAGMA user_version = 1")
    before = former.read_bytes()
    with pytest.raises(InputError, match=r"another kind or version \(1\).* is made anew"):
        Ledger(former)
    assert former.read_bytes() == before


def test_one_process_at_a_time_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with (
        Ledger(path, alone=True),
        Ledger(path),
        pytest.raises(InputError, match=rf"open in another process \(process {os.getpid()}\)"),
    ):
        Ledger(path, alone=True)
    with Ledger(path, alone=True) as ledger:
        assert ledger.count("samples") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rewards SET reward = 'much'",
        "UPDATE rewards SET prompt = x'ff'",
        "CREATE TRIGGER t BEFORE INSERT ON rewards BEGIN SELECT raise(ABORT, 'no'); END",
        "CREATE VIEW v AS SELECT 1",
        "ALTER TABLE rewards ADD COLUMN other",
        "DROP TABLE gradings",
    ],
)
def test_other_tables_and_values_of_another_type_are_refused(
    tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.put("rewards", ("j", "p", "r"), (1.0,))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    with pytest.raises(InputError, match=r"another kind or version|is damaged \(1 rows of rewards"):
        Ledger(path)


def test_a_day_that_is_none_is_damage(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put("samplers", ("f",), ("n", "{}", "2020-13-45"))
        ledger.put("samples", ("f", "p", 0), ("a", 1, 1))
        with pytest.raises(InputError, match=r"is damaged .the day '2020-13-45'"):
            _ = ledger.date


@pytest.mark.parametrize("key", ["\ud800", 2**70])
def test_a_key_that_sqlite_cannot_hold_is_refused(key: object) -> None:
    with Ledger(None) as ledger, pytest.raises(InputError, match="UTF-8 can hold"):
        ledger.put("rewards", ("j", "p", key), (1.0,))


def test_a_name_with_a_nul_is_refused() -> None:
    with pytest.raises(InputError, match="null"):
        Ledger(Path("a\0b"))


@pytest.mark.parametrize("bought", [True, False])
def test_what_was_bought_without_a_store_outlives_a_fault(
    bought: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    keeping = ExitStack()
    ledger = keeping.enter_context(kept_ledger(None))
    if bought:
        ledger.put("judgments", KEY, (0.75, "decided"))
    with pytest.raises(KeyboardInterrupt), keeping:
        raise KeyboardInterrupt
    kept = list(tmp_path.glob("*/*.sqlite"))
    assert len(kept) == bought
    assert ("--store" in caplog.text) == bought
    for path in kept:
        assert str(path) in caplog.text
        with Ledger(path) as found:
            assert found.get("judgments", KEY) == (0.75, "decided")


def test_a_store_for_the_moment_is_removed_when_all_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with kept_ledger(None) as ledger:
        ledger.put("judgments", KEY, (0.75, "decided"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_called_so_and_loses_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("rewards", ("j", "p", "0"), (0.5,))
        pages = ledger._execute("PRAGMA page_count")[0][0]
        ledger._execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own error of a full disk
        long = "j" * (1 << 16)  # more than its pages have left
        with pytest.raises(
            ServiceError, match=r"the disk is full; expected room on the disk; make"
        ):
            ledger.put("rewards", (long, "p", "1"), (0.5,))
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.get("rewards", ("j", "p", "0")) == (0.5,)
