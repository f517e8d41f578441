"""`prefstage evaluate`: how good is a policy?"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.cli.chat_options import (
    ChatFormat,
    ControlTokensOption,
    TemplateDate,
    TemplateOptions,
    chat_settings,
)
from prefstage.cli.evaluate_recount import recount
from prefstage.cli.evaluate_tasks import benchmark, check_kind, grade, rank, ranked
from prefstage.cli.manners import Outcome, mannered, say
from prefstage.core.config import load_config
from prefstage.core.errors import InputError
from prefstage.core.files import write_json
from prefstage.core.results import write_result

if TYPE_CHECKING:
    from prefstage.core.ledger import Ledger
    from prefstage.evaluating import Answers, CheckpointTable, Difference, WinRate

Text = str | None
Number = int | None
Real = float | None


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text)


Given = Annotated[
    list[str] | None,
    _option(
        "Answers of a model: model_outputs.json, or any candidates; FILE#WRITER for one of "
        "several writers. Repeat it to compare checkpoints.",
        "--answers",
    ),
]
Policy = Annotated[
    list[str] | None,
    _option(
        "A policy that answers the baseline's prompts: model folder or Hub id, "
        "openai:MODEL@URL, serve:COMMAND. Repeat it to compare checkpoints.",
        "--policy",
    ),
]
Baseline = Annotated[Text, _option("The baseline's answers, as for --answers.")]
JudgeSpec = Annotated[
    Text,
    _option(
        "reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, python:module:function, "
        "or a checkpoint."
    ),
]
AnnotationsFile = Annotated[
    Path | None, _option("AlpacaEval's annotations.json: judged already; nothing is bought.")
]
Out = Annotated[
    Path | None, _option("Folder of results. The same command goes on in it after a stop.")
]
PromptOrder = Annotated[
    Path | None,
    _option("AlpacaEval's alpaca_eval.json, for its difficulties [local Hub cache]."),
]
MtBenchFile = Annotated[
    Path | None,
    _option(
        "MT-bench's question.jsonl: the policy answers both turns, the judge rates each.",
        "--mt-bench",
    ),
]
References = Annotated[
    Path | None, _option("Reference answers of MT-bench, for math, coding and reasoning.")
]
Tasks = Annotated[
    list[str] | None,
    _option(
        "Task of lm-evaluation-harness, TASK or TASK:SHOTS, or the suite data-dpo. Repeat it.",
        "--task",
    ),
]
TaskData = Annotated[
    list[str] | None,
    _option("TASK=FILE: the task's rows from a local file, JSON lines or gzip.", "--task-data"),
]
Joint = Annotated[
    bool,
    _option(
        "Estimate the prompts' difficulty from all models together (three or more), for "
        "length control on prompts other than AlpacaEval's.",
        "--joint-difficulty",
    ),
]
ChatTemplate = Annotated[
    bool,
    _option("Put the task's prompts into the model's chat template.", "--apply-chat-template"),
]
Lookup = Annotated[
    str, _option("Difficulty by instruction, or as-published (by row, with --annotations).")
]


@mannered
def evaluate(
    *,
    answers: Given = None,
    policy: Policy = None,
    baseline: Baseline = None,
    judge: JudgeSpec = None,
    annotations: AnnotationsFile = None,
    out: Out = None,
    prompt_order: PromptOrder = None,
    joint_difficulty: Joint = False,
    lookup: Lookup = "instruction",
    mt_bench: MtBenchFile = None,
    references: References = None,
    repeats: Annotated[Number, _option("Gradings of each answer of MT-bench [1].")] = None,
    rating_tokens: Annotated[Number, _option("Tokens of a grading at most [1024].")] = None,
    dynamics: Annotated[
        Path | None, _option("Records of the run whose checkpoints these are: rankings beside.")
    ] = None,
    task: Tasks = None,
    task_data: TaskData = None,
    apply_chat_template: ChatTemplate = False,
    stop_early: Annotated[
        bool, _option("Stop when it is decided which of the two is better.", "--stop-early")
    ] = False,
    max_prompts: Annotated[Number, _option("Prompts, questions or a task's rows at most.")] = None,
    confidence: Annotated[Real, _option("Of all intervals [0.95].")] = None,
    seed: Annotated[Number, _option("Of order, bootstrap and sampling [0].")] = None,
    temperature: Annotated[Real, _option("Of sampling [0.7].")] = None,
    top_p: Annotated[Real, _option("Of sampling [0.9].")] = None,
    top_k: Annotated[Number, _option("Of sampling [50].")] = None,
    max_new_tokens: Annotated[Number, _option("Tokens a response [1024].")] = None,
    beams: Annotated[Number, _option("Beam search over so many; no servers [1].")] = None,
    chat_format: ChatFormat = None,
    template_options: TemplateOptions = None,
    template_date: TemplateDate = None,
    control_tokens: ControlTokensOption = None,
    as_json: Annotated[bool, _option("Print JSON and nothing else.", "--json")] = False,
) -> None:
    """Win rate of answers, or of a policy, over a baseline by any judge.

    Raw and length-controlled, with intervals; several models are also compared with each
    other. With --annotations the win rates of verdicts that exist already; with --mt-bench
    ratings of two-turn answers; with --task benchmarks. Answers and verdicts are on disk as
    soon as they arrive: the same command goes on after a stop.
    """
    given = dict(locals())
    check_kind(given)
    if mt_bench is not None:
        result = grade(given)
    elif task is not None:
        result = benchmark(given)
    else:
        _check(given)
        result = recount(given) if annotations is not None else _evaluate(given)
    summary, written = result.pop("summary"), result.pop("written")
    say(Outcome(summary, result, written), as_json=as_json)


def _check(given: Mapping[str, Any]) -> None:
    judged = [name for name in ("answers", "policy", "baseline", "judge") if given[name]]
    if given["annotations"] is not None and judged:
        raise InputError.of(
            saw=f"--annotations and --{judged[0]}",
            expected="annotations, which are judged, or answers that are to be judged",
            cure="leave one of them out",
        )
    if given["annotations"] is None:
        if not (given["answers"] or given["policy"]):
            _need("a model to evaluate", "give --answers FILE or --policy MODEL")
        for name in ("baseline", "judge", "out"):
            if not given[name]:
                _need(f"--{name}", f"add --{name}")
        if given["lookup"] != "instruction":
            raise InputError.of(
                saw=f"--lookup {given['lookup']} without --annotations",
                expected="a file whose row numbers were published",
                cure="leave it out",
            )


def _need(expected: str, cure: str) -> None:
    raise InputError.of(saw="nothing of the kind", expected=expected, cure=cure)


def _evaluate(given: Mapping[str, Any]) -> dict[str, Any]:
    from prefstage.core.ledger import Ledger
    from prefstage.core.runs import RunFolder
    from prefstage.evaluating import WinRateConfig, control_jointly, load_answers, win_rate
    from prefstage.evaluating.alpaca_files import read_prompt_numbers
    from prefstage.judging import load_judge, stored

    names = ("stop_early", "max_prompts", "confidence", "seed")
    config = load_config(WinRateConfig, None, {name: given[name] for name in names})
    theirs = load_answers(given["baseline"])
    ours = [load_answers(each) for each in given["answers"] or ()]
    who = load_judge(given["judge"])
    inputs = {
        "answers": [_fingerprint(each) for each in ours],
        "policies": list(given["policy"] or ()),
        "sampling": {name: given[name] for name in _SAMPLING if given[name] is not None}
        | chat_settings(given).model_dump(mode="json"),
        "baseline": _fingerprint(theirs),
        "judge": who.fingerprint,
        "config": config.model_dump(),
    }
    run = RunFolder.open(given["out"], command="evaluate", inputs=inputs)
    with Ledger.in_folder(run.path, alone=bool(given["policy"])) as ledger:
        ours += [_answers_of(spec, theirs, given, ledger) for spec in given["policy"] or ()]
        _check_names(ours)
        numbers = read_prompt_numbers(given["prompt_order"])
        judge = stored(who, ledger)
        results = {
            each.name: win_rate(each, theirs, judge=judge, config=config, prompt_numbers=numbers)
            for each in ours
        }
    if given["joint_difficulty"]:
        results = control_jointly(results, config)
    rankings = rank(given["dynamics"], results)
    found = _result(run.path, ours, results, rankings, config.confidence)
    return found | {"counts": dict(judge.counts)}


def _result(
    folder: Path,
    ours: Sequence["Answers"],
    results: Mapping[str, "WinRate"],
    rankings: "CheckpointTable | None",
    confidence: float,
) -> dict[str, Any]:
    from prefstage.evaluating import compare_win_rates

    table = compare_win_rates(results, confidence=confidence) if len(results) > 1 else []
    summary = "\n\n".join(_told(each) for each in results.values())
    return {
        "results": {name: each.as_dict() for name, each in results.items()},
        "comparison": [line.as_dict() for line in table],
        "rankings": None if rankings is None else rankings.as_dict(),
        "summary": "\n".join([summary, *_compared(table), *ranked(rankings)]),
        "written": _write(folder, ours, results, table),
    }


_SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens", "beams", "seed")


def _fingerprint(answers: "Answers") -> str:
    from prefstage.core.hashing import digest

    return digest([answers.name, [[key, each.text] for key, each in answers.by_prompt.items()]])


def _answers_of(
    spec: str, theirs: "Answers", given: Mapping[str, Any], ledger: "Ledger"
) -> "Answers":
    from prefstage.data.tokenizer_files import with_date
    from prefstage.evaluating.answers import answer_prompts
    from prefstage.measuring.sequential import prompt_order
    from prefstage.sampling import LoadOptions, SamplingConfig, load_sampler

    settings = load_config(SamplingConfig, None, {name: given[name] for name in _SAMPLING})
    # the prompts that will be judged, no others: the order and the limit are the judge's
    order = prompt_order(list(theirs.by_prompt), seed=given["seed"] or 0)
    chosen = order[: given["max_prompts"] or len(order)]
    with ExitStack() as stack:
        chat = with_date(chat_settings(given), spec, given["out"])
        options = LoadOptions(**chat.encoding)
        settings = settings.model_copy(update={"responses": 1})
        sampler = stack.enter_context(load_sampler(spec, settings, options=options))
        prompts = [theirs.by_prompt[key].prompt for key in chosen]
        return answer_prompts(sampler, prompts, ledger)


def _check_names(ours: Sequence["Answers"]) -> None:
    names = [each.name for each in ours]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError.of(
            saw=f"two models of the name {twice[0]!r}",
            expected="each model once",
            cure="give their files different generators or names",
        )


def _write(
    folder: Path,
    ours: Sequence["Answers"],
    results: Mapping[str, "WinRate"],
    table: Sequence["Difference"],
) -> list[Path]:
    """AlpacaEval's files of each model, and everything in one results.json."""
    from prefstage.evaluating import (
        leaderboard_row,
        write_annotations,
        write_leaderboard,
        write_model_outputs,
    )

    lines = {}
    for place, (answers, result) in enumerate(zip(ours, results.values(), strict=True)):
        part = folder / f"model-{place}"
        write_model_outputs(part / "model_outputs.json", answers)
        write_annotations(part / "annotations.json", result.annotations())
        write_json(part / "evaluation.json", result.as_dict())
        if result.controlled is not None:
            lines[answers.name] = leaderboard_row(
                [each.preference for each in result.verdicts],
                [len(each.model_answer) for each in result.verdicts],
                controlled=result.controlled,
            )
    written = [folder / "results.json"]
    whole = {name: each.as_dict() for name, each in results.items()}
    write_json(written[0], {"results": whole, "comparison": [line.as_dict() for line in table]})
    if lines:
        written.append(folder / "leaderboard.csv")
        write_leaderboard(written[1], lines)
    first = next(iter(results.values()))
    write_result(
        folder,
        "evaluate",
        headline="; ".join(
            f"{name} wins {each.rates.win_rate:.1f} % over {each.baseline}"
            for name, each in results.items()
        ),
        facts={"baseline": first.baseline, "judge": first.judge},
        parts=[
            {"kind": "evaluate", "iteration": place + 1, "folder": f"model-{place}"}
            for place in range(len(results))
        ],
    )
    return written


