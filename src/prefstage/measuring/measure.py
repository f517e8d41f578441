"""`measure_stage`: which stage is a policy in, from as few prompts as it takes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from prefstage.core import (
    LEDGER,
    InputError,
    Ledger,
    Outcome,
    as_config,
    progress,
    run_folder,
    write_config,
    write_result,
)
from prefstage.data import CandidateSet, keep_sources, load_candidates
from prefstage.data.sets import DataSource
from prefstage.judging import Judge, stored
from prefstage.judging.base import check_decided
from prefstage.measuring.boundary import (
    ConfidenceSequence,
    JudgedPrompt,
    algorithm_1_verdict,
    boundary_score,
    chunk_sizes,
    judge_sides,
    prompt_order,
)
from prefstage.measuring.responses import Pool, SampledResponses
from prefstage.measuring.settings import MeasureConfig, MeasureSettings
from prefstage.measuring.stage import (
    Stage,
    StageName,
    notes_of,
    on_policy_candidates,
    summarise,
    write_prompts,
)
from prefstage.sampling.base import (
    LoadOptions,
    PolicySettings,
    Sampler,
    SamplingConfig,
    as_sampler,
    load_sampler,
    shortfalls,
)

STAGE = "stage.json"
PROMPTS = "prompts.parquet"
CANDIDATES = "candidates.parquet"

_NOT_MEASURED = {"judge_accuracy", "judge_bias", "judge_errors", "overlap"}  # read at the end
_MAY_CHANGE = {"max_prompts", "max_judgments"} | _NOT_MEASURED  # later, in the same folder
_STAGES: dict[str | None, StageName] = {
    "below": "injection",
    "above": "fine-tuning",
    None: "undecided",
}

Stopped = Literal["decided", "all prompts used", "prompt budget", "judgment budget"]


@dataclass(frozen=True)
class Reading:
    """Where a running measurement stands.

    Attributes:
        doing: What goes on, a few words.
        prompts_used: Prompts judged so far.
        prompts_allowed: Prompts that may be used at most.
        boundary_score: So far; ½ before the first prompt.
        interval: (low, high) so far.
    """

    doing: str
    prompts_used: int
    prompts_allowed: int
    boundary_score: float
    interval: tuple[float, float]


def measure_stage(
    off_policy: DataSource,
    *,
    judge: Judge | Callable[..., Any] | str | Path,
    sampler: Sampler | str | Path | None = None,
    on_policy: DataSource | None = None,
    policy_name: str | None = None,
    distinctness: bool = False,
    config: MeasureConfig | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    watch: Callable[[Reading], None] | None = None,
) -> Stage:
    """Measure which stage a policy is in, from as few prompts as it takes.

    Prompts are taken in a random order; the policy answers them, the judge compares every
    on-policy with every off-policy response, and a confidence sequence for the boundary score
    is updated after every prompt. It ends when the interval leaves ½, or the budget is spent.

    Args:
        off_policy: The pairs or candidates that training could use: loaded, or a file, folder
            or Hub id.
        judge: Gives P(a ≻ b | x): a judge, a function of (a, b, prompt), or a specification as
            of `load_judge`, such as ``"reward:PATH"``.
        sampler: The policy: a sampler, or a specification as of `load_sampler`, loaded with its
            defaults. Either this or `on_policy`.
        on_policy: The policy's responses, if they exist already; matched by prompt. With
            `distinctness` the sampler may be named too: its weights then score, and sample nothing.
        policy_name: The policy's name in the result; the sampler's if None.
        distinctness: Whether the policy also scores both sides (see `distinctness` and
            `consistency`); needs a sampler that runs a model in this process.
        config: Responses a prompt, rules, budget, seed.
        out: A run folder. Responses and judgments are kept there as they arrive, so that the
            same call goes on after a kill; a larger budget may be asked for then. The result
            is written there.
        watch: Called whenever there is something new to show.

    Returns:
        The stage, with every prompt used as its `prompts`.

    Raises:
        ConfigError: If `config` has an unknown or wrong setting.
        InputError: If not exactly one of `sampler` and `on_policy` is set, the sides have
            no prompt in common, or the budget allows no prompt.
        RunFolderError: If `out` holds another run, or another process works in it.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1; made sequential by
        `ConfidenceSequence` (Waudby-Smith & Ramdas 2024, arXiv:2010.09686).
    """
    config = as_config(MeasureConfig, config)
    out = None if out is None else Path(out)
    with ExitStack() as stack:
        off = Pool.of(
            off_policy, side="off-policy", responses=config.off_responses, seed=config.seed
        )
        sides = (judge, sampler, on_policy)
        judge, sampler, policy = _opened(*sides, config, stack, scores=distinctness)
        counts_before = dict(judge.counts)
        # Who can be asked has answers to every prompt.
        answered = policy.positions if isinstance(policy, Pool) else off.positions
        prompt_ids = _common(off.positions, answered)
        if out is not None:
            inputs = {
                "config": config.model_dump(mode="json", exclude=_MAY_CHANGE),
                "off_policy": off.fingerprint,
                "on_policy": policy.fingerprint,
                "judge": judge.fingerprint,
            }
            stack.enter_context(run_folder(out, command="measure", inputs=inputs))
            judge = stored(judge, ledger := stack.enter_context(Ledger(out / LEDGER)))
            if isinstance(policy, SampledResponses):
                policy.ledger = ledger
        prompts, sequence, stopped = _run(
            prompt_ids, policy, off, judge=judge, config=config, watch=watch
        )
        stage = _stage(
            prompts,
            sequence,
            config,
            stopped=stopped,
            prompts_available=len(prompt_ids),
            judge=judge.name,
            policy=policy_name or policy.name,
            unmatched_prompts={
                "on": len(answered) - len(prompt_ids),
                "off": len(off.rows) - len(prompt_ids),
            },
            judge_counts={n: c - counts_before.get(n, 0) for n, c in judge.counts.items()},
            **policy.costs,
        )
        if distinctness:
            from prefstage.measuring.reliability import by_policys_eyes  # loads scipy

            stage = replace(stage, **by_policys_eyes(stage.prompts, sampler))
        if out is not None:
            _write(out, stage)
    return stage


def _write(out: Path, stage: Stage) -> None:
    write_prompts(stage.prompts, out / PROMPTS)
    if stage.tokens is not None:
        CandidateSet.of(on_policy_candidates(stage.prompts, stage.policy)).save(out / CANDIDATES)
    stage.save(out / STAGE)
    # Last: where it stands, everything else stands, whenever the run was killed.
    write_result(
        out,
        "measure",
        headline=stage.recommendation,
        facts={"policy": stage.policy, "judge": stage.judge},
    )


# Use prompts, a chunk between two looks, until the interval leaves ½ or the budget ends.
def _run(
    prompt_ids: Sequence[str],
    policy: Pool | SampledResponses,
    off: Pool,
    *,
    judge: Judge,
    config: MeasureConfig,
    watch: Callable[[Reading], None] | None,
) -> tuple[tuple[JudgedPrompt, ...], ConfidenceSequence, Stopped]:
    order = prompt_order(prompt_ids, seed=config.seed)
    limit, limited_by = _budget(order, off, policy, config)
    sequence = ConfidenceSequence(
        available=None if config.new_prompts else len(order), confidence=config.confidence
    )
    prompts, asked = list[JudgedPrompt](), 0

    def teller() -> Callable[[str], None]:
        if watch is None:
            return lambda doing: None
        # The interval is a search over many means: computed once a look, not once a message.
        reading = Reading("", len(prompts), limit, sequence.mean, sequence.interval)
        return lambda doing: watch(replace(reading, doing=doing))

    for size in chunk_sizes(limit, first=config.first_chunk):
        tell = teller()
        chunk = [off.row(prompt_id) for prompt_id in order[asked:][:size]]
        asked += len(chunk)
        ours = policy.respond(chunk, tell)
        answered = {row.prompt_id for row, _ in ours}  # all, but those that a server refused
        theirs = [off.draw(row) for row in chunk if row.prompt_id in answered]
        tell("judging")
        votes = judge_sides(
            judge,
            [row for row, _ in ours],
            [row for row, _ in theirs],
            votes=config.votes,
            ties=config.ties,
        )
        prompts += [
            JudgedPrompt(number, on, other, counted, unused_on, unused_off)
            for number, ((on, unused_on), (other, unused_off), counted) in enumerate(
                zip(ours, theirs, votes, strict=True), len(prompts)
            )
        ]
        sequence.update(counted.score for counted in votes)
        if sequence.side is not None and not config.all_prompts:
            break
    teller()("done")
    if not prompts and isinstance(policy, SampledResponses):
        shortfalls(policy.refused)
    counts = [prompt.votes for prompt in prompts]
    check_decided(
        judge,
        decided=sum(votes.comparisons - votes.undecided for votes in counts),
        asked=sum(votes.comparisons for votes in counts),
    )
    stopped: Stopped = limited_by if asked == limit else "decided"
    if asked == len(order):
        stopped = "all prompts used"
    return tuple(prompts), sequence, stopped


# How many prompts may be used, and what sets the limit.
def _budget(
    order: Sequence[str], off: Pool, policy: Pool | SampledResponses, config: MeasureConfig
) -> tuple[int, Stopped]:
    chosen, spent = order[: config.max_prompts], 0
    if config.max_judgments is not None:
        for number, prompt_id in enumerate(chosen):
            spent += policy.count(prompt_id) * off.count(prompt_id)
            if spent > config.max_judgments:
                if number:
                    return number, "judgment budget"
                raise InputError.of(
                    saw=f"max_judgments {config.max_judgments}, and {spent} comparisons for one "
                    "prompt",
                    expected="a budget for at least one prompt",
                    cure="raise max_judgments, or lower on_responses or off_responses",
                )
    return len(chosen), "prompt budget" if len(chosen) < len(order) else "all prompts used"


def _common(off: Collection[str], on: Collection[str]) -> list[str]:
    common = [prompt_id for prompt_id in off if prompt_id in on]
    InputError.unless(
        common,
        saw=f"{len(off)} off-policy prompts, {len(on)} other on-policy prompts, and none in common",
        expected="responses of both sides to the same prompts",
        cure="check that both files hold the same prompts, system messages included",
    )
    return common


# Judge, sampler and the policy's side. Loaders are imported for specifications alone: who brings a
# judge and answers loads no more. What is loaded here (a server, a model) is also closed here; what
# was brought stays open.
def _opened(
    judge: Any,
    sampler: Any,
    on_policy: Any,
    config: MeasureConfig,
    stack: ExitStack,
    *,
    scores: bool,
) -> tuple[Judge, Sampler | None, Pool | SampledResponses]:
    if not isinstance(judge, Judge):
        from prefstage.judging.loading import as_judge

        judge = stack.enter_context(as_judge(judge))
    if sampler is not None and not isinstance(sampler, Sampler):
        sampler = stack.enter_context(
            as_sampler(sampler, SamplingConfig(responses=config.on_responses, seed=config.seed))
        )
    InputError.unless(
        (sampler is None) != (on_policy is None) or (scores and sampler is not None),
        saw="both a sampler and on_policy" if sampler else "neither a sampler nor on_policy",
        expected="one of them",
        cure="give the sampler, or the responses that the policy has written before",
    )
    if on_policy is None:
        return judge, sampler, SampledResponses(sampler, config.on_responses)
    return (
        judge,
        sampler,
        Pool.of(on_policy, side="on-policy", responses=config.on_responses, seed=config.seed),
    )


def _stage(
    rows: tuple[JudgedPrompt, ...],
    sequence: ConfidenceSequence,
    config: MeasureConfig,
    **details: Any,
) -> Stage:
    boundary = boundary_score(row.votes for row in rows)
    verdict = algorithm_1_verdict(boundary, ties=config.ties)
    name = _STAGES[sequence.side]
    for_new = sequence
    if not config.new_prompts:
        for_new = ConfidenceSequence(available=None, confidence=config.confidence)
        for_new.update(row.votes.score for row in rows)
    reliability = None
    if config.judge_accuracy is not None:
        # scipy is loaded only where the judge's accuracy is known.
        from prefstage.measuring.reliability import call_reliability

        reliability = call_reliability(
            [row.votes for row in rows],
            verdict if name == "undecided" else name,
            accuracy=config.judge_accuracy,
            bias=config.judge_bias,
            overlap=config.overlap,
            errors=config.judge_errors,
        )
    return Stage(
        stage=name,
        boundary_score=boundary.score,
        interval=sequence.interval,
        confidence=config.confidence,
        votes_on=boundary.votes_on,
        votes_off=boundary.votes_off,
        ties=boundary.ties,
        prompts_used=len(rows),
        responses_per_prompt={
            "on": mean(len(row.on.responses) for row in rows),  # 2, not 2.0, in stage.json
            "off": mean(len(row.off.responses) for row in rows),
        },
        tie_rule=config.ties,
        seed=config.seed,
        votes=config.votes,
        method="fixed-size" if config.all_prompts else "sequential",
        population="new prompts" if config.new_prompts else "these prompts",
        interval_new_prompts=for_new.interval,
        algorithm_1=verdict,
        judgments=boundary.comparisons,
        undecided_judgments=boundary.undecided,
        prompts_favouring={
            side: sum(row.favours == side for row in rows) for side in ("on", "off", "neither")
        },
        responses_unused={
            "on": sum(row.unused_on for row in rows),
            "off": sum(row.unused_off for row in rows),
        },
        reliability=reliability,
        prompts=rows,
        **config.model_dump(include=_NOT_MEASURED),
        **details,
    )


def run_measurement(settings: MeasureSettings, *, out: Path | None = None) -> Outcome:
    """Measure as `measure_stage` does, with policy, judge and data loaded as the settings say.

    Args:
        settings: What is measured, and how.
        out: The run folder, as of `measure_stage`, with config.yaml besides.

    Returns:
        The stage with its recommendation and what came up in reading the data.

    Raises:
        InputError: As `measure_stage`; or if a policy or judge cannot be loaded so.
        DataError: If data cannot be read.
    """
    from prefstage.data.rendering import with_date

    off = _loaded(settings.off_policy, settings.off_sources, settings, "")
    on, notes = None, _notes("off-policy", off)
    if settings.on_policy is not None:
        on = _loaded(settings.on_policy, settings.on_sources, settings, "-on-policy")
        notes += _notes("on-policy", on)
    with ExitStack() as stack:
        sampler = None
        if on is None or settings.distinctness:
            settings = with_date(settings, settings.policy, out)
            sampler = load_sampler(
                str(settings.policy),
                SamplingConfig(
                    **settings.sampling.model_dump(),
                    responses=settings.on_responses,
                    seed=settings.seed,
                ),
                options=LoadOptions(**settings.model_dump(include={*PolicySettings.model_fields})),
            )
            stack.enter_context(sampler)
        stage = measure_stage(
            off,
            judge=settings.judge,
            sampler=sampler,
            on_policy=on,
            policy_name=(settings.policy or settings.on_policy) if on is not None else None,
            distinctness=settings.distinctness,
            config=MeasureConfig(**settings.model_dump(include=set(MeasureConfig.model_fields))),
            out=out,
            watch=stack.enter_context(_live()),
        )
    written = []
    if out is not None:
        write_config(settings, out / "config.yaml")
        files = (out / name for name in (STAGE, PROMPTS, CANDIDATES, "ledger.sqlite"))
        written = [file for file in files if file.exists()]
    return Outcome(
        "\n".join([summarise(stage), *(f"note: {note}" for note in notes)]),
        {
            **stage.as_dict(),
            "recommendation": stage.recommendation,
            "notes": [*notes_of(stage), *notes],
        },
        written,
    )


def _loaded(
    source: str, sources: tuple[str, ...] | None, settings: MeasureSettings, stem: str
) -> CandidateSet:
    file = Path(settings.quarantine_file) if settings.quarantine_file else None
    rows = load_candidates(
        source,
        on_bad_row=settings.on_bad_row,
        quarantine_file=file and file.with_stem(file.stem + stem),
    )
    return rows if sources is None else keep_sources(rows, sources)


def _notes(side: str, data: CandidateSet) -> list[str]:
    bad = data.report.quarantined
    notes = [f"{bad} bad rows put aside", *data.report.notes] if bad else data.report.notes
    return [f"{side} data: {note}" for note in notes]


# A progress bar over prompts, with the interval as it narrows.
@contextmanager
def _live() -> Iterator[Callable[[Reading], None]]:
    with ExitStack() as stack:
        # The bar is opened when its length is known.
        opened = cache(lambda total: stack.enter_context(progress("measuring", total)))
        used = 0

        def show(reading: Reading) -> None:
            nonlocal used
            low, high = reading.interval
            seen = f"score {reading.boundary_score:.2f} [{low:.2f}, {high:.2f}]  "
            opened(reading.prompts_allowed)(
                reading.prompts_used - used,
                note=f"{seen}{reading.doing}" if reading.prompts_used else reading.doing,
            )
            used = reading.prompts_used

        yield show
