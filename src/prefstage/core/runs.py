"""Run folders: whose they are, one process at a time, whole or absent; results, and their text."""

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import IO, Any

from prefstage.core.errors import InputError, RunFolderError
from prefstage.core.files import PARTIAL, digest, digest_file, sync_folder, write_json
from prefstage.core.foreign import printable, read_json
from prefstage.core.secrets import redacted, redacted_values

MANIFEST, RESULT = "manifest.json", "result.json"
LOCK = "lock"
_PACKAGES = ("prefstage", "torch", "transformers", "datasets", "peft")
_LOCKED_BYTE = 1 << 30
_SCRATCH = "prefstage-"


@contextmanager
def run_folder(path: Path, *, command: str, inputs: Mapping[str, Any]) -> Iterator[Path]:
    """Open the folder of one run, and keep it to this process while the block runs.

    A run is one command, one configuration, one set of inputs. Every command that fills a run
    folder works in such a block; it goes on in the folder of the same run.

    Args:
        path: The folder; made with its parents if missing.
        command: The command's name.
        inputs: JSON-serialisable: everything the result depends on (configuration,
            fingerprints of data, model and judge).

    Yields:
        The folder, with its manifest on disk.

    Raises:
        RunFolderError: If the folder holds another run, or files and no manifest; or if another
            process works in it.
    """
    key, manifest = digest({"command": command, "inputs": dict(inputs)}), path / MANIFEST
    RunFolderError.unless(
        manifest.exists() or not path.exists() or (path.is_dir() and _is_vacant(path)),
        saw=f"{path} exists and is not a run folder of prefstage",
        expected="a new or empty folder, or the folder of the same run",
        cure="name another folder with --out",
    )
    path.mkdir(parents=True, exist_ok=True)
    # Before the manifest: of two that begin at once, the second must not name the first's run.
    with locked(path):
        for leftover in path.rglob(f"{PARTIAL}*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if manifest.exists():
            _check_same_run(manifest, key, command, inputs)
        else:
            write_json(
                manifest,
                {
                    "command": command,
                    "key": key,
                    "inputs": redacted_values(inputs),
                    "date": date.today().isoformat(),  # of this place, as chat templates read it
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "python": platform.python_version(),
                    "versions": installed_versions(_PACKAGES),
                },
            )
        yield path


# Whether a start that was killed before its manifest left all that is in the folder.
def _is_vacant(path: Path) -> bool:
    return all(child.name == LOCK or child.name.startswith(PARTIAL) for child in path.iterdir())


def run_date(folder: Path | None) -> date:
    """The day on which a run began: what its chat templates read as today.

    Args:
        folder: The run's folder; None for a run that keeps nothing.

    Returns:
        The day that the folder's manifest names; today for a run that begins now.
    """
    try:
        manifest = read_json(folder / MANIFEST) if folder else {}
        return date.fromisoformat(manifest["date"])
    except (OSError, ValueError, KeyError, TypeError):
        return date.today()


# --- One process at a time -----------------------------------------------------------------------


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Keep a run folder to one process while the block runs.

    Args:
        folder: The run folder; it exists.
        name: Of the lock's file.

    Yields:
        Nothing.

    Raises:
        RunFolderError: If another process works in it.
    """
    with lock_file(folder / name) as holder:
        RunFolderError.unless(
            holder is None,
            saw=f"{folder} is in use by another process{holder}",
            expected="one process a run folder",
            cure="wait for the other run to end, or name another folder with --out",
        )
        yield


@contextmanager
def locked_file(path: Path | None) -> Iterator[None]:
    """Keep a result that is one file to this process while the block runs.

    Args:
        path: The file, which need not exist; its folder is made. None: there is nothing to keep.

    Yields:
        Nothing.

    Raises:
        InputError: If it is a folder.
        RunFolderError: If another process is making it.
    """
    if path is None:
        yield
        return
    if path.is_dir():
        saw = f"{str(path)!r}, which is a folder"
        raise InputError.of(saw=saw, expected="the name of a file", cure="add a file's name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_name(f".{path.name}.lock"), keep=False) as holder:
        RunFolderError.unless(
            holder is None,
            saw=f"{path} is being made by another process{holder}",
            expected="one process a file",
            cure="wait for the other run to end, or name another file with --out",
        )
        yield


@contextmanager
def lock_file(path: Path, *, keep: bool = True) -> Iterator[str | None]:
    """Hold a lock that ends with the block or with this process, however that ends.

    Args:
        path: The lock's file, made if missing.
        keep: Whether the file stays, as in a run folder; else it goes with the lock.

    Yields:
        None if the lock is held now; otherwise who holds it: " (process 123)", or "" if unknown.
    """
    with path.open("a+") as stream:
        try:
            _lock(stream)
        except (BlockingIOError, PermissionError):  # of POSIX, and of Windows
            stream.seek(0)
            number = stream.read().strip()
            yield f" (process {number})" if number else ""
            return
        except OSError as error:
            raise RunFolderError.of(
                saw=f"{path} cannot be locked ({error.strerror})",
                expected="a disk that knows file locks, without which two runs could meet",
                cure="name a folder on a local disk",
            ) from error
        # Its former holder may have removed it between our opening and our locking: then a third
        # process could lock a new file of its name.
        if not _is_still(path, stream):
            with lock_file(path, keep=keep) as holder:
                yield holder
            return
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield None
        finally:
            if not keep:
                with suppress(OSError):  # Windows removes no open file
                    path.unlink()


def _is_still(path: Path, stream: IO[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False


def _lock(stream: IO[str]) -> None:
    """Take an operating system's lock, which no kill can leave behind as a stale one."""
    if os.name == "nt":
        import msvcrt

        # Windows locks bytes, not files, and nobody else may read a locked byte: one far beyond
        # the end, so that others can still read who holds the lock.
        stream.seek(_LOCKED_BYTE)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows alone has it
        stream.seek(0)
    else:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in the system's temporary folder (TMPDIR) while the block runs.

    Folders that killed processes left there are removed first: those whose lock is free.

    Yields:
        The folder.
    """
    for lock in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*/{LOCK}"):
        with suppress(OSError, RunFolderError), lock_file(lock) as holder:
            if holder is None:
                shutil.rmtree(lock.parent, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, ignore_cleanup_errors=True) as folder,
        lock_file(Path(folder, LOCK)),
    ):
        yield Path(folder)


# --- Folders that are whole or absent ------------------------------------------------------------


def list_files(
    folder: Path, *, include: Callable[[Path], bool] = lambda name: True
) -> dict[str, dict[str, Any]]:
    """Flush all files of a folder to disk, and list them.

    Args:
        folder: Searched with all folders in it.
        include: Which files are listed, by their path relative to `folder`.

    Returns:
        ``{"bytes": size, "sha256": 64 hex digits}`` by relative name, sorted.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and include(p.relative_to(folder)))
    for path in paths:
        # Windows flushes only what is open for writing.
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    # A file's name is an entry of its folder, which has to reach the disk as well.
    for inner in {path.parent for path in paths}:
        sync_folder(inner)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": content}
        for path, content in zip(paths, _hashes(paths), strict=True)
    }


