"""Checks the rows of a length-controlled win rate and puts them into the prompts' order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefstage.core.errors import InputError
from prefstage.evaluating.length_tables import N_PROMPTS, LengthTables, length_tables

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ALIGN = "align preferences, lengths and prompts by instruction"


@dataclass(frozen=True)
class Rows:
    """The model's rows, in the order of their prompts.

    Attributes:
        preference: In [0, 1], NaN where missing. [rows].
        len_model: Characters. [rows].
        len_baseline: Characters. [rows].
        difficulty: d of each row, or None. [rows].
        origin: Where d is from.
        notes: What a reader should know.
    """

    preference: Floats
    len_model: Floats
    len_baseline: Floats
    difficulty: Floats | None
    origin: Literal["official", "given", "none"]
    notes: tuple[str, ...]


def read_rows(
    preference: ArrayLike,
    len_model: ArrayLike,
    len_baseline: ArrayLike,
    *,
    instruction: ArrayLike | None,
    row: ArrayLike | None,
    lookup: str,
    difficulty: ArrayLike | None,
) -> Rows:
    """Check and order the arguments of `length_controlled_win_rate`.

    Args:
        preference: As there, and so the others.
        len_model: Likewise.
        len_baseline: Likewise.
        instruction: Likewise.
        row: Likewise.
        lookup: Likewise.
        difficulty: Likewise.

    Returns:
        The rows, in the order of their prompts or, as published, of their row numbers.

    Raises:
        InputError: As there.
    """
    y = _column("preference", preference, None, low=0.0, high=1.0, missing=True)
    a = _column("len_model", len_model, len(y), low=0.0)
    b = _column("len_baseline", len_baseline, len(y), low=0.0)
    _check_lookup(lookup)
    _check_told(y)
    prompts = None if instruction is None else _numbers("instruction", instruction, len(y))
    if lookup == "as-published" and difficulty is None:
        places = _numbers("row", np.arange(len(y)) if row is None else row, len(y))
        notes: tuple[str, ...] = ("difficulty taken by row number, as published",)
    else:
        places, notes = np.arange(len(y)) if prompts is None else prompts, ()
    tables = length_tables()
    if prompts is not None:
        notes += _check_baseline(prompts, b, tables)
    order = np.argsort(places)
    y, a, b, places = y[order], a[order], b[order], places[order]
    if difficulty is not None:
        d = _column("difficulty", difficulty, len(y))[order]
        return Rows(y, a, b, d, "given", notes)
    if prompts is None and lookup == "instruction":
        said = "no prompt numbers of AlpacaEval given: fitted without difficulty"
        return Rows(y, a, b, None, "none", (*notes, said))
    return Rows(y, a, b, tables.difficulty[places], "official", notes)


def _check_lookup(lookup: str) -> None:
    if lookup not in ("instruction", "as-published"):
        raise InputError.of(
            saw=f"lookup={lookup!r}",
            expected="'instruction' or 'as-published'",
            cure="choose one of the two",
        )


def _check_told(preference: Floats) -> None:
    told = int((~np.isnan(preference)).sum())
    if told < 2:  # noqa: PLR2004 - a standard error needs two
        raise InputError.of(
            saw=f"{told} of {len(preference)} rows with a preference",
            expected="at least two",
            cure="judge more prompts",
        )


def _column(
    name: str,
    values: ArrayLike,
    length: int | None,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    missing: bool = False,
) -> Floats:
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        column = np.empty(0)
    if column.ndim != 1 or not column.size or (length is not None and len(column) != length):
        raise InputError.of(
            saw=f"{name} of shape {list(np.shape(values))}",
            expected=f"numbers, one a row{'' if length is None else f', {length} of them'}",
            cure=_ALIGN,
        )
    bad = ~((column >= low) & (column <= high) & np.isfinite(column))
    if missing:
        bad &= ~np.isnan(column)
    if bad.any():
        place = int(bad.argmax())
        hint = "subtract 1 from AlpacaEval's 1 to 2, 0 being a draw" if name == "preference" else ""
        raise InputError.of(
            saw=f"{name}[{place}] = {column[place]}",
            expected=f"a number from {low:g} to {high:g}",
            cure=hint or "drop or repair the row",
        )
    return column


def _numbers(name: str, values: ArrayLike, length: int) -> Integers:
    """Whole numbers of prompts, each in range and at most once."""
    floats = _column(name, values, length)
    numbers = floats.astype(np.int64)
    outside = (numbers != floats) | (numbers < 0) | (numbers >= N_PROMPTS)
    if outside.any():
        raise InputError.of(
            saw=f"{name}[{int(outside.argmax())}] = {floats[outside.argmax()]:g}",
            expected=f"a number of AlpacaEval's prompts, 0 to {N_PROMPTS - 1}",
            cure="leave `instruction` out for other prompts: difficulty is then left out",
        )
    unique, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1]
        raise InputError.of(
            saw=f"{name} {int(twice[0])} stands in {int(counts.max())} rows"
            f" ({len(twice)} such numbers)",
            expected="each prompt at most once",
            cure="keep one row a prompt",
        )
    return numbers


def _check_baseline(
    prompts: Integers, len_baseline: Floats, tables: LengthTables
) -> tuple[str, ...]:
    """Tell another baseline (a note) from shifted prompts (an error) by the lengths.

    The official baseline's lengths are known: where they stand, but at other prompts, the
    rows are shifted against their numbers.
    """
    expected = tables.baseline_lengths[prompts]
    wrong = len_baseline != expected
    if not wrong.any():
        return ()
    count = int(wrong.sum())
    same_lengths = np.array_equal(np.sort(len_baseline[wrong]), np.sort(expected[wrong]))
    known = np.isin(len_baseline[wrong], tables.baseline_lengths).mean()
    shifted = same_lengths or (count >= 10 and known >= 0.95)  # noqa: PLR2004 - no chance hit
    if count > 1 and shifted:
        first = int(wrong.argmax())
        raise InputError.of(
            saw=f"{count} rows whose baseline answers have the lengths of other prompts' answers"
            f" (first: instruction {prompts[first]}, {len_baseline[first]:g} characters,"
            f" not {expected[first]:g})",
            expected="each row's `instruction` to be the prompt that its lengths belong to",
            cure=_ALIGN,
        )
    note = (
        f"{count} of {len(prompts)} baseline answers differ in length from gpt4_1106_preview's: "
        "another baseline; difficulty and gamed rows are those of AlpacaEval's own baseline"
    )
    return (note,)
