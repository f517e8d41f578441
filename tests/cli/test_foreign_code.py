"""A model's folder that brings code of its own: it never runs unless that is asked for."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import prefstage
from prefstage.cli.main import app
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_pairs, tiny_policy

CODE = "from pathlib import Path\nPath({path!r}).write_text('ran')\n"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer).save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    tiny_pairs(4).save(tmp_path / "pairs.jsonl")
    for name in ("model", "tokenizer"):
        shutil.copytree("policy", name)
        (tmp_path / name / "modeling_own.py").write_text(CODE.format(path=str(tmp_path / "ran")))
    config = json.loads(Path("model/config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnModel",
            "AutoModelForSequenceClassification": "modeling_own.OwnModel",
        },
    }
    Path("model/config.json").write_text(json.dumps(config))
    file = Path("tokenizer/tokenizer_config.json")
    settings = json.loads(file.read_text())
    settings |= {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["modeling_own.OwnTokenizer", None]},
    }
    file.write_text(json.dumps(settings))
    return tmp_path


COMMANDS = {
    "sample": "sample --policy {} --prompts pairs.jsonl --max-new-tokens 4 --out s.jsonl",
    "judge": "judge --judge reward:{} --pairs pairs.jsonl",
    "measure": "measure --off-policy pairs.jsonl --policy {} --judge "
    "python:prefstage.sandbox:true_preference --max-new-tokens 4",
    "diagnose": "diagnose --pairs pairs.jsonl --policy {}",
    "train": "train train.yaml --out run",
    "doctor": "doctor --policy {}",
}


@pytest.mark.parametrize("name", ["model", "tokenizer"])
@pytest.mark.parametrize("command", COMMANDS)
def test_code_in_a_folder_does_not_run(world: Path, command: str, name: str) -> None:
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    recipe = {"policy": name, "data": "pairs.jsonl", "training": training}
    Path("train.yaml").write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(app, COMMANDS[command].format(name).split(), input="y\n" * 9)
    assert not (world / "ran").exists()
    assert "[y/N]" not in done.output
    if name == "model" and command != "doctor":
        assert done.exit_code == 2, done.output
        assert done.stderr.strip().count("\n") == 0
        assert "--trust-remote-code" in done.stderr


def test_it_runs_where_that_is_asked_for(world: Path) -> None:
    words = COMMANDS["sample"].format("model").split()
    CliRunner().invoke(app, [*words, "--trust-remote-code"])
    assert (world / "ran").exists()


@pytest.mark.parametrize(
    "words",
    [
        "judge --judge python:prefstage.sandbox:true_preference --pairs pairs.jsonl",
        "sample --policy serve:anything --prompts pairs.jsonl --out s.jsonl",
    ],
)
def test_no_code_refuses_what_runs_code(world: Path, words: str) -> None:
    done = CliRunner().invoke(app, [*words.split(), "--no-code"])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert "with --no-code; expected settings that run no code" in line


# Their classes are fixed, and take no such argument: nothing in a folder chooses another.
FIXED = {"PeftModel.from_pretrained(model, name_or_path)", "DebertaV2Config.from_pretrained(path)"}


def test_every_load_says_whether_code_may_run() -> None:
    calls = [
        ast.unparse(node)
        for file in Path(prefstage.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config", "load")
        and ast.unparse(node.func.value) not in ("cls", "json", "yaml", "self")
    ]
    loads = [call for call in calls if "from_" in call or call.startswith("torch.load")]
    assert len(loads) > len(FIXED)
    rules = ("trust_remote_code=trust_remote_code()", "weights_only=True")
    assert {call for call in loads if not any(rule in call for rule in rules)} == FIXED
