"""Recipes: schedules are read, and what is wrong is said in one line."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefstage.aligning import Rule, load_recipe, parse_schedule
from prefstage.core.errors import ConfigError

PLAIN: dict[str, Any] = {"policy": "p", "off_policy": "pairs.jsonl", "judge": "reward:j"}


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ("auto", ("auto", "auto")),
        ("off,on", ("off", "on")),
        ([False, True], ("off", "on")),
        ({"mix": 0.1}, ("mix: 0.1", "mix: 0.1")),
        (["per-prompt", {"other": "m"}], ("per-prompt", "other: m")),
    ],
    ids=str,
)
def test_schedules_are_read(given: Any, rules: tuple[str, ...]) -> None:
    assert tuple(map(str, parse_schedule(given, iterations=2))) == rules
    assert parse_schedule("on", iterations=1) == (Rule("on"),)


BAD: list[tuple[str, dict[str, Any], list[str]]] = [
    ("a schedule misspelt", {"schedule": "atuo"}, ["'atuo'", "did you mean 'auto'?"]),
    ("a list too long", {"schedule": ["off"] * 3}, ["3 entries for 2", "iterations: 3"]),
    ("a share above one", {"schedule": {"mix": 2}}, ["mix", "0.1"]),
    ("no off-policy data", {"off_policy": None}, ["off_policy is missing"]),
    ("auto unmeasured", {"measure": False}, ["measure is false", "fix the schedule"]),
    ("no win rates", {"stop": {"no_gain": True}}, ["stop.no_gain", "set evaluate"]),
    ("a method that samples", {"build": {"on": "mixing"}}, ["build.on is 'mixing'"]),
    ("a policy to train", {"train": {"policy": "q"}}, ["train.policy", "leave"]),
    ("a loss section misspelt", {"train": {"los": "ipo"}}, ["train", "did you mean 'loss'?"]),
    ("a setting misspelt", {"iteration": 3}, ["did you mean 'iterations'?"]),
    ("sft without data", {"sft": {}}, ["sft", "'data' is missing"]),
    ("nothing to answer", {"off_policy": None, "measure": False, "schedule": "on"}, ["prompts"]),
]


@pytest.mark.parametrize(("changed", "said"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_bad_recipes_are_refused_in_one_line(changed: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe({**PLAIN, **changed})
    assert "\n" not in str(refused.value)
    for words in said:
        assert words in str(refused.value)


@pytest.mark.parametrize("name", ["align", "align_real", "align_eight_gpus"])
def test_the_examples_are_valid(name: str) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / f"{name}.yaml"
    assert {str(rule) for rule in load_recipe(example).rules} == {"auto"}


def test_the_recipe_of_the_page_for_ones_own_model_is_a_recipe() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "your-model.md"
    found = re.search(r"```yaml\n# recipe.yaml\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    recipe = load_recipe(yaml.safe_load(found[1]))
    assert recipe.rules[0].kind == "auto"
    assert recipe.on_bad_row == "quarantine"
