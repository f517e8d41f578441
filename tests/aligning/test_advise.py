"""`advise`: depth by depth in one folder, nothing twice, and the answer of one go."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from prefstage.aligning import Workspace, advise, align, load_recipe, plan_advice
from prefstage.aligning.recipe import pilot_settings, train_settings
from prefstage.core import LEDGER, ConfigError, Ledger, PrefstageError
from prefstage.data import load_candidates, load_pairs
from prefstage.judging import Judge, load_judge
from prefstage.judging.base import Item
from prefstage.sandbox import true_preference, true_reward
from tests.aligning.tiny_world import JUDGE, settings

ADVISE: dict[str, Any] = {
    "candidates": ["off", "on", {"mix": 0.5}],
    "depth": "pilot",
    "target_prompts": 8,
    "responses": 3,
    "pairs": 8,
    "shares": [0.2, 0.4],
}


@pytest.fixture(scope="module")
def large(world: Path) -> Path:
    """Pairs of sixty prompts."""
    return world / "many.jsonl"


def recipe(world: Path, large: Path, **changed: Any) -> dict[str, Any]:
    return settings(world, off_policy=str(large), advise={**ADVISE, **changed})


@pytest.fixture(scope="module")
def run(world: Path, large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its end at once."""
    out = tmp_path_factory.mktemp("advise") / "run"
    advise(recipe(world, large), out=out)
    return out


def test_depths_go_on_in_one_folder(world: Path, large: Path, run: Path, tmp_path: Path) -> None:
    out, did = tmp_path / "run", list[dict[str, str]]()
    results = []
    for depth in ("stage", "forecast", "pilot", "pilot"):
        advised = advise(recipe(world, large), out=out, depth=depth)
        results.append(advised.result)
        did.append({record.step: record.did for record in advised.steps})
    for earlier, later in pairwise(did):
        assert all(later[step] == "reused" for step in earlier)
    assert set(did[-1].values()) == {"reused"}
    assert [result["depth"] for result in results] == ["stage", "forecast", "pilot", "pilot"]
    assert results[-1] == results[-2] == json.loads((run / "advise.json").read_text())
    assert results[1]["candidates"][0]["forecast"] is not None
    assert results[0]["next"]["depth"] == "forecast"
    assert results[0]["next"]["answers"] > 0
    assert results[2]["next"] is None


def test_the_answer(run: Path) -> None:
    result = json.loads((run / "advise.json").read_text())
    names = {"off", "on", "mix: 0.5"}
    assert {candidate["name"] for candidate in result["candidates"]} == names
    assert set(result["ranking"]) == names
    assert result["choice"] == result["ranking"][0] == result["candidates"][0]["name"]
    assert result["loss"] == {"name": "sigmoid", "beta": 0.1}
    last = [len(candidate["pilots"]) for candidate in result["candidates"]]
    assert last == [2, 2, 1]  # of three, the better half went on
    assert [c["dropped"] for c in result["candidates"]] == [None, None, 0.2]
    headline = json.loads((run / "result.json").read_text())["headline"]
    assert headline.startswith(f"train on {result['choice']}")


class TrueReward(Judge):
    """The sandbox's reward itself, a judge that scores."""

    name = fingerprint = "true reward"

    def score(self, items: Sequence[Item]) -> list[float]:
        return [true_reward(*item) for item in items]


@pytest.mark.parametrize("judge", [None, TrueReward()], ids=["compares", "scores"])
def test_pilots_are_valued_by_their_answers_and_by_their_starts(
    world: Path, large: Path, tmp_path: Path, judge: Judge | None
) -> None:
    out = tmp_path / "run"
    asked = recipe(world, large, valued_by="both", shares=[0.2], candidates=["off", "on"], seeds=2)
    result = advise(asked, judge=judge, out=out).result
    for candidate in result["candidates"]:
        assert [pilot["valued_by"] for pilot in candidate["pilots"]] == ["sampling", "scoring"]
        assert [pilot["sample_size"] is None for pilot in candidate["pilots"]] == [True, False]
    (target,) = out.glob("steps/target-*/candidates.parquet")
    start = {row.prompt_id: row for row in load_candidates(target)}
    with Ledger(out / LEDGER) as ledger:
        samples = ledger.rows("samples")
    pilots = list(out.glob("steps/gain-*"))
    assert len(pilots) == 4
    by_sampler: dict[str, list[float]] = {}
    for sampler, prompt, position, answer, *_ in samples:
        row = start.get(prompt)
        if row is None:
            continue
        text = json.loads(answer)["text"]
        gain = (
            true_preference(text, row.responses[position % 3], row.prompt) - 0.5
            if judge is None
            else true_reward(row.prompt, text) - fmean(map(float, row.scores))  # type: ignore[arg-type]
        )
        by_sampler.setdefault(sampler, []).append(gain)
    # Of the start, which the target asked, three answers a prompt; of a pilot two.
    expected = sorted(fmean(g) for g in by_sampler.values() if len(g) == 2 * len(start))
    found = sorted(fmean(json.loads((p / "gains.json").read_text())) for p in pilots)
    assert found == pytest.approx(expected)
    gains = [pilot["gain"] for c in result["candidates"] for pilot in c["pilots"][:1]]
    assert fmean(gains) == pytest.approx(fmean(expected))


