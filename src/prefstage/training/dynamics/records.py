"""The folder that dynamics are recorded in, whole steps only, none of them twice."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from prefstage.core import (
    DataError,
    RunFolderError,
    atomic_path,
    read_json,
    write_json,
)
from prefstage.diagnosing.flips import FLIP_GROUPS
from prefstage.training.dynamics.pairs import PairSample, PairScores, metric_key

_log = logging.getLogger(__name__)

ABOUT, REFERENCE, PAIRS, METRICS = "about.json", "reference.parquet", "pairs", "metrics"
_ENDINGS = {PAIRS: ".parquet", METRICS: ".json"}

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("set", pa.string()),
        ("pair", pa.int64()),
        ("prompt_id", pa.string()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_log_prob", pa.float64()),
        ("rejected_log_prob", pa.float64()),
        ("reference_chosen_log_prob", pa.float64()),
        ("reference_rejected_log_prob", pa.float64()),
        ("reference_log_ratio", pa.float64()),
        ("loss", pa.float64()),
        ("threshold", pa.float64()),
        ("margin", pa.float64()),
        ("correct", pa.bool_()),
        ("group", pa.string()),
        ("tied", pa.bool_()),
    ]
)
_REFERENCE_SCHEMA = pa.schema(
    [SCHEMA.field(name) for name in ("set", "pair", "chosen_log_prob", "rejected_log_prob")]
)


@dataclass(frozen=True)
class DynamicsFolder:
    """Where one training run's dynamics lie.

    ``about.json`` (what is measured), ``reference.parquet``, ``pairs/step-*.parquet`` (one
    row a pair) and ``metrics/step-*.json``. Files appear whole or not at all.

    Args:
        path: The folder; made when something is written.
    """

    path: Path

    def begin(self, about: Mapping[str, Any], *, step: int) -> None:
        """Begin a run, or go on with it at a step.

        Args:
            about: What is measured and how; JSON-serialisable.
            step: Optimiser steps done; 0 drops all records.

        Raises:
            RunFolderError: If the folder holds dynamics of something else.
        """
        file, now = self.path / ABOUT, json.loads(json.dumps(dict(about)))
        before = read_json(file) if file.exists() else now
        different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        RunFolderError.unless(
            not different,
            saw=f"{self.path} holds dynamics of another run (different: {', '.join(different)})",
            expected="a new folder, or the same pairs, reference and settings",
            cure="name another folder with out=",
        )
        if step == 0:
            (self.path / REFERENCE).unlink(missing_ok=True)
        # Later steps are of a training that was killed after its last checkpoint, and come anew.
        later = [recorded for recorded in self.steps() if recorded > step or step == 0]
        if later:
            _log.warning(
                "%s: dropping the records of steps %d to %d, which training comes to again",
                self.path,
                later[0],
                later[-1],
            )
        for recorded in later:
            self._file(recorded, PAIRS).unlink()
            self._file(recorded, METRICS).unlink(missing_ok=True)
        write_json(file, now)

    def steps(self) -> list[int]:
        """The steps that are recorded, ascending."""
        return sorted(
            int(file.stem.removeprefix("step-"))
            for file in (self.path / PAIRS).glob("step-*.parquet")
        )

    def metrics(self) -> list[dict[str, float]]:
        """The aggregates of every recorded step, ascending."""
        return [read_json(self._file(step, METRICS)) for step in self.steps()]

    def write_step(
        self,
        step: int,
        samples: Sequence[PairSample],
        measured: Sequence[Mapping[str, torch.Tensor]],
        metrics: Mapping[str, float],
    ) -> None:
        """Record one step.

        Args:
            step: Optimiser steps done.
            samples: The pairs of each set.
            measured: What was measured of them, as of `measure_pairs`.
            metrics: The aggregates by name.
        """
        tables = [
            _table(
                sample,
                {
                    **tensors,
                    "step": [step] * len(sample.items),
                    "prompt_id": [tree.prompt_id for tree in sample.trees],
                    "group": [FLIP_GROUPS[number] for number in tensors["group"]],
                },
                SCHEMA,
            )
            for sample, tensors in zip(samples, measured, strict=True)
        ]
        # The Parquet file comes last, as a step counts by it: whatever else a kill leaves out,
        # a step that counts has its metrics.
        write_json(self._file(step, METRICS), {"step": step, **metrics})
        _write(tables, self._file(step, PAIRS))

    def write_reference(self, samples: Sequence[PairSample], scores: Sequence[PairScores]) -> None:
        """Keep the reference's log-probs of every set.

        Args:
            samples: The pairs of each set.
            scores: Their log-probs under the reference.
        """
        _write(
            [
                _table(
                    sample,
                    {"chosen_log_prob": pair[0], "rejected_log_prob": pair[1]},
                    _REFERENCE_SCHEMA,
                )
                for sample, pair in zip(samples, scores, strict=True)
            ],
            self.path / REFERENCE,
        )

    def read_reference(self) -> dict[str, PairScores] | None:
        """The reference's log-probs by set; None if they were not kept."""
        if not (self.path / REFERENCE).exists():
            return None
        table, scores = _read(self.path / REFERENCE, _REFERENCE_SCHEMA), {}
        for name in table["set"].unique().to_pylist():
            rows = table.filter(pc.equal(table["set"], name))
            chosen, rejected = (
                torch.tensor(rows[side].to_numpy())
                for side in ("chosen_log_prob", "rejected_log_prob")
            )
            scores[name] = chosen, rejected
        return scores

    # With zeros in front, so that names sort as steps do.
    def _file(self, step: int, kind: str) -> Path:
        return self.path / kind / f"step-{step:08d}{_ENDINGS[kind]}"


