"""Memory and time of building and of dataset statistics, from 10^3 to 10^6 pairs.

    python benchmarks/building.py [--largest 1000000]

Each size runs in a process of its own: synthetic prompts with five scored responses go
through best-vs-worst, a filter and the statistics of Table 5. Written as a Markdown table.
"""

import argparse
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefstage.data.records import Candidates

SIZES = (1_000, 10_000, 100_000, 1_000_000)
RESPONSES = 5
KIB_A_MIB = 1024


def main() -> None:
    """Run each size in a fresh process, or one size in this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--one", type=int)
    given = parser.parse_args()
    if given.one is not None:
        print(measure(given.one))
        return
    print("| pairs | peak memory, MiB | above the start, MiB | CPU s | CPU us a pair |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        if size <= given.largest:
            command = [sys.executable, __file__, "--one", str(size)]
            print(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout, end=""
            )
            sys.stdout.flush()


def measure(size: int) -> str:
    """Build and describe `size` pairs; one row of the table."""
    from prefstage.building.account import Account
    from prefstage.building.build import flat_rows
    from prefstage.building.built import built_dataset
    from prefstage.building.choosing import best_vs_worst, pairs_by_choice
    from prefstage.building.filters import Filters, LengthFilter, filtered
    from prefstage.building.statistics import pair_statistics

    started, account = time.process_time(), Account()
    with AnonymousPeak() as memory:
        groups = pairs_by_choice(synthetic(size), best_vs_worst, method="m", account=account)
        limit = Filters(length=LengthFilter(max_response=10_000))
        dataset = built_dataset(flat_rows(filtered(groups, limit, account=account)))
        figures = pair_statistics(dataset)
    assert figures.pairs == figures.prompts == size
    seconds = time.process_time() - started
    above, each = memory.peak - memory.start, 1e6 * seconds / size
    return f"| {size:,} | {memory.peak:.0f} | {above:.0f} | {seconds:.1f} | {each:.0f} |"


def synthetic(size: int) -> Iterator["Candidates"]:
    """Prompts with five responses of about 100 characters and random scores."""
    from prefstage.data.records import Candidates

    draw = random.Random(0)
    for number in range(size):
        texts = tuple(f"answer {number} {place} " + "word " * 18 for place in range(RESPONSES))
        scores = tuple(draw.gauss(0.0, 1.0) for _ in texts)
        prompt = ({"role": "user", "content": f"question {number}"},)
        yield Candidates(f"{number:016x}", prompt, texts, ("synthetic",) * RESPONSES, scores)


class AnonymousPeak:
    """Samples the memory that is the process's own, without pages of memory-mapped files.

    Those pages are the kernel's cache of the dataset's file and go when memory is needed.
    """

    def __enter__(self) -> "AnonymousPeak":
        """Start sampling."""
        self.peak, self._on = 0.0, True
        self.start = self._now()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._on = False
        self._thread.join()

    def _sample(self) -> None:
        while self._on:
            self.peak = max(self.peak, self._now())
            time.sleep(0.02)

    def _now(self) -> float:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / KIB_A_MIB


if __name__ == "__main__":
    main()
