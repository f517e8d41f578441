"""What is asked of a measurement, and the result: which stage, how sure, and what it took."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from prefstage.core import DataError, atomic_path, read_json, write_json
from prefstage.data.records import Candidates, Prompt
from prefstage.judging.base import content_of
from prefstage.measuring.boundary import JudgedPrompt
from prefstage.measuring.settings import JudgeErrors, TieRule, Votes
from prefstage.measuring.track_record import ANY_LOSS, bench_table

StageName = Literal["injection", "fine-tuning", "undecided"]

_MEASURED: dict[StageName, str] = {
    "injection": "The judge prefers the off-policy answers",
    "fine-tuning": "The judge prefers the policy's own answers",
    "undecided": "The judge finds both sides about equally good",
}
_INFERRED: dict[StageName, str] = {
    "injection": "train on the pairs you have, and measure again after that training",
    "fine-tuning": (
        "sample pairs from the policy, label them with this judge, and train on those rather "
        "than on the pairs you have"
    ),
}
_BEYOND = (
    "The score does not see the loss that you train with; `prefstage advise` does, by forecasts "
    "and short trainings."
)
_INTERVALS = ("interval", "interval_new_prompts")
_EXAMPLES = 2
_SUMMARY_EXCERPT, _TABLE_EXCERPT = 72, 200
_SUREST = 0.999
_SIDES = {"on": "the policy's own answers", "off": "the off-policy answers"}
_ENDINGS = {
    "decided": "enough to decide",
    "all prompts used": "all",
    "prompt budget": "the budget of prompts",
    "judgment budget": "the budget of judgments",
}


@dataclass(frozen=True)
class Stage:
    """Which stage the policy is in, relative to one set of off-policy responses and one judge.

    Attributes:
        stage: "injection" (off-policy pairs are what helps next), "fine-tuning" (on-policy
            pairs are), or "undecided".
        boundary_score: BS, in [0, 1]; below ½ in the injection stage.
        interval: (low, high) of the boundary score, at `confidence`.
        confidence: Chance at least that the interval holds it.
        votes_on: Comparisons won by on-policy responses, P > ½. Ties and undecided ones are
            counted apart.
        votes_off: Comparisons won by off-policy responses.
        ties: Comparisons with P = ½.
        prompts_used: Prompts sampled and judged.
        prompts_available: Prompts that both sides have (or can have) responses to.
        responses_per_prompt: {"on": m, "off": n}, the mean over prompts used.
        judge: The judge's name.
        policy: The policy's name.
        tie_rule: What a tie counted for.
        seed: Of the order of prompts and the choice of responses.
        votes: Hard votes or probabilities.
        method: "sequential" (stopped when sure) or "fixed-size" (used its whole budget).
        stopped: Why it ended: "decided", "all prompts used", "prompt budget" or
            "judgment budget".
        population: What the interval is about: "these prompts", with the responses sampled
            for them, or "new prompts" like these.
        interval_new_prompts: The interval for new prompts like these; equal to `interval`
            where `population` says so.
        algorithm_1: The paper's plain verdict on the prompts used, without an interval.
        judgments: Comparisons made, m·n a prompt.
        undecided_judgments: Comparisons without a readable answer of the judge; they count ½.
        prompts_favouring: Number of prompts whose score is above ½ ("on"), below ("off"), or
            ½ ("neither").
        unmatched_prompts: Prompts left out because only this side has responses to them.
        responses_unused: Responses to the prompts used that were there but not drawn.
        tokens: Tokens of prompts and responses sampled for this measurement, or None where
            the on-policy responses existed before.
        cut_responses: Sampled responses that hit the token limit before they ended.
        cut_thoughts: Sampled responses that ended within their thought, without an answer;
            judges see an empty one.
        judge_counts: What the judge says it did, such as calls.
        distinctness: Share of comparisons in which the policy itself finds the on-policy
            response likelier, or None if not asked for.
        consistency: Share of comparisons that judge and policy's log-probs order alike: what the
            boundary score is where distinctness is 1. None likewise.
        reliability: Chance that the true boundary score is on the side called (of an
            undecided measurement: on the side of `algorithm_1`), or None where the judge's
            accuracy is not known. See `chance_above_half`.
        judge_accuracy: The judge's accuracy that it rests on.
        judge_bias: The judge's bias that it allows for.
        judge_errors: Where the judge errs, as it assumes.
        overlap: The overlap of both sides that it rests on.
        prompts: Every prompt used, in the order of use, with its responses and votes; empty for
            a stage that was read from a file.
    """

    stage: StageName
    boundary_score: float
    interval: tuple[float, float]
    confidence: float
    votes_on: int
    votes_off: int
    ties: int
    prompts_used: int
    prompts_available: int
    responses_per_prompt: dict[str, float]
    judge: str
    policy: str
    tie_rule: TieRule
    seed: int
    votes: Votes
    method: Literal["sequential", "fixed-size"]
    stopped: Literal["decided", "all prompts used", "prompt budget", "judgment budget"]
    population: Literal["these prompts", "new prompts"]
    interval_new_prompts: tuple[float, float]
    algorithm_1: Literal["injection", "fine-tuning"]
    judgments: int
    undecided_judgments: int
    prompts_favouring: dict[str, int]
    unmatched_prompts: dict[str, int]
    responses_unused: dict[str, int]
    tokens: dict[str, int] | None
    cut_responses: int
    judge_counts: dict[str, int]
    distinctness: float | None = None
    reliability: float | None = None
    judge_accuracy: float | None = None
    judge_bias: float = 0.0
    judge_errors: JudgeErrors = "unknown"
    overlap: float = 0.0
    cut_thoughts: int = 0
    refused_responses: int = 0
    consistency: float | None = None
    prompts: tuple[JudgedPrompt, ...] = field(default=(), compare=False, repr=False)

    @property
    def recommendation(self) -> str:
        """What was measured, what the paper infers from it, and what finds out more."""
        measured = _MEASURED[self.stage]
        if self.stage != "undecided":
            return (
                f"{measured}. The paper infers: {_INFERRED[self.stage]}. {_track_record()}{_BEYOND}"
            )
        # Of prompts that are all used there are no more to ask for.
        more = {"all prompts used": "with all prompts at hand: "}.get(
            self.stopped, "as far as this many prompts can tell: allow more prompts, or "
        )
        return f"{measured}, {more}count probabilities (--votes probability). {_BEYOND}"

    def as_dict(self) -> dict[str, Any]:
        """Everything but `prompts`, JSON-serialisable; `from_dict` turns it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "prompts"}
        return values | {name: list(values[name]) for name in _INTERVALS}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a stage from what `as_dict` gave.

        Args:
            values: All keys of a stage, and no other.

        Returns:
            The stage.

        Raises:
            DataError: If a key is missing or unknown.
        """
        # What has a default is new, and missing in the files of older versions.
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        odd = sorted(needed - {*values} | {*values} - {f.name for f in fields(cls)} - {"prompts"})
        DataError.unless(
            not odd,
            saw=f"a stage with missing or unknown keys: {', '.join(odd)}",
            expected="the keys that prefstage measure writes",
            cure="measure again, or read it with the version that wrote it",
        )
        return cls(**{**values, **{name: tuple(values[name]) for name in _INTERVALS}})

    def save(self, path: str | Path) -> None:
        """Write the stage as JSON, atomically."""
        write_json(Path(path), self.as_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a stage that `save` wrote.

        Args:
            path: The JSON file.

        Returns:
            The stage.

        Raises:
            DataError: If the file is missing or holds no stage.
        """
        expected, cure = "a stage.json that prefstage measure wrote", "check the path"
        with DataError.instead_of(OSError, saw=f"{path}: {{error}}", expected=expected, cure=cure):
            values = read_json(Path(path), expected=expected, cure=cure)
        return cls.from_dict(values)


