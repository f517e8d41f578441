"""The folder that dynamics are recorded in: whole steps only, none of them twice."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prefstage.core.errors import DataError, RunFolderError
from prefstage.core.files import atomic_path, write_json
from prefstage.diagnosing.flips import FLIP_GROUPS
from prefstage.training.dynamics.pairs import PairDynamics, PairSample, PairScores

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
    [SCHEMA.field(name) for name in ("set", "pair", "chosen_log_prob", "rejected_log_prob")]
)


class DynamicsFolder:
    """Where one training run's dynamics lie.

    ``about.json`` (what is measured), ``reference.parquet``, ``pairs/step-*.parquet`` (one
    row a pair) and ``metrics/step-*.json``. Files appear whole or not at all.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def begin(self, about: Mapping[str, Any], *, step: int) -> None:
        """Begin a run, or go on with it at a step.

        Args:
            about: What is measured and how; JSON-serialisable.
            step: Optimiser steps done; 0 drops all records.

        Raises:
            RunFolderError: If the folder holds dynamics of something else.
        """
        self._check_same(about)
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
            self.pairs_file(recorded).unlink()
            self._metrics_file(recorded).unlink(missing_ok=True)
        write_json(self.path / ABOUT, dict(about))

    def steps(self) -> list[int]:
        """The steps that are recorded, ascending."""
        files = (self.path / PAIRS).glob("step-*.parquet")
        return sorted(int(file.stem.removeprefix("step-")) for file in files)

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
        # The Parquet file comes last, as a step counts by it: whatever else a kill leaves out,
        # a step that counts has its metrics.
        write_json(self._metrics_file(step), {"step": step, **metrics})
        _write([_table(step, pairs) for pairs in measured], self.pairs_file(step))

    def write_reference(self, samples: Sequence[PairSample], scores: Sequence[PairScores]) -> None:
        """Keep the reference's log-probs of every set.

        Args:
            samples: The pairs of each set.
            scores: Their log-probs under the reference.
        """
        tables = [
            pa.table(
                {
                    "set": [sample.name] * len(sample.indices),
                    "pair": list(sample.indices),
                    "chosen_log_prob": pairs.chosen.tolist(),
                    "rejected_log_prob": pairs.rejected.tolist(),
                },
                schema=_REFERENCE_SCHEMA,
            )
            for sample, pairs in zip(samples, scores, strict=True)
        ]
        _write(tables, self.path / REFERENCE)

    def read_reference(self) -> dict[str, PairScores] | None:
        """The reference's log-probs by set; None if they were not kept."""
        if not (self.path / REFERENCE).exists():
            return None
        table = _read(self.path / REFERENCE, _REFERENCE_SCHEMA)
        scores = {}
        for name in dict.fromkeys(table["set"].to_pylist()):
            rows = table.filter(pa.compute.equal(table["set"], name))
            sides = (rows["chosen_log_prob"], rows["rejected_log_prob"])
            scores[name] = PairScores(
                *(torch.tensor(side.to_pylist(), dtype=torch.float64) for side in sides)
            )
        return scores

    def _check_same(self, about: Mapping[str, Any]) -> None:
        file = self.path / ABOUT
        if not file.exists():
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(dict(about)))
        different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if different:
            raise RunFolderError.of(
                saw=f"{self.path} holds dynamics of another run (different: "
                f"{', '.join(different)})",
                expected="a new folder, or the same pairs, reference and settings",
                cure="name another folder with out=",
            )

    def pairs_file(self, step: int) -> Path:
        """Where the pairs of a step are recorded."""
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
    store = _recorded(folder)
    return pa.concat_tables([_read(store.pairs_file(step), SCHEMA) for step in store.steps()])


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
    if not store.steps():
        raise DataError.of(
            saw=f"no recorded step in {store.path}",
            expected="the folder that a DynamicsCallback wrote",
            cure="give the callback's out=",
        )
    return store


def _write(tables: Sequence[pa.Table], path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")


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
    sample = measured.sample
    chosen_tokens, rejected_tokens = sample.lengths
    tensors = {
        "chosen_tokens": chosen_tokens,
        "rejected_tokens": rejected_tokens,
        "chosen_log_prob": measured.policy.chosen,
        "rejected_log_prob": measured.policy.rejected,
        "reference_chosen_log_prob": measured.reference.chosen,
        "reference_rejected_log_prob": measured.reference.rejected,
        "reference_log_ratio": measured.log_ratio,
        "loss": measured.loss,
        "threshold": measured.threshold,
        "margin": measured.margin,
        "correct": measured.correct,
        "tied": ~sample.decided,
    }
    columns = {
        "step": [step] * len(sample.indices),
        "set": [sample.name] * len(sample.indices),
        "pair": list(sample.indices),
        "prompt_id": [tree.prompt_id for tree in sample.trees],
        "group": [FLIP_GROUPS[number] for number in measured.group.tolist()],
        **{name: tensor.tolist() for name, tensor in tensors.items()},
    }
    return pa.table(columns, schema=SCHEMA)
