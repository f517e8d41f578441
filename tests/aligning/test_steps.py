"""Steps: what a kill leaves behind does no harm, and what was paid stays on the bill."""

import json
from pathlib import Path

import pytest

from prefstage.aligning.steps import MANIFEST, Step, StepRecord, Steps

STEP = Step("build", {"a": 1})


def do(folder: Path, *, bought: list[int], price: int) -> StepRecord:
    """Do the step in a new process's place: its work buys as much as it costs."""

    def work(staging: Path) -> None:
        (staging / "result.txt").write_text("done")
        bought[0] += price

    steps = Steps(folder, lambda record: None)
    steps.do(STEP, work, iteration=1, costs=lambda: {"judgments": bought[0]})
    return steps.records[-1]


def cost(folder: Path) -> int:
    manifest = json.loads((folder / "steps" / STEP.name / MANIFEST).read_text())
    assert set(manifest["files"]) == {"result.txt"}
    found: int = manifest["costs"]["judgments"]
    return found


def test_a_kill_between_manifest_and_name(tmp_path: Path) -> None:
    """The step is whole but for its folder's name; it is done again, and is whole then."""
    bought = [0]
    do(tmp_path, bought=bought, price=3)
    done = tmp_path / "steps" / STEP.name
    done.rename(done.with_name(f".unfinished-{STEP.name}"))
    done.with_name(f".unfinished-{STEP.name}-begun.json").write_text('{"judgments": 0}')
    assert do(tmp_path, bought=bought, price=0).did == "ran"
    assert do(tmp_path, bought=bought, price=0).did == "reused"
    assert cost(tmp_path) == 3


@pytest.mark.parametrize("price", [0, 2])
def test_a_result_made_anew_has_cost_what_it_cost_before(tmp_path: Path, price: int) -> None:
    bought = [5]
    do(tmp_path, bought=bought, price=3)
    (tmp_path / "steps" / STEP.name / "result.txt").unlink()
    remade = do(tmp_path, bought=bought, price=price)
    assert (remade.did, remade.why) == ("remade", "result.txt is missing")
    assert cost(tmp_path) == 3 + price
    assert remade.costs == {"judgments": 3 + price}