# How often the paper's inference held, loss by loss.
def _track_record() -> str:
    records = bench_table()["kinds"]["stage"].items()
    shares = [f"{r['right']:.0%} with {loss}" for loss, r in records if loss != ANY_LOSS]
    return f"Where the truth is known, that was right in {', '.join(shares)} (docs/decisions.md). "


def write_prompts(prompts: Sequence[JudgedPrompt], path: Path) -> None:
    """Write one row a prompt as Parquet, atomically, in the order of use.

    Columns: `order`, `prompt_id`, `prompt` (the beginning of the last message), `score` in
    [0, 1], `favours`, `votes_on`, `votes_off`, `ties`, `undecided`, `on_responses`,
    `off_responses`.

    Args:
        prompts: The judged prompts.
        path: The file.
    """
    # pyarrow is loaded here alone: a measurement without a run folder does without it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "order": row.order,
            "prompt_id": row.on.prompt_id,
            "prompt": excerpt_of(row.on.prompt, length=_TABLE_EXCERPT),
            "score": row.votes.score,
            "favours": row.favours,
            "votes_on": row.votes.votes_on,
            "votes_off": row.votes.votes_off,
            "ties": row.votes.ties,
            "undecided": row.votes.undecided,
            "on_responses": len(row.on.responses),
            "off_responses": len(row.off.responses),
        }
        for row in prompts
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def on_policy_candidates(prompts: Sequence[JudgedPrompt], source: str) -> list[Candidates]:
    """The on-policy responses as candidates, to be used again as ``--on-policy``.

    Empty ones are left out, since no dataset reader takes an empty response.

    Args:
        prompts: The judged prompts.
        source: The policy's name.

    Returns:
        One row a prompt that has a response, in the order of use; no scores.
    """
    candidates = []
    for row in (prompt.on for prompt in prompts):
        count = len(row.responses)
        if spoken := [n for n in range(count) if row.responses[n].strip()]:
            candidates.append(
                replace(row, sources=(source,) * count, scores=(None,) * count).only(spoken)
            )
    return candidates


