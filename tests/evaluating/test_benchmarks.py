"""The harness as a library: local rows, and scores equal to a direct call."""

import gzip
import json
import sys
import warnings
from pathlib import Path

import pytest

from prefstage.core.errors import InputError, MissingDependencyError
from prefstage.evaluating.benchmarks import SUITES, BenchmarkWarning, run_benchmarks
from tests.evaluating.harness import splitter_and_languages


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


def murmurs():
    """A model of the harness whose answers are so short that their language is drawn by lot."""
    from lm_eval.api.model import LM

    class Murmurs(LM):  # type: ignore[misc] # the harness is not typed
        def loglikelihood(self, requests):
            raise AssertionError("no such requests here")

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests):
            words = ("la me so", "te amo no", "der in an", "hal o ni", "I see #### 7")
            return [words[place % len(words)] for place in range(len(requests))]

    return Murmurs()


@pytest.mark.slow
def test_ifeval_scores_are_the_same_each_time(shared: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    data = {"ifeval": shared / "data" / "ifeval_input.jsonl.gz"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BenchmarkWarning)
        runs = [run_benchmarks(murmurs(), {"ifeval": 0}, data=data) for _ in range(4)]
    assert all(run == runs[0] for run in runs)
    assert runs[0][0].rows == 541


@pytest.mark.slow
@pytest.mark.parametrize("names", [["gsm8k", "ifeval"], ["ifeval", "gsm8k"], ["ifeval"]])
def test_several_tasks_equal_one_direct_call(
    names: list[str], shared: Path, tmp_path: Path
) -> None:
    """With shots of their own, and draws that the harness takes from one generator."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    from lm_eval.tasks import TaskManager

    shots = {"gsm8k": 3, "ifeval": 0}
    files = {"gsm8k": "gsm8k_test.jsonl.gz", "ifeval": "ifeval_input.jsonl.gz"}
    data = {name: shared / "data" / files[name] for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BenchmarkWarning)
        found = run_benchmarks(
            murmurs(), {name: shots[name] for name in names}, data=data, limit=200
        )
    for name in names:
        local = {"include": str(TaskManager().task_index[name].yaml_path)}
        local |= {"task": f"direct_{name}", "dataset_path": "json", "dataset_name": None}
        local |= {"dataset_kwargs": {"data_files": {"test": str(data[name])}}}
        local |= {"training_split": None, "test_split": "test", "fewshot_split": "test"}
        local |= {"num_fewshot": shots[name]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(local))
    with splitter_and_languages(tmp_path):
        direct = lm_eval.simple_evaluate(
            model=murmurs(),
            tasks=[f"direct_{name}" for name in names],
            limit=200,
            task_manager=TaskManager(include_path=str(tmp_path)),
        )
    for each in found:
        assert each.score == direct["results"][f"direct_{each.task}"][each.metric]
        assert each.shots == shots[each.task] == direct["n-shot"][f"direct_{each.task}"]
    assert {each.task for each in found} == set(names)
    assert any(0 < each.score < 1 for each in found if each.task == "ifeval")
