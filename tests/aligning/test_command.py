"""`prefstage align` as it is typed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from prefstage.cli.main import app
from prefstage.sampling import SamplingConfig, TransformersSampler, requests_for
from prefstage.sandbox import World, true_reward
from tests.aligning.tiny_world import settings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "align.yaml"


def typed(*words: object) -> Result:
    return CliRunner().invoke(app, ["align", *map(str, words)])


def recipe_file(folder: Path, given: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def test_plan_run_resume(world: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, settings(world, schedule=["on"], iterations=1))
    out = tmp_path / "run"
    planned = typed(recipe, "--out", out, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "measure-" in planned.stdout
    assert not out.exists()
    done = typed(recipe, "--out", out)
    assert done.exit_code == 0, done.output
    assert "| 1 | " in done.stdout
    assert "ended: all iterations done" in done.stdout
    again = typed("--resume", "--out", out, "--json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert {each["did"] for each in found["log"]} == {"reused"}
    changed = typed(recipe, "--out", out, "--set", "train.loss.beta=0.3", "--json")
    ran = {each["kind"] for each in json.loads(changed.stdout)["log"] if each["did"] == "ran"}
    assert ran == {"train", "sample", "evaluate"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "new"], "neither a recipe nor --resume"),
        (["r.yaml", "--resume", "--out", "new"], "a recipe and --resume"),
        (["--resume", "--out", "new"], "config.yaml"),
    ],
)
def test_resume_or_recipe(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        refused = typed(*words)
    assert refused.exit_code == 2
    assert said in refused.stderr


def test_the_example_runs_and_the_truth_can_be_looked_up(world: Path, tmp_path: Path) -> None:
    """The committed example, made small; what it learns is in docs/aligning.md."""
    (tmp_path / "world").symlink_to(world)
    small = ["sampling.max_new_tokens=12", "sampling.responses=2", "measure.max_prompts=8"]
    small += ["train.training.max_steps=2", "train.training.per_device_train_batch_size=4"]
    options = [word for each in small for word in ("--set", each)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = typed(EXAMPLE, "--out", "runs/align", *options, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert len(result["iterations"]) == 2
    assert result["iterations"][0]["rule"] == "auto"
    rewards = [mean_true_reward(folder) for folder in (str(world / "policy"), result["policy"])]
    assert all(0 <= reward <= 1 for reward in rewards)


def mean_true_reward(folder: str) -> float:
    config = SamplingConfig(responses=1, temperature=0, max_new_tokens=12)
    sampler = TransformersSampler.load(folder, config, device="cpu")
    rows = list(World(0).candidates(8, split="test"))
    asked = {row.prompt_id: row.prompt for row in rows}
    samples = list(sampler.sample(requests_for(rows, responses=1)))
    return sum(true_reward(asked[each.prompt_id], each.text) for each in samples) / len(samples)
