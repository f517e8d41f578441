"""A run folder in which another process works."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = (
    "import sys, time; from pathlib import Path; from prefstage.core.runs import locked\n"
    "with locked(Path(sys.argv[1]), sys.argv[2]):\n"
    "    print('held', flush=True)\n    time.sleep(600)"
)


@contextmanager
def held(folder: Path, name: str = "lock") -> Iterator[int]:
    """Have a real process hold the folder while the block runs; gives its number."""
    words = [sys.executable, "-c", HOLD, str(folder), name]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process.pid
        finally:
            process.kill()
