"""Memory and time of building and of dataset statistics, from 10^3 to 10^6 pairs.

    python benchmarks/building.py [--largest 1000000]

Each size runs in a process of its own, through the product's own entries: a Parquet file of
synthetic prompts with three scored responses goes through `build_pairs` (best-vs-worst, a
length filter, exact duplicates, a test split, statistics, card, Parquet files), and the pairs
that it wrote go through `diagnose` without a model (lengths, scores, what length explains).
Written as a Markdown table, with the exponent of time over pairs.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1_000, 10_000, 100_000, 1_000_000)
RESPONSES = 3
KIB_A_MIB = 1024
ROWS_AT_ONCE = 1_000


def main() -> None:
    """Run each size in a fresh process, or one size in this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--one", type=int)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.one)))
        return
    print("| pairs | building: above the start, MiB | CPU s | us a pair | ", end="")
    print("statistics: above the start, MiB | CPU s | us a pair |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for size in SIZES:
        if size <= given.largest:
            command = [sys.executable, __file__, "--one", str(size)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(ran.stdout.splitlines()[-1]))
            print(row_of(found[-1]))
            sys.stdout.flush()
    for what in ("building", "statistics"):
        print(f"\nTime of {what} grows as pairs^{exponent(found, what):.2f}.")


def exponent(found: list[dict[str, Any]], what: str) -> float:
    """Slope of log time over log pairs between the two largest sizes."""
    last = found[-2:]
    times, sizes = ([np.log(each[key]) for each in last] for key in (f"{what}_seconds", "pairs"))
    return float((times[-1] - times[0]) / (sizes[-1] - sizes[0])) if len(last) > 1 else 1.0


def row_of(found: dict[str, Any]) -> str:
    """One row of the table."""
    cells = [f"{found['pairs']:,}"]
    for what in ("building", "statistics"):
        seconds = found[f"{what}_seconds"]
        each = 1e6 * seconds / found["pairs"]
        cells += [f"{found[f'{what}_mib']:.0f}", f"{seconds:.1f}", f"{each:.0f}"]
    return f"| {' | '.join(cells)} |"


def measure(size: int) -> dict[str, Any]:
    """Build `size` pairs and describe them."""
    from prefstage.building import build_pairs
    from prefstage.data import load_pairs
    from prefstage.diagnosing.diagnosis import diagnose

    found: dict[str, Any] = {"pairs": size}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_candidates(folder / "candidates.parquet", size)
        recipe = {
            "candidates": str(folder / "candidates.parquet"),
            "method": "best-vs-worst",
            "filters": {"length": {"max_response": 10_000}, "duplicates": True},
            "splits": {"test": 0.05},
        }
        with AnonymousPeak() as memory:
            made = build_pairs(recipe, out=folder / "run")
        assert made.statistics["best-vs-worst"].pairs == size
        found |= {"building_mib": memory.above, "building_seconds": memory.seconds}
        del made
        with AnonymousPeak() as memory:
            pairs = load_pairs(folder / "run" / "best-vs-worst" / "train.parquet")
            report = diagnose(pairs).report
        assert report["data"]["scores"]["gap"]["count"] == len(pairs)
        found |= {"statistics_mib": memory.above, "statistics_seconds": memory.seconds}
    return found


def write_candidates(path: Path, size: int) -> None:
    """Prompts with responses of about 100 characters and random scores, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, writer = random.Random(0), None
    for start in range(0, size, ROWS_AT_ONCE):
        rows = []
        for number in range(start, min(start + ROWS_AT_ONCE, size)):
            texts = [f"answer {number} {place} " + "word " * 18 for place in range(RESPONSES)]
            scores = [draw.gauss(0.0, 1.0) for _ in texts]
            rows.append({"prompt": f"question {number}", "responses": texts, "scores": scores})
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


class AnonymousPeak:
    """Samples the memory that is the process's own, without pages of memory-mapped files.

    Those pages are the kernel's cache of the dataset's files and go when memory is needed.
    """

    def __enter__(self) -> "AnonymousPeak":
        """Start sampling."""
        self._peak, self._on = 0.0, True
        self._start, self._began = self._now(), time.process_time()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.process_time() - self._began
        self._on = False
        self._thread.join()

    @property
    def above(self) -> float:
        """Peak above the start, MiB."""
        return self._peak - self._start

    def _sample(self) -> None:
        while self._on:
            self._peak = max(self._peak, self._now())
            time.sleep(0.02)

    def _now(self) -> float:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / KIB_A_MIB


if __name__ == "__main__":
    main()
