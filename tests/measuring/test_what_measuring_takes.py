"""`measure_stage` takes what users hold, and answers anything else in one line of three parts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import ConfigError, PrefstageError
from prefstage.data import load_candidates, load_pairs
from prefstage.measuring import MeasureConfig, Stage, measure_stage

PAIRS = [
    {"prompt": f"question {n}", "chosen": f"a long good answer {n}", "rejected": f"bad {n}"}
    for n in range(20)
]
ANSWERS = [
    {"prompt": f"question {n}", "responses": [f"mine {n}", f"mine again {n}"]} for n in range(20)
]


def longer(a: str, b: str, prompt: object) -> float:
    return 0.9 if len(a) > len(b) else 0.1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
    return path


def test_paths_rows_and_sets_give_one_stage(file: Path, tmp_path: Path) -> None:
    expected = measure_stage(PAIRS, judge=longer, on_policy=ANSWERS)
    for off in (file, str(file), load_pairs(PAIRS), load_candidates(PAIRS)):
        assert measure_stage(off, judge=longer, on_policy=load_candidates(ANSWERS)) == expected
    kept = measure_stage(str(file), judge=longer, on_policy=ANSWERS, out=str(tmp_path / "run"))
    assert kept == Stage.load(str(tmp_path / "run" / "stage.json"))
    assert replace(kept, judge_counts=expected.judge_counts) == expected
    assert len(kept.prompts) == kept.prompts_used


def test_settings_may_be_a_mapping() -> None:
    stage = measure_stage(PAIRS, judge=longer, on_policy=ANSWERS, config={"max_prompts": 8})
    assert stage.prompts_used == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"off_policy": "no-such-file.jsonl"}, "check the path"),
        ({"off_policy": 7}, "a dataset of type int"),
        ({"on_policy": 7}, "a dataset of type int"),
        ({"judge": 7}, "a judge of type int"),
        ({"judge": "nojudge:x"}, "judge 'nojudge:x'"),
        ({"on_policy": None, "sampler": 7}, "a policy of type int"),
        ({"config": {"max_promts": 8}}, "did you mean 'max_prompts'"),
        ({"config": 7}, "settings as a int"),
        ({"distinctness": True}, "distinctness without a policy"),
    ],
)
def test_anything_else_is_one_clear_line(arguments: dict[str, Any], words: str) -> None:
    usual = {"off_policy": PAIRS, "judge": longer, "on_policy": ANSWERS}
    with pytest.raises(PrefstageError, match=words) as caught:
        measure_stage(**(usual | arguments))
    assert "\n" not in str(caught.value)
    assert "; expected" in str(caught.value) or "; " in str(caught.value)


def test_a_typo_in_the_settings_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_prompts'"):
        MeasureConfig(max_promts=8)
