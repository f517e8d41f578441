import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from stage_calls import Calls

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "stage_guide.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stage_guide_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def made_up(count: int, *, printed: float, told: float, prompts: int) -> Calls:
    """Calls of one printed reliability, three quarters of them right."""
    right = np.arange(count) % 4 > 0
    return Calls(
        printed=np.full(count, printed),
        printed_told=np.full(count, told),
        right=right,
        decided=np.ones(count, dtype=bool),
        prompts=np.full(count, prompts),
        accuracy=np.full(count, 0.75),
        overlap=np.full(count, 0.5),
    )


def test_bins_hold_every_call_and_quote_those_of_many(benchmark: ModuleType) -> None:
    lines = benchmark.bin_table(
        Calls.joined(
            [
                made_up(600, printed=0.97, told=0.7, prompts=50),
                made_up(40, printed=0.55, told=0.7, prompts=50),
            ]
        )
    ).splitlines()[2:]
    assert lines == [
        "| 50% to 60% | 40 | 55.0% | 75.0% | – |",
        "| 95% to 98% | 600 | 97.0% | 75.0% | +22.0% ± 1.8% |",
    ]


def test_parts_are_those_of_the_judge_and_of_the_measurement(benchmark: ModuleType) -> None:
    kinds = {
        "any pair": made_up(800, printed=0.75, told=0.72, prompts=25),
        "close pairs": made_up(800, printed=0.75, told=0.78, prompts=400),
    }
    lines = benchmark.part_table(kinds).splitlines()
    assert lines[0] == "| judges | 70% to 80% |"
    parts = dict(line.strip("| ").split(" | ") for line in lines[2:])
    assert parts["errs in any pair, told"] == "-3.0% ± 1.5%"
    assert parts["errs in close pairs, told"] == "+3.0% ± 1.5%"
    assert parts["errs in close pairs, not told"] == "+0.0% ± 1.5%"
    quoted = {name for name, cell in parts.items() if cell == "+0.0% ± 1.1%"}
    assert quoted == {"right in 75% to 85%", "overlap 50%"}
    assert parts["right in 65% to 75%"] == "–"
    assert parts["1 to 25 prompts"] == parts["101 to 400 prompts"] == "+0.0% ± 1.5%"


def test_a_case_is_a_line_with_its_worst_bin(benchmark: ModuleType) -> None:
    calls = made_up(600, printed=0.97, told=0.7, prompts=50)
    assert benchmark.case_line(benchmark.CASES[0], "any pair", calls) == (
        "| as told | any pair | 600 | 100% | 97.0% | 75.0% | 22.0% | +22.0% ± 1.8% |"
    )


def test_each_kind_of_judge_gets_its_part_of_the_worlds(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def measured(job: tuple[object, str, tuple[int, ...]]) -> Calls:
        done.append(job[1:])
        return made_up(benchmark.PORTION, printed=0.9, told=0.9, prompts=50)

    monkeypatch.setattr(benchmark, "get_context", lambda method: InThisProcess())
    monkeypatch.setattr(benchmark, "measure_portion", measured)
    parts = list(benchmark.measure_all(benchmark.CASES[1], benchmark.ERRORS, 800, 9, 1))
    assert [len(calls.right) for calls in parts] == [400, 400]
    assert done == [
        ("any pair", (9, 1, 0, 0)), ("any pair", (9, 1, 0, 1)),
        ("close pairs", (9, 1, 1, 0)), ("close pairs", (9, 1, 1, 1)),
    ]  # fmt: skip


class InThisProcess:
    """Stands for multiprocessing: a pool that works here."""

    def Pool(self, processes: int) -> "InThisProcess":  # noqa: N802 - the name of multiprocessing
        assert processes == 1
        return self

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    imap = staticmethod(map)
