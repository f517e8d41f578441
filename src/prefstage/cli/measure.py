"""`prefstage measure`: which stage is a policy in?"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from prefstage.cli.chat_options import (
    ChatFormat,
    ControlTokensOption,
    TemplateDate,
    TemplateOptions,
)
from prefstage.cli.chat_options import (
    template_options as options_by_name,
)
from prefstage.cli.manners import EXIT_INTERRUPTED, Outcome, mannered, say
from prefstage.core.config import load_config, write_config
from prefstage.core.progress import Ticker, progress

if TYPE_CHECKING:
    from prefstage.cli.measure_settings import MeasureSettings
    from prefstage.data import CandidateSet
    from prefstage.measuring import Reading, Stage

T = TypeVar("T")


Text = str | None
Number = int | None
Real = float | None


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text)


Policy = Annotated[
    Text,
    _option(
        "The policy: model folder or Hub id, openai:MODEL@URL, serve:COMMAND; with --on, its name."
    ),
]
Off = Annotated[Text, _option("Off-policy pairs or candidates: file, folder or Hub id.")]
JudgeSpec = Annotated[
    Text,
    _option(
        "reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, python:module:function, "
        "or a checkpoint."
    ),
]
On = Annotated[Text, _option("The policy's responses, if they exist already; not sampled then.")]
OffSources = Annotated[
    Text, _option("Use only off-policy responses by these writers: NAME,NAME [all].")
]
OnSources = Annotated[Text, _option("Of --on, only responses by these writers [all].")]
Out = Annotated[Path | None, _option("Run folder. The same command goes on in it after a stop.")]
ConfigFile = Annotated[Path | None, _option("Settings as YAML; options win.")]
Responses = Annotated[Number, _option("On-policy responses a prompt [2].")]
OffResponses = Annotated[Number, _option("Off-policy responses a prompt [2].")]
VotesKind = Annotated[Text, _option("hard (each comparison is a vote) or probability [hard].")]
Ties = Annotated[Text, _option("A tie counts half, or for off [half].")]
Confidence = Annotated[Real, _option("Of the interval [0.95].")]
AllPrompts = Annotated[bool, _option("Use the whole budget, however clear it is.", "--all-prompts")]
NewPrompts = Annotated[bool, _option("Ask about all prompts like these.", "--new-prompts")]
MaxPrompts = Annotated[Number, _option("Prompts used at most.")]
MaxJudgments = Annotated[Number, _option("Comparisons at most.")]
Seed = Annotated[Number, _option("Of order, choice and sampling [0].")]
Temperature = Annotated[Real, _option("Of sampling [0.7].")]
TopP = Annotated[Real, _option("Of sampling [0.9].")]
TopK = Annotated[Number, _option("Of sampling [50].")]
MaxNewTokens = Annotated[Number, _option("Tokens a response [1024].")]
Dtype = Annotated[Text, _option("auto, float32, bfloat16, float16.")]
Device = Annotated[Text, _option("auto, cpu, cuda:0, ...")]
Adapter = Annotated[Text, _option("PEFT adapter on the policy.")]
Concurrency = Annotated[Number, _option("Requests to a server in flight.")]
Distinctness = Annotated[
    bool, _option("Also: does the policy find its own answers likelier?", "--distinctness")
]
JudgeAccuracy = Annotated[
    Real, _option("Share of comparisons that the judge gets right, if known: tells reliability.")
]
JudgeBias = Annotated[
    Real, _option("Half the largest difference of its accuracies on the two sides [0].")
]
JudgeErrorsKind = Annotated[
    Text, _option("Where it errs: any-pair alike, close-pairs, or unknown [unknown].")
]
Overlap = Annotated[Real, _option("Share of responses that both sides would give [0].")]
OnBadRow = Annotated[Text, _option("error, or quarantine [error].")]
QuarantineFile = Annotated[
    Text,
    _option("Where bad rows go with --on-bad-row quarantine; those of --on go beside it."),
]
AsJson = Annotated[bool, _option("Print JSON and nothing else.", "--json")]


@mannered
def measure(
    *,
    policy: Policy = None,
    off: Off = None,
    judge: JudgeSpec = None,
    on: On = None,
    off_sources: OffSources = None,
    on_sources: OnSources = None,
    out: Out = None,
    config: ConfigFile = None,
    responses: Responses = None,
    off_responses: OffResponses = None,
    votes: VotesKind = None,
    ties: Ties = None,
    confidence: Confidence = None,
    all_prompts: AllPrompts = False,
    new_prompts: NewPrompts = False,
    max_prompts: MaxPrompts = None,
    max_judgments: MaxJudgments = None,
    seed: Seed = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    max_new_tokens: MaxNewTokens = None,
    chat_format: ChatFormat = None,
    template_options: TemplateOptions = None,
    template_date: TemplateDate = None,
    control_tokens: ControlTokensOption = None,
    dtype: Dtype = None,
    device: Device = None,
    adapter: Adapter = None,
    concurrency: Concurrency = None,
    distinctness: Distinctness = False,
    judge_accuracy: JudgeAccuracy = None,
    judge_bias: JudgeBias = None,
    judge_errors: JudgeErrorsKind = None,
    overlap: Overlap = None,
    on_bad_row: OnBadRow = None,
    quarantine_file: QuarantineFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell which preference data a policy needs next: the pairs at hand, or its own.

    The policy answers the prompts of the off-policy data, the judge compares its answers with
    the answers there, and both stop as soon as the 95 % interval of the boundary score leaves
    1/2: below, the policy is in the injection stage (train on the off-policy pairs); above, in
    the fine-tuning stage (train on pairs of its own answers).
    """
    options = dict(locals())
    from prefstage.cli.measure_settings import MeasureSettings

    settings = load_config(MeasureSettings, config, _overrides(options))
    stage, notes = _interruptible(settings, out)
    _report(stage, notes, out, as_json=as_json)


