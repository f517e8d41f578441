"""Benchmarks through lm-evaluation-harness, offline where their data is at hand."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from prefstage.core import (
    CAUSAL_LM,
    InputError,
    MissingDependencyError,
    adapter_config,
    load_checkpoint,
    scratch_folder,
    write_json,
)
from prefstage.data import load_tokenizer
from prefstage.measuring.rates import Figures

_PUNKT_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
_UNTRAINED = (
    "no punkt_tab of nltk in NLTK_DATA: an untrained sentence splitter stands in, which may "
    "change IFEval's counts of sentences and of words in capitals"
)


class BenchmarkWarning(UserWarning):
    """Scores may differ from those of another machine."""


# Named suites: task → number of shots.
SUITES: dict[str, dict[str, int]] = {
    # arXiv:2508.18312, Sec. 5: the shots of each task
    "data-dpo": {"mmlu": 5, "ifeval": 0, "truthfulqa_mc2": 6, "gsm8k": 8}
}


@dataclass(frozen=True)
class BenchmarkScore(Figures):
    """One metric of one task.

    Attributes:
        task: Its name in the harness.
        metric: Such as "exact_match,strict-match".
        score: In the harness's own unit, mostly a share in [0, 1].
        standard_error: Of it, where the harness gives one.
        shots: Examples in the prompt.
        rows: Rows that were scored.
    """

    task: str
    metric: str
    score: float
    standard_error: float | None
    shots: int | None
    rows: int | None

    def as_text(self) -> str:
        """The score in one line."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        return (
            f"{self.task} {self.metric}: {self.score:.4f}{error} "
            f"({self.rows} rows, {self.shots} shots)"
        )


def run_benchmarks(
    model: Any,
    tasks: Sequence[str] | Mapping[str, int | None] | str,
    *,
    data: Mapping[str, Path] | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    **harness: Any,
) -> list[BenchmarkScore]:
    """Score a model on tasks of lm-evaluation-harness.

    Args:
        model: A folder or Hub id of a model or an adapter, or a model object of the harness.
        tasks: Names; name → shots; or the name of one of `SUITES`.
        data: task → JSON or JSON-lines file with its rows, instead of the Hub's. Shots are
            then drawn from the same file, never the row that is asked.
        limit: Rows a task at most, the first ones.
        max_new_tokens: Tokens of a generated answer at most; None: as the task says.
        **harness: Further arguments of the harness's `simple_evaluate`, such as
            `batch_size`, `device`, `apply_chat_template`.

    Returns:
        Every metric of every task, as one call of the harness for these tasks gives them: what a
        row of IFEval leaves open is drawn from a generator that its tasks share, so that their
        company and order may count. Where IFEval finds no file of nltk that splits sentences,
        an untrained splitter, which knows no abbreviations, stands in, with a warning.

    Raises:
        MissingDependencyError: If the harness is not installed.
        InputError: If a suite or task is unknown, or a file is missing.
        ModelError: If the model cannot be loaded whole.

    Source:
        Gao et al., lm-evaluation-harness; shots of "data-dpo": arXiv:2508.18312.
    """
    with MissingDependencyError.instead_of(
        ImportError,
        saw="no lm-evaluation-harness ({error})",
        expected="the package lm-eval",
        cure="pip install 'prefstage[benchmarks]'",
    ):
        import lm_eval
        from lm_eval.tasks import TaskManager
    shots, files = _shots_of(tasks), dict(data or {})
    for task, file in files.items():
        InputError.unless(
            task in shots and Path(file).is_file(),
            saw=f"data of {task}: {file}",
            expected=f"a file, for one of {', '.join(shots)}",
            cure="check the task's name and the path",
        )
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        if any("ifeval" in task for task in shots):
            _settle_ifeval(stack, folder)
        index = TaskManager().task_index
        names = {task: _local_task(folder, index.get(task), task, files) for task in shots}
        manager = TaskManager(include_path=str(folder))
        wanted = {names[task]: number for task, number in shots.items()}
        _set_shots(manager, wanted)
        # one call, in which the harness's tasks share generators as in anybody's call of it
        results = lm_eval.simple_evaluate(
            tasks=list(names.values()),
            log_samples=False,
            limit=limit,
            task_manager=manager,
            **_arguments(model, folder, harness, max_new_tokens),
        )
    used = results.get("n-shot", {})
    for name, number in wanted.items():
        # a definition that says 0 keeps it, which is no surprise
        if number is not None and used.get(name, 0) not in (0, number):
            warnings.warn(
                f"{name}: asked for {number} shots, lm-evaluation-harness used {used[name]}; its "
                "scores are for those",
                BenchmarkWarning,
                stacklevel=2,
            )
    return [score for task, name in names.items() for score in _scores(task, name, results)]


