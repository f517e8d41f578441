"""Rows on disk, for the tests of the readers."""

import json
from pathlib import Path
from typing import Any

from prefstage.core.errors import PrefstageError

GOOD = {"prompt": "Why?", "chosen": "Good.", "rejected": "Bad."}
LABELLED = {"prompt": "Why?", "output_A": "Good.", "output_B": "Bad.", "label": "A"}
LISTED = {"prompt": "Why?", "responses": ["A", "B"], "sources": ["x", "y"], "scores": [1, 2]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def one_line(error: PrefstageError) -> str:
    text = str(error)
    assert "\n" not in text
    assert "; expected " in text
    return text
