"""Which command made a run, and what it left."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from prefstage.core.errors import InputError
from prefstage.reporting.reading_align import read_align
from prefstage.reporting.reading_experiment import read_experiment
from prefstage.reporting.reading_single import (
    read_build,
    read_diagnose,
    read_evaluate,
    read_measure,
    read_train,
)
from prefstage.reporting.results import Run

# What tells a run: the file with its results, in the order of asking.
READERS: dict[str, Callable[[Path], Run]] = {
    "align.json": read_align,
    "experiment.json": read_experiment,
    "train.json": read_train,
    "stage.json": read_measure,
    "build.json": read_build,
    "results.json": read_evaluate,
    "report.json": read_diagnose,
}
_BEGUN = {
    "align": "align.json",
    "experiment": "experiment.json",
    "train": "train.json",
    "measure": "stage.json",
}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read what several runs hold.

    Args:
        paths: Run folders, or the file with the results in one.

    Returns:
        The runs, each with a name of its own.

    Raises:
        InputError: If one is missing, is not done, or is no run.
        DataError: If a file in it cannot be read.
    """
    if not paths:
        raise InputError.of(saw="no run", expected="one run folder or more", cure="name one")
    runs = [_read(path) for path in paths]
    return [replace(run, name=name) for run, name in zip(runs, _names(runs), strict=True)]


def _read(path: Path) -> Run:
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise InputError.of(
            saw=f"no folder or file {path}",
            expected="the run folder of an align, experiment, train, measure, build, evaluate or "
            "diagnose",
            cure="name the folder that was given with --out",
        )
    names = [path.name] if path.is_file() else list(READERS)
    for name in names:
        if name in READERS and (folder / name).is_file():
            return _reading(READERS[name], folder, name)
    raise InputError.of(
        saw=f"{path} holds no results{_begun(folder)}",
        expected=f"one of {', '.join(READERS)}",
        cure="let the run end (the same command goes on), or name another folder",
    )


def _reading(reader: Callable[[Path], Run], folder: Path, name: str) -> Run:
    try:
        return reader(folder)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError.of(
            saw=f"{folder / name}, or a file that it names, is not as it was written ({error!r})",
            expected=f"the results of `prefstage {reader.__name__.removeprefix('read_')}`",
            cure="repeat the command with the same --out, which makes damaged results anew",
        ) from error


def _begun(folder: Path) -> str:
    """What a manifest says about a run that has no results yet."""
    try:
        command = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    known = _BEGUN.get(str(command))
    return f"; its {command} has not ended: no {known} yet" if known else f" (of {command})"


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place})" for place, name in enumerate(names, start=1)]
