"""`evaluate`: win rates, ratings or benchmarks of answers or of a policy, in one folder."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefstage.core.config import check_config
from prefstage.core.errors import InputError
from prefstage.core.files import write_json
from prefstage.core.hashing import digest
from prefstage.core.ledger import Ledger
from prefstage.core.outcome import Outcome
from prefstage.core.results import write_result
from prefstage.core.runs import RunFolder
from prefstage.data.tokenizer_files import with_date
from prefstage.evaluating.alpaca_files import (
    leaderboard_row,
    read_prompt_numbers,
    write_annotations,
    write_leaderboard,
)
from prefstage.evaluating.answers import Answers, answer_prompts, load_answers, write_model_outputs
from prefstage.evaluating.comparing import (
    CheckpointTable,
    Difference,
    compare_win_rates,
    rankings_against_win_rates,
    step_of,
)
from prefstage.evaluating.difficulty import check_models, control_jointly
from prefstage.evaluating.mt_bench import load_questions, run_mt_bench
from prefstage.evaluating.recounting import recount
from prefstage.evaluating.settings import (
    EvaluateConfig,
    EvaluateSettings,
    MtBenchConfig,
    WinRateConfig,
)
from prefstage.evaluating.summaries import (
    benchmark_text,
    differences_text,
    rankings_text,
    ratings_text,
    score_text,
    win_rate_text,
)
from prefstage.evaluating.win_rates import WinRate, win_rate
from prefstage.judging import Judge, as_judge, load_judge, stored
from prefstage.measuring.sequential import prompt_order
from prefstage.sampling import LoadOptions, Sampler, SamplingConfig, load_sampler

if TYPE_CHECKING:
    from prefstage.serving import ServerClient

Source = str | Path | Answers
Policy = str | Path | Sampler

_KINDS = ("annotations", "mt_bench", "task")
# What has no effect on a kind of evaluation, and what has one on a single kind only.
_IDLE = {
    "annotations": ("dynamics", "joint_difficulty"),
    "mt_bench": (
        *("answers", "baseline", "prompt_order", "stop_early", "dynamics"),
        "joint_difficulty",
    ),
    "task": (
        *("answers", "baseline", "judge", "prompt_order", "stop_early", "references", "repeats"),
        *("temperature", "top_p", "top_k", "beams", "dynamics", "joint_difficulty"),
    ),
}
_ONLY = {
    **dict.fromkeys(("references", "repeats", "rating_tokens"), "mt_bench"),
    **dict.fromkeys(("task_data", "apply_chat_template"), "task"),
}


def evaluate(
    answers: Source | Sequence[Source] = (),
    *,
    policy: Policy | Sequence[Policy] = (),
    baseline: Source | None = None,
    judge: str | Path | Judge | None = None,
    annotations: str | Path | None = None,
    mt_bench: str | Path | None = None,
    task: str | Sequence[str] = (),
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
) -> Outcome:
    """Evaluate answers, or a policy: win rates over a baseline by any judge.

    Raw and length-controlled, with intervals; several models are also compared with one
    another. With `annotations` the win rates of verdicts that exist already; with `mt_bench`
    ratings of two-turn answers; with `task` benchmarks. Answers and verdicts are on disk as
    soon as they arrive: the same call goes on after a stop.

    Args:
        answers: A model's answers, or those of several: as for `load_answers`.
        policy: A policy that answers the baseline's prompts, or several: a spec as for
            `load_sampler`, or a sampler.
        baseline: The baseline's answers.
        judge: As for `load_judge`, or a judge.
        annotations: AlpacaEval's annotations.json; nothing is judged then.
        mt_bench: MT-bench's question.jsonl; `policy` answers, the judge is a server.
        task: Tasks of lm-evaluation-harness, TASK or TASK:SHOTS, or a suite.
        out: Run folder; needed where answers or verdicts arrive one by one.
        config: Settings of the kind of evaluation that is asked for.

    Returns:
        The figures, and the files that hold them.

    Raises:
        ConfigError: If a setting is wrong.
        InputError: If inputs of different kinds are passed, one is missing, or a setting has no
            effect.
        DataError: If a file cannot be read.
    """
    inputs = {
        "answers": _several(answers),
        "policy": _several(policy),
        "baseline": baseline,
        "judge": judge,
        "annotations": annotations,
        "mt_bench": mt_bench,
        "task": _several(task),
    }
    values = {name: getattr(config, name) for name in config.model_fields_set} if config else {}
    values |= {name: value for name, value in inputs.items() if value not in (None, ())}
    settings, folder = check_config(EvaluateSettings, values), None if out is None else Path(out)
    kind = _checked_kind(settings, folder)
    if kind == "mt_bench":
        return _grade(settings, folder)
    if kind == "task":
        return _benchmark(settings, folder)
    if kind == "annotations":
        return recount(settings, folder)
    return _win_rates(settings, folder)


def _several(value: Any) -> tuple[Any, ...]:
    single = isinstance(value, str | Path | Answers | Sampler)
    return (value,) if single else tuple(value)


def _checked_kind(settings: EvaluateSettings, out: Path | None) -> str | None:
    """The kind of evaluation; settings of several kinds, or without effect, are refused."""
    named = {name for name in settings.model_fields_set if getattr(settings, name)}
    named |= settings.sampling.model_fields_set
    named |= {"out"} if out is not None else set()
    kinds = [name for name in _KINDS if name in named]
    kind = kinds[0] if kinds else None
    idle = [name for name in _IDLE.get(kind or "", ()) if name in named]
    idle += [name for name, only in _ONLY.items() if name in named and kind != only]
    if len(kinds) > 1 or idle:
        wrong = kinds[1] if len(kinds) > 1 else idle[0]
        saw = f"{_flag(wrong)} and {_flag(kind)}" if kind else _flag(wrong)
        raise InputError.of(
            saw=saw if kind else f"{saw} without {_flag(_ONLY[wrong])}",
            expected="options of one kind of evaluation",
            cure=f"leave {_flag(wrong)} out",
        )
    if kind in (None, "annotations"):
        _check_win_rate(settings, named, kind)
        return kind
    needed = ("policy", "judge", "out") if kind == "mt_bench" else ("policy",)
    missing = [name for name in needed if name not in named]
    if missing or len(settings.policy) > 1:
        raise InputError.of(
            saw=f"{_flag(str(kind))} without {_flag(missing[0])}" if missing else "two policies",
            expected=f"one {', one '.join(map(_flag, needed))}",
            cure=f"add {_flag(missing[0])}" if missing else "evaluate them one by one",
        )
    return kind


def _check_win_rate(settings: EvaluateSettings, named: set[str], kind: str | None) -> None:
    sampling = [*settings.sampling.model_fields_set, *settings.encoding]
    if sampling and not settings.policy:
        raise InputError.of(
            saw=f"{_flag(sampling[0])} without --policy",
            expected="options of sampling beside a policy that answers",
            cure=f"leave {_flag(sampling[0])} out, or give --policy MODEL",
        )
    if settings.joint_difficulty:
        check_models(len(settings.answers) + len(settings.policy))
    judged = [name for name in ("answers", "policy", "baseline", "judge") if name in named]
    if kind == "annotations" and judged:
        raise InputError.of(
            saw=f"--annotations and --{judged[0]}",
            expected="annotations, which are judged, or answers that are to be judged",
            cure="leave one of them out",
        )
    if kind == "annotations":
        return
    needed = {"a model to evaluate": "give --answers FILE or --policy MODEL"}
    needed |= {f"--{name}": f"add --{name}" for name in ("baseline", "judge", "out")}
    present = [bool(settings.answers or settings.policy)]
    present += [name in named for name in ("baseline", "judge", "out")]
    for (expected, cure), there in zip(needed.items(), present, strict=True):
        if not there:
            raise InputError.of(saw="nothing of the kind", expected=expected, cure=cure)
    if settings.lookup != "instruction":
        raise InputError.of(
            saw=f"--lookup {settings.lookup} without --annotations",
            expected="a file whose row numbers were published",
            cure="leave it out",
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _win_rates(settings: EvaluateSettings, out: Path | None) -> Outcome:
    names = ("stop_early", "max_prompts", "confidence", "seed")
    config = check_config(WinRateConfig, {name: getattr(settings, name) for name in names})
    theirs = load_answers(settings.baseline)
    models = list(map(load_answers, settings.answers))
    who = as_judge(settings.judge)
    inputs = {
        "answers": [_fingerprint(model) for model in models],
        "policies": [getattr(policy, "fingerprint", str(policy)) for policy in settings.policy],
        "sampling": _sampling(settings) if settings.policy else {},
        "baseline": _fingerprint(theirs),
        "judge": who.fingerprint,
        "config": config.model_dump(),
    }
    with (
        RunFolder.hold(Path(str(out)), command="evaluate", inputs=inputs) as run,
        Ledger.in_folder(run.path) as ledger,
    ):
        models += [
            _answers_of(policy, theirs, settings, run.path, ledger) for policy in settings.policy
        ]
        _check_names(models)
        numbers = read_prompt_numbers(settings.prompt_order)
        judge = stored(who, ledger)
        results = {
            model.name: win_rate(model, theirs, judge=judge, config=config, prompt_numbers=numbers)
            for model in models
        }
        if settings.joint_difficulty:
            results = control_jointly(results, config)
        table = compare_win_rates(results, confidence=config.confidence) if len(results) > 1 else []
        rankings = _rankings(settings.dynamics, results)
        written = _write(run.path, models, results, table)
    text = "\n\n".join(win_rate_text(result) for result in results.values())
    return Outcome(
        "\n".join([text, *differences_text(table), *rankings_text(rankings)]),
        {
            "results": {name: result.as_dict() for name, result in results.items()},
            "comparison": [line.as_dict() for line in table],
            "rankings": None if rankings is None else rankings.as_dict(),
            "counts": dict(judge.counts),
        },
        written,
    )


def _sampling(settings: EvaluateSettings) -> dict[str, Any]:
    """What answers depend on, JSON-serialisable."""
    return {
        **settings.sampling.model_dump(),
        "seed": settings.seed,
        **settings.model_dump(include=set(settings.encoding), mode="json"),
    }


def _fingerprint(answers: Answers) -> str:
    rows = [[key, answer.text] for key, answer in answers.by_prompt.items()]
    return digest([answers.name, rows])


def _sampler(policy: Policy, settings: EvaluateSettings, out: Path, stack: ExitStack) -> Sampler:
    if isinstance(policy, Sampler):
        return policy
    chat = with_date(settings, str(policy), out)
    config = SamplingConfig(**settings.sampling.model_dump(), seed=settings.seed, responses=1)
    options = LoadOptions(**chat.encoding)
    return stack.enter_context(load_sampler(str(policy), config, options=options))


def _answers_of(
    policy: Policy, theirs: Answers, settings: EvaluateSettings, out: Path, ledger: Ledger
) -> Answers:
    # The prompts that will be judged and no others: order and limit are those of the win rate.
    order = prompt_order(list(theirs.by_prompt), seed=settings.seed)
    chosen = order[: settings.max_prompts or len(order)]
    with ExitStack() as stack:
        sampler = _sampler(policy, settings, out, stack)
        return answer_prompts(sampler, [theirs.by_prompt[key].prompt for key in chosen], ledger)


def _check_names(models: Sequence[Answers]) -> None:
    names = [model.name for model in models]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError.of(
            saw=f"two models of the name {twice[0]!r}",
            expected="each model once",
            cure="give their files different generators or names",
        )


def _write(
    folder: Path,
    models: Sequence[Answers],
    results: Mapping[str, WinRate],
    table: Sequence[Difference],
) -> list[Path]:
    """AlpacaEval's files of each model, and everything in one results.json."""
    lines = {}
    for number, (answers, result) in enumerate(zip(models, results.values(), strict=True)):
        part = folder / f"model-{number}"
        write_model_outputs(part / "model_outputs.json", answers)
        write_annotations(part / "annotations.json", result.annotations())
        write_json(part / "evaluation.json", result.as_dict())
        if result.controlled is not None:
            lines[answers.name] = leaderboard_row(
                [verdict.preference for verdict in result.verdicts],
                [len(verdict.model_answer) for verdict in result.verdicts],
                controlled=result.controlled,
            )
    written = [folder / "results.json"]
    whole = {name: result.as_dict() for name, result in results.items()}
    write_json(written[0], {"results": whole, "comparison": [line.as_dict() for line in table]})
    if lines:
        written.append(folder / "leaderboard.csv")
        write_leaderboard(written[1], lines)
    first = next(iter(results.values()))
    write_result(
        folder,
        "evaluate",
        headline="; ".join(
            f"{name} wins {result.rates.win_rate:.1f} % over {result.baseline}"
            for name, result in results.items()
        ),
        facts={"baseline": first.baseline, "judge": first.judge},
        parts=[
            {"kind": "evaluate", "iteration": number + 1, "folder": f"model-{number}"}
            for number in range(len(results))
        ],
    )
    return written


