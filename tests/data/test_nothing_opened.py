"""Names inside data are text: no file, folder or URL that a row names is ever opened."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_policy

JUDGE = "python:tests.cli.test_options:longer"
HOST = "198.51.100.7"  # of the range that documentation uses: nobody listens there
BAD = "--on-bad-row quarantine --quarantine-file q.jsonl"
SAMPLE = "sample --policy templated --prompts plain.jsonl --max-new-tokens 2 --out s.jsonl"
_WATCHED: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHED and (event in ("open", "os.listdir", "os.scandir", "subprocess.Popen")):
        _WATCHED[-1].append(f"{event} {arguments[0]!r}")
    elif _WATCHED and event.startswith(("socket.connect", "socket.getaddrinfo", "urllib")):
        _WATCHED[-1].append(f"{event} {arguments!r}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """What the block opens, lists, starts and connects to."""
    if not getattr(sys, "_prefstage_watched", False):  # a hook is never taken off again
        sys.addaudithook(_hook)
        sys._prefstage_watched = True  # type: ignore[attr-defined]
    _WATCHED.append([])
    try:
        yield _WATCHED[-1]
    finally:
        _WATCHED.pop()


def names(trap: Path) -> list[str]:
    """A file, in every way in which it may be named; and places on the network."""
    urls = [f"http://{HOST}/a.png", f"https://{HOST}/a.json", f"s3://{HOST}/a", f"hf://{HOST}/a"]
    return [str(trap), trap.as_uri(), f"file:{trap}", os.path.relpath(trap), *urls]


def rows_naming(trap: Path) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": content}],
            "chosen": [{"role": "assistant", "content": name, "file": name}],
            "rejected": [{"role": "assistant", "content": "no", "images": [name]}],
            "images": [{"path": name, "bytes": None}],
            **dict.fromkeys(("image", "source", "url", "file", "dataset"), name),
        }
        for number, name in enumerate(names(trap))
        for content in (
            *(f"look at {name} {number}", name, f"{{% include {name!r} %}}"),
            [
                {"type": "text", "text": f"look at {name}"},
                {"type": "image", "image": name, "url": name, "path": name},
                {"type": "image_url", "image_url": {"url": name}},
                {"type": "file", "file": {"file_id": name, "filename": name, "path": name}},
            ],
        )
    ]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "secret.txt").write_text("a secret")
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer).save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    rows = rows_naming(tmp_path / "trap" / "secret.txt")
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [row for row in rows if isinstance(row["prompt"][0]["content"], str)]
    Path("plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    recipe = {"policy": "policy", "data": "plain.jsonl", "training": training}
    Path("train.yaml").write_text(yaml.safe_dump(recipe))
    build = {"pairs": "plain.jsonl", "judge": JUDGE, "method": "relabel", "accept_reversal": True}
    Path("build.yaml").write_text(yaml.safe_dump(build))
    return tmp_path


def touched(seen: list[str]) -> list[str]:
    return [line for line in seen if "secret.txt" in line or "trap" in line or HOST in line]


@pytest.mark.parametrize("data", ["plain.jsonl", "pairs.jsonl"])
@pytest.mark.parametrize(
    "words",
    [
        "judge --judge {judge} --pairs {data} {bad} --out j.jsonl",
        "sample --policy policy --prompts {data} {bad} --max-new-tokens 2 --out s.jsonl",
        "diagnose --pairs {data} --policy policy {bad} --out d",
        "measure --off-policy {data} --policy policy --judge {judge} {bad}"
        " --max-new-tokens 2 --out m",
        "build build.yaml --out b",
        "train train.yaml --out t",
    ],
)
def test_nothing_that_a_row_names_is_opened(world: Path, words: str, data: str) -> None:
    with watched() as seen:
        done = CliRunner().invoke(app, words.format(judge=JUDGE, data=data, bad=BAD).split())
    assert done.exit_code in (0, 2), repr(done.exception)
    if data == "plain.jsonl":
        assert done.exit_code == 0, done.output + done.stderr
    assert seen  # such as the data themselves
    assert touched(seen) == []


@pytest.mark.parametrize(
    "template",
    [
        "{{% include {name!r} %}}",
        "{{% import {name!r} as x %}}{{{{ x }}}}",
        "{{% extends {name!r} %}}",
        "{{{{ open({name!r}).read() }}}}",
        "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ {name!r} }}}}",
    ],
)
def test_a_template_opens_nothing(world: Path, template: str) -> None:
    shutil.copytree("policy", "templated")
    for name in names(world / "trap" / "secret.txt"):
        Path("templated/chat_template.jinja").write_text(template.format(name=name))
        with watched() as seen:
            done = CliRunner().invoke(app, SAMPLE.split())
        assert done.exit_code == 2, done.output
        assert touched(seen) == []
        assert "a secret" not in done.output + done.stderr


@pytest.mark.parametrize(
    "tag", ["!include", "!!python/object/apply:open", "!!python/name:open", "!file"]
)
def test_a_tag_in_yaml_opens_nothing(world: Path, tag: str) -> None:
    for name in names(world / "trap" / "secret.txt"):
        Path("build.yaml").write_text(f"pairs: {tag} [{name!r}]\njudge: {tag} {name!r}\n")
        with watched() as seen:
            done = CliRunner().invoke(app, ["build", "build.yaml", "--out", "b"])
        assert done.exit_code == 2
        assert touched(seen) == []


def test_what_is_opened_is_seen(world: Path) -> None:
    with watched() as seen:
        (world / "trap" / "secret.txt").read_text()
    assert touched(seen)
