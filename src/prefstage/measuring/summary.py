"""A measurement in plain words."""

from prefstage.measuring.measure import Measurement
from prefstage.measuring.prompts import clearest_prompts, excerpt_of
from prefstage.measuring.stage import Stage

_EXAMPLES = 2
_EXCERPT = 72
_SUREST = 0.999
_SIDES = {"on": "the policy's own answers", "off": "the off-policy answers"}


def summarise(measurement: Measurement) -> str:
    """Tell an engineer what was found, what it rests on, and what to do next.

    Args:
        measurement: What `measure` gave.

    Returns:
        A dozen lines of text.
    """
    stage = measurement.stage
    told = [] if stage.reliability is None else [_reliability(stage)]
    lines = [_headline(stage), *told, stage.recommendation, ""]
    lines += [_evidence(stage), _favours(stage)]
    for side in ("on", "off"):
        for each in clearest_prompts(measurement.prompts, favours=side, count=_EXAMPLES):
            text = excerpt_of(each.match.prompt, length=_EXCERPT)
            lines.append(f"  {each.votes.score:4.2f} {side:>3}-policy better: {text}")
    return "\n".join([*lines, *(f"note: {note}" for note in notes_of(stage))])


def notes_of(stage: Stage) -> list[str]:
    """What a reader of the result should know besides, each in one line."""
    notes = []
    if stage.stopped == "all prompts used" and stage.population == "these prompts":
        low, high = stage.interval_new_prompts
        notes.append(
            "all prompts were used, so the score is exact for these prompts and these "
            f"responses; for new prompts like these it is in [{low:.2f}, {high:.2f}]"
        )
    if stage.distinctness is not None:
        notes.append(
            f"the policy finds its own responses likelier in {stage.distinctness:.0%} of "
            "comparisons (distinctness; the stage says little near 50%)"
        )
    for side, other in (("off", "on"), ("on", "off")):
        if count := stage.unmatched_prompts[side]:
            notes.append(f"{count} {side}-policy prompts left out: no {other}-policy responses")
    if stage.cut_responses:
        notes.append(
            f"{stage.cut_responses} sampled responses were cut at the token limit, which "
            "judges may hold against them; consider a higher --max-new-tokens"
        )
    if stage.cut_thoughts:
        notes.append(
            f"{stage.cut_thoughts} sampled responses ended in their thought and have no answer, "
            "which judges see as an empty one; raise --max-new-tokens, or switch thinking off"
        )
    if cut := stage.judge_counts.get("truncated", 0):
        notes.append(f"the judge read {cut} texts cut to its length limit")
    if stage.undecided_judgments:
        notes.append(
            f"{stage.undecided_judgments} of {stage.judgments} judgments had no readable "
            "verdict and count 1/2"
        )
    if sum(stage.responses_unused.values()):
        notes.append(
            f"responses beyond those wanted, left out by seed: {stage.responses_unused['on']} "
            f"on-policy, {stage.responses_unused['off']} off-policy"
        )
    return notes


def _headline(stage: Stage) -> str:
    low, high = stage.interval
    name = {"undecided": "Undecided"}.get(stage.stage, f"{stage.stage.capitalize()} stage")
    side = "on" if stage.boundary_score > 1 / 2 else "off"
    share = max(stage.boundary_score, 1 - stage.boundary_score)
    better = "" if stage.stage == "undecided" else f": {_SIDES[side]} win {share:.0%}"
    return (
        f"{name}{better}. Boundary score {stage.boundary_score:.3f}, "
        f"{stage.confidence:.0%} interval [{low:.3f}, {high:.3f}]"
    )


def _reliability(stage: Stage) -> str:
    call = f"{stage.algorithm_1} stage, " if stage.stage == "undecided" else ""
    bias = f" (its bias at most {stage.judge_bias:.0%})" if stage.judge_bias else ""
    errors = {"any-pair": ", in any pair alike", "close-pairs": ", and errs in close pairs"}
    overlap = f" and the sides overlap by {stage.overlap:.0%}" if stage.overlap else ""
    chance = stage.reliability or 0.0
    told = f"{chance:.1%}" if chance <= _SUREST else f"more than {_SUREST:.1%}"
    return (
        f"Reliability {told}: the chance that a judge without error, asked about "
        f"all prompts like these, would say so too ({call}as this judge is right in "
        f"{stage.judge_accuracy:.0%} of comparisons{errors.get(stage.judge_errors, '')}{bias}"
        f"{overlap})"
    )


def _evidence(stage: Stage) -> str:
    m, n = stage.responses_per_prompt["on"], stage.responses_per_prompt["off"]
    tokens = f"; {stage.tokens['response']:,} tokens sampled" if stage.tokens else ""
    return (
        f"{stage.prompts_used} of {stage.prompts_available} prompts used "
        f"({_ENDINGS[stage.stopped]}), {m:.3g} x {n:.3g} responses each; "
        f"{stage.judgments} judgments by {stage.judge}{tokens}\n"
        f"votes: {stage.votes_on} on-policy, {stage.votes_off} off-policy, {stage.ties} ties; "
        f"policy {stage.policy}"
    )


def _favours(stage: Stage) -> str:
    count = stage.prompts_favouring
    return (
        f"prompts: {count['on']} favour on-policy, {count['off']} off-policy, "
        f"{count['neither']} neither"
    )


_ENDINGS = {
    "decided": "enough to decide",
    "all prompts used": "all",
    "prompt budget": "the budget of prompts",
    "judgment budget": "the budget of judgments",
}
