"""The page for those who come from TRL: its keys exist, its options are all, its code runs."""

import dataclasses
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from prefstage import LOSSES
from prefstage.core import ConfigError
from prefstage.core.config import Config, load_config
from prefstage.training.arguments import PreferenceArguments
from prefstage.training.dynamics.records import read_metrics
from prefstage.training.recipe import Recipe, training_arguments
from tests.aligning.tiny_world import JUDGE, make_world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from-trl.md"
PARTS = {
    part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
}
USUAL = "sigmoid"
"""The loss of a row that names none: TRL's default."""
FIELDS = {each.name for each in dataclasses.fields(PreferenceArguments)}


def cells(heading: str) -> list[list[str]]:
    """The rows of one table: TRL's name, the recipe's key, and what is different."""
    lines = [line for line in PARTS[heading].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def rows(heading: str) -> dict[str, str]:
    """Recipe key by TRL's name, of one table; "-" where there is none."""
    return {cell[0].strip("`"): cell[1].strip("`") for cell in cells(heading)}


def loss_keys() -> set[tuple[str, str]]:
    """What is said of losses: a key, and the loss that has it; a name stands as "name"."""
    found = set()
    for _, key, different in cells("DPOConfig"):
        if not key.startswith("`loss."):
            continue
        of = re.match(r"of `\{name: (\w+)\}`", different)
        value = re.fullmatch(r"`(\w+)`", different)
        loss = of[1] if of else value[1] if value else USUAL
        found.add((key.strip("`"), loss))
        found |= {(k, other) for other, k in re.findall(r"of `(\w+)` it is `([\w.]+)`", different)}
    return found


def exists(key: str, *, loss: str = USUAL) -> bool:
    """Whether a recipe with this loss has such a key."""
    first, _, rest = key.partition(".")
    if first == "loss" and rest:
        options = {"name", "weight", "use_weighting", "ld_alpha"}
        return loss in LOSSES and rest in options | LOSSES[loss].model_fields.keys()
    if first == "training" and rest:
        settings = {rest: getattr(TrainingArguments, rest, None)}
        recipe = load_config(Recipe, {"policy": "p", "data": "d", "training": settings})
        training_arguments(recipe, Path("unused"))
        return rest in FIELDS
    if first not in Recipe.model_fields:
        return False
    if not rest:
        return True
    kind = Recipe.model_fields[first].annotation
    inner = [each for each in (kind, *getattr(kind, "__args__", ())) if inspect.isclass(each)]
    return any(issubclass(each, Config) and rest in each.model_fields for each in inner)


TABLES = ("DPOConfig", "DPOTrainer", "ModelConfig", "The handbook's recipes")
KEYS = sorted(
    key
    for key in {key for table in TABLES for key in rows(table).values()} - {"-"}
    if not key.startswith("loss.")
)


def test_the_check_tells_keys_that_do_not_exist() -> None:
    assert not any(map(exists, ["polcy", "loss.betta", "tokens.max", "lora.rank", "loss.tau"]))
    assert not exists("loss.alpha", loss="discopop")
    assert not exists("loss.beta", loss="ipo")
    assert not exists("loss.name", loss="sigmod")
    assert len(KEYS) > 25


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_the_page_names_exists(key: str) -> None:
    assert exists(key)


def test_every_loss_has_the_keys_that_the_page_says() -> None:
    said = loss_keys()
    assert {("loss.tau", "ipo"), ("loss.tau", "discopop"), ("loss.alpha", "ld_dpo")} <= said
    assert ("loss.use_weighting", USUAL) in said
    assert [each for each in said if not exists(each[0], loss=each[1])] == []


def test_every_option_of_dpo_config_has_a_row() -> None:
    trl = pytest.importorskip("trl")
    theirs = {each.name for each in dataclasses.fields(trl.DPOConfig)}
    own = theirs - {each.name for each in dataclasses.fields(TrainingArguments)}
    assert set(rows("DPOConfig")) == own | {"learning_rate"}


def test_every_argument_of_dpo_trainer_has_a_row() -> None:
    trl = pytest.importorskip("trl")
    theirs = set(inspect.signature(trl.DPOTrainer.__init__).parameters) - {"self"}
    assert set(rows("DPOTrainer")) == theirs


def test_every_option_of_model_config_has_a_row() -> None:
    trl = pytest.importorskip("trl")
    theirs = {each.name for each in dataclasses.fields(trl.ModelConfig)}
    assert set(rows("ModelConfig")) == theirs


@pytest.mark.parametrize("config", ["DPOConfig", "KTOConfig", "CPOConfig", "TPOConfig"])
def test_a_loss_setting_of_trls_is_answered_with_ours(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is typed, in the arguments: the line names a loss and a setting that exist."""
    trl = pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    if not hasattr(trl, config):
        from importlib import import_module

        trl = import_module(f"trl.experimental.{config.removesuffix('Config').lower()}")
    settings = {"beta", "alpha", "label_smoothing", "use_weighting", "ld_alpha"} | {
        each.name
        for each in dataclasses.fields(getattr(trl, config))
        if re.search("cpo_|tpo_|gamma|_weight$|f_.*diverg|discopop|density", each.name)
    }
    assert len(settings) > 5
    for name in settings:
        with pytest.raises(ConfigError) as error:
            PreferenceArguments(output_dir=str(tmp_path), **{name: 0.1})
        found = re.search(r"loss={'name': '(\w+)', '(\w+)':", str(error.value))
        assert found, str(error.value)
        assert exists(f"loss.{found[2]}", loss=found[1])


def block(heading: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PARTS[heading], re.DOTALL)
    assert found is not None
    return found[1]


def test_the_handbooks_recipe_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_config(Recipe, yaml.safe_load(block("A handbook recipe, here", "yaml")))
    here = recipe.model_copy(update={"training": {**recipe.training, "use_cpu": True}})
    assert training_arguments(here, tmp_path).learning_rate == 5e-7
    assert set(recipe.training) <= FIELDS


@pytest.mark.filterwarnings("ignore")
def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    make_world(tmp_path)
    (tmp_path / "policy").rename(tmp_path / "my-sft-model")
    monkeypatch.chdir(tmp_path)
    code = block("Measuring and watching inside TRL", "python")
    small = {"reward:my-reward-model": JUDGE, "max_steps=100": "max_steps=4", "every=50": "every=2"}
    small["max_new_tokens=256"] = "max_new_tokens=12"
    for long, short in small.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own
        names: dict[str, Any] = {}
        exec(compile(code, str(PAGE), "exec"), names)
    assert [each["step"] for each in read_metrics("run/dynamics")] == [0, 2, 4]
    for name in ("before", "after"):
        assert 0 <= names[name].boundary_score <= 1