def read_dynamics(folder: str | Path) -> pa.Table:
    """Read every pair at every recorded step.

    Args:
        folder: `out` of a `DynamicsCallback`.

    Returns:
        One row a step, set and pair, in this order, with the columns of `SCHEMA`;
        ``.to_pandas()`` gives a data frame.

    Raises:
        DataError: If nothing is recorded there, or a file cannot be read.
    """
    store = _recorded(folder)
    return pa.concat_tables([_read(store._file(step, PAIRS), SCHEMA) for step in store.steps()])


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """Read the aggregates of every recorded step.

    Args:
        folder: `out` of a `DynamicsCallback`.

    Returns:
        One mapping a step, ascending: "step" and the metrics by name.

    Raises:
        DataError: If nothing is recorded there.
    """
    return _recorded(folder).metrics()


def _recorded(folder: str | Path) -> DynamicsFolder:
    store = DynamicsFolder(Path(folder))
    DataError.unless(
        store.steps(),
        saw=f"no recorded step in {store.path}",
        expected="the folder that a DynamicsCallback wrote",
        cure="give the callback's out=",
    )
    return store


def _write(tables: Sequence[pa.Table], path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    with DataError.instead_of(
        *(OSError, pa.ArrowInvalid),
        saw=f"{path}: {{error}}",
        expected="a file written by a DynamicsCallback",
        cure="delete it, and go on training from the checkpoint before that step",
    ):
        return pq.read_table(path, schema=schema)


def _table(sample: PairSample, columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    rows = [item.index for item in sample.items]
    values = {"set": [sample.name] * len(rows), "pair": rows, **columns}
    return pa.table({name: np.asarray(values[name]) for name in schema.names}, schema=schema)


def best_step(metrics: Sequence[Mapping[str, float]], sets: Iterable[str]) -> int | None:
    """The recorded step at which the loss on held-out pairs was lowest.

    Args:
        metrics: As of `read_metrics`.
        sets: Names of the sets that were followed; all but "train" are held out.

    Returns:
        The first such step, by the mean over the held-out sets; None without one.

    Source:
        Chen et al. 2024, arXiv:2405.19534, App. D.1: the checkpoint that is analysed.
    """
    keys = [metric_key(name, "loss") for name in sets if name != "train"]
    losses = [(sum(m[key] for key in keys), int(m["step"])) for m in metrics if keys]
    return min(losses)[1] if losses else None
