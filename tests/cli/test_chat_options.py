"""Variables and the date of chat templates, and control tokens: settings of every command."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.aligning.recipe import load_recipe, train_settings
from prefstage.cli.main import app
from prefstage.cli.options import named_values
from prefstage.core import ledger, runs
from prefstage.core.config import load_config
from prefstage.core.errors import InputError
from prefstage.core.runs import run_date
from prefstage.data.settings import ChatSettings
from prefstage.training.recipe import Recipe, training_arguments
from prefstage.training.recipe_run import train_recipe
from tests.tiny_models import save_tiny_llama, tiny_tokenizer

RUNNER = CliRunner()
_FIRST, _NEXT = date(2026, 1, 31), date(2026, 2, 1)


class Day(date):
    """A calendar that stands still."""

    now = _FIRST

    @classmethod
    def today(cls) -> date:
        return cls.now


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> type[Day]:
    Day.now = _FIRST
    monkeypatch.setattr(runs, "date", Day)
    monkeypatch.setattr(ledger, "date", Day)
    return Day


@pytest.fixture(scope="module")
def dated_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template writes today's date."""
    tokenizer = tiny_tokenizer("chatml")
    today = "{{ '<|im_start|>system\nIt is ' + strftime_now('%Y-%m-%d') + '<|im_end|>\n' }}"
    tokenizer.chat_template = today + tokenizer.chat_template
    folder = tmp_path_factory.mktemp("models") / "dated"
    return save_tiny_llama(folder, tokenizer, max_position_embeddings=256)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Q {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["enable_thinking=false"], {"enable_thinking": False}),
        (["a=1", "b=text", "c=[1, 2]", "d=x=y"], {"a": 1, "b": "text", "c": [1, 2], "d": "x=y"}),
        (['{"enable_thinking": false, "n": 2}'], {"enable_thinking": False, "n": 2}),
    ],
)
def test_variables_are_named_by_options(texts: Any, values: Any) -> None:
    assert named_values("--template-options", texts) == values


@pytest.mark.parametrize("text", ["enable_thinking", "=false", "{enable_thinking: false}"])
def test_a_variable_without_a_name_or_a_value_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--template-options"):
        named_values("--template-options", [text])


def test_what_is_not_set_is_not_passed_on() -> None:
    assert ChatSettings().encoding == {}
    some = ChatSettings(template_options={"a": 1}, control_tokens="keep")
    assert some.encoding == {"template_options": {"a": 1}, "control_tokens": "keep"}


def test_the_settings_of_a_training_reach_its_arguments(tmp_path: Path) -> None:
    tokens = {"template_options": {"a": 1}, "template_date": "2026-01-31", "control_tokens": "keep"}
    recipe = load_config(Recipe, {"policy": "p", "data": "d.jsonl", "tokens": tokens})
    args = training_arguments(recipe, tmp_path)
    assert {name: getattr(args, name) for name in tokens} == tokens


def test_an_alignment_reads_texts_alike_when_it_samples_and_when_it_trains() -> None:
    given = {"policy": "p", "off_policy": "d", "judge": "j", "template_options": {"a": 1}}
    recipe = load_recipe({**given, "control_tokens": "keep"})
    assert recipe.load_options.template_options == {"a": 1}
    assert recipe.load_options.control_tokens == "keep"
    tokens = train_settings(recipe, policy="p", data="d").tokens
    assert (tokens.template_options, tokens.control_tokens) == ({"a": 1}, "keep")
    mine = load_recipe({**given, "train": {"tokens": {"template_options": {"a": 2}}}})
    assert train_settings(mine, policy="p", data="d").tokens.template_options == {"a": 2}


def sampled(model: Path, pairs: Path, out: Path, *options: object) -> dict[str, Any]:
    done = RUNNER.invoke(
        app,
        [
            *map(str, ("sample", "--policy", model, "--prompts", pairs, "--out", out)),
            *map(str, ("--max-new-tokens", 2, "--device", "cpu", "--json", *options)),
        ],
    )
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_variables_change_what_is_sampled(
    tmp_path: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = save_tiny_llama(tmp_path_factory.mktemp("m") / "tiny", tiny_tokenizer("qwen3"))
    plain = sampled(model, pairs, tmp_path / "a.jsonl")
    quiet = sampled(
        model, pairs, tmp_path / "b.jsonl", "--template-options", "enable_thinking=false"
    )
    assert quiet["prompt_tokens"] > plain["prompt_tokens"]
    assert quiet["fingerprint"] != plain["fingerprint"]


def test_sampling_goes_on_with_the_date_on_which_it_began(
    dated_model: Path, tmp_path: Path, pairs: Path, day: type[Day]
) -> None:
    first = sampled(dated_model, pairs, tmp_path / "a.jsonl", "--max-prompts", 2)
    day.now = _NEXT
    again = sampled(dated_model, pairs, tmp_path / "a.jsonl")
    assert again["fingerprint"] == first["fingerprint"]
    assert again["responses_new"] == again["responses"] - first["responses"]
    other = sampled(dated_model, pairs, tmp_path / "b.jsonl", "--max-prompts", 2)
    assert other["fingerprint"] != first["fingerprint"]
    named = sampled(
        dated_model,
        pairs,
        tmp_path / "c.jsonl",
        "--max-prompts",
        2,
        "--template-date",
        "2026-01-31",
    )
    assert named["fingerprint"] == first["fingerprint"]


def test_a_training_goes_on_with_the_date_on_which_it_began(
    dated_model: Path, tmp_path: Path, pairs: Path, day: type[Day]
) -> None:
    def train(out: Path, **tokens: Any) -> dict[str, Any]:
        training = {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 2}
        recipe = load_config(
            Recipe,
            {
                **{"policy": str(dated_model), "data": str(pairs), "tokens": tokens},
                "training": {**training, "report_to": "none", "use_cpu": True},
            },
        )
        train_recipe(recipe, out=out)
        return dict(json.loads((out / "train.json").read_text()))

    train(tmp_path / "run")
    day.now = _NEXT
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-3")
    gone_on = train(tmp_path / "run")
    assert gone_on["steps"] == 3
    assert run_date(tmp_path / "run") == _FIRST
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert str(resolved["tokens"]["template_date"]) == "2026-01-31"


def test_the_date_of_a_run_is_that_of_its_manifest(tmp_path: Path, day: type[Day]) -> None:
    assert run_date(None) == run_date(tmp_path / "none") == _FIRST
    with runs.run_folder(tmp_path / "run", command="test", inputs={}):
        pass
    day.now = _NEXT
    assert run_date(tmp_path / "run") == _FIRST
    (tmp_path / "run" / "manifest.json").write_text("no manifest")
    assert run_date(tmp_path / "run") == _NEXT
