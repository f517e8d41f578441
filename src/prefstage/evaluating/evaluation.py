"""`evaluate`: win rates, ratings or benchmarks of answers or of a policy, in one folder."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from prefstage.core import (
    LEDGER,
    InputError,
    Ledger,
    Outcome,
    check_config,
    digest,
    run_folder,
    write_json,
    write_result,
)
from prefstage.data.rendering import with_date
from prefstage.evaluating.answers import (
    Annotation,
    Answers,
    answer_prompts,
    load_answers,
    read_annotations,
    read_prompt_numbers,
    write_annotations,
    write_model_outputs,
)
from prefstage.evaluating.comparing import (
    CheckpointTable,
    compare_win_rates,
    rankings_against_win_rates,
    step_of,
)
from prefstage.evaluating.leaderboards import write_leaderboard
from prefstage.evaluating.mt_bench import load_questions, run_mt_bench
from prefstage.evaluating.settings import (
    EvaluateConfig,
    EvaluateSettings,
    MtBenchConfig,
    WinRateConfig,
    kind_of,
)
from prefstage.evaluating.win_rates import (
    WinRate,
    columns_of,
    control_jointly,
    win_rate,
)
from prefstage.judging import Judge, as_judge, load_judge, stored
from prefstage.judging.llm import LLMJudge
from prefstage.measuring.boundary import prompt_order
from prefstage.measuring.length_controlled import (
    FEWEST_CONTROLLED,
    LengthControlledWinRate,
    leaderboard_row,
)
from prefstage.measuring.length_interval import controlled_rate
from prefstage.measuring.rates import Rates, rates_of
from prefstage.sampling import LoadOptions, Sampler, SamplingConfig, load_sampler

Source = str | Path | Answers
Policy = str | Path | Sampler


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
    values = {
        **({name: getattr(config, name) for name in config.model_fields_set} if config else {}),
        **{name: value for name, value in inputs.items() if value not in (None, ())},
    }
    settings, folder = check_config(EvaluateSettings, values), None if out is None else Path(out)
    ways = {"annotations": _recount, "mt_bench": _grade, "task": _benchmark, "": _win_rates}
    return ways[kind_of(settings, folder)](settings, folder)


def _several(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | Path | Answers | Sampler) else tuple(value)


def _win_rates(settings: EvaluateSettings, out: Path | None) -> Outcome:
    config = check_config(
        WinRateConfig,
        settings.model_dump(include={"stop_early", "max_prompts", "confidence", "seed"}),
    )
    theirs, who = load_answers(settings.baseline, seed=settings.seed), as_judge(settings.judge)
    models = [load_answers(answers, seed=settings.seed) for answers in settings.answers]
    inputs = {
        "answers": [_fingerprint(model) for model in models],
        "policies": [getattr(policy, "fingerprint", str(policy)) for policy in settings.policy],
        "sampling": _sampling(settings) if settings.policy else {},
        "baseline": _fingerprint(theirs),
        "judge": who.fingerprint,
        "config": config.model_dump(),
    }
    # The prompts that will be judged and no others: order and limit are those of the win rate.
    order = prompt_order(list(theirs.by_prompt), seed=settings.seed)
    prompts = [theirs.by_prompt[key].prompt for key in order[: settings.max_prompts]]
    with (
        run_folder(Path(str(out)), command="evaluate", inputs=inputs) as folder,
        Ledger(folder / LEDGER) as ledger,
    ):
        for policy in settings.policy:
            with _sampler(policy, settings, folder) as sampler:
                models.append(answer_prompts(sampler, prompts, ledger))
        name, count = Counter(model.name for model in models).most_common(1)[0]
        InputError.unless(
            count <= 1,
            saw=f"two models of the name {name!r}",
            expected="each model once",
            cure="give their files different generators or names",
        )
        judge, numbers = stored(who, ledger), read_prompt_numbers(settings.prompt_order)
        results = {
            model.name: win_rate(model, theirs, judge=judge, config=config, prompt_numbers=numbers)
            for model in models
        }
        if settings.joint_difficulty:
            results = control_jointly(results, config)
        table = compare_win_rates(results, confidence=config.confidence) if len(results) > 1 else []
        rankings = None if settings.dynamics is None else _rankings(settings.dynamics, results)
        figures: dict[str, Any] = {
            "results": {name: result.as_dict() for name, result in results.items()},
            "comparison": [line.as_dict() for line in table],
            "rankings": rankings and rankings.as_dict(),
            "counts": dict(judge.counts),
        }
        written = _write(folder, models, results, figures) + _draw(settings, rankings, folder)
    return Outcome(
        "\n".join(
            [
                "\n\n".join(result.as_text() for result in results.values()),
                *(["", "differences (all intervals and p-values hold at once):"] if table else []),
                *(line.as_text() for line in table),
                *(["", rankings.as_text()] if rankings else []),
            ]
        ),
        figures,
        written,
    )


def _rankings(dynamics: Path, results: Mapping[str, WinRate]) -> CheckpointTable:
    from prefstage.training import read_metrics

    end = "dynamics/rankings/accuracy"
    keys = chain.from_iterable(read_metrics(dynamics))
    # Held-out pairs go before those that were trained on, whatever the name of their set.
    held_out = (
        k.removesuffix(f"_{end}") for k in keys if k.startswith("eval_") and k.endswith(end)
    )
    return rankings_against_win_rates(
        dynamics,
        {step_of(name): result for name, result in results.items()},
        pairs=next(held_out, "train"),
    )


def _draw(settings: EvaluateSettings, rankings: CheckpointTable | None, folder: Path) -> list[Path]:
    from prefstage.training import draw_dynamics

    if rankings is None or settings.dynamics is None or find_spec("matplotlib") is None:
        return []
    return draw_dynamics(
        settings.dynamics,
        out=folder / "figures",
        set_name=rankings.pairs,
        win_rates={line.step: line.win_rate / 100 for line in rankings.checkpoints},
    )


# What answers depend on, JSON-serialisable.
def _sampling(settings: EvaluateSettings) -> dict[str, Any]:
    return {
        **settings.sampling.model_dump(),
        "seed": settings.seed,
        **settings.model_dump(include=set(settings.encoding), mode="json"),
    }


def _fingerprint(answers: Answers) -> str:
    return digest([answers.name, [[key, row.text] for key, row in answers.by_prompt.items()]])


# What is loaded here (a server, a model) is closed at the end; a sampler that was brought stays.
def _sampler(
    policy: Policy, settings: EvaluateSettings, out: Path
) -> AbstractContextManager[Sampler]:
    if isinstance(policy, Sampler):
        return nullcontext(policy)
    return load_sampler(
        str(policy),
        SamplingConfig(**settings.sampling.model_dump(), seed=settings.seed, responses=1),
        options=LoadOptions(**with_date(settings, str(policy), out).encoding),
    )


# AlpacaEval's files of each model, and everything in one results.json.
def _write(
    folder: Path,
    models: Sequence[Answers],
    results: Mapping[str, WinRate],
    figures: Mapping[str, Any],
) -> list[Path]:
    for number, (answers, result) in enumerate(zip(models, results.values(), strict=True)):
        part = folder / f"model-{number}"
        write_model_outputs(part / "model_outputs.json", answers)
        write_annotations(part / "annotations.json", result.verdicts)
        write_json(part / "evaluation.json", result.as_dict())
    lines = {
        name: leaderboard_row(
            [verdict.preference for verdict in result.verdicts],
            [len(verdict.output_2) for verdict in result.verdicts],
            controlled=result.controlled,
        )
        for name, result in results.items()
        if result.controlled is not None
    }
    written = [folder / "results.json"]
    write_json(written[0], figures)
    if lines:
        written.append(folder / "leaderboard.csv")
        write_leaderboard(written[1], lines)
    write_result(
        folder,
        "evaluate",
        headline="; ".join(
            f"{name} wins {result.rates.win_rate:.1f} % over {result.baseline}"
            for name, result in results.items()
        ),
        facts={"baseline": result.baseline, "judge": result.judge},  # those of every model
        parts=[
            {"kind": "evaluate", "iteration": number + 1, "folder": f"model-{number}"}
            for number in range(len(results))
        ],
    )
    return written


# The win rates of verdicts that exist. Gamed rows take part for AlpacaEval's prompts alone. On
# other prompts, few verdicts are too few to control for length; the raw rates are computed all the
# same.
def _recount(settings: EvaluateSettings, out: Path | None) -> Outcome:
    rows = read_annotations(Path(str(settings.annotations)))
    InputError.unless(
        len({(row.generator_1, row.generator_2) for row in rows}) <= 1,
        saw=f"{settings.annotations} has verdicts on several models or baselines",
        expected="one model and one baseline",
        cure="write one file a model",
    )
    numbers = read_prompt_numbers(settings.prompt_order)
    known = [None if numbers is None else numbers.get(row.instruction) for row in rows]
    strange = known.count(None) if numbers is not None else 0
    regularise = None not in known or settings.lookup != "instruction"
    rates, interval = _rates(settings, rows, None if None in known else known, regularise)
    controlled = rates if isinstance(rates, LengthControlledWinRate) else None
    notes = [
        *([f"{strange} prompts are none of AlpacaEval's"] if strange else []),
        *(
            ["judging might have stopped early: intervals are wider, and hold there"]
            if any(row.error_share != 1 for row in rows)
            else []
        ),
        *(
            controlled.notes
            if controlled
            else [f"{rates.n_total} verdicts are too few to control for length"]
        ),
    ]
    model, baseline, written = rows[0].generator_2, rows[0].generator_1, list[Path]()
    if out is not None and controlled is not None:
        written.append(out / "leaderboard.csv")
        lengths = [len(row.output_2) for row in rows]
        line = leaderboard_row([row.preference for row in rows], lengths, controlled=controlled)
        write_leaderboard(written[0], {model: line})
    if out is not None:
        written.append(out / "results.json")
        write_json(written[-1], rates.as_dict())
    return Outcome(
        "\n".join(
            [
                f"{model} over {baseline}, {rates.n_total} verdicts by {rows[0].annotator or '?'}",
                f"win rate {rates.win_rate:.2f} % ± {rates.standard_error:.2f}"
                + ("" if controlled else " [{:.2f}, {:.2f}]".format(*interval))
                + f", discrete {rates.discrete_win_rate:.2f} %",
                *([controlled.as_text(interval)] if controlled else []),
                *(f"note: {note}" for note in notes),
            ]
        ),
        rates.as_dict()
        | {"interval": [*interval], "model": model, "baseline": baseline, "notes": notes},
        written,
    )


# The rates, length-controlled where there are enough verdicts, and an interval that holds as asked,
# also where judging might have stopped.
def _rates(
    settings: EvaluateSettings,
    rows: Sequence[Annotation],
    numbers: Sequence[int | None] | None,
    regularise: bool,
) -> tuple[Rates | LengthControlledWinRate, tuple[float, float]]:
    preferences = [row.preference for row in rows]
    at_stop = float(1 - (1 - settings.confidence) * min(row.error_share for row in rows))
    if not regularise and np.isfinite(preferences).sum() < FEWEST_CONTROLLED:
        raw = rates_of(preferences, confidence=at_stop, seed=settings.seed)
        return replace(raw, confidence=settings.confidence), raw.interval
    return controlled_rate(
        **columns_of(rows),
        confidence=at_stop,
        seed=settings.seed,
        instruction=numbers,
        lookup=settings.lookup,
        regularise=regularise,
    )


def _grade(settings: EvaluateSettings, out: Path | None) -> Outcome:
    policy, spec = settings.policy[0], settings.judge
    judge = load_judge(spec) if isinstance(spec, str) and spec.startswith("openai:") else spec
    if not isinstance(judge, LLMJudge):
        raise InputError.of(
            saw=f"judge {spec!r}",
            expected="a chat model that writes ratings, openai:MODEL@URL",
            cure="start a server, such as `transformers serve`, and name it",
        )
    # The ratings are asked of the judge's server itself, with the judge's options.
    server = judge.client
    config = MtBenchConfig(
        repeats=settings.repeats,
        max_tokens=settings.rating_tokens,
        confidence=settings.confidence,
    )
    questions = load_questions(Path(str(settings.mt_bench)), settings.references)
    questions = questions[: settings.max_prompts]
    inputs = {
        "questions": digest([vars(question) for question in questions]),
        "policy": getattr(policy, "fingerprint", str(policy)),
        "sampling": _sampling(settings),
        "judge": server.model or server.base_url,
        "config": config.model_dump(),
    }
    with (
        run_folder(Path(str(out)), command="evaluate --mt-bench", inputs=inputs) as folder,
        _sampler(policy, settings, folder) as sampler,
    ):
        graded = run_mt_bench(
            questions, sampler=sampler, judge=server, folder=folder, config=config
        )
        written = [folder / "mt_bench.json"]
        write_json(written[0], graded.as_dict())
        write_result(
            folder,
            "evaluate",
            headline=f"{graded.model}: score {graded.shown_score}",
            facts={"policy": graded.model, "judge": graded.judge},
            parts=[],
        )
    return Outcome(graded.as_text(), graded.as_dict(), written)


def _benchmark(settings: EvaluateSettings, out: Path | None) -> Outcome:
    from prefstage.evaluating.benchmarks import SUITES, BenchmarkWarning, run_benchmarks

    policy, sampling = str(settings.policy[0]), settings.sampling
    shots, files = dict[str, int | None](), dict[str, Path]()
    for text in settings.task:
        name, colon, count = text.partition(":")
        InputError.unless(
            not colon or count.isdecimal(),
            saw=f"--task {text}",
            expected="TASK or TASK:SHOTS",
            cure="write gsm8k:8",
        )
        shots[name] = int(count) if colon else None
    for text in settings.task_data:
        name, equals, path = text.partition("=")
        InputError.unless(
            equals,
            saw=f"--task-data {text}",
            expected="TASK=FILE",
            cure="write gsm8k=gsm8k_test.jsonl",
        )
        files[name] = Path(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = run_benchmarks(
            policy,
            settings.task[0] if len(settings.task) == 1 and settings.task[0] in SUITES else shots,
            data=files,
            limit=settings.max_prompts,
            max_new_tokens=sampling.max_new_tokens
            if "max_new_tokens" in sampling.model_fields_set
            else None,
            apply_chat_template=settings.apply_chat_template,
        )
    notes = [str(warned.message) for warned in caught if warned.category is BenchmarkWarning]
    dumped, written = [score.as_dict() for score in scores], []
    if out is not None:
        written = [out / "benchmarks.json"]
        write_json(written[0], dumped)
    return Outcome(
        "\n".join(
            [
                f"{policy} by lm-evaluation-harness",
                *(score.as_text() for score in scores),
                *(f"note: {note}" for note in notes),
            ]
        ),
        {"policy": policy, "notes": notes, "scores": dumped},
        written,
    )
