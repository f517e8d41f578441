"""`prefstage evaluate` with --mt-bench or --task: ratings and benchmarks of one policy."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefstage.cli.chat_options import chat_settings
from prefstage.core.config import load_config
from prefstage.core.errors import InputError
from prefstage.core.files import write_json
from prefstage.core.results import write_result
from prefstage.data.settings import CHAT_SETTINGS

if TYPE_CHECKING:
    from prefstage.evaluating import CheckpointTable, MtBench, WinRate
    from prefstage.evaluating.benchmarks import BenchmarkScore
    from prefstage.serving import ServerClient

_KINDS = ("annotations", "mt_bench", "task")
_OTHERS = {
    "annotations": ("dynamics", "joint_difficulty"),
    "mt_bench": (
        *("answers", "baseline", "prompt_order", "stop_early", "dynamics"),
        "joint_difficulty",
    ),
    "task": (
        *("answers", "baseline", "judge", "prompt_order", "stop_early", "references"),
        *("repeats", "temperature", "top_p", "top_k", "beams", "dynamics", "joint_difficulty"),
    ),
}
_OF_KINDS = {
    **dict.fromkeys(("references", "repeats", "rating_tokens"), "mt_bench"),
    **dict.fromkeys(("task_data", "apply_chat_template"), "task"),
}

_OF_POLICIES = ("temperature", "top_p", "top_k", "beams", "max_new_tokens", *CHAT_SETTINGS)


def check_kind(given: Mapping[str, Any]) -> None:
    """Refuse options of different kinds of evaluation together.

    Args:
        given: The command's options by name.

    Raises:
        InputError: If two kinds are asked for, or an option has no effect.
    """
    kinds = [name for name in _KINDS if given[name] is not None]
    kind = kinds[0] if kinds else None
    useless = [name for name in _OTHERS.get(kind or "", ()) if given[name]]
    useless += [
        name for name, of in _OF_KINDS.items() if given[name] not in (None, False) and kind != of
    ]
    if len(kinds) > 1 or useless:
        wrong = kinds[1] if len(kinds) > 1 else useless[0]
        saw = f"{_option(wrong)}{f' and {_option(kind)}' if kind else ''}"
        raise InputError.of(
            saw=f"{saw}{'' if kind else f' without {_option(_OF_KINDS[wrong])}'}",
            expected="options of one kind of evaluation",
            cure=f"leave {_option(wrong)} out",
        )
    if kind in (None, "annotations"):
        _check_sampled(given)
        if given["joint_difficulty"]:
            from prefstage.evaluating.difficulty import check_models

            check_models(len(given["answers"] or ()) + len(given["policy"] or ()))
        return
    needed = ("policy", "judge", "out") if kind == "mt_bench" else ("policy",)
    missing = [name for name in needed if not given[name]]
    if missing or len(given["policy"]) > 1:
        raise InputError.of(
            saw=f"{_option(kind)} without {_option(missing[0])}" if missing else "two policies",
            expected=f"one {', one '.join(_option(name) for name in needed)}",
            cure=f"add {_option(missing[0])}" if missing else "evaluate them one by one",
        )


def _check_sampled(given: Mapping[str, Any]) -> None:
    idle = [name for name in _OF_POLICIES if given[name] is not None]
    if idle and not given["policy"]:
        raise InputError.of(
            saw=f"{_option(idle[0])} without --policy",
            expected="options of sampling beside a policy that answers",
            cure=f"leave {_option(idle[0])} out, or give --policy MODEL",
        )


def grade(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run MT-bench.

    Args:
        given: The command's options by name.

    Returns:
        The result as JSON, with "summary" and "written".
    """
    from prefstage.core.hashing import digest
    from prefstage.core.runs import RunFolder
    from prefstage.data.tokenizer_files import with_date
    from prefstage.evaluating import MtBenchConfig, load_questions, run_mt_bench
    from prefstage.sampling import LoadOptions, SamplingConfig, load_sampler

    names = ("repeats", "confidence")
    told = {name: given[name] for name in names} | {"max_tokens": given["rating_tokens"]}
    config = load_config(MtBenchConfig, None, told)
    sampling = ("temperature", "top_p", "top_k", "max_new_tokens", "beams", "seed")
    settings = load_config(SamplingConfig, None, {name: given[name] for name in sampling})
    judge = _judging_server(given["judge"])
    questions = load_questions(given["mt_bench"], given["references"])[: given["max_prompts"]]
    inputs = {
        "questions": digest([vars(each) for each in questions]),
        "policy": given["policy"][0],
        "sampling": settings.model_dump() | chat_settings(given).model_dump(mode="json"),
        "judge": judge.model or judge.base_url,
        "config": config.model_dump(),
    }
    run = RunFolder.open(given["out"], command="evaluate --mt-bench", inputs=inputs)
    chat = chat_settings(given)
    with ExitStack() as stack:
        sampler = load_sampler(
            given["policy"][0],
            settings.model_copy(update={"responses": 1}),
            options=LoadOptions(**with_date(chat, given["policy"][0], given["out"]).encoding),
        )
        if isinstance(sampler, AbstractContextManager):
            stack.enter_context(sampler)
        found = run_mt_bench(
            questions, sampler=sampler, judge=judge, folder=run.path, config=config
        )
    written = [run.file("mt_bench.json")]
    write_json(written[0], found.as_dict())
    facts = {"policy": found.model, "judge": found.judge}
    write_result(
        run.path,
        "evaluate",
        headline=f"{found.model}: score {_rating(found.score)}{_between(found.interval)}",
        facts=facts,
        parts=[],
    )
    return found.as_dict() | {"summary": _ratings(found), "written": written}


