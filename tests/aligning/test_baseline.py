import json

import pytest

from prefstage.aligning import align, plan_alignment, run_experiment
from prefstage.core.errors import InputError
from prefstage.data import load_pairs
from tests.aligning.tiny_world import settings


def over(world, baseline, **changed):
    asked = settings(world, iterations=1, measure=False, schedule="off", **changed)
    return asked | {"evaluate": {**asked["evaluate"], "baseline": baseline}}


@pytest.fixture(scope="module")
def answers(world, tmp_path_factory):
    """What "bad" and "good" answered: what no policy loses to, and what none wins over."""
    file = tmp_path_factory.mktemp("answers") / "answers.json"
    rows = [
        {
            "instruction": pair.prompt[-1]["content"],
            "output": pair.chosen[-1]["content"] if writer == "good" else "@ # $",
            "generator": writer,
        }
        for pair in load_pairs(str(world / "held_out.jsonl"))
        for writer in ("bad", "good")
    ]
    file.write_text(json.dumps(rows))
    return str(file)


def test_all_policies_are_on_the_scale_of_one_file(world, answers, tmp_path):
    rates = {}
    for writer in ("bad", "good"):
        recipe = over(world, f"{answers}#{writer}")
        aligned = align(recipe, out=tmp_path / writer)
        start, (row,) = aligned.result["start_evaluation"], aligned.result["iterations"]
        assert start["baseline"] == row["evaluation"]["baseline"] == writer
        assert f"win rates are over {writer}" in aligned.summary
        assert "| start |" in aligned.summary
        rates[writer] = start["win_rate"], row["evaluation"]["win_rate"]
    # The start is at 50 % over none of them, and every policy is higher over the worse answers.
    assert rates["bad"][0] > 50 > rates["good"][0]
    assert rates["bad"][1] > rates["good"][1]


def test_a_model_answers_once_for_all_cells_and_gains_are_over_the_start(world, tmp_path):
    recipe = over(world, str(world / "policy"), sampling={"responses": 2, "max_new_tokens": 12})
    recipe.pop("schedule")
    grid = {
        "recipe": recipe,
        "axes": {"schedule": ["off", "on"]},
        "tables": {"stages": {"kind": "stages", "columns": ["win_rate"]}},
    }
    ran = run_experiment(grid, out=tmp_path / "run")
    assert not ran.failed
    first, second = (cell["policies"] for cell in ran.result["cells"])
    # The baseline is the start itself, which answers the same: half of every comparison.
    assert first[0]["figures"]["win_rate"] == second[0]["figures"]["win_rate"] == 50
    assert "(+" in ran.tables["stages"] or "(-" in ran.tables["stages"]
    assert len([*(tmp_path / "run" / "store" / "steps").glob("sample-*")]) == 4 + 1


def test_a_file_without_the_prompts_is_refused_before_anything_is_bought(world, tmp_path):
    recipe = over(world, f"{world / 'pairs.jsonl'}#chosen")
    for ask in (
        lambda: plan_alignment(recipe, out=tmp_path / "a"),
        lambda: align(recipe, out=tmp_path / "a"),
    ):
        with pytest.raises(
            InputError, match=r"evaluate\.baseline .*#chosen with answers to 0 of the 6"
        ):
            ask()
    assert not [*(tmp_path / "a").glob("steps/sample-*")]