def _told(result: "WinRate") -> str:
    rates = result.rates
    lines = [
        f"{result.model} over {result.baseline} by {result.judge}: "
        f"{len(result.verdicts)} of {result.prompts_available} prompts ({result.stopped})",
        f"win rate {rates.win_rate:.2f} % ± {rates.standard_error:.2f} "
        f"[{rates.interval[0]:.2f}, {rates.interval[1]:.2f}], "
        f"discrete {rates.discrete_win_rate:.2f} %: {rates.wins} won, {rates.draws} drawn, "
        f"{rates.losses} lost, {rates.n_missing} undecided",
    ]
    if result.controlled is not None and result.controlled_interval is not None:
        low, high = result.controlled_interval
        lines.append(
            f"length-controlled {result.controlled.length_controlled_win_rate:.2f} % "
            f"[{low:.2f}, {high:.2f}] (difficulty: {result.controlled.difficulty})"
        )
    lines.append(
        f"mean length {result.avg_length:.0f} characters, "
        f"the baseline's {result.avg_length_baseline:.0f}"
    )
    better = {"model": result.model, "baseline": result.baseline, None: "undecided"}
    lines.append(f"better on the prompts at hand: {better[result.better]}")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _compared(table: Sequence["Difference"]) -> list[str]:
    lines = ["", "differences (all intervals and p-values hold at once):"] if table else []
    return lines + [
        f"{line.first} - {line.second}: {line.difference:+.2f} points "
        f"[{line.interval[0]:+.2f}, {line.interval[1]:+.2f}], p = {line.p_value:.4f}, "
        f"better: {line.better or 'undecided'}"
        for line in table
    ]
