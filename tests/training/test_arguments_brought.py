"""Arguments that people bring from TRL and transformers: taken as meant, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from prefstage.core.errors import ConfigError, InputError, PrefstageError
from prefstage.data import PairSet, load_pairs
from prefstage.training import PreferenceArguments, PreferenceTrainer
from tests.tiny_models import save_tiny_llama, tiny_tokenizer
from tests.training.preference_runs import arguments, preference_trainer, tiny_pairs, tiny_policy

TRAINER = {
    "beta": "loss={'name': 'sigmoid', 'beta': 0.1}",
    "loss_type": "PreferenceArguments(loss='ipo')",
    "tokenizer": "processing_class=tokenizer",
    "ref_model": "PreferenceArguments(reference=...)",
    "compute_metrics": "logits are never held",
    "preprocess_logits_for_metrics": "logits are never held",
    "compute_loss_func": "set loss in PreferenceArguments",
    "model_init": "the model itself",
    "data_collator": "items are encoded before training",
    "train_datset": "did you mean 'train_dataset'?",
}
ARGUMENTS = {
    "beta": "loss={'name': 'sigmoid', 'beta': 0.1}",
    "loss_type": "loss='ipo'",
    "max_length": "max_response_tokens",
    "max_prompt_length": "max_prompt_tokens",
    "lerning_rate": "did you mean 'learning_rate'?",
}


def in_three_parts(error: PrefstageError) -> str:
    line = str(error)
    assert "\n" not in line
    assert "expected" in line
    return line


@pytest.mark.parametrize("name", TRAINER)
def test_the_trainer_refuses_by_name(tmp_path: Path, name: str) -> None:
    tokenizer = tiny_tokenizer("chatml")
    with pytest.raises(ConfigError) as caught:
        PreferenceTrainer(
            tiny_policy(tokenizer),
            arguments(tmp_path),
            train_dataset=tiny_pairs(4),
            processing_class=tokenizer,
            **{name: lambda *_: pytest.fail("called")},
        )
    assert f"PreferenceTrainer({name}=...)" in in_three_parts(caught.value)
    assert TRAINER[name] in str(caught.value)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_refuse_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PreferenceArguments(output_dir=str(tmp_path), **{name: 1})
    assert f"PreferenceArguments({name}=...)" in in_three_parts(caught.value)
    assert ARGUMENTS[name] in str(caught.value)


@pytest.mark.parametrize("args", [{"learning_rate": 1e-6}, "out", tiny_policy])
def test_other_things_as_arguments(args: Any) -> None:
    with pytest.raises(InputError, match=f"a {type(args).__name__} as args"):
        PreferenceTrainer("model", args)


def test_another_trainers_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a TrainingArguments as args.*PreferenceArguments"):
        PreferenceTrainer("model", TrainingArguments(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize("model", [None, Path, 7])
def test_what_is_no_model(tmp_path: Path, model: Any) -> None:
    with pytest.raises(InputError, match="a causal language model, or its folder or Hub id"):
        PreferenceTrainer(model, arguments(tmp_path))


def test_a_model_as_a_path(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "policy", tiny_tokenizer("chatml"))
    trainer = PreferenceTrainer(
        tmp_path / "policy", arguments(tmp_path / "run"), train_dataset=tiny_pairs(4)
    )
    assert trainer.processing_class.get_vocab() == tiny_tokenizer("chatml").get_vocab()


def test_every_form_of_the_same_pairs(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "a fox"} for n in range(4)
    ]
    dataset = Dataset.from_list(rows)
    dataset.to_json(tmp_path / "pairs.jsonl")
    loaded = load_pairs(tmp_path / "pairs.jsonl")
    assert isinstance(loaded, PairSet)
    forms = (tmp_path / "pairs.jsonl", str(tmp_path / "pairs.jsonl"), rows, dataset, loaded)
    items = [preference_trainer(tmp_path / "run", data=form).train_dataset.items for form in forms]
    assert all(other == items[0] for other in items)
