import json
from pathlib import Path

import pytest

from prefstage.core.errors import DataError
from prefstage.measuring import Stage, measure_stage
from tests.measuring.measuring_worlds import LargerIsBetter, answers

DESIGNED_KEYS = {
    "stage", "boundary_score", "interval", "confidence", "votes_on", "votes_off", "ties",
    "prompts_used", "prompts_available", "responses_per_prompt", "judge", "policy", "tie_rule",
    "seed",
}  # fmt: skip


@pytest.fixture(scope="module")
def stage() -> Stage:
    on = answers(60, skill=1.0, seed=1)
    return measure_stage(answers(60, skill=0.0), judge=LargerIsBetter(), on_policy=on)


def test_the_json_has_the_agreed_keys(stage: Stage) -> None:
    values = json.loads(json.dumps(stage.as_dict()))
    assert set(values) >= DESIGNED_KEYS
    assert values["responses_per_prompt"] == {"on": 2, "off": 2}
    assert len(values["interval"]) == 2


def test_a_stage_survives_json(stage: Stage, tmp_path: Path) -> None:
    stage.save(tmp_path / "stage.json")
    assert Stage.load(tmp_path / "stage.json") == stage
    assert Stage.from_dict(json.loads(json.dumps(stage.as_dict()))) == stage


def test_what_is_no_stage_is_refused(stage: Stage, tmp_path: Path) -> None:
    older = {name: v for name, v in stage.as_dict().items() if name != "consistency"}
    assert Stage.from_dict(older) == stage
    with pytest.raises(DataError, match="missing or unknown keys: judge"):
        Stage.from_dict({name: v for name, v in older.items() if name != "judge"})
    with pytest.raises(DataError, match="missing or unknown keys: extra"):
        Stage.from_dict(stage.as_dict() | {"extra": 1})
    (tmp_path / "list.json").write_text("[]")
    for name in ("absent.json", "list.json"):
        with pytest.raises(DataError, match=r"prefstage measure"):
            Stage.load(tmp_path / name)


def test_the_recommendation_follows_the_stage(stage: Stage) -> None:
    assert stage.stage == "fine-tuning"
    assert "sample pairs from the policy" in stage.recommendation
