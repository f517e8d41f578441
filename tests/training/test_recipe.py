"""Recipes: what a YAML file may say, and what it is told when it is wrong."""

from pathlib import Path
from typing import Any

import pytest

from prefstage.core.config import load_config, parse_overrides
from prefstage.core.errors import ConfigError
from prefstage.training.recipe import UNNAMED, Recipe, load_recipe, training_arguments

LEAST = {"policy": "p", "data": "d.jsonl"}


def recipe(**given: Any) -> Recipe:
    return load_config(Recipe, {**LEAST, **given})


def test_a_path_is_a_data_set_and_one_evaluation_set_needs_no_name() -> None:
    assert recipe().data.path == "d.jsonl"
    assert recipe(eval="e.jsonl").eval[UNNAMED].path == "e.jsonl"
    assert recipe(eval={"path": "e", "split": "s"}).eval[UNNAMED].split == "s"
    named = recipe(eval={"a": "1.jsonl", "b": {"path": "2.jsonl"}}).eval
    assert {name: each.path for name, each in named.items()} == {"a": "1.jsonl", "b": "2.jsonl"}


def test_sections_are_switched_on_and_off() -> None:
    on = recipe(lora=True, dynamics=True, online=True)
    assert (on.lora.r, on.dynamics.subsample, on.online.interval) == (16, 1000, 16)
    assert recipe(dynamics=False).dynamics is None


def test_online_samples_from_the_policy_itself_unless_told() -> None:
    sampling = recipe(online={"sampling": {"temperature": 0.5}}).online.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 1.0, 0)


def test_numbers_are_numbers_however_yaml_spells_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "policy: p\ndata: d\n"
        "training: {learning_rate: 5e-7, lr_scheduler_type: cosine, max_steps: 1e3}"
    )
    args = training_arguments(load_config(Recipe, path), tmp_path)
    assert (args.learning_rate, args.max_steps) == (5e-7, 1000)
    assert isinstance(args.max_steps, int)
    assert args.lr_scheduler_type == "cosine"


def test_a_resolved_recipe_is_a_recipe() -> None:
    first = recipe(lora=True, online=True, eval={"a": "x"}, training={"seed": 3})
    assert load_config(Recipe, first.model_dump(mode="json")) == first


def test_overrides_reach_inner_settings(tmp_path: Path) -> None:
    texts = ["training.max_steps=5", "loss={name: ipo}", "lora.r=4", "data.split=s", "policy=p"]
    path = tmp_path / "r.yaml"
    path.write_text("data: d.jsonl")
    asked = load_recipe(path, parse_overrides(texts))
    assert (asked.policy, asked.data.path, asked.data.split) == ("p", "d.jsonl", "s")
    assert (asked.training["max_steps"], asked.loss, asked.lora.r) == (5, {"name": "ipo"}, 4)
    for text in ("max_steps", "=3", "a=", "a={"):
        with pytest.raises(ConfigError, match="key=value"):
            parse_overrides([text])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"polcy": "p"}, "did you mean 'policy'"),
        ({"tokens": {"max_promt_tokens": 3}}, "did you mean 'tokens.max_prompt_tokens'"),
        ({"lora": {"rank": 3}}, "unknown setting 'lora.rank'"),
        ({"eval": {"a": {"pth": "x"}}}, "pth"),
        ({"online": {"sampling": {"responses": 2}}}, "expected one response a pair"),
        ({"export": {"merge_adapter": True}}, "expected an adapter to merge"),
        ({"dtype": "int8"}, "'dtype' is 'int8'"),
    ],
)
def test_what_is_wrong_is_told_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(**given)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"lerning_rate": 1}, "did you mean 'training.learning_rate'"),
        ({"output_dir": "x"}, "the command's --out"),
        ({"loss": "ipo"}, "it in its own place: loss"),
        ({"token_budget": 5}, "it in its own place: tokens.token_budget"),
    ],
)
def test_training_arguments_go_by_their_names(training: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        training_arguments(recipe(training=training), Path("unused"))