def _rankings(dynamics: Path | None, results: Mapping[str, WinRate]) -> CheckpointTable | None:
    """A training run's rankings, of held-out pairs where it followed some, and win rates."""
    if dynamics is None:
        return None
    from prefstage.training import read_metrics

    held_out = any("eval_dynamics/rankings/accuracy" in row for row in read_metrics(dynamics))
    return rankings_against_win_rates(
        dynamics,
        {step_of(name): result for name, result in results.items()},
        pairs="eval" if held_out else "train",
    )


def _grade(settings: EvaluateSettings, out: Path | None) -> Outcome:
    config = MtBenchConfig(
        repeats=settings.repeats,
        max_tokens=settings.rating_tokens,
        confidence=settings.confidence,
    )
    judge, policy = _judging_server(settings.judge), settings.policy[0]
    questions = load_questions(Path(str(settings.mt_bench)), settings.references)
    questions = questions[: settings.max_prompts]
    inputs = {
        "questions": digest([vars(question) for question in questions]),
        "policy": getattr(policy, "fingerprint", str(policy)),
        "sampling": _sampling(settings),
        "judge": judge.model or judge.base_url,
        "config": config.model_dump(),
    }
    with ExitStack() as stack:
        run = stack.enter_context(
            RunFolder.hold(Path(str(out)), command="evaluate --mt-bench", inputs=inputs)
        )
        sampler = _sampler(policy, settings, run.path, stack)
        graded = run_mt_bench(
            questions, sampler=sampler, judge=judge, folder=run.path, config=config
        )
        written = [run.path / "mt_bench.json"]
        write_json(written[0], graded.as_dict())
        headline = f"{graded.model}: score {score_text(graded.score, graded.interval)}"
        facts = {"policy": graded.model, "judge": graded.judge}
        write_result(run.path, "evaluate", headline=headline, facts=facts, parts=[])
    return Outcome(ratings_text(graded), graded.as_dict(), written)