def benchmark(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness.

    Args:
        given: The command's options by name.

    Returns:
        The scores as JSON, with "summary" and "written".
    """
    from prefstage.evaluating.benchmarks import SUITES, BenchmarkWarning, run_benchmarks

    names: list[str] = given["task"]
    suite = names[0] if len(names) == 1 and names[0] in SUITES else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run_benchmarks(
            given["policy"][0],
            suite or dict(map(_task_and_shots, names)),
            data=dict(map(_task_and_file, given["task_data"] or ())),
            limit=given["max_prompts"],
            max_new_tokens=given["max_new_tokens"],
            apply_chat_template=given["apply_chat_template"],
        )
    notes = [str(each.message) for each in caught if each.category is BenchmarkWarning]
    written = []
    if given["out"] is not None:
        written = [given["out"] / "benchmarks.json"]
        write_json(written[0], [each.as_dict() for each in found])
    lines = [f"{given['policy'][0]} by lm-evaluation-harness", *map(_scored, found)]
    lines += [f"note: {note}" for note in notes]
    result: dict[str, Any] = {"policy": given["policy"][0], "notes": notes}
    result["scores"] = [each.as_dict() for each in found]
    return result | {"summary": "\n".join(lines), "written": written}


def rank(dynamics: Path | None, results: "Mapping[str, WinRate]") -> "CheckpointTable | None":
    """Put a training run's rankings beside its checkpoints' win rates.

    Args:
        dynamics: The run's records; None for no table.
        results: Win rates by the checkpoints' names, checkpoint-STEP.

    Returns:
        The table, of held-out pairs where the run followed some.
    """
    if dynamics is None:
        return None
    from prefstage.evaluating.comparing import rankings_against_win_rates, step_of
    from prefstage.training import read_metrics

    held_out = any("eval_dynamics/rankings/accuracy" in each for each in read_metrics(dynamics))
    return rankings_against_win_rates(
        dynamics,
        {step_of(name): each for name, each in results.items()},
        pairs="eval" if held_out else "train",
    )


def ranked(table: "CheckpointTable | None") -> list[str]:
    """The table as lines for people.

    Args:
        table: From `rank`.

    Returns:
        A heading and a line a checkpoint; nothing without a table.
    """
    if table is None:
        return []
    lines = ["", f"rankings of the {table.pairs} pairs beside win rates:"]
    for each in table.checkpoints:
        distance = "" if each.weight_distance is None else f", distance {each.weight_distance:.4g}"
        lines.append(
            f"  step {each.step}: ranking accuracy {100 * each.ranking_accuracy:.1f} %, "
            f"win rate {each.win_rate:.2f} %{_between(each.interval)}{distance}"
        )
    if table.correlation is not None:
        lines.append(f"  correlation over the checkpoints {table.correlation:+.2f}")
    return lines


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _judging_server(spec: str) -> "ServerClient":
    """The server behind ``openai:MODEL@URL``; its options are those of a judge."""
    from prefstage.judging import load_judge
    from prefstage.judging.llm import LLMJudge

    judge = load_judge(spec) if spec.startswith("openai:") else None
    if not isinstance(judge, LLMJudge):
        raise InputError.of(
            saw=f"judge {spec!r}",
            expected="a chat model that writes ratings, openai:MODEL@URL",
            cure="start a server, such as `transformers serve`, and name it",
        )
    return judge.client


def _task_and_shots(text: str) -> tuple[str, int | None]:
    name, colon, shots = text.partition(":")
    if colon and not shots.isdecimal():
        raise InputError.of(
            saw=f"--task {text}", expected="TASK or TASK:SHOTS", cure="write gsm8k:8"
        )
    return name, int(shots) if colon else None


def _task_and_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        raise InputError.of(
            saw=f"--task-data {text}", expected="TASK=FILE", cure="write gsm8k=gsm8k_test.jsonl"
        )
    return name, Path(path)


def _ratings(found: "MtBench") -> str:
    lines = [
        f"{found.model} on MT-bench by {found.judge}: {len(found.grades)} gradings,"
        f" {found.missing} without a readable rating",
        f"score {_rating(found.score)}{_between(found.interval)}, "
        + ", ".join(f"turn {k} {_rating(each)}" for k, each in enumerate(found.by_turn, 1)),
        *(f"  {name:<12} {_rating(each)}" for name, each in found.by_category.items()),
    ]
    if found.repeat_deviation is not None:
        lines.append(f"standard deviation over repeated gradings {found.repeat_deviation:.2f}")
    lines.append(", ".join(f"{count} {what}" for what, count in found.counts.items()))
    return "\n".join(lines)


def _rating(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _between(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"


def _scored(one: "BenchmarkScore") -> str:
    error = "" if one.standard_error is None else f" ± {one.standard_error:.4f}"
    return f"{one.task} {one.metric}: {one.score:.4f}{error} ({one.rows} rows, {one.shots} shots)"