def _interruptible(settings: "MeasureSettings", out: Path | None) -> tuple["Stage", list[str]]:
    """Measure; a stop that loses everything says so."""
    try:
        return _measure(settings, out)
    except KeyboardInterrupt:
        if out is not None:
            raise
        typer.echo("prefstage: interrupted; nothing is kept without --out.", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """The options as settings; what was not given is None."""
    renamed = {"responses": "on_responses", "off": "off_policy", "on": "on_policy"}
    sampling = ("temperature", "top_p", "top_k", "max_new_tokens")
    renamed |= {name: f"sampling.{name}" for name in sampling}
    given = {k: v for k, v in options.items() if k not in ("out", "config", "as_json")}
    given["template_options"] = options_by_name(given["template_options"])
    return {renamed.get(k, k): v for k, v in given.items() if v is not None and v is not False}


def _measure(settings: "MeasureSettings", out: Path | None) -> tuple["Stage", list[str]]:
    from prefstage.data.tokenizer_files import with_date
    from prefstage.judging import load_judge
    from prefstage.measuring import measure_stage
    from prefstage.sampling import load_sampler

    off = _loaded(settings.off_policy, settings.off_sources, settings, "")
    on = None
    if settings.on_policy is not None:
        on = _loaded(settings.on_policy, settings.on_sources, settings, "-on-policy")
    notes = [*_notes("off-policy", off), *(_notes("on-policy", on) if on is not None else [])]
    settings = with_date(settings, settings.policy if on is None else None, out)
    with ExitStack() as stack:
        judge = _entered(stack, load_judge(settings.judge))
        sampler = None
        if on is None:
            sampler = _entered(
                stack,
                load_sampler(
                    str(settings.policy),
                    settings.sampling_config,
                    options=settings.load_options,
                ),
            )
        stage = measure_stage(
            off,
            judge=judge,
            sampler=sampler,
            on_policy=on,
            policy_name=(settings.policy or settings.on_policy) if on is not None else None,
            distinctness=settings.distinctness,
            config=settings.rules,
            out=out,
            watch=stack.enter_context(_live()),
        )
    if out is not None:
        write_config(settings, out / "config.yaml")
    return stage, notes


def _loaded(
    source: str, sources: tuple[str, ...] | None, settings: "MeasureSettings", stem: str
) -> "CandidateSet":
    from prefstage.data import keep_sources, load_candidates

    aside = Path(settings.quarantine_file) if settings.quarantine_file else None
    rows = load_candidates(
        source,
        on_bad_row=settings.on_bad_row,
        quarantine_file=aside and aside.with_stem(aside.stem + stem),
    )
    return rows if sources is None else keep_sources(rows, sources)


def _notes(side: str, data: "CandidateSet") -> list[str]:
    bad = data.report.quarantined
    put_aside = [f"{side} data: {bad} bad rows put aside"] if bad else []
    return put_aside + [f"{side} data: {note}" for note in data.report.notes]


def _report(stage: "Stage", notes: list[str], out: Path | None, *, as_json: bool) -> None:
    from prefstage.measuring.stage import notes_of, summarise

    text = "\n".join([summarise(stage), *(f"note: {note}" for note in notes)])
    result = {
        **stage.as_dict(),
        "recommendation": stage.recommendation,
        "notes": [*notes_of(stage), *notes],
    }
    names = ("stage.json", "prompts.parquet", "candidates.parquet", "ledger.sqlite")
    written = [out / name for name in names if (out / name).exists()] if out is not None else []
    say(Outcome(text, result, written), as_json=as_json)


def _entered(stack: ExitStack, thing: T) -> T:
    """Make sure that what runs something of its own (a server) ends it."""
    if isinstance(thing, AbstractContextManager):
        stack.enter_context(thing)
    return thing


@contextmanager
def _live() -> Iterator[Callable[["Reading"], None]]:
    """A progress bar over prompts, with the interval as it narrows."""
    with ExitStack() as stack:
        ticker: list[Ticker] = []
        used = 0

        def show(reading: "Reading") -> None:
            nonlocal used
            if not ticker:
                ticker.append(stack.enter_context(progress("measuring", reading.prompts_allowed)))
            low, high = reading.interval
            seen = f"score {reading.boundary_score:.2f} [{low:.2f}, {high:.2f}]"
            note = f"{seen}  {reading.doing}" if reading.prompts_used else reading.doing
            ticker[0](reading.prompts_used - used, note=note)
            used = reading.prompts_used

        yield show
