"""The ledger: one SQLite file that has every answer and judgment from the moment it arrives."""

import json
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from prefstage.core.errors import InputError, PrefstageError, ServiceError, full_disk_error
from prefstage.core.runs import lock_file

_log = logging.getLogger(__name__)
LEDGER = "ledger.sqlite"
Table = Literal["samplers", "samples", "rewards", "judgments", "replies", "gradings"]

_VERSION = 3
_BUSY_S = 60.0
_RETRY_S = 0.01
_PROBABILITY = "probability REAL {null} CHECK (probability BETWEEN 0 AND 1)"

# SQL definitions of a table's columns: those of its key, and the others.
_TABLES: dict[Table, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "samplers": (
        ("fingerprint TEXT",),
        ("name TEXT NOT NULL", "settings TEXT NOT NULL", "date TEXT NOT NULL"),
    ),
    "samples": (
        ("sampler TEXT", "prompt TEXT", "position INTEGER"),
        ("answer TEXT NOT NULL", "prompt_tokens INTEGER", "response_tokens INTEGER"),
    ),
    "rewards": (("judge TEXT", "prompt TEXT", "response TEXT"), ("reward REAL NOT NULL",)),
    "judgments": (
        ("judge TEXT", "prompt TEXT", "a TEXT", "b TEXT"),
        (_PROBABILITY.format(null="NOT NULL"), "status TEXT NOT NULL"),
    ),
    "replies": (
        ("judge TEXT", "prompt TEXT", "first TEXT", "second TEXT", "attempt INTEGER"),
        ("text TEXT NOT NULL", _PROBABILITY.format(null=""), "cause TEXT NOT NULL"),
    ),
    "gradings": (
        ("question TEXT", "attempt INTEGER"),
        ("text TEXT NOT NULL", "rating REAL", "cause TEXT NOT NULL"),
    ),
}
_SCHEMA = [
    f"CREATE TABLE {name} ({', '.join((*key, *values))},"
    f" PRIMARY KEY ({', '.join(column.split()[0] for column in key)}))"
    for name, (key, values) in _TABLES.items()
]
_EXPECTED = "a ledger as prefstage wrote it"
_RESTORE = "restore it from a copy, or name another file and run again"


