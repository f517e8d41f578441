import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefstage.core.errors import TrainingError
from prefstage.data import ResponseEncoder, load_pairs
from prefstage.scoring import Scorer
from prefstage.training import export
from tests.tiny_models import tiny_tokenizer
from tests.training.checkpoint_runs import preference_trainer, some_pairs, tiny_chat_model

EVALUATED = {"eval_strategy": "epoch", "eval_on_start": True, "save_strategy": "no"}


def log_probs(model: Any, tokenizer: Any, **options: Any) -> list[torch.Tensor]:
    encoder = ResponseEncoder(tokenizer, **options)
    trees = [
        encoder.encode(each.prompt, [each.chosen[0]["content"], each.rejected[0]["content"]])
        for each in some_pairs(6)
    ]
    scored = Scorer(model.eval()).score(trees)
    return [tokens for tree in scored for tokens in tree.per_token]


def trained(folder: Path, **given: Any) -> Any:
    trainer = preference_trainer(
        folder, evaluated=some_pairs(4, shift=1), max_steps=3, **{**EVALUATED, **given}
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("lora", [False, True])
def test_others_load_what_was_saved_and_it_says_the_same(tmp_path: Path, lora: bool) -> None:
    base = tmp_path / "base"
    tiny_chat_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    trainer = trained(tmp_path / "run", lora=lora, model=str(base))
    out = tmp_path / "out"
    trainer.save_model(str(out))
    if lora:
        from peft import AutoPeftModelForCausalLM as Auto

        assert not (out / "model.safetensors").exists()
    else:
        Auto = AutoModelForCausalLM  # noqa: N806 - a class
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = log_probs(Auto.from_pretrained(out), tokenizer)
    expected = log_probs(trainer.model, trainer.processing_class)
    start = log_probs(tiny_chat_model(), trainer.processing_class)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found, start, strict=True))
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] in (0, [0])
    written = {each.name for each in out.iterdir()}
    assert written >= {"README.md", "training_config.yaml", "tokenizer.json"}


def test_a_base_model_gets_the_template_that_it_was_trained_with(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("base")
    model = tiny_chat_model()
    model.resize_token_embeddings(len(tokenizer))
    trainer = trained(
        tmp_path / "run", model=model, tokenizer=tokenizer, chat_format="human-assistant"
    )
    out = tmp_path / "out"
    trainer.save_model(str(out))
    again = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "What is it?"}]
    ids = again.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tuple(ids) == trainer.encoder.prompt_ids(messages)
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert trainer.encoder.end_of_turn_ids[-1] in (ends if isinstance(ends, list) else [ends])


def test_card_and_configuration_tell_the_run_and_no_path(tmp_path: Path) -> None:
    data = tmp_path / "measured"
    data.mkdir()
    some_pairs(8).save(data / "pairs.parquet")
    measured = {
        "stage": "injection",
        "boundary_score": 0.23,
        "judge": "reward:/x/rm",
        "policy": "p",
    }
    (data / "stage.json").write_text(json.dumps(measured))
    trainer = trained(
        tmp_path / "tuned", data=load_pairs(data / "pairs.parquet"), hub_model_id="me/tuned"
    )
    trainer.save_model(str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "# me/tuned",
        "`pairs.parquet` | 8 pairs",
        "- stage: injection",
        "- boundary score: 0.230",
        "- judge: rm",
        "**sigmoid**",
        "| metric | step 0 | step 3 |",
        "`eval_loss` | 0.6931",
        "| transformers |",
        "arxiv.org/abs/2305.18290",
    ):
        assert part in card
    text = (tmp_path / "out" / "training_config.yaml").read_text()
    assert str(tmp_path) not in card + text
    resolved = yaml.safe_load(text)
    assert resolved["loss"] == trainer.loss.resolved()
    assert resolved["arguments"]["learning_rate"] == 0.01
    assert resolved["data"][0]["items"] == 8


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("org/name", ("org/name", True)),
        ("somewhere/deep/pairs.jsonl", ("pairs.jsonl", False)),
        (some_pairs(1), ("memory", False)),
        (some_pairs(1).dataset, ("Dataset", False)),
    ],
)
def test_data_is_named_without_its_path(given: Any, named: tuple[str, bool]) -> None:
    assert export.names_of(given, None) == {"training": named}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def test_a_license_beside_the_base_model_is_told(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_chat_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    trainer = trained(tmp_path / "run", model=str(base))
    for head, expected in {
        "license: apache-2.0": "apache-2.0",
        f"{BOMB}license: *a39": None,
        f"license: {'[' * 3000}": None,
        "license: !!python/object/apply:os.system [x]": None,
        "license: [1": None,
        "license": None,
        "- license": None,
        "": None,
    }.items():
        (base / "README.md").write_text(f"---\n{head}\n---\nA model.\n")
        facts = export.card_facts(trainer)
        assert facts["license"] == expected
        assert (facts["base"], facts["base_on_hub"]) == ("base", False)


def test_weights_that_are_no_numbers_are_not_exported(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run")
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"lm_head\.weight are NaN or infinite"):
        trainer.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


class Hub:
    """Keeps what would be uploaded."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, dict[str, bytes]]] = []

    def create_repo(self, name: str, **options: Any) -> Any:
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(
        self, *, repo_id: str, folder_path: str, ignore_patterns: Any = None, **options: Any
    ) -> Any:
        files = [each for each in Path(folder_path).rglob("*") if each.is_file()]
        names = [each.relative_to(folder_path).as_posix() for each in files]
        kept = set(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        place = f"{repo_id}/{options.get('path_in_repo') or ''}"
        content = {name: (Path(folder_path) / name).read_bytes() for name in kept}
        self.uploads.append((place, content))
        return SimpleNamespace(done=lambda: True, result=lambda: None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: fake)
    return fake


def test_push_to_hub_uploads_the_model_with_its_card_and_nothing_of_the_run(
    tmp_path: Path, hub: Hub
) -> None:
    trainer = trained(tmp_path / "tuned", save_strategy="steps")
    trainer.push_to_hub(license="mit", tags="mine", model_name="nice name")
    ((place, files),) = hub.uploads
    assert place == "me/tuned/"
    assert set(files) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_args.json",
        "training_config.yaml",
    }
    told = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert told["license"] == "mit"
    assert "mine" in told["tags"]
    assert b"# nice name" in files["README.md"]


def test_pushing_while_training_sends_whole_checkpoints(tmp_path: Path, hub: Hub) -> None:
    trained(
        tmp_path / "tuned",
        push_to_hub=True,
        hub_token="a token",
        hub_strategy="all_checkpoints",
        save_strategy="steps",
        hub_always_push=True,
    )
    checkpoints = {place: files for place, files in hub.uploads if "checkpoint" in place}
    assert set(checkpoints) == {f"me/tuned/checkpoint-{step}" for step in (1, 2, 3)}
    for files in checkpoints.values():
        assert {"prefstage_checkpoint.json", "optimizer.pt", "model.safetensors"} <= set(files)
    for place, files in hub.uploads:
        if place == "me/tuned/":
            assert not any("_saving" in name or "_reference" in name for name in files)
