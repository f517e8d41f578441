"""Steps: what a kill leaves behind does no harm, and what was paid stays on the bill."""

from pathlib import Path

import pytest

from prefstage.aligning import load_recipe
from prefstage.aligning.steps import MANIFEST, Estimate, Sizes, Step, StepRecord, Steps, Workspace
from prefstage.judging import load_judge
from tests.aligning.tiny_world import JUDGE, settings


class Shop(Workspace):
    """A workspace in which everything bought is a number."""

    def __init__(self, folder: Path) -> None:
        super().__init__(load_recipe(settings(Path())), load_judge(JUDGE), folder)
        self.bought = 0

    def counts(self) -> dict[str, int]:
        return {"judgments": self.bought}


class Purchase(Step):
    """Buys as much as it costs."""

    kind = "build"
    price = 0

    def run(self, folder: Path) -> None:
        (folder / "result.txt").write_text("done")
        self.space.bought += self.price  # type: ignore[attr-defined]

    def estimate(self, sizes: Sizes) -> Estimate:
        return Estimate()


def do(shop: Shop, *, price: int) -> StepRecord:
    """Do the step as a new process would."""
    step = Purchase(shop, {"a": 1})
    step.price = price
    steps = Steps(shop)
    steps.do(step, iteration=1)
    return steps.records[-1]


def cost(shop: Shop) -> int:
    manifest = Purchase(shop, {"a": 1}).read(MANIFEST)
    assert set(manifest["files"]) == {"result.txt"}
    found: int = manifest["costs"]["judgments"]
    return found


def test_a_kill_between_manifest_and_name(tmp_path: Path) -> None:
    """The step is whole but for its folder's name; it is done again, and is whole then."""
    shop = Shop(tmp_path)
    do(shop, price=3)
    done = Purchase(shop, {"a": 1}).path
    done.rename(done.with_name(f".unfinished-{done.name}"))
    done.with_name(f".unfinished-{done.name}-begun.json").write_text('{"judgments": 0}')
    assert do(shop, price=0).did == "ran"
    assert do(shop, price=0).did == "reused"
    assert cost(shop) == 3


@pytest.mark.parametrize("price", [0, 2])
def test_a_result_made_anew_has_cost_what_it_cost_before(tmp_path: Path, price: int) -> None:
    shop = Shop(tmp_path)
    shop.bought = 5
    do(shop, price=3)
    (Purchase(shop, {"a": 1}).path / "result.txt").unlink()
    remade = do(shop, price=price)
    assert (remade.did, remade.why) == ("remade", "result.txt is missing")
    assert cost(shop) == 3 + price
    assert remade.costs == {"judgments": 3 + price}