class Ledger(ExitStack):
    """Everything that was bought, by its key; the first value written under a key stands.

    Every write is on disk before the call returns, so a kill at any moment loses nothing that
    was written. Several processes may share one file; the others take the first one's value
    over. Safe on any thread. It closes like any stack: at the end of a block, or by `close`.

    Tables, with their keys: `samplers` (fingerprint), `samples` (sampler, prompt, position),
    `rewards` (judge, prompt, response), `judgments` (judge, prompt, and a pair of responses),
    `replies` (judge, prompt, the responses in the order shown, attempt), `gradings` (question,
    attempt).

    Args:
        path: The SQLite file; made, with its folder, if missing. None keeps all in memory.
        alone: Refuse to open it while another process has it open so.

    Raises:
        InputError: If the file is of another kind or version, damaged, cannot be written, or
            is open in another process.
    """

    def __init__(self, path: Path | None, *, alone: bool = False) -> None:
        super().__init__()
        self.path, self._lock = path, Lock()
        with (
            InputError.instead_of(
                *(sqlite3.DatabaseError, OSError, ValueError),  # a NUL in a name, bytes in a schema
                saw=f"{path}: {{error}}",
                expected="a ledger of prefstage, or a path where one can be made",
                cure="name another file",
            ),
            ExitStack() as opening,  # a failure half way closes what was opened
        ):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            if path is not None and alone:
                # A file of its own: closing any handle on an SQLite file drops the locks that
                # SQLite itself holds on it in this process.
                holder = opening.enter_context(lock_file(path.with_name(f"{path.name}.lock")))
                InputError.unless(
                    holder is None,
                    saw=f"{path} is open in another process{holder}",
                    expected="one run at a time",
                    cure="wait for the other run to end, or name another file",
                )
            self._connection = opening.enter_context(
                closing(
                    sqlite3.connect(
                        path or ":memory:",
                        timeout=_BUSY_S,
                        isolation_level=None,
                        check_same_thread=False,  # our own lock keeps threads apart
                    )
                )
            )
            self._prepare()
            self.push(opening.pop_all())

    def get(self, table: Table, key: Sequence[Any]) -> tuple[Any, ...] | None:
        """Look a record up.

        Args:
            table: Its table.
            key: One value per column of the table's key.

        Returns:
            Its other columns; None if there is no such record.
        """
        rows = self._execute(
            f"SELECT * FROM {table} WHERE ({_names(_TABLES[table][0])}) ="
            f" ({', '.join('?' * len(key))})",
            key,
        )
        return rows[0][len(key) :] if rows else None

    def put(self, table: Table, key: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
        """Keep a record.

        Args:
            table: Its table.
            key: One value per column of the table's key.
            values: One value per other column.

        Returns:
            The values that stand under the key, now on disk: another process's if it was first.

        Raises:
            InputError: If a value is none that the table takes, such as a probability above 1.
            ServiceError: If the disk is full, or the file cannot be written any more.
        """
        with InputError.instead_of(
            *(sqlite3.IntegrityError, UnicodeEncodeError, OverflowError),
            saw=f"a record for {table} with {', '.join(map(repr, values))} ({{error}})",
            expected="text that UTF-8 can hold, numbers of 64 bits that are no NaN, and "
            "probabilities from 0 to 1",
            cure="mend the judge or sampler that gave it",
        ):
            # DO NOTHING passes over a taken key alone; OR IGNORE would swallow a failed CHECK too.
            self._execute(
                f"INSERT INTO {table} VALUES ({', '.join('?' * len((*key, *values)))})"
                " ON CONFLICT DO NOTHING",
                (*key, *values),
            )
        return self.get(table, key) or tuple(values)

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        """All records of a table, key first, in the order of their arrival."""
        return self._execute(f"SELECT * FROM {table} ORDER BY rowid")

    def count(self, table: Table) -> int:
        """Number of a table's records."""
        return int(self._execute(f"SELECT count(*) FROM {table}")[0][0])

    def total(self, column: Literal["prompt_tokens", "response_tokens"]) -> int:
        """Tokens of all samples."""
        return int(self._execute(f"SELECT coalesce(sum({column}), 0) FROM samples")[0][0])

    def samplers(self) -> list[tuple[str, str, str, int]]:
        """The samplers that have samples: fingerprint, name, settings (JSON), number of samples."""
        return self._execute(
            "SELECT fingerprint, name, settings, count(*) FROM samplers"
            " JOIN samples ON fingerprint = sampler GROUP BY fingerprint"
        )

    @property
    def date(self) -> date:
        """The day of the first samples, which later ones' chat templates read as today too."""
        ((first,),) = self._execute(
            "SELECT min(date) FROM samplers WHERE fingerprint IN (SELECT sampler FROM samples)"
        )
        if first is None:
            return date.today()
        with self.intact(f"the day {first!r}"):
            return date.fromisoformat(first)

    def intact(self, what: str) -> AbstractContextManager[None]:
        """Refuse the file, by name, where a block cannot read a value of it.

        Args:
            what: The value, for the message.

        Returns:
            To be entered; the block's ValueError, TypeError or KeyError becomes an InputError.
        """
        return InputError.instead_of(
            *(ValueError, TypeError, KeyError),
            saw=f"{self.path} is damaged ({what})",
            expected=_EXPECTED,
            cure=_RESTORE,
        )

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.IntegrityError:
                raise
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                full = full_disk_error(error)
                raise ServiceError.of(
                    saw=f"ledger {self.path}: {'the disk is full' if full else error}",
                    expected="room on the disk" if full else "a file that can be read and written",
                    cure=("make room there" if full else "check the file and its permissions")
                    + ", then repeat the command; what was bought before is kept",
                ) from error

    def _prepare(self) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
        # Before WAL mode, which is written into the file: others' files stay as they are. In one
        # statement, since another process may be making the tables just now.
        (version, tables) = self._connection.execute(
            "SELECT user_version, (SELECT json_group_array(sql) FROM sqlite_master"
            " WHERE sql IS NOT NULL) FROM pragma_user_version"
        ).fetchone()
        InputError.unless(
            (version, set(json.loads(tables))) in ((_VERSION, set(_SCHEMA)), (0, set())),
            saw=f"{self.path} is an SQLite file of another kind or version ({version})",
            expected=f"a ledger of version {_VERSION}",
            cure="name another file; what an earlier version of prefstage kept is made anew",
        )
        # Of processes that make a new file at once, SQLite fails all but one here immediately:
        # its busy timeout does not cover a change of the journal mode.
        patiently = Retrying(
            retry=retry_if_exception(lambda error: "locked" in str(error)),
            stop=stop_after_delay(_BUSY_S),
            wait=wait_fixed(_RETRY_S),
            reraise=True,
        )
        patiently(self._connection.execute, "PRAGMA journal_mode = WAL")
        # In WAL mode the default, NORMAL, does not flush each commit: a power cut would lose the
        # last ones, although their buyer was told that they are kept.
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._connection:  # commits, or rolls back
            # IMMEDIATE takes the write lock first: looking at the tables and making them are one
            # step, also where another process opens the same new file.
            self._connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                self._connection.execute(
                    statement.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")
                )
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        # SQLite reads a page only when it is needed; damage shows now, not in the middle of a
        # run. It checks the CHECKs too, so a probability that rotted is not taken for one.
        (fault,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        # Nor does SQLite mind a word in a column of numbers.
        for table, (key, values) in _TABLES.items() if fault == "ok" else ():
            wrong = " OR ".join(
                f"typeof({name}) NOT IN (lower('{kind}'), 'null')"
                for name, kind, *_ in (column.split() for column in (*key, *values))
            )
            (count,) = self._connection.execute(
                f"SELECT count(*) FROM {table} WHERE {wrong}"
            ).fetchone()
            fault = f"{count} rows of {table} hold values of another type" if count else fault
        InputError.unless(
            fault == "ok",
            saw=f"{self.path} is damaged ({fault})",
            expected=_EXPECTED,
            cure=_RESTORE,
        )


def _names(columns: Sequence[str]) -> str:
    return ", ".join(column.split()[0] for column in columns)


@contextmanager
def kept_ledger(path: Path | None) -> Iterator[Ledger]:
    """Open a ledger, without a path in a temporary file: what is paid for outlives a fault.

    Args:
        path: The file. A temporary one is removed at the end, unless the block fails after
            something was bought: then a warning says where it is.

    Yields:
        The ledger.
    """
    if path is not None:
        with Ledger(path) as ledger:
            yield ledger
        return
    folder = Path(tempfile.mkdtemp(prefix="prefstage-kept-"))
    try:
        with Ledger(folder / LEDGER) as ledger:
            yield ledger
    except BaseException:
        bought = True  # as far as can be seen: a full disk may not let it be opened
        with suppress(PrefstageError), Ledger(folder / LEDGER) as ledger:
            bought = any(map(ledger.count, _TABLES))
        if bought:
            _log.warning("what was paid for is kept: --store %s goes on from it", folder / LEDGER)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
