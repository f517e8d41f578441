"""The harness as a library: local rows, and scores equal to a direct call."""

import gzip
import json
import sys
import warnings
from pathlib import Path

import pytest

from prefstage.core.errors import InputError, MissingDependencyError
from prefstage.evaluating.benchmarks import SUITES, BenchmarkWarning, run_benchmarks


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependencyError, match=r"prefstage\[benchmarks\]"):
        run_benchmarks("model", ["gsm8k"])


def test_the_suite_has_the_papers_shots() -> None:
    assert SUITES["data-dpo"] == {"mmlu": 5, "ifeval": 0, "truthfulqa_mc2": 6, "gsm8k": 8}


@pytest.mark.slow
def test_local_rows_give_the_harness_own_scores(shared: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    from lm_eval.api.model import LM

    class Answers(LM):  # type: ignore[misc] # the harness is not typed
        """Answers every other question right; sees whether the question is among the shots."""

        def __init__(self) -> None:
            super().__init__()
            self.prompts: list[str] = []

        def loglikelihood(self, requests):
            raise AssertionError("no such requests here")

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests):
            self.prompts += [request.args[0] for request in requests]
            return [
                request.doc["answer"] if place % 2 else "#### no"
                for place, request in enumerate(requests)
            ]

    with gzip.open(shared / "data" / "gsm8k_test.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for _, line in zip(range(30), stream, strict=False)]
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = Answers()
    found = run_benchmarks(model, {"gsm8k": 3}, data={"gsm8k": file}, limit=20, bootstrap_iters=0)
    strict = next(each for each in found if each.metric == "exact_match,strict-match")
    assert (strict.task, strict.score, strict.rows, strict.shots) == ("gsm8k", 0.5, 20, 3)
    for prompt in model.prompts:
        shots = [part.split("\nAnswer:")[0] for part in prompt.split("Question: ")[1:]]
        assert len(shots) == len(set(shots)) == 4
    assert lm_eval is not None
    with pytest.raises(InputError, match="gsm9k"):
        run_benchmarks(model, ["gsm9k"])
    with pytest.raises(InputError, match="suite"):
        run_benchmarks(model, "all")
    with pytest.raises(InputError, match="data of gsm8k"):
        run_benchmarks(model, ["gsm8k"], data={"gsm8k": tmp_path / "none"})


@pytest.mark.slow
def test_ifeval_scores_are_the_same_each_time(shared: Path) -> None:
    """Short answers, whose language langdetect would draw by lot."""
    pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    from lm_eval.api.model import LM

    class Murmurs(LM):  # type: ignore[misc] # the harness is not typed
        def loglikelihood(self, requests):
            raise AssertionError("no such requests here")

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests):
            words = ("la me so", "te amo no", "der in an", "hal o ni", "I see")
            return [words[place % len(words)] for place in range(len(requests))]

    data = {"ifeval": shared / "data" / "ifeval_input.jsonl.gz"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BenchmarkWarning)
        runs = [run_benchmarks(Murmurs(), {"ifeval": 0}, data=data) for _ in range(4)]
    assert all(run == runs[0] for run in runs)
    assert runs[0][0].rows == 541
