"""Errors that say what was seen, what was expected, and what to do."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

_LONGEST = 2000  # characters of a part

_FULL_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Of writers that give no code: SQLite, safetensors, and torch's zip writer, which reports a full
# disk as an unexpected position.
_FULL_TEXT = re.compile(
    r"no space left|disk is full|disk quota|file too large|unexpected pos \d", re.IGNORECASE
)


def full_disk_error(error: BaseException | None) -> BaseException | None:
    """Look for one that says that a disk or a quota has no room.

    Args:
        error: Of any writer; it or what it came from.

    Returns:
        The one that says so, or None.
    """
    while error is not None:
        # A ValueError quotes what was read, and ours quote others: their words are no evidence.
        quoting = isinstance(error, ValueError | PrefstageError)
        if getattr(error, "errno", None) in _FULL_CODES or (
            not quoting and _FULL_TEXT.search(str(error))
        ):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


class PrefstageError(Exception):
    """Root of every error that prefstage raises on purpose."""

    @classmethod
    def of(cls, *, saw: str, expected: str, cure: str) -> Self:
        """Build the error from the three parts that every message has.

        Args:
            saw: What was met, with its place (file, row, field, option).
            expected: What would have been right.
            cure: What the reader should do now, as an imperative.

        Returns:
            The error, to be raised by the caller; its text is one line.
        """
        # One line a part, without a closing full stop, so that they join into a sentence. Of what
        # others wrote, as long as they like, the beginning and the end.
        parts = (" ".join(part.split()).rstrip(".") for part in (saw, f"expected {expected}", cure))
        return cls(
            "; ".join(
                part if len(part) <= _LONGEST else f"{part[: _LONGEST - 200]} … {part[-200:]}"
                for part in parts
            )
            + "."
        )

    @classmethod
    def unless(cls, holds: object, *, saw: str, expected: str, cure: str) -> None:
        """Raise the error unless something holds, as a check of one line.

        Not for rows by the million, nor where saying what was seen takes long or fails if it
        holds: the texts are made in any case.

        Args:
            holds: Whether all is well; by its truth value.
            saw: As in `of`.
            expected: As in `of`.
            cure: As in `of`.
        """
        if not holds:
            raise cls.of(saw=saw, expected=expected, cure=cure)

    @classmethod
    @contextmanager
    def instead_of(
        cls, *kinds: type[Exception], saw: str, expected: str, cure: str
    ) -> Iterator[None]:
        """Raise the error where a block raises one of some others, which becomes its cause.

        Args:
            kinds: The others.
            saw: As in `of`; ``{error}`` in it stands for the other error's text.
            expected: As in `of`.
            cure: As in `of`.

        Yields:
            Nothing: the block stands in a `with` statement.
        """
        try:
            yield
        except kinds as error:
            if "{error}" in saw and isinstance(error, PrefstageError):
                raise  # it has three parts already
            if full_disk_error(error):
                expected, cure = "room on the disk", "make room there; the same command goes on"
            raise cls.of(
                saw=saw.replace("{error}", str(error)), expected=expected, cure=cure
            ) from error


class InputError(PrefstageError, ValueError):
    """A value given by the user is wrong (argument, option, row, file)."""


class ConfigError(InputError):
    """A configuration file or option does not fit its schema."""


class DataError(InputError):
    """A dataset, or rows of it, cannot be read as what was asked for."""


class ModelError(InputError):
    """A model or tokenizer cannot be used for what was asked for."""


class MissingDependencyError(PrefstageError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class ServiceError(PrefstageError, RuntimeError):
    """A server that we depend on failed for good, after all retries."""


class RunFolderError(PrefstageError, ValueError):
    """A run folder holds something else than the run that was asked for."""


class CheckpointError(PrefstageError, ValueError):
    """A checkpoint is not whole, or does not belong to the run that would go on from it."""


class TrainingError(PrefstageError, RuntimeError):
    """Training cannot go on: a loss that is no number, no memory, no room on the disk."""
