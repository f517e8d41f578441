"""One process a run folder: every command that fills one refuses it while another works there."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core import InputError, locked_file
from tests.held_folder import held
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_pairs, tiny_policy

JUDGE = "python:tests.cli.test_options:longer"
COMMANDS = {
    "measure": f"--off-policy pairs.jsonl --on-policy own.jsonl --judge {JUDGE}",
    "build": "build.yaml",
    "evaluate": f"--answers ours.json --baseline theirs.json --judge {JUDGE}",
    "train": "train.yaml",
    "diagnose": "--pairs pairs.jsonl",
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands read, which is also where they are typed."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer).save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    pairs = tiny_pairs(4)
    pairs.save(tmp_path / "pairs.jsonl")
    own = [{"prompt": pair.prompt, "responses": ["mine", "also mine"]} for pair in pairs]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    for name in ("ours", "theirs"):
        rows = [
            {"instruction": f"Q{n}?", "output": f"{name} {n}", "generator": name} for n in range(3)
        ]
        Path(f"{name}.json").write_text(json.dumps(rows))
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    train = {"policy": "policy", "data": "pairs.jsonl", "training": training}
    Path("train.yaml").write_text(yaml.safe_dump(train))
    build = {"pairs": "pairs.jsonl", "judge": JUDGE, "method": "relabel", "accept_reversal": True}
    Path("build.yaml").write_text(yaml.safe_dump(build))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_process_is_refused_in_one_line(inputs: Path, command: str) -> None:
    words = [command, *COMMANDS[command].split(), "--out", "run"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    run = inputs / "run"
    with held(run) as number:
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        refused = CliRunner().invoke(app, words)
        after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert refused.exit_code == 2, refused.output
    (line,) = refused.stderr.strip().splitlines()
    assert f"run is in use by another process (process {number}); expected one process" in line
    assert after == before
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("out", [".", "/", ".."])
def test_a_folder_is_no_file_to_write(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="which is a folder"), locked_file(Path(out)):
        pass
    assert not list(tmp_path.iterdir())
