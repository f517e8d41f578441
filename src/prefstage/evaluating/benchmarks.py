"""Benchmarks through lm-evaluation-harness, offline where their data is at hand."""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from prefstage.core.adapters import adapter_config
from prefstage.core.checkpoints import CAUSAL_LM, load_checkpoint
from prefstage.core.errors import InputError, MissingDependencyError
from prefstage.data import load_tokenizer

_PUNKT_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
_UNTRAINED = (
    "no punkt_tab of nltk in NLTK_DATA: an untrained sentence splitter stands in, which may "
    "change IFEval's counts of sentences and of words in capitals"
)


class BenchmarkWarning(UserWarning):
    """Scores may differ from those of another machine."""


SUITES: dict[str, dict[str, int]] = {
    # arXiv:2508.18312, Sec. 5: the shots of each task
    "data-dpo": {"mmlu": 5, "ifeval": 0, "truthfulqa_mc2": 6, "gsm8k": 8}
}
"""Named suites: task → number of shots."""


@dataclass(frozen=True)
class BenchmarkScore:
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

    def as_dict(self) -> dict[str, Any]:
        """The score as JSON-serialisable values."""
        return asdict(self)


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
    lm_eval, manager_of = _harness()
    shots = _shots_of(tasks)
    files = dict(data or {})
    _check_files(files, shots)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if any("ifeval" in task for task in shots):
            stack.enter_context(_sentences(Path(folder)))
            stack.enter_context(_settled_languages())
        names = _local_tasks(Path(folder), manager_of(), shots, files)
        manager = manager_of(include_path=folder)
        _set_shots(manager, {names[task]: number for task, number in shots.items()})
        # one call, in which the harness's tasks share generators as in anybody's call of it
        found = lm_eval.simple_evaluate(
            tasks=list(names.values()),
            log_samples=False,
            limit=limit,
            task_manager=manager,
            **_arguments(_whole(model, Path(folder)), harness, max_new_tokens),
        )
    _check_shots_used(found, {names[task]: number for task, number in shots.items()})
    return [each for name, local in names.items() for each in _scores(name, local, found)]


def _whole(model: Any, folder: Path) -> Any:
    """Check a model's weights, which the harness would draw where they are missing.

    An adapter is merged into a model in the folder: the harness knows one level of them.
    """
    if not isinstance(model, str | Path):
        return model
    whole = load_checkpoint(str(model), CAUSAL_LM, dtype="auto", device_map="cpu", merge=True)
    if adapter_config(str(model)) is None:
        return model
    whole.save_pretrained(folder / "merged")
    load_tokenizer(str(model)).save_pretrained(folder / "merged")
    return folder / "merged"


def _arguments(
    model: Any, harness: Mapping[str, Any], max_new_tokens: int | None
) -> dict[str, Any]:
    """What the harness is told of the model and of its answers."""
    arguments = {"model": model, **harness}
    if isinstance(model, str | Path):
        arguments |= {"model": "hf", "model_args": f"pretrained={model}"}
        arguments.setdefault("device", _device())
    if max_new_tokens is not None:
        arguments["gen_kwargs"] = {"max_gen_toks": max_new_tokens}
    return arguments


def _set_shots(manager: Any, shots: Mapping[str, int | None]) -> None:
    """Let the manager load each task, or group of tasks, with its own number of shots.

    The harness takes one number for all. As there, a task whose definition says 0 keeps it.
    """
    load = manager.load

    def load_with_shots(names: Sequence[str]) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        for name in names:
            part = load([name])
            for task in part["tasks"].values():
                if shots[name] is not None and task.get_config("num_fewshot") != 0:
                    task.set_config(key="num_fewshot", value=shots[name])
            whole = {key: whole.get(key, {}) | values for key, values in part.items()}
        return whole

    manager.load = load_with_shots


