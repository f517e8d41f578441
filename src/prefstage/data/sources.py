"""Raw rows out of files, folders and the Hub, one at a time, faults included."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.core.errors import DataError
from prefstage.data.faults import RowFault


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in its file: a mapping, or why it is none."""

    file: str
    number: int
    values: Any
    fault: RowFault | None = None


def read_rows(source: str) -> Iterator[RawRow]:
    """Raw rows of a local JSON or JSON-lines file, gzipped or not."""
    path = Path(source)
    if not path.is_file():
        raise DataError.of(
            saw=f"no file {source}", expected="a dataset file", cure="check the path"
        )
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        if path.name.removesuffix(".gz").endswith(".json"):
            for number, values in enumerate(json.load(stream), start=1):
                yield RawRow(path.name, number, values)
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _json_line(path.name, number, line)


def _json_line(file: str, number: int, line: bytes) -> RawRow:
    try:
        return RawRow(file, number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        saw, cure = f"bytes that are not UTF-8 at {error.start}", "convert the file to UTF-8"
    except json.JSONDecodeError as error:
        saw, cure = f"malformed JSON ({error.msg} at character {error.pos})", "mend the line"
    text = line.decode("utf-8", "backslashreplace").rstrip("\n")
    return RawRow(file, number, text, RowFault("(line)", saw=saw, expected="JSON", cure=cure))
