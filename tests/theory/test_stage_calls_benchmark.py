"""The guide's worlds are measured as the product does it, and come out as often as printed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import stage_calls
import torch
from stage_calls import (
    KINDS,
    Calls,
    Case,
    Portion,
    draw_portion,
    measure_portion,
)

from prefstage.data import Candidates, prompt_id_of
from prefstage.judging import Judge
from prefstage.judging.base import Comparison, Judgment
from prefstage.measuring import MeasureConfig, Stage, measure_stage
from prefstage.measuring.boundary import prompt_order
from prefstage.sandbox.theory.guide import binned

AS_TOLD = Case("as told")
TOLERANCE = 0.02


class VerdictTable(Judge):
    """A judge that reads its verdicts off a table."""

    name = "table"
    fingerprint = "table"

    def __init__(self, verdicts: np.ndarray) -> None:
        self._verdicts = verdicts.tolist()

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        return [Judgment(self._of(each.a, each.b)) for each in comparisons]

    def _of(self, ours: str, theirs: str) -> float:
        (place, i), (_, j) = ours.split(), theirs.split()
        return self._verdicts[int(place)][int(i)][int(j)]


def dataset_of(prompts: int) -> list[Candidates]:
    """Prompts with two responses each, which name the place of use and their own."""
    named = [({"role": "user", "content": str(number)},) for number in range(prompts)]
    by_id = {prompt_id_of(prompt): prompt for prompt in named}
    return [
        Candidates(prompt_id, by_id[prompt_id], (f"{place} 0", f"{place} 1"), *((None,) * 2,) * 2)
        for place, prompt_id in enumerate(prompt_order(list(by_id), seed=0))
    ]


def measured(portion: Portion, i: int, **told: Any) -> Stage:
    """One world by the product."""
    config = MeasureConfig(
        judge_accuracy=float(portion.told_accuracy[i]),
        judge_bias=float(portion.told_bias[i]),
        overlap=float(portion.overlap[i]),
        all_prompts=bool(portion.all_prompts[i]),
        max_prompts=int(portion.budget[i]),
        new_prompts=bool(portion.new_prompts[i]),
        **told,
    )
    rows = dataset_of(int(portion.dataset[i]))
    judge = VerdictTable(portion.verdicts[i])
    return measure_stage(rows, judge=judge, on_policy=rows, config=config)


@pytest.mark.parametrize(
    ("errors", "case"), [("any pair", Case("biased", biased=True)), ("close pairs", AS_TOLD)]
)
def test_worlds_are_measured_as_the_product_measures_them(
    monkeypatch: pytest.MonkeyPatch, errors: str, case: Case
) -> None:
    monkeypatch.setattr(stage_calls, "PORTION", 24)
    job = (case, errors, (17, 3))
    portion, calls = draw_portion(*job), measure_portion(job)
    assert 2 < calls.decided.sum() < 22
    assert len(set(calls.prompts.tolist())) > 4
    for i in range(24):
        stage = measured(portion, i)
        side = stage.algorithm_1 if stage.stage == "undecided" else stage.stage
        assert stage.prompts_used == calls.prompts[i]
        assert (stage.stage != "undecided") == calls.decided[i]
        assert ((side == "fine-tuning") == portion.fine_tuning[i]) == calls.right[i]
        assert stage.reliability == pytest.approx(calls.printed[i])
        told = measured(portion, i, judge_errors=KINDS[errors])
        assert told.reliability == pytest.approx(calls.printed_told[i])


def test_portions_are_fresh_by_their_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_calls, "PORTION", 6)
    first, again, other = (
        measure_portion((AS_TOLD, "any pair", seeds)).printed for seeds in ((1, 2), (1, 2), (1, 3))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def fresh_calls(case: Case, *, seed: int, portions: int) -> dict[str, Calls]:
    """Of judges of each kind."""
    return {
        errors: Calls.joined(
            [measure_portion((case, errors, (seed, place, i))) for i in range(portions)]
        )
        for place, errors in enumerate(KINDS)
    }


def beyond(printed: np.ndarray, right: np.ndarray, *, errors: float) -> list[str]:
    """Bins, and the whole, that are further off than 2 points and so many standard errors."""
    off = [("all", float((printed - right).mean()), len(right), float(printed.mean()))]
    off += [
        (f"{each.low} to {each.high}", each.difference, each.calls, each.printed)
        for each in binned(torch.from_numpy(printed), torch.from_numpy(right))
    ]
    return [
        f"{name}: {difference:+.3f} of {calls}"
        for name, difference, calls, chance in off
        if abs(difference) > TOLERANCE + errors * (chance * (1 - chance) / calls) ** 0.5
    ]


@pytest.fixture(scope="module")
def fresh() -> dict[str, Calls]:
    return fresh_calls(AS_TOLD, seed=2026, portions=8)


def test_the_printed_reliability_is_the_frequency_on_fresh_worlds(fresh: dict[str, Calls]) -> None:
    both = Calls.joined(list(fresh.values()))
    assert beyond(both.printed, both.right, errors=2.5) == []
    for calls in fresh.values():
        assert beyond(calls.printed_told, calls.right, errors=2.5) == []


def test_so_many_worlds_find_a_wrong_reliability_out(fresh: dict[str, Calls]) -> None:
    """The test above can fail: by half the doubt, and by an accuracy that is told too low."""
    both = Calls.joined(list(fresh.values()))
    assert len(beyond(1 - (1 - both.printed) / 2, both.right, errors=2.5)) > 2
    case = Case("told wrongly", accuracy_off_by=-0.1)
    calls = fresh_calls(case, seed=2027, portions=4)["close pairs"]
    found = beyond(calls.printed_told, calls.right, errors=2.5)
    assert found
    assert all(": -" in each for each in found)


@pytest.mark.slow
def test_many_fresh_worlds_come_out_as_printed() -> None:
    fresh = fresh_calls(AS_TOLD, seed=2028, portions=100)
    both = Calls.joined(list(fresh.values()))
    assert beyond(both.printed, both.right, errors=0.5) == []
    for calls in fresh.values():
        assert beyond(calls.printed_told, calls.right, errors=1.0) == []