def _check_shots_used(found: Any, asked: Mapping[str, int | None]) -> None:
    """Warn where the harness says that it used other shots, save 0 by a task's definition."""
    used = found.get("n-shot", {})
    for task, number in asked.items():
        if number is not None and used.get(task, 0) not in (0, number):
            warnings.warn(
                f"{task}: asked for {number} shots, lm-evaluation-harness used {used[task]}; its "
                "scores are for those",
                BenchmarkWarning,
                stacklevel=3,
            )


def _device() -> str:
    """The harness's own default is CUDA, also where there is none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _harness() -> tuple[Any, Any]:
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependencyError.of(
            saw=f"no lm-evaluation-harness ({error})",
            expected="the package lm-eval",
            cure="pip install 'prefstage[benchmarks]'",
        ) from error
    return lm_eval, TaskManager


@contextmanager
def _sentences(folder: Path) -> Iterator[None]:
    """Let nltk split sentences without its trained file, which it would fetch by network."""
    nltk = import_module("nltk")  # which has no types
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        warnings.warn(_UNTRAINED, BenchmarkWarning, stacklevel=4)
        place = folder / "nltk"
        untrained = place / "tokenizers" / "punkt_tab" / "english"
        untrained.mkdir(parents=True)
        for name in _PUNKT_FILES:
            (untrained / name).touch()
        nltk.data.path.append(str(place))
        try:
            yield
        finally:
            nltk.data.path.remove(str(place))
    else:
        yield


@contextmanager
def _settled_languages() -> Iterator[None]:
    """Let langdetect, by which IFEval checks languages, say the same each time: it draws."""
    factory = import_module("langdetect").DetectorFactory
    before, factory.seed = factory.seed, 0
    try:
        yield
    finally:
        factory.seed = before


def _shots_of(tasks: Sequence[str] | Mapping[str, int | None] | str) -> dict[str, int | None]:
    if isinstance(tasks, str):
        if tasks not in SUITES:
            raise InputError.of(
                saw=f"suite {tasks!r}",
                expected=f"one of {', '.join(SUITES)}",
                cure="name a suite, or give a list of tasks",
            )
        return dict(SUITES[tasks])
    return dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks)


def _check_files(files: Mapping[str, Path], shots: Mapping[str, int | None]) -> None:
    for task, file in files.items():
        if task not in shots or not Path(file).is_file():
            raise InputError.of(
                saw=f"data of {task}: {file}",
                expected=f"a file, for one of {', '.join(shots)}",
                cure="check the task's name and the path",
            )


def _local_tasks(
    folder: Path, manager: Any, shots: Mapping[str, int | None], files: Mapping[str, Path]
) -> dict[str, str]:
    """Names to run by task; tasks with a file of their own get a definition that reads it."""
    names = {}
    for task in shots:
        entry = manager.task_index.get(task)
        if entry is None:
            raise InputError.of(
                saw=f"task {task!r}",
                expected="a task of lm-evaluation-harness",
                cure="list them with `lm-eval ls tasks`",
            )
        names[task] = task
        if task in files:
            names[task] = f"{task}_local"
            definition = {
                "include": str(entry.yaml_path),
                "task": names[task],
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {"test": str(Path(files[task]).resolve())}},
                "training_split": None,
                "validation_split": None,
                "test_split": "test",
                "fewshot_split": "test",
            }
            # JSON is YAML, and quotes every path
            text = json.dumps(definition)
            (folder / f"{names[task]}.yaml").write_text(text, encoding="utf-8")
    return names


def _scores(task: str, local: str, found: Any) -> list[BenchmarkScore]:
    results = found["results"][local]
    shots = found.get("n-shot", {}).get(local)
    rows = found.get("n-samples", {}).get(local, {}).get("effective")
    scores = []
    for name, value in results.items():
        metric, comma, kind = name.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{metric}_stderr,{kind}")
        error = float(error) if isinstance(error, int | float) else None
        scores.append(BenchmarkScore(task, name, float(value), error, shots, rows))
    return scores