def test_prompts_of_gains_are_no_prompts_of_gradients_or_pilots(run: Path) -> None:
    (target,) = run.glob("steps/target-*/candidates.parquet")
    rows = load_candidates(target)
    assert len(rows) == 8
    assert all(len(row.responses) == len(row.scores) == 3 for row in rows)
    ours = {row.prompt_id for row in rows}
    sizes = set()
    for file in run.glob("steps/build-*/pairs.parquet"):
        prompts = {pair.prompt_id for pair in load_pairs(file)}
        sizes.add(len(prompts))
        assert not ours & prompts
    assert max(sizes) <= 24


def test_parts_have_the_same_prompts_in_every_data_set_and_grow(world: Path, large: Path) -> None:
    space = Workspace(load_recipe(recipe(world, large)), load_judge(JUDGE), Path("nowhere"))
    small, whole = space.part(range(8, 14)), space.part(range(8, 20))
    ids = {row.prompt_id for row in small.prompts}
    assert ids == {row.prompt_id for row in small.off_pairs}
    assert ids == {row.prompt_id for row in small.off_policy}
    assert len(ids) == 6
    assert ids < {row.prompt_id for row in whole.prompts}
    assert not ids & {row.prompt_id for row in space.part(range(8)).prompts}
    assert len(space.prompts) == 60
    prints = {s.data_fingerprint(str(large)) for s in (space, small, whole)}
    assert len(prints) == 3


def test_a_plan_names_the_steps_of_the_run(
    world: Path, large: Path, run: Path, tmp_path: Path
) -> None:
    planned = plan_advice(recipe(world, large), out=tmp_path / "run")
    assert {step.will for step in planned} == {"run", "reuse"}
    first = {step.step for step in planned}
    assert {path.name for path in run.glob("steps/*-*")} <= first
    again = plan_advice(recipe(world, large), out=run)
    assert {step.will for step in again} == {"reuse"}
    assert len(plan_advice(recipe(world, large), out=tmp_path / "run", depth="stage")) == 1


def test_another_data_set_and_prompts_of_their_own(
    world: Path, large: Path, tmp_path: Path
) -> None:
    changed = recipe(
        world,
        large,
        candidates=["on", {"data": str(world / "pairs.jsonl")}],
        prompts=str(world / "held_out.jsonl"),
        depth="forecast",
    )
    changed["advise"]["target_prompts"] = 8
    with pytest.raises(PrefstageError, match=r"answers to 6 prompts; expected .*at least 8"):
        advise(changed, out=tmp_path / "run")
    changed["advise"]["prompts"] = str(world / "candidates.jsonl")
    advised = advise(changed, out=tmp_path / "run")
    assert {c["name"] for c in advised.result["candidates"]} == {
        "on",
        f"data: {world / 'pairs.jsonl'}",
    }


def test_align_trains_on_what_is_advised(world: Path, large: Path, tmp_path: Path) -> None:
    asked = {**recipe(world, large, depth="forecast"), "schedule": "advise", "iterations": 1}
    advised = advise(asked, out=tmp_path / "advice", store=tmp_path / "store")
    aligned = align(asked, out=tmp_path / "run", store=tmp_path / "store")
    did = {record.step: record.did for record in aligned.steps}
    assert {did[record.step] for record in advised.steps} == {"reused"}
    (row,) = aligned.result["iterations"]
    assert row["rule"] == "advise"
    assert row["advice"]["choice"] == advised.choice
    assert row["advice"]["depth"] == "forecast"
    assert row["data"] == row["advice"]["choice"]
    assert row["reason"] == row["advice"]["reason"]
    assert row["training"]["steps"] == 3


def test_pilots_are_trained_as_the_recipe_says_on_less(world: Path) -> None:
    changed = settings(world)
    changed["train"]["training"] |= {"warmup_steps": 10, "max_steps": 100, "eval_strategy": "steps"}
    changed["train"]["eval"] = str(world / "held_out.jsonl")
    whole = train_settings(load_recipe(changed), policy="policy", data="data")
    pilot = pilot_settings(whole, share=0.25, seed=7)
    assert pilot.training["max_steps"] == 25
    assert pilot.training["warmup_steps"] == 3
    assert pilot.training["seed"] == 7
    assert pilot.training["learning_rate"] == whole.training["learning_rate"]
    assert not pilot.eval
    assert "eval_strategy" not in pilot.training
    assert pilot.loss == whole.loss


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"candidates": ["off"]}, "at least two different ones"),
        ({"candidates": ["off", "off"]}, "at least two different ones"),
        ({"candidates": ["off", "auto"]}, "auto"),
        ({"candidates": ["off", "onn"]}, "did you mean 'on'"),
        ({"shares": [0.5, 0.25]}, "growing shares"),
        ({"shares": [0.5, 1.0]}, "growing shares"),
        ({"depth": "deep"}, "depth"),
        ({"depht": "pilot"}, "did you mean 'advise.depth'"),
        ({"depth": "stage", "candidates": ["on", {"mix": 0.1}]}, "off and on"),
    ],
)
def test_wrong_settings_are_one_line(
    world: Path, large: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        advise(recipe(world, large, **changed), out=tmp_path / "run")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
