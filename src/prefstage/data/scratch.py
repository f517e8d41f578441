"""Temporary files that live as long as the process."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def scratch_folder() -> Path:
    """One folder in the system's temporary folder (TMPDIR), removed when the process ends.

    Datasets are memory-mapped from it; views of them that a user makes may outlive the
    set they came from, so files are not removed earlier.
    """
    folder, owner = tempfile.mkdtemp(prefix="prefstage-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child must leave it to its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)
