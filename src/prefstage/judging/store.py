"""The judgment store: an SQLite file that has each judgment the moment it arrives."""

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self, cast

from prefstage.core.errors import InputError, ServiceError
from prefstage.data.records import Prompt, prompt_id_of
from prefstage.judging.base import Comparison, Judgment, Reply, flipped

_VERSION = 1
_BUSY_S = 60.0
_RETRY_S = 0.01
_TABLES = (
    """CREATE TABLE IF NOT EXISTS rewards (
        judge TEXT, prompt TEXT, response TEXT, reward REAL NOT NULL,
        PRIMARY KEY (judge, prompt, response)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS judgments (
        judge TEXT, prompt TEXT, a TEXT, b TEXT, probability REAL NOT NULL, status TEXT NOT NULL,
        PRIMARY KEY (judge, prompt, a, b)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS replies (
        judge TEXT, prompt TEXT, first TEXT, second TEXT, attempt INTEGER,
        text TEXT NOT NULL, probability REAL,
        PRIMARY KEY (judge, prompt, first, second, attempt)) WITHOUT ROWID""",
)


class JudgmentStore:
    """Judgments on disk, keyed by judge, prompt and responses; each is bought once.

    SQLite in WAL mode; every write is committed and synced before the call returns, so a
    kill at any moment loses nothing that was written. Several processes may share one file:
    the first to write a judgment wins and the others take its value over.

    Three kinds of entry: rewards of single responses (pointwise judges); judgments, one per
    unordered pair of responses; and replies, the raw answers of a judge that is paid per
    call, one per order and attempt.
    """

    def __init__(self, path: Path) -> None:
        """Open the store, making it if it is missing.

        Args:
            path: The SQLite file; its folder is made if missing.

        Raises:
            InputError: If the file is not a judgment store, or cannot be written.
        """
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError.of(
                saw=f"{path}: {error}",
                expected="a judgment store, or a path where one can be made",
                cure="name another file",
            ) from error

    def __enter__(self) -> Self:
        """The open store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the store."""
        self.close()

    def close(self) -> None:
        """Close the file; what was written is on disk already."""
        self._connection.close()

    def count(self, kind: Literal["rewards", "judgments", "replies"]) -> int:
        """How many entries of a kind the store holds, over all judges."""
        (found,) = cast(tuple[int], self._one(f"SELECT count(*) FROM {kind}", ()))
        return found

    def get_reward(self, judge: str, prompt: Prompt, response: str) -> float | None:
        """Look up a reward.

        Args:
            judge: The judge's fingerprint.
            prompt: What was answered.
            response: The response's text.

        Returns:
            The reward that this judge gave, or None if it is not known.
        """
        return self._value(
            "SELECT reward FROM rewards WHERE (judge, prompt, response) = (?, ?, ?)",
            (judge, prompt_id_of(prompt), _hash(response)),
        )

    def put_reward(self, judge: str, prompt: Prompt, response: str, reward: float) -> float:
        """Keep a reward.

        Args:
            judge: The judge's fingerprint.
            prompt: What was answered.
            response: The response's text.
            reward: What the judge gave.

        Returns:
            The reward that stands: another process may have been first. One that is no
            number (NaN) is given back and not kept.
        """
        key = (judge, prompt_id_of(prompt), _hash(response))
        if self._insert("INSERT OR IGNORE INTO rewards VALUES (?, ?, ?, ?)", (*key, reward)):
            return reward
        stands = self.get_reward(judge, prompt, response)
        return reward if stands is None else stands

    def get_judgment(self, judge: str, comparison: Comparison) -> Judgment | None:
        """Look up a judgment, in whichever order of the pair it was made.

        Args:
            judge: The judge's fingerprint.
            comparison: The pair, in the order in which to answer.

        Returns:
            The judgment, or None if it is not known.
        """
        key, swapped = _pair_key(judge, comparison)
        row = self._one(
            "SELECT probability, status FROM judgments WHERE (judge, prompt, a, b) = (?, ?, ?, ?)",
            key,
        )
        if row is None:
            return None
        judgment = Judgment(probability=row[0], status=row[1])
        return flipped(judgment) if swapped else judgment

    def put_judgment(self, judge: str, comparison: Comparison, judgment: Judgment) -> Judgment:
        """Keep a judgment.

        Args:
            judge: The judge's fingerprint.
            comparison: The pair.
            judgment: What the judge said of it, in this order.

        Returns:
            The judgment that stands, to the last bit as `get_judgment` will give it: another
            process may have been first, and 1 - (1 - p) is p but for rounding.
        """
        key, swapped = _pair_key(judge, comparison)
        kept = flipped(judgment) if swapped else judgment
        row = (*key, kept.probability, kept.status)
        if self._insert("INSERT OR IGNORE INTO judgments VALUES (?, ?, ?, ?, ?, ?)", row):
            return flipped(kept) if swapped else kept
        return cast(Judgment, self.get_judgment(judge, comparison))

    def replies(self, judge: str) -> "StoredReplies":
        """The raw answers of one judge (its fingerprint), to read and to add to."""
        return StoredReplies(self, judge)

    def get_reply(self, judge: str, question: Comparison, attempt: int) -> Reply | None:
        """Look up a raw answer.

        Args:
            judge: The judge's fingerprint.
            question: The pair in the order in which it was shown.
            attempt: Which of the answers to this question, from 0.

        Returns:
            The answer, or None if it was not bought.
        """
        row = self._one(
            "SELECT text, probability FROM replies"
            " WHERE (judge, prompt, first, second, attempt) = (?, ?, ?, ?, ?)",
            (*_question_key(judge, question), attempt),
        )
        return None if row is None else Reply(text=row[0], probability=row[1])

    def put_reply(self, judge: str, question: Comparison, attempt: int, reply: Reply) -> None:
        """Keep a raw answer; the first one written stands.

        Args:
            judge: The judge's fingerprint.
            question: The pair in the order in which it was shown.
            attempt: Which of the answers to this question, from 0.
            reply: The answer.
        """
        row = (*_question_key(judge, question), attempt, reply.text, reply.probability)
        self._insert("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _prepare(self) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
        self._enter_wal_mode()
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("BEGIN IMMEDIATE")  # looking and making are one step
        try:
            self._make_tables()
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def _enter_wal_mode(self) -> None:
        """Where processes open a new file at once, SQLite fails this at once, without waiting."""
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)
            else:
                return

    def _make_tables(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version not in (0, _VERSION) or (version == 0 and tables):
            raise InputError.of(
                saw=f"{self.path} is an SQLite file of another kind or version ({version})",
                expected=f"a judgment store of version {_VERSION}",
                cure="name another file",
            )
        for statement in _TABLES:
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _value(self, query: str, key: tuple[Any, ...]) -> float | None:
        row = self._one(query, key)
        return None if row is None else float(row[0])

    def _one(self, query: str, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._locked():
            return cast(tuple[Any, ...] | None, self._connection.execute(query, key).fetchone())

    def _insert(self, statement: str, row: tuple[Any, ...]) -> bool:
        with self._locked():
            return self._connection.execute(statement, row).rowcount == 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread at a time; a disk that fails is told with the file's name."""
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise ServiceError.of(
                    saw=f"judgment store {self.path}: {error}",
                    expected="a file that can be read and written",
                    cure="check free space and permissions, then repeat the command; "
                    "what was judged before is kept",
                ) from error


class StoredReplies:
    """One judge's raw answers in a store (a `ReplyLog`)."""

    def __init__(self, store: JudgmentStore, judge: str) -> None:
        """Name the store and the judge's fingerprint."""
        self._store = store
        self._judge = judge

    def get(self, question: Comparison, attempt: int) -> Reply | None:
        """The answer, if it was bought."""
        return self._store.get_reply(self._judge, question, attempt)

    def put(self, question: Comparison, attempt: int, reply: Reply) -> None:
        """Keep an answer."""
        self._store.put_reply(self._judge, question, attempt, reply)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _question_key(judge: str, question: Comparison) -> tuple[str, str, str, str]:
    return judge, prompt_id_of(question.prompt), _hash(question.a), _hash(question.b)


def in_kept_order(comparison: Comparison) -> Comparison:
    """The pair in the order in which the store keeps it, whoever asks."""
    _, swapped = _pair_key("", comparison)
    return replace(comparison, a=comparison.b, b=comparison.a) if swapped else comparison


def _pair_key(judge: str, comparison: Comparison) -> tuple[tuple[str, str, str, str], bool]:
    """The key of the unordered pair, and whether it stands in the other order."""
    name, prompt, a, b = _question_key(judge, comparison)
    return ((name, prompt, b, a), True) if b < a else ((name, prompt, a, b), False)
