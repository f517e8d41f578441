"""`measure_stage`: which stage is a policy in, from as few prompts as it takes."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefstage.core.errors import InputError
from prefstage.core.results import write_result
from prefstage.core.runs import RunFolder
from prefstage.data.sets import CandidateSet
from prefstage.judging.base import CountingJudge, Judge
from prefstage.judging.store import JudgmentStore
from prefstage.judging.stored import stored
from prefstage.measuring.boundary import algorithm_1_verdict, boundary_score
from prefstage.measuring.config import MeasureConfig
from prefstage.measuring.judged import JudgedPrompt
from prefstage.measuring.loop import LoopEnd, Watch, run_loop
from prefstage.measuring.prompts import on_policy_candidates, write_prompts
from prefstage.measuring.reliability import call_reliability
from prefstage.measuring.responses import GivenResponses, Pool, Responses, SampledResponses
from prefstage.measuring.sequential import ConfidenceSequence
from prefstage.measuring.stage import Stage, StageName
from prefstage.sampling.base import Sampler
from prefstage.sampling.store import CandidateStore

STAGE = "stage.json"
PROMPTS = "prompts.parquet"
JUDGMENTS = "judgments.sqlite"
SAMPLES = "samples.jsonl"
CANDIDATES = "candidates.parquet"

_NOT_MEASURED = {"judge_accuracy", "judge_bias", "judge_errors", "overlap"}  # read at the end
_MAY_CHANGE = {"max_prompts", "max_judgments"} | _NOT_MEASURED  # later, in the same folder
_STAGES: dict[str | None, StageName] = {
    "below": "injection",
    "above": "fine-tuning",
    None: "undecided",
}


@dataclass(frozen=True)
class Measurement:
    """A stage with what each prompt contributed to it.

    Attributes:
        stage: The result.
        prompts: Every prompt used, in the order of use, with its responses and votes.
    """

    stage: Stage
    prompts: tuple[JudgedPrompt, ...]


def measure_stage(
    off_policy: Responses,
    *,
    judge: Judge,
    sampler: Sampler | None = None,
    on_policy: Responses | None = None,
    policy_name: str | None = None,
    config: MeasureConfig | None = None,
    out: Path | None = None,
    watch: Watch | None = None,
) -> Stage:
    """Tell which stage a policy is in, from as few prompts as it takes.

    Prompts are taken in a random order; the policy answers them, the judge compares every
    on-policy with every off-policy response, and a confidence sequence for the boundary score
    is updated after every prompt. It ends when the interval leaves ½, or the budget is spent.

    Args:
        off_policy: The pairs or candidates that training could use.
        judge: Gives P(a ≻ b | x).
        sampler: The policy. Either this or `on_policy`.
        on_policy: The policy's responses, if they exist already; matched by prompt.
        policy_name: The policy's name in the result; the sampler's if None.
        config: Responses a prompt, rules, budget, seed.
        out: A run folder. Responses and judgments are kept there as they arrive, so that the
            same call goes on after a kill; a larger budget may be asked for then. The result
            is written there.
        watch: Called whenever there is something new to show.

    Returns:
        The stage.

    Raises:
        InputError: If not exactly one of `sampler` and `on_policy` is given, the sides have
            no prompt in common, or the budget allows no prompt.
        RunFolderError: If `out` holds another run.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1; made sequential by
        `ConfidenceSequence` (Waudby-Smith & Ramdas 2024, arXiv:2010.09686).
    """
    return measure(
        off_policy,
        judge=judge,
        sampler=sampler,
        on_policy=on_policy,
        policy_name=policy_name,
        config=config,
        out=out,
        watch=watch,
    ).stage


def measure(
    off_policy: Responses,
    *,
    judge: Judge,
    sampler: Sampler | None = None,
    on_policy: Responses | None = None,
    policy_name: str | None = None,
    config: MeasureConfig | None = None,
    out: Path | None = None,
    watch: Watch | None = None,
) -> Measurement:
    """Measure the stage as `measure_stage` does, and keep what every prompt said.

    Args:
        off_policy: As in `measure_stage`.
        judge: As in `measure_stage`.
        sampler: As in `measure_stage`.
        on_policy: As in `measure_stage`.
        policy_name: As in `measure_stage`.
        config: As in `measure_stage`.
        out: As in `measure_stage`.
        watch: As in `measure_stage`.

    Returns:
        The stage, and each prompt used with its responses and votes.

    Raises:
        InputError: As `measure_stage`.
        RunFolderError: As `measure_stage`.
    """
    config, before = config or MeasureConfig(), _counts(judge)
    off = Pool.of(off_policy, side="off-policy")
    policy = _policy(sampler, on_policy, config)
    prompt_ids = [prompt_id for prompt_id in off.places if policy.has(prompt_id)]
    _check_overlap(prompt_ids, off, policy)
    with ExitStack() as stack:
        if out is not None:
            _open_folder(out, config, off=off, on=policy, judge=judge)
            judge = stored(judge, stack.enter_context(JudgmentStore(out / JUDGMENTS)))
            if isinstance(policy, SampledResponses):
                policy.keep_in(stack.enter_context(CandidateStore(out / SAMPLES)))
        end = run_loop(
            prompt_ids,
            off=off,
            policy=policy,
            judge=judge,
            config=config,
            watch=watch,
        )
    unmatched = {
        "on": policy.prompts_beyond(off.places),
        "off": len(off.rows) - len(prompt_ids),
    }
    names = {"judge": judge.name, "policy": policy_name or policy.name}
    cost = _cost(policy, judge, before)
    stage = _stage(end, config, unmatched_prompts=unmatched, **names, **cost)
    if out is not None:
        _write(out, stage, end.prompts)
    return Measurement(stage, end.prompts)


def _write(out: Path, stage: Stage, prompts: Sequence[JudgedPrompt]) -> None:
    write_prompts(prompts, out / PROMPTS)
    if stage.tokens is not None:
        CandidateSet.of(on_policy_candidates(prompts, stage.policy)).save(out / CANDIDATES)
    stage.save(out / STAGE)
    facts = {"policy": stage.policy, "judge": stage.judge}
    write_result(out, "measure", headline=stage.recommendation, facts=facts)  # last


def _policy(
    sampler: Sampler | None, on_policy: Responses | None, config: MeasureConfig
) -> GivenResponses | SampledResponses:
    if (sampler is None) == (on_policy is None):
        raise InputError.of(
            saw="both a sampler and on_policy" if sampler else "neither a sampler nor on_policy",
            expected="one of them",
            cure="give the sampler, or the responses that the policy has written before",
        )
    if sampler is not None:
        return SampledResponses(sampler, config.on_responses)
    pool = Pool.of(on_policy or [], side="on-policy")
    return GivenResponses(pool, config.on_responses, seed=config.seed)


def _check_overlap(
    prompt_ids: list[str], off: Pool, policy: GivenResponses | SampledResponses
) -> None:
    if prompt_ids:
        return
    raise InputError.of(
        saw=f"{len(off.places)} off-policy prompts, {policy.prompts_beyond(off.places)} other"
        " on-policy prompts, and none in common",
        expected="responses of both sides to the same prompts",
        cure="check that both files hold the same prompts, system messages included",
    )


def _open_folder(
    out: Path,
    config: MeasureConfig,
    *,
    off: Pool,
    on: GivenResponses | SampledResponses,
    judge: Judge,
) -> None:
    inputs = {
        "config": config.model_dump(mode="json", exclude=_MAY_CHANGE),
        "off_policy": off.fingerprint,
        "on_policy": on.fingerprint,
        "judge": judge.fingerprint,
    }
    RunFolder.open(out, command="measure", inputs=inputs)


def _counts(judge: Judge) -> dict[str, int]:
    return dict(judge.counts) if isinstance(judge, CountingJudge) else {}


def _cost(
    policy: GivenResponses | SampledResponses, judge: Judge, before: dict[str, int]
) -> dict[str, Any]:
    counts = {name: count - before.get(name, 0) for name, count in _counts(judge).items()}
    if isinstance(policy, GivenResponses):
        return {"tokens": None, "cut_responses": 0, "judge_counts": counts}
    cut = {"cut_responses": policy.cut, "cut_thoughts": policy.cut_thoughts}
    return {"tokens": policy.tokens, **cut, "judge_counts": counts}


def _stage(end: LoopEnd, config: MeasureConfig, **details: Any) -> Stage:
    boundary = boundary_score(each.votes for each in end.prompts)
    matches = [each.match for each in end.prompts]
    favours = [each.favours for each in end.prompts]
    stage, verdict = _STAGES[end.sequence.side], algorithm_1_verdict(boundary, ties=config.ties)
    return Stage(
        stage=stage,
        boundary_score=boundary.score,
        interval=end.sequence.interval,
        confidence=config.confidence,
        votes_on=boundary.votes_on,
        votes_off=boundary.votes_off,
        ties=boundary.ties,
        prompts_used=len(end.prompts),
        prompts_available=end.prompts_available,
        responses_per_prompt={
            "on": _mean([len(match.on) for match in matches]),
            "off": _mean([len(match.off) for match in matches]),
        },
        tie_rule=config.ties,
        seed=config.seed,
        votes=config.votes,
        method="fixed-size" if config.all_prompts else "sequential",
        stopped=end.stopped,
        population="new prompts" if config.new_prompts else "these prompts",
        interval_new_prompts=_interval_for_new_prompts(end, config),
        algorithm_1=verdict,
        judgments=sum(each.votes.comparisons for each in end.prompts),
        undecided_judgments=boundary.undecided,
        prompts_favouring={side: favours.count(side) for side in ("on", "off", "neither")},
        responses_unused={
            "on": sum(match.unused_on for match in matches),
            "off": sum(match.unused_off for match in matches),
        },
        reliability=_reliability(end, config, verdict if stage == "undecided" else stage),
        **config.model_dump(include=_NOT_MEASURED),
        **details,
    )


def _reliability(
    end: LoopEnd, config: MeasureConfig, called: Literal["injection", "fine-tuning"]
) -> float | None:
    if config.judge_accuracy is None:
        return None
    return call_reliability(
        [each.votes for each in end.prompts],
        called,
        accuracy=config.judge_accuracy,
        bias=config.judge_bias,
        overlap=config.overlap,
        errors=config.judge_errors,
    )


def _interval_for_new_prompts(end: LoopEnd, config: MeasureConfig) -> tuple[float, float]:
    if config.new_prompts:
        return end.sequence.interval
    sequence = ConfidenceSequence(available=None, confidence=config.confidence)
    sequence.update(each.votes.score for each in end.prompts)
    return sequence.interval


def _mean(counts: list[int]) -> float:
    mean = sum(counts) / len(counts)
    return int(mean) if mean.is_integer() else mean
