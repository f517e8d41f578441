"""The folder that dynamics are kept in: whole steps only, each of them once."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prefstage.core.errors import DataError, RunFolderError
from prefstage.core.files import atomic_path, write_json
from prefstage.diagnosing.flips import FLIP_GROUPS
from prefstage.training.dynamics_measures import PairDynamics
from prefstage.training.dynamics_pairs import PairSample, PairScores

_log = logging.getLogger(__name__)

ABOUT, REFERENCE, PAIRS, METRICS = "about.json", "reference.parquet", "pairs", "metrics"

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
    [
        ("set", pa.string()),
        ("pair", pa.int64()),
        ("chosen_log_prob", pa.float64()),
        ("rejected_log_prob", pa.float64()),
    ]
)


class DynamicsFolder:
    """Where one training run's dynamics lie.

    ``about.json`` (what is measured), ``reference.parquet``, ``pairs/step-*.parquet`` (one
    row a pair) and ``metrics/step-*.json``. A step counts once its Parquet file is there;
    files appear whole or not at all.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def begin(self, about: Mapping[str, Any], *, step: int) -> None:
        """Begin a run, or go on with it at a step.

        Records of later steps are dropped: they are of a training that was killed, and come
        again. At step 0 everything is.

        Args:
            about: What is measured and how; JSON-serialisable.
            step: Optimiser steps done.

        Raises:
            RunFolderError: If the folder holds dynamics of something else.
        """
        self._check_same(about)
        if step == 0:
            (self.path / REFERENCE).unlink(missing_ok=True)
        later = [found for found in self.steps() if found > step or step == 0]
        if later:
            _log.warning(
                "%s: dropping the records of steps %d to %d, which training comes to again",
                self.path,
                later[0],
                later[-1],
            )
        for found in later:
            self._pairs_file(found).unlink()
            self._metrics_file(found).unlink(missing_ok=True)
        write_json(self.path / ABOUT, dict(about))

    def steps(self) -> list[int]:
        """The steps that are recorded, ascending."""
        return sorted(
            int(file.stem.removeprefix("step-"))
            for file in (self.path / PAIRS).glob("step-*.parquet")
        )

    def metrics(self) -> list[dict[str, float]]:
        """The aggregates of every recorded step, ascending."""
        return [
            json.loads(self._metrics_file(step).read_text(encoding="utf-8"))
            for step in self.steps()
        ]

    def write_step(
        self, step: int, measured: list[PairDynamics], metrics: Mapping[str, float]
    ) -> None:
        """Record one step.

        Args:
            step: Optimiser steps done.
            measured: The pairs of each set.
            metrics: The aggregates by name.
        """
        write_json(self._metrics_file(step), {"step": step, **metrics})
        table = pa.concat_tables([_table(step, each) for each in measured])
        with atomic_path(self._pairs_file(step)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def write_reference(self, scores: Mapping[str, tuple[PairSample, PairScores]]) -> None:
        """Keep the reference's log-probs of every set.

        Args:
            scores: By the set's name: the pairs and their log-probs.
        """
        tables = [
            pa.table(
                [
                    [name] * len(sample.indices),
                    list(sample.indices),
                    found.chosen.tolist(),
                    found.rejected.tolist(),
                ],
                schema=_REFERENCE_SCHEMA,
            )
            for name, (sample, found) in scores.items()
        ]
        with atomic_path(self.path / REFERENCE) as temporary:
            pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")

    def read_reference(self) -> dict[str, PairScores] | None:
        """The reference's log-probs by set; None if they were not kept."""
        if not (self.path / REFERENCE).exists():
            return None
        table = _read(self.path / REFERENCE, _REFERENCE_SCHEMA)
        names = table["set"].to_pylist()
        found = {}
        for name in dict.fromkeys(names):
            part = table.filter(pa.compute.equal(table["set"], name))
            sides = [
                torch.tensor(part[column].to_pylist(), dtype=torch.float64)
                for column in ("chosen_log_prob", "rejected_log_prob")
            ]
            found[name] = PairScores(*sides)
        return found

    def _check_same(self, about: Mapping[str, Any]) -> None:
        file = self.path / ABOUT
        if not file.exists():
            return
        found = json.loads(file.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(dict(about)))
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if different:
            raise RunFolderError.of(
                saw=f"{self.path} holds dynamics of another run (different: "
                f"{', '.join(different)})",
                expected="a new folder, or the same pairs, reference and settings",
                cure="name another folder with out=",
            )

    def _pairs_file(self, step: int) -> Path:
        return self.path / PAIRS / f"step-{step:08d}.parquet"

    def _metrics_file(self, step: int) -> Path:
        return self.path / METRICS / f"step-{step:08d}.json"


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
    store = DynamicsFolder(Path(folder))
    steps = _recorded(store)
    return pa.concat_tables([_read(store._pairs_file(step), SCHEMA) for step in steps])


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """Read the aggregates of every recorded step.

    Args:
        folder: `out` of a `DynamicsCallback`.

    Returns:
        One mapping a step, ascending: "step" and the metrics by name.

    Raises:
        DataError: If nothing is recorded there.
    """
    store = DynamicsFolder(Path(folder))
    _recorded(store)
    return store.metrics()


def _recorded(store: DynamicsFolder) -> list[int]:
    steps = store.steps()
    if not steps:
        raise DataError.of(
            saw=f"no recorded step in {store.path}",
            expected="the folder that a DynamicsCallback wrote",
            cure="give the callback's out=",
        )
    return steps


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(path, schema=schema)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError.of(
            saw=f"{path}: {error}",
            expected="a file written by a DynamicsCallback",
            cure="delete it, and go on training from the checkpoint before that step",
        ) from error


def _table(step: int, measured: PairDynamics) -> pa.Table:
    sample, count = measured.sample, len(measured.sample.indices)
    chosen_tokens, rejected_tokens = sample.lengths
    columns = {
        "step": [step] * count,
        "set": [sample.name] * count,
        "pair": list(sample.indices),
        "prompt_id": list(sample.prompt_ids),
        "chosen_tokens": chosen_tokens.tolist(),
        "rejected_tokens": rejected_tokens.tolist(),
        "chosen_log_prob": measured.policy.chosen.tolist(),
        "rejected_log_prob": measured.policy.rejected.tolist(),
        "reference_chosen_log_prob": measured.reference.chosen.tolist(),
        "reference_rejected_log_prob": measured.reference.rejected.tolist(),
        "reference_log_ratio": measured.log_ratio.tolist(),
        "loss": measured.loss.tolist(),
        "threshold": measured.threshold.tolist(),
        "margin": measured.margin.tolist(),
        "correct": measured.correct.tolist(),
        "group": [FLIP_GROUPS[number] for number in measured.group.tolist()],
        "tied": (~sample.decided).tolist(),
    }
    return pa.table(columns, schema=SCHEMA)