def _judging_server(spec: object) -> "ServerClient":
    """The server behind ``openai:MODEL@URL``; its options are those of a judge."""
    from prefstage.judging.llm import LLMJudge

    judge = load_judge(spec) if isinstance(spec, str) and spec.startswith("openai:") else spec
    if not isinstance(judge, LLMJudge):
        raise InputError.of(
            saw=f"judge {spec!r}",
            expected="a chat model that writes ratings, openai:MODEL@URL",
            cure="start a server, such as `transformers serve`, and name it",
        )
    return judge.client


def _benchmark(settings: EvaluateSettings, out: Path | None) -> Outcome:
    from prefstage.evaluating.benchmarks import SUITES, BenchmarkWarning, run_benchmarks

    names, policy, sampling = settings.task, str(settings.policy[0]), settings.sampling
    suite = names[0] if len(names) == 1 and names[0] in SUITES else None
    limited = "max_new_tokens" in sampling.model_fields_set
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = run_benchmarks(
            policy,
            suite or dict(map(_task_and_shots, names)),
            data=dict(map(_task_and_file, settings.task_data)),
            limit=settings.max_prompts,
            max_new_tokens=sampling.max_new_tokens if limited else None,
            apply_chat_template=settings.apply_chat_template,
        )
    notes = [str(warned.message) for warned in caught if warned.category is BenchmarkWarning]
    dumped, written = [score.as_dict() for score in scores], []
    if out is not None:
        written = [out / "benchmarks.json"]
        write_json(written[0], dumped)
    lines = [f"{policy} by lm-evaluation-harness", *map(benchmark_text, scores)]
    lines += [f"note: {note}" for note in notes]
    return Outcome("\n".join(lines), {"policy": policy, "notes": notes, "scores": dumped}, written)


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