def excerpt_of(prompt: Prompt, *, length: int) -> str:
    """The beginning of the prompt's last message, on one line."""
    text = " ".join(content_of(prompt[-1]).split()) if prompt else ""
    return text if len(text) <= length else text[: length - 1] + "…"


def summarise(stage: Stage) -> str:
    """Tell an engineer the result, what it rests on, and what to do next.

    Args:
        stage: What `measure_stage` returned; its `prompts` give the examples.

    Returns:
        A dozen lines of text.
    """
    (low, high), per_prompt = stage.interval, stage.responses_per_prompt
    headline = "Undecided"
    if stage.stage != "undecided":
        side = "on" if stage.boundary_score > 1 / 2 else "off"
        share = max(stage.boundary_score, 1 - stage.boundary_score)
        headline = f"{stage.stage.capitalize()} stage: {_SIDES[side]} win {share:.0%}"
    tokens = f"; {stage.tokens['response']:,} tokens sampled" if stage.tokens else ""
    count = stage.prompts_favouring
    lines = [
        f"{headline}. Boundary score {stage.boundary_score:.3f}, "
        f"{stage.confidence:.0%} interval [{low:.3f}, {high:.3f}]"
        + ("" if stage.consistency is None else f"; unsimplified {stage.consistency:.3f}"),
        stage.recommendation,
        "",
        f"{stage.prompts_used} of {stage.prompts_available} prompts used "
        f"({_ENDINGS[stage.stopped]}), {per_prompt['on']:.3g} x {per_prompt['off']:.3g} responses "
        f"each; {stage.judgments} judgments by {stage.judge}{tokens}",
        f"votes: {stage.votes_on} on-policy, {stage.votes_off} off-policy, {stage.ties} ties; "
        f"policy {stage.policy}",
        f"prompts: {count['on']} favour on-policy, {count['off']} off-policy, "
        f"{count['neither']} neither",
    ]
    if stage.reliability is not None:
        lines.insert(1, _reliability(stage, stage.reliability))
    for side in ("on", "off"):
        # The clearest first; sorting is stable, also in reverse: equal ones stay in their order.
        ranked = sorted(stage.prompts, key=lambda row: row.votes.score, reverse=side == "on")
        lines += [
            f"  {row.votes.score:4.2f} {side:>3}-policy better: "
            f"{excerpt_of(row.on.prompt, length=_SUMMARY_EXCERPT)}"
            for row in [row for row in ranked if row.favours == side][:_EXAMPLES]
        ]
    return "\n".join([*lines, *(f"note: {note}" for note in notes_of(stage))])


