"""What others wrote comes through one door: read, or refused in a line that says why."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from prefstage.core import (
    ConfigError,
    DataError,
    check_shape,
    load_config,
    parse_json,
    parse_overrides,
    parse_yaml,
    read_json,
)
from prefstage.measuring import MeasureConfig

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(VALUES)
def test_json_that_anybody_writes_is_read(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode("utf-16")) == value


def lists(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9" * 5000, "5,000 digits"),
        ("[-" + "1" * 300 + "]", "301 digits"),
        (lists(101), "deeper than 100"),
        ('{"a":' * 100_000, "deeper than 100"),
        ("[" * 5000 + "1" + "]" * 5000, "deeper than 100"),
        ("[1,", "Expecting value"),
        (b"\xff\xff[]", "decode"),
        ("", "Expecting value"),
    ],
)
def test_json_that_nothing_could_hold_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_a_hundred_levels_and_long_numbers_are_read() -> None:
    assert parse_json(lists(100)) == json.loads(lists(100))
    assert parse_json("[1e999, 9223372036854775808]") == [float("inf"), 2**63]
    assert parse_json("9" * 255) == int("9" * 255)


def test_a_value_that_holds_itself_is_too_deep() -> None:
    value: dict[str, Any] = {}
    value["self"] = [value]
    with pytest.raises(ValueError, match="deeper"):
        check_shape(value)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
YAML = {
    "exploding": (LAUGHS, "aliases"),
    "exploding merges": (MERGED, "merges too many"),
    "cyclic": ("a: &a [*a]", "deeper"),
    "merged into itself through another": ("a: &a {b: &b {<<: *a, c: *a}}", "aliases"),
    "code": ("a: !!python/object/apply:os.abort []", "line 1: could not determine"),
    "a file": ("a: !include /etc/passwd", "line 1: could not determine"),
    "a key twice": ("a: 1\na: 2", "line 2: 'a' is set twice"),
    "deep": ("a: " + lists(5000), "deeper than 100"),
    "deep lines": ("- " * 500 + "x", "deeper than 100"),
    "opened only": ("{" * 100_000, "deeper than 100"),
    "digits": ("a: " + "9" * 5000, "5,000 digits"),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, "5,002 digits"),
    "sexagesimal digits": ("a: 1" + ":1" * 100_000, "digits"),
    "a wrong tag": ("a: !!bool maybe", "tag"),
    "no number": ("a: !!int ''", "tag"),
    "no day": ("a: 2020-13-45", "form"),
    "a tab": ("a:\n\tb: 1", "line 2: "),
    "a terminal's escape": ("a: \x1b[31m", "control character"),
    "a list as key": ("? [a]\n: 1", "unhashable"),
    "many values": ("a: [" + "1," * 400_000 + "]", "20,000 values"),
}


@pytest.mark.parametrize(("text", "why"), YAML.values(), ids=YAML)
def test_hostile_yaml_is_refused_in_seconds(tmp_path: Path, text: str, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=why):
        parse_yaml(text)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(MeasureConfig, tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="--set"):
        parse_overrides([f"seed={text}"])
    assert time.monotonic() - began < 30


def test_yaml_that_people_write_is_read() -> None:
    text = "base: &b {x: 1, on: off}\nmine: {<<: *b, x: 2}\nsame: *b\nday: 2024-05-01"
    assert parse_yaml(text)["mine"] == {"x": 2, "on": "off"}
    assert parse_yaml(b"") is None


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "no file", "a loop"])
def test_what_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.yaml"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind != "no file":
        path.symlink_to("/dev/zero" if kind == "a device" else path)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(MeasureConfig, path)


@pytest.mark.parametrize("text", ["[]", "3", "", "\0", '{"a":' * 2000, '{"a": ' + "9" * 9999 + "}"])
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=r"r\.json cannot be read .*; expected JSON .*; repeat"):
        read_json(tmp_path / "r.json")


def test_a_message_of_a_megabyte_is_shortened() -> None:
    text = str(DataError.of(saw="a" * 1_000_000, expected="b", cure="c"))
    assert len(text) < 2100
    assert text.endswith("aaa; expected b; c.")