def fault_in(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Check a folder's files against a list of them.

    Args:
        folder: The folder.
        files: As `list_files` gives them; what a file holds that lists them.

    Returns:
        What is wrong with the first file that is not as it was listed; None if all are.
    """
    for name, listed in files.items():
        kinds = [type(listed.get(n)) for n in ("bytes", "sha256")] if type(listed) is dict else []
        if kinds != [int, str]:
            return f"the entry of {name} in the list of its files has changed"
    # All sizes before any hash: what is cut short shows without reading gigabytes.
    for name, listed in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != listed["bytes"]:
            return f"{name} has {size:,} bytes instead of {listed['bytes']:,}"
    for (name, listed), content in zip(
        files.items(), _hashes(folder / name for name in files), strict=True
    ):
        if content != listed["sha256"]:
            return f"the content of {name} has changed since it was written"
    return None


def put_in_place(staged: Path, final: Path) -> None:
    """Give a staged folder its name; a folder of that name goes only when the new one is there.

    Args:
        staged: A whole folder, its files flushed, on the same file system.
        final: Its name from now on.
    """
    # A folder cannot be renamed over one with content: the old one steps aside, so that a kill
    # at any moment leaves the old or the new one under this name or beside it, never neither.
    replaced = staged.with_name(f"replaced-{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staged.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _hashes(paths: Iterable[Path]) -> list[str]:
    # Threads help although this is Python: hashlib lets go of the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: digest_file(path, length=64), paths))


# --- What a manifest says ------------------------------------------------------------------------


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Version of each package; None of one that is not installed."""
    # `importlib.metadata.version` would raise for each that is not there.
    return {
        name: next((package.version for package in distributions(name=name)), None)
        for name in packages
    }


def _check_same_run(manifest: Path, key: str, command: str, inputs: Mapping[str, Any]) -> None:
    with RunFolderError.instead_of(
        *(ValueError, KeyError, TypeError),
        saw=f"{manifest} is not a manifest of prefstage",
        expected="the manifest of the same run",
        cure="name another folder with --out",
    ):
        record = read_json(manifest)
        same, former = record["key"] == key, {"command": record["command"], **record["inputs"]}
    wanted = json.loads(json.dumps({"command": command, **redacted_values(inputs)}))
    names = sorted(n for n in {*former, *wanted} if former.get(n) != wanted.get(n))
    RunFolderError.unless(
        same,
        saw=f"{manifest.parent} holds another run (different: {', '.join(names)})",
        expected="a new folder, or the same command with the same settings and inputs",
        cure="name another folder with --out, or repeat the first run's settings to go on with it",
    )


# --- `result.json`: what a run folder holds, in one form for every command ------------------------


def write_result(
    folder: Path,
    command: str,
    *,
    headline: str,
    facts: Mapping[str, Any] | None = None,
    parts: Iterable[Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``result.json``, which lists what a run holds; the last file that a command writes.

    The figures stay in the files that the command has always written (stage.json, train.json
    and so on): a part names the folder where they stand, so that nothing is kept twice and one
    reader serves every command.

    Args:
        folder: The run folder.
        command: Its name, such as "measure".
        headline: What came of it, in one sentence.
        facts: Short statements by what they are about, such as "policy"; empty ones are left out.
        parts: "kind" (the command that writes such a folder), "iteration" from 1, "folder"
            relative to the run's; "seconds" and "costs" of a step. None: the run folder itself
            is the only part.

    Returns:
        The file.
    """
    write_json(
        folder / RESULT,
        {
            "command": command,
            "headline": redacted(headline),
            "facts": {name: redacted(str(fact)) for name, fact in (facts or {}).items() if fact},
            "parts": [{"kind": command, "iteration": 1, "folder": "."}]
            if parts is None
            else [dict(part) for part in parts],
        },
    )
    return folder / RESULT


def read_result(folder: Path) -> dict[str, Any]:
    """Read the ``result.json`` of a run that is done.

    Args:
        folder: The run folder.

    Returns:
        "command", "headline", "facts" and "parts", as for `write_result`.

    Raises:
        InputError: If the folder does not exist, or holds no result, as that of a run that was
            stopped, or a damaged one.
    """
    InputError.unless(
        folder.is_dir(),
        saw=f"no folder or file {folder}",
        expected="a run folder, such as of align, train, measure, build, evaluate or diagnose",
        cure="name the folder that was given with --out",
    )
    try:
        result = read_json(folder / RESULT)
        return {name: result[name] for name in ("command", "headline", "facts", "parts")}
    except FileNotFoundError:
        raise InputError.of(
            saw=f"{folder} holds no results: {_begun(folder)}no {RESULT} yet",
            expected="the folder of a run that is done",
            cure="let the run end (the same command goes on), or name another folder",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError.of(
            saw=f"{folder / RESULT} is not as it was written ({error!r})",
            expected="the results of a prefstage command",
            cure="repeat the command with the same --out, which makes damaged results anew",
        ) from None


def _begun(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        manifest = read_json(folder / MANIFEST)
        return f"its {manifest['command']} has not ended, "
    return ""


# --- What a command has to say, whoever called it: a shell, or Python ----------------------------


@dataclass(frozen=True)
class Outcome:
    """The end of a command; the base of every function's result that a command prints.

    Attributes:
        summary: A short text for people, its headline first.
        result: The same for machines: JSON-serialisable.
        written: Files and folders that now hold results.
        failed: What failed, or whether anything did, although the command went through.
    """

    summary: str
    result: dict[str, Any]
    written: Sequence[Path] = ()
    failed: bool | Sequence[Any] = False


_MARKDOWN = re.compile(r"\||<(?=[A-Za-z/!?])|\[(?=[^\]]*\]\s*[(\[:])|\s*[\r\n]\s*")


def markdown_text(value: object) -> str:
    """A name or note of others in one line of Markdown, without links, HTML or cells of its own.

    Args:
        value: Written as text.

    Returns:
        The text; bars, tags and links are escaped, line ends are spaces.
    """
    return _MARKDOWN.sub(
        lambda sign: " " if sign[0].isspace() else f"\\{sign[0]}", printable(str(value))
    )


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown.

    Args:
        head: Of the columns.
        rows: A cell a column; what would be more than text in cells is escaped.

    Returns:
        Its lines, without a line end behind the last.
    """
    lines = [" | ".join(map(markdown_text, cells)) for cells in (head, *rows)]
    return "\n".join(
        [f"| {lines[0]} |", "|" + "---|" * len(head), *(f"| {x} |" for x in lines[1:])]
    )


def shown(value: Any) -> str:
    """A figure as summaries print it: floats with four digits, lists with commas."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(shown, value)) if isinstance(value, list) else str(value)
