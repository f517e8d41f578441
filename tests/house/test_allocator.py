"""Importing prefstage asks PyTorch for huge pages, unless something else was asked for."""

import subprocess
import sys

import pytest

PRINT = "import os, prefstage; print(os.environ['THP_MEM_ALLOC_ENABLE'])"


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_import_asks_for_huge_pages_and_leaves_what_is_set(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    else:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given)
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
