import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "stage_guide.py"
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stage_guide_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_portion_measures_fresh_worlds_by_the_product(benchmark: ModuleType) -> None:
    benchmark.PORTION = 12
    calls = benchmark.measure_portion((benchmark.CASES[0], "close pairs", 3))
    assert len(calls) == 12
    assert {each.case for each in calls} == {"as told"}
    assert all(0 < each.printed <= 1 and 0 < each.prompts <= 400 for each in calls)
    other = benchmark.measure_portion((benchmark.CASES[0], "close pairs", 4))
    assert [each.printed for each in other] != [each.printed for each in calls]
    assert benchmark.measure_portion((benchmark.CASES[0], "close pairs", 3)) == calls


def test_tables_hold_every_case_and_every_call(benchmark: ModuleType) -> None:
    calls = [
        benchmark.Call(case.name, "any pair", 0.97, right, True, 50)
        for case in benchmark.CASES
        for right in (True, True, False, True)
    ]
    assert "| 95% to 98% | 24 | 97.0% | 75.0% | +22.0% ± 8.8% |" in benchmark.bin_table(calls)
    lines = benchmark.case_table(calls).splitlines()
    assert len(lines) == 2 + len(benchmark.CASES)
    assert lines[2].startswith("| as told | any pair | 4 | 100% | 97.0% | 75.0% | 22.0% |")


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["any pair", "close pairs"])
def test_the_printed_reliability_is_the_frequency_on_fresh_worlds(
    benchmark: ModuleType, errors: str
) -> None:
    benchmark.PORTION = 100
    case = benchmark.CASES[0]
    calls = [
        call for seed in range(20) for call in benchmark.measure_portion((case, errors, 900 + seed))
    ]
    printed, right = (
        np.mean([getattr(each, name) for each in calls]) for name in ("printed", "right")
    )
    assert abs(printed - right) <= TOLERANCE
    for each in benchmark.bins_of(calls):
        chance = (each.printed * (1 - each.printed) / each.calls) ** 0.5
        assert abs(each.difference) <= TOLERANCE + 3 * chance