def notes_of(stage: Stage) -> list[str]:
    """What else a reader of the result should know, one line a note."""
    low, high = stage.interval_new_prompts
    cut_texts = stage.judge_counts.get("truncated", 0)
    unused = stage.responses_unused
    notes: list[tuple[bool, str]] = [
        (
            stage.stopped == "all prompts used" and stage.population == "these prompts",
            "all prompts were used, so the score is exact for these prompts and these "
            f"responses; for new prompts like these it is in [{low:.2f}, {high:.2f}]",
        ),
        (
            stage.distinctness is not None,
            f"the policy finds its own responses likelier in {stage.distinctness or 0.0:.0%} of "
            "comparisons (distinctness; the stage says little near 50%)",
        ),
        (
            stage.consistency is not None,
            f"judge and policy order {stage.consistency or 0.0:.0%} of comparisons alike: the "
            "consistency that the boundary score simplifies, as if distinctness were 100%",
        ),
        *(
            (
                stage.unmatched_prompts[side] > 0,
                f"{stage.unmatched_prompts[side]} {side}-policy prompts left out: no "
                f"{other}-policy responses",
            )
            for side, other in (("off", "on"), ("on", "off"))
        ),
        (
            stage.cut_responses > 0,
            f"{stage.cut_responses} sampled responses were cut at the token limit, which "
            "judges may hold against them; consider a higher --max-new-tokens",
        ),
        (
            stage.cut_thoughts > 0,
            f"{stage.cut_thoughts} sampled responses ended in their thought and have no answer, "
            "which judges see as an empty one; raise --max-new-tokens, or switch thinking off",
        ),
        (
            stage.refused_responses > 0,
            f"the policy's server refused {stage.refused_responses} responses, which are left out",
        ),
        (cut_texts > 0, f"the judge read {cut_texts} texts cut to its length limit"),
        (
            stage.undecided_judgments > 0,
            f"{stage.undecided_judgments} of {stage.judgments} judgments had no readable "
            "verdict and count 1/2",
        ),
        (
            stage.judge_counts.get("reused", 0) > 0,
            f"{stage.judge_counts.get('reused', 0)} answers of the judge were at hand from before; "
            "its counts (judge_counts) are of this start of the command alone",
        ),
        (
            sum(unused.values()) > 0,
            f"responses beyond those wanted, left out by seed: {unused['on']} on-policy, "
            f"{unused['off']} off-policy",
        ),
    ]
    return [note for applies, note in notes if applies]


def _reliability(stage: Stage, chance: float) -> str:
    call = f"{stage.algorithm_1} stage, " if stage.stage == "undecided" else ""
    bias = f" (its bias at most {stage.judge_bias:.0%})" if stage.judge_bias else ""
    errors = {"any-pair": ", in any pair alike", "close-pairs": ", and errs in close pairs"}
    overlap = f" and the sides overlap by {stage.overlap:.0%}" if stage.overlap else ""
    shown = f"{chance:.1%}" if chance <= _SUREST else f"more than {_SUREST:.1%}"
    return (
        f"Reliability {shown}: the chance that a judge without error, asked about "
        f"all prompts like these, would say so too ({call}as this judge is right in "
        f"{stage.judge_accuracy:.0%} of comparisons{errors.get(stage.judge_errors, '')}{bias}"
        f"{overlap})"
    )