# What the harness is told of the model and of its answers.
def _arguments(
    model: Any, folder: Path, harness: Mapping[str, Any], max_new_tokens: int | None
) -> dict[str, Any]:
    limit = {} if max_new_tokens is None else {"gen_kwargs": {"max_gen_toks": max_new_tokens}}
    if not isinstance(model, str | Path):
        return {"model": model, **harness, **limit}
    import torch

    # The harness would draw weights that are missing at random, and score those: they are checked.
    whole = load_checkpoint(str(model), CAUSAL_LM, dtype="auto", device_map="cpu", merge=True)
    if adapter_config(str(model)) is not None:
        # It loads an adapter on a base model, but not one on a base that has an adapter itself.
        whole.save_pretrained(folder / "merged")
        load_tokenizer(str(model)).save_pretrained(folder / "merged")
        model = folder / "merged"
    return {
        # its default is CUDA, also where there is none
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        **harness,
        "model": "hf",
        "model_args": f"pretrained={model}",
        **limit,
    }


def _set_shots(manager: Any, shots: Mapping[str, int | None]) -> None:
    # `simple_evaluate` takes one number of shots for all tasks, and several calls would not share
    # generators; so the manager loads each task, or group, with the number that is wanted.
    load = manager.load

    def load_with_shots(names: Sequence[str]) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        for name in names:
            part = load([name])
            for task in part["tasks"].values():
                # as in the harness, a task whose definition says 0 keeps it
                if shots[name] is not None and task.get_config("num_fewshot") != 0:
                    task.set_config(key="num_fewshot", value=shots[name])
            whole = {key: whole.get(key, {}) | values for key, values in part.items()}
        return whole

    manager.load = load_with_shots


# Until the stack is closed, IFEval gives the same answers the same score, on every machine.
def _settle_ifeval(stack: ExitStack, folder: Path) -> None:
    # It checks languages by langdetect, which draws at random.
    factory = import_module("langdetect").DetectorFactory
    stack.callback(setattr, factory, "seed", factory.seed)
    factory.seed = 0
    # nltk would fetch its trained file of abbreviations by network, in the midst of a run.
    nltk = import_module("nltk")  # which has no types
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        warnings.warn(_UNTRAINED, BenchmarkWarning, stacklevel=3)
        untrained = folder / "nltk" / "tokenizers" / "punkt_tab" / "english"
        untrained.mkdir(parents=True)
        for name in _PUNKT_FILES:
            (untrained / name).touch()
        nltk.data.path.append(str(folder / "nltk"))
        stack.callback(nltk.data.path.remove, str(folder / "nltk"))


def _shots_of(tasks: Sequence[str] | Mapping[str, int | None] | str) -> dict[str, int | None]:
    if isinstance(tasks, str):
        InputError.unless(
            tasks in SUITES,
            saw=f"suite {tasks!r}",
            expected=f"one of {', '.join(SUITES)}",
            cure="name a suite, or give a list of tasks",
        )
        return dict(SUITES[tasks])
    return dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks)


# The name to run; a task with a local file gets a definition that reads it.
def _local_task(folder: Path, entry: Any, task: str, files: Mapping[str, Path]) -> str:
    InputError.unless(
        entry is not None,
        saw=f"task {task!r}",
        expected="a task of lm-evaluation-harness",
        cure="list them with `lm-eval ls tasks`",
    )
    if task not in files:
        return task
    write_json(  # JSON is YAML, and quotes every path
        folder / f"{task}_local.yaml",
        {
            "include": str(entry.yaml_path),
            "task": f"{task}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(Path(files[task]).resolve())}},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "test",
        },
    )
    return f"{task}_local"


def _scores(task: str, name: str, results: Any) -> Iterator[BenchmarkScore]:
    values = results["results"][name]
    for metric, value in values.items():
        stem, comma, kind = metric.partition(",")
        if comma and not stem.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{stem}_stderr,{kind}")
            yield BenchmarkScore(
                task,
                metric,
                float(value),
                float(error) if isinstance(error, int | float) else None,
                results.get("n-shot", {}).get(name),
                results.get("n-samples", {}).get(name, {}).get("effective"),
            )
