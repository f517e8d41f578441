"""Keys, tokens and passwords in every place that takes one: none is printed or written."""

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app, show_fault
from prefstage.core import InputError, redacted, redacted_values, secret_from, write_json
from tests.faulty_server import FaultyServer, Scripted
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_pairs, tiny_policy

KEY, TOKEN, PASSWORD, QUERY = "sk-p3k4r7/x+y=z", "hf_T0k3nOfAUser", "pässw0rt-93", "q8uery-key-77"
SECRETS = (KEY, TOKEN, PASSWORD, QUERY)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with pairs and a tiny policy, and secrets in the environment."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer).save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    tiny_pairs(4).save(tmp_path / "pairs.jsonl")
    for name, value in (("OPENAI_API_KEY", KEY), ("HF_TOKEN", TOKEN)):
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://user:{quote(PASSWORD)}@127.0.0.1:9")
    return tmp_path


def spellings(secret: str) -> set[bytes]:
    """Every way in which a secret might be written."""
    texts = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    return {text.encode() for text in texts} | {
        base64.b64encode(f"{before}{secret}".encode())[:-4] for before in ("", "user:")
    }


def leaks(folder: Path, *printed: str) -> list[str]:
    """Where a secret stands in a file's name or bytes, or in what was printed."""
    seen = {f"printed {number}": text.encode() for number, text in enumerate(printed)}
    seen |= {str(p): p.read_bytes() + p.name.encode() for p in folder.rglob("*") if p.is_file()}
    forms = [form for secret in SECRETS for form in spellings(secret)]
    return [place for place, raw in seen.items() if any(form in raw for form in forms)]


def run(words: str | list[str], *, fails: bool | None = None) -> str:
    done = CliRunner().invoke(app, words.split() if isinstance(words, str) else words)
    if fails is not None:
        assert (done.exit_code != 0) == fails, done.output
    trace = "" if done.exception is None else repr(done.exception)
    return f"{done.output}\n{done.stderr}\n{trace}"


@pytest.mark.parametrize(
    ("reply", "fails"),
    [
        (Scripted("A"), False),
        (Scripted(status=401, error=f"wrong key {KEY}"), True),
        (Scripted(status=400, error=f"your key {KEY} is not allowed to ask this"), True),
        (Scripted(status=500, error=f"crashed, Authorization: Bearer {KEY}"), True),
        (Scripted(raw=f"<html>{KEY}</html>", kind="text/html"), True),
    ],
    ids=["answers", "wrong-key", "refuses", "crashes", "no-json"],
)
def test_a_judge_and_a_policy_behind_a_url_with_secrets(
    world: Path, reply: Scripted, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="prefstage")
    with FaultyServer(lambda body: reply) as server:
        place = server.url.removeprefix("http://")
        url = f"http://user:{quote(PASSWORD)}@{place}/v1?api_key={QUERY}"
        printed = [
            run(f"judge --judge openai:m@{url}&retries=0 --pairs pairs.jsonl --out j.jsonl"),
            run(
                f"sample --policy openai:m@{url} --prompts pairs.jsonl --retries 0"
                " --max-new-tokens 4 --out s.jsonl --json"
            ),
            run(
                f"measure --off-policy pairs.jsonl --policy openai:m@{url} --retries 0"
                f" --judge openai:m@{url}&retries=0 --max-new-tokens 4 --out m"
            ),
        ]
        sent = [headers["authorization"] for headers in server.headers]
    # The key goes to the server, or the user and password of the URL do; and nowhere else.
    assert sent
    assert leaks(world, *printed, caplog.text) == []


@pytest.mark.parametrize(
    "url", ["http://user:{}@127.0.0.1:1", "ftp://user:{}@host", "http://a:{}@b:x"]
)
def test_urls_that_lead_nowhere(world: Path, url: str) -> None:
    url = url.format(quote(PASSWORD))
    printed = run(f"judge --judge openai:m@{url}?retries=0 --pairs pairs.jsonl", fails=True)
    assert "prefstage: error: " in printed
    assert leaks(world, printed) == []


def test_tokens_in_settings_of_a_training(world: Path) -> None:
    training = {
        **{"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "save_steps": 1},
        "hub_token": TOKEN,
    }
    recipe = {"policy": "policy", "data": "pairs.jsonl", "training": training}
    (world / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    printed = [run("train recipe.yaml --out run", fails=False)]
    printed += [run("train recipe.yaml --out run --set training.learning_rate=x", fails=True)]
    printed += [run(f"train --set training.hub_token={TOKEN} --set data=x --out n", fails=True)]
    (world / "recipe.yaml").unlink()
    assert leaks(world, *printed) == []
    names = {path.name for path in (world / "run").rglob("*")}
    assert "training_args.json" in names
    assert not {name for name in names if name.endswith((".bin", ".pkl"))}
    (text,) = {p.read_text() for p in (world / "run" / "model").glob("training_args.json")}
    assert str(world) not in text


def test_a_fault_of_our_own_shows_no_key(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"no room for {KEY}")

    monkeypatch.setattr("prefstage.judging.llm.LLMJudge._judgment", broken)
    with FaultyServer(lambda body: Scripted("A")) as server:
        words = f"judge --judge openai:m@{server.url} --pairs pairs.jsonl"
        done = CliRunner().invoke(app, words.split())
    assert isinstance(done.exception, RuntimeError)
    show_fault(type(done.exception), done.exception, done.exception.__traceback__)
    text = capsys.readouterr().err
    assert "no room for ***" in text
    assert leaks(world, text, done.output) == []


def test_data_stay_as_they_are(tmp_path: Path) -> None:
    answers = [{"instruction": "q", "output": "see https://a:b@host/x?api_key=1 \x85"}]
    write_json(tmp_path / "outputs.json", answers)
    assert json.loads((tmp_path / "outputs.json").read_text()) == answers
    assert "https://a:b@host/x?api_key=1" in (tmp_path / "outputs.json").read_text()


def test_what_is_redacted_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f"  {KEY}\n")
    assert secret_from("SOME_KEY") == KEY
    assert redacted(f"x {KEY} y {quote(KEY, safe='')}") == "x *** y ***"
    assert redacted("https://a:b@h/v1?api_key=zz&x=1") == "https://***@h/v1?api_key=***&x=1"
    assert redacted("mail me@there.org, 3@4, http://h/v1?x=1") == (
        "mail me@there.org, 3@4, http://h/v1?x=1"
    )
    kept = {"max_tokens": 3, "token": None, "answers": ["http://h", 1.5, True]}
    assert redacted_values(kept) == kept
    assert redacted_values({"hub_token": "t", "a": {"api_key": "k"}}) == {
        "hub_token": "***",
        "a": {"api_key": "***"},
    }
    monkeypatch.setenv("SOME_KEY", "two words")
    with pytest.raises(InputError, match=r"SOME_KEY.*no key has") as caught:
        secret_from("SOME_KEY")
    assert "two words" not in str(caught.value)
