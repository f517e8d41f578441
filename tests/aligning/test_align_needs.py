"""What a loss needs besides labels: carried from the judge into training, or refused at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.aligning import align, plan_alignment
from prefstage.core.errors import ConfigError, InputError
from prefstage.data import load_pairs
from prefstage.judging import Judge
from prefstage.judging.base import Judgment, compare_by_rewards, judgment_of_rewards
from prefstage.sandbox import true_preference, true_reward
from tests.aligning.tiny_world import settings


class Rewards(Judge):
    """A pointwise judge: the world's own rewards."""

    name = fingerprint = "rewards"

    def score(self, items: Any) -> list[float]:
        return [true_reward(prompt, text) for prompt, text in items]

    def compare(self, comparisons: Any) -> list[Judgment]:
        return compare_by_rewards(self.score, comparisons)


def recipe(world: Path, loss: str, **changed: Any) -> dict[str, Any]:
    given = settings(world, evaluate=None, measure=False, schedule=["off", "on"], **changed)
    given["train"] = {**given["train"], "loss": loss, **changed.get("train", {})}
    return given


@pytest.mark.parametrize("judge", [None, Rewards()])
def test_the_judges_probability_reaches_a_loss_on_preferences(
    world: Path, tmp_path: Path, judge: Any
) -> None:
    given = recipe(world, "sppo")
    planned = plan_alignment(given, out=tmp_path / "run", judge=judge)
    done = align(given, out=tmp_path / "run", judge=judge)
    assert [each.step for each in planned] == [each.step for each in done.steps]
    built = sorted((tmp_path / "run").glob("steps/*build*/pairs.parquet"))
    assert len(built) == 2
    for pair in (pair for file in built for pair in load_pairs(file)):
        texts = (pair.chosen[0]["content"], pair.rejected[0]["content"])
        if judge is None:
            expected = true_preference(*texts, pair.prompt)
        else:
            expected = judgment_of_rewards(pair.score_chosen, pair.score_rejected).probability
        assert pair.judge_probability == pytest.approx(expected)
        assert pair.judge_probability > 0.5


@pytest.mark.parametrize("loss", ["exo_rw", "kto", "re_po"])
def test_losses_on_groups_labels_and_annotators_take_what_is_built(
    world: Path, tmp_path: Path, loss: str
) -> None:
    given = {**recipe(world, loss), "schedule": ["off"], "iterations": 1}
    plan_alignment(given, out=tmp_path / "run")
    align(given, out=tmp_path / "run")
    (result,) = (tmp_path / "run").glob("steps/*train*/train.json")
    assert json.loads(result.read_text())["steps"] == 3


@pytest.mark.parametrize("loss", ["sppo", "exo_rw", "sigmoid + sppo"])
def test_nobody_judges_responses_that_are_sampled_during_training(
    world: Path, tmp_path: Path, loss: str
) -> None:
    given = recipe(world, loss, train={"online": True, "loss": loss})
    for call in (plan_alignment, align):
        with pytest.raises(ConfigError, match=r"online with a loss that needs .*leave online out"):
            call(given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def bare(world: Path, tmp_path: Path) -> str:
    """Pairs with nothing but their labels."""
    rows = [
        {"prompt": list(pair.prompt), "chosen": list(pair.chosen), "rejected": list(pair.rejected)}
        for pair in load_pairs(world / "pairs.jsonl")
    ]
    (tmp_path / "bare.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "bare.jsonl")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda file: {"train": {"loss": "sppo", "eval": file}}, "train.eval.eval: 12 of 12 pairs"),
        (lambda file: {"sft": {"data": file, "loss": "sppo"}}, "sft.data: 12 of 12 pairs without"),
        (lambda file: {"sft": {"data": file, "loss": "infonca"}}, "sft.data: 12 of 12 groups"),
    ],
)
def test_data_that_lack_what_their_loss_needs_are_refused_by_the_dry_run(
    world: Path, tmp_path: Path, changed: Any, said: str
) -> None:
    given = settings(world, evaluate=None)
    more = changed(bare(world, tmp_path))
    given = {**given, **more, "train": {**given["train"], **more.get("train", {})}}
    for call in (plan_alignment, align):
        with pytest.raises(InputError, match=said):
            call(given, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob("steps/*"))
