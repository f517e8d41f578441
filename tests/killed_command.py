"""A `prefstage` command in a process of its own that is killed in the middle of its work."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

PREFSTAGE = (sys.executable, "-c", "from prefstage.cli.main import main; main()")
"""The words that start `prefstage` in the Python of the tests."""

POLL_S = 0.005


def run_until_killed(
    words: Sequence[str],
    *,
    until: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start `prefstage WORDS`, and kill it with SIGKILL as soon as `until()` is true.

    The command must still be at work by then. Its standard output is thrown away; its exit
    status is returned.
    """
    with subprocess.Popen(
        [*PREFSTAGE, *words], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        try:
            while not until():
                assert process.poll() is None
                time.sleep(POLL_S)
        finally:
            process.kill()
    return process.returncode
