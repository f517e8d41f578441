"""Files that would run code when they are read: beside weights, in checkpoints, in adapters."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core import digest
from prefstage.core.files import digest_file
from tests.cli.test_damaged_weights import adapter_of
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_pairs, tiny_policy

CODE = "from pathlib import Path\nPath({path!r}).write_text('ran')\n"
SAMPLE = "sample --policy {} --prompts pairs.jsonl --max-new-tokens 4 --out s.jsonl"
DIAGNOSE = "diagnose --pairs pairs.jsonl --policy {}"
TRAIN = "train train.yaml --out {}"


class Poison:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.path, "ran")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as of `python -m prefstage`, typed here
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer).save_pretrained("policy")
    tokenizer.save_pretrained("policy")
    tiny_pairs(4).save(tmp_path / "pairs.jsonl")
    (tmp_path / "evil_code.py").write_text(CODE.format(path=str(tmp_path / "ran")))
    training = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "save_steps": 1}
    recipe = {"policy": "policy", "data": "pairs.jsonl", "training": training}
    Path("train.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def refused(words: str, *more: str) -> str:
    done = CliRunner().invoke(app, [*words.split(), *more], input="y\n" * 9)
    assert done.exit_code == 2, done.output + done.stderr + repr(done.exception)
    *_, line = done.stderr.strip().splitlines()
    assert line.startswith("prefstage: error: ")
    return line


def poison(file: Path, how: str, ran: Path) -> None:
    if how == "torch":
        torch.save({"state": Poison(ran)}, file)
    elif how == "torch, as of old":
        torch.save({"state": Poison(ran)}, file, _use_new_zipfile_serialization=False)
    else:
        file.write_bytes(pickle.dumps(Poison(ran)))


def sign(checkpoint: Path) -> None:
    """Make the checkpoint's manifest say that its files are as they were written."""
    manifest = checkpoint / "prefstage_checkpoint.json"
    record = json.loads(manifest.read_text())
    for name in record["files"]:
        file = checkpoint / name
        facts = {"bytes": file.stat().st_size, "sha256": digest_file(file, length=64)}
        record["files"][name] = facts
    del record["key"]
    manifest.write_text(json.dumps({**record, "key": digest(record)}))


def stopped_after_a_step(world: Path) -> Path:
    """A run that goes on from its checkpoint of step 1, which is given."""
    assert CliRunner().invoke(app, TRAIN.format("run").split()).exit_code == 0
    shutil.rmtree("run/model")
    for file in ("train.json", "result.json"):
        Path("run", file).unlink(missing_ok=True)
    shutil.rmtree("run/checkpoints/checkpoint-2")
    return world / "run" / "checkpoints" / "checkpoint-1"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", {}),
        ("optimizer.pt", {"state": {0: {"step": 1}}, "param_groups": []}),
        ("optimizer.pt", torch.ones(2)),
        ("scheduler.pt", [1]),
        ("rng_state.pth", {"cpu": 1}),
        ("trainer_state.json", []),
        ("trainer_state.json", {"global_step": "one"}),
        ("trainer_state.json", {"no": 1}),
        ("prefstage_state_0.json", {}),
        ("prefstage_state_0.json", {"loop": {"running_loss": "x"}, "run": {}}),
        ("prefstage_state_0.json", {"loop": 3, "run": []}),
        ("model.safetensors", {}),
        ("config.json", []),
    ],
)
def test_a_checkpoint_of_others_is_refused_by_name(world: Path, name: str, content: Any) -> None:
    checkpoint = stopped_after_a_step(world)
    if name.endswith(".json"):
        (checkpoint / name).write_text(json.dumps(content))
    else:
        torch.save(content, checkpoint / name)
    sign(checkpoint)
    assert "checkpoint-1" in refused(TRAIN.format("run"))
    assert not Path("run/model").exists()


@pytest.mark.parametrize("how", ["torch", "torch, as of old", "pickle"])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "custom.pkl"]
)
def test_a_poisoned_checkpoint_runs_nothing_when_a_training_goes_on(
    world: Path, name: str, how: str
) -> None:
    checkpoint = stopped_after_a_step(world)
    used = (checkpoint / name).exists()
    poison(checkpoint / name, how, world / "ran")
    sign(checkpoint)
    if used:
        line = refused(TRAIN.format("run"))
        assert str(checkpoint.relative_to(world)) in line
    else:
        assert CliRunner().invoke(app, TRAIN.format("run").split()).exit_code == 0
    assert not (world / "ran").exists()


@pytest.mark.parametrize("how", ["torch", "torch, as of old", "pickle"])
@pytest.mark.parametrize("command", [SAMPLE, DIAGNOSE, "train train.yaml --out r --set policy={}"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_poisoned_weights_run_nothing(world: Path, name: str, command: str, how: str) -> None:
    folder = world / "poisoned"
    if name == "adapter_model.bin":
        adapter_of(tiny_policy(tiny_tokenizer()), world / "policy", folder, "CAUSAL_LM")
        (folder / "adapter_model.safetensors").unlink()
    else:
        shutil.copytree("policy", folder)
        (folder / "model.safetensors").unlink()
    poison(folder / name, how, world / "ran")
    assert name in refused(command.format("poisoned"))
    assert not (world / "ran").exists()


ADAPTERS: dict[str, dict[str, Any]] = {
    "a class of its own": {
        "task_type": None,
        "auto_mapping": {"base_model_class": "Model", "parent_library": "evil_code"},
    },
    "a module that is imported": {
        "megatron_config": {"tensor_model_parallel_size": 1},
        "megatron_core": "evil_code",
    },
    "a tokenizer with code": {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "x",
        "num_virtual_tokens": 2,
        "tokenizer_name_or_path": "coded",
        "tokenizer_kwargs": {"trust_remote_code": True},
    },
    "a base with code": {"base_model_name_or_path": "coded"},
    "a kernel of the Hub": {"base_model_name_or_path": "kernel"},
}


@pytest.fixture
def coded(world: Path) -> Path:
    for name in ("coded", "kernel"):
        shutil.copytree("policy", name)
    shutil.copy("evil_code.py", "coded/evil_code.py")
    config = json.loads(Path("coded/config.json").read_text())
    auto = {"AutoConfig": "evil_code.C", "AutoModelForCausalLM": "evil_code.M"}
    Path("coded/config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": auto})
    )
    kernel = {"attn_implementation": "someone/evil", "_attn_implementation": "someone/evil"}
    Path("kernel/config.json").write_text(json.dumps(config | kernel))
    file = Path("coded/tokenizer_config.json")
    settings = json.loads(file.read_text())
    auto_map = {"AutoTokenizer": ["evil_code.T", None]}
    file.write_text(json.dumps(settings | {"tokenizer_class": "T", "auto_map": auto_map}))
    return world


@pytest.mark.parametrize("command", [SAMPLE, DIAGNOSE, "train train.yaml --out r --set policy={}"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_runs_nothing(coded: Path, name: str, command: str) -> None:
    folder = coded / "adapter"
    adapter_of(tiny_policy(tiny_tokenizer()), coded / "policy", folder, "CAUSAL_LM")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ADAPTERS[name]))
    done = CliRunner().invoke(app, command.format("adapter").split(), input="y\n" * 9)
    assert not (coded / "ran").exists()
    assert done.exit_code in (0, 2), repr(done.exception)
    if "code" in name:
        assert done.exit_code == 2
