"""Importing prefstage changes nothing in the process; its commands tune the allocator."""

import subprocess
import sys

import pytest

MODULES = "prefstage, prefstage.cli.main, prefstage.scoring, prefstage.training"
TUNED = """
import os
from prefstage.cli.main import tune_allocator
tune_allocator()
print(os.environ["THP_MEM_ALLOC_ENABLE"])
"""


def printed(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_an_import_leaves_environment_and_allocator_alone() -> None:
    script = f"import os; before = dict(os.environ); import {MODULES}\n"
    # Libraries may set variables of theirs; torch's allocator is not theirs to set.
    script += "print({k for k in os.environ if 'ALLOC' in k or 'THP' in k} - set(before))"
    assert printed(script) == "set()"


@pytest.mark.parametrize(("environment", "expected"), [(None, "1"), ("0", "0")])
def test_commands_ask_for_huge_pages_and_leave_what_is_set(
    environment: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    else:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", environment)
    assert printed(TUNED) == expected
