"""`align` and `advise`: their run folders and results, and what they would do and cost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefstage.aligning.advice import Advice, advice_rows, depths_of, how_often_right
from prefstage.aligning.loop import Plan, PlannedStep, Walk
from prefstage.aligning.recipe import Depth, Recipe, load_recipe
from prefstage.aligning.steps import (
    Begun,
    Estimate,
    StepRecord,
    Steps,
    Workspace,
)
from prefstage.building.account import describe_reversal
from prefstage.core import (
    Outcome,
    markdown_table,
    run_folder,
    scratch_folder,
    write_config,
    write_json,
    write_result,
)
from prefstage.data.rendering import with_date
from prefstage.judging.base import Judge
from prefstage.judging.loading import PreferenceFunction, as_judge
from prefstage.training.export import describe_steps

CONFIG, ALIGNED, ADVISED = "config.yaml", "align.json", "advise.json"
_REFERENCES = {
    "iteration": "each iteration's start",
    "fixed": "fixed: the first iteration's start",
}
BASIS = (
    "Answers and judgments: at most. Tokens: with the mean lengths of the first 64 rows of the "
    "data, responses no longer than max_new_tokens. Memory: at the peak, as `prefstage doctor` "
    "estimates it, with everything in float32, and without the libraries. Time: arithmetic "
    "alone, 2 FLOP a parameter and token to answer, 6 to train, at the rate of a matrix product "
    "measured now on the CPU; judging and loading come on top."
)
Tell = Callable[[StepRecord], None]


@dataclass(frozen=True, kw_only=True)
class Aligned(Outcome):
    """What an alignment came to.

    Its `result` has figures and names, as in align.json: the same however often it was stopped.

    Attributes:
        steps: What became of each step in this call: ran, reused or remade.
        policy: Folder of the last policy, or the start where nothing was trained.
    """

    steps: tuple[StepRecord, ...]
    policy: str


def align(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
    judge: Judge | PreferenceFunction | str | None = None,
    tell: Tell | None = None,
    begun: Begun | None = None,
    store: Path | str | None = None,
) -> Aligned:
    """Align a policy: in each iteration with the data that its stage asks for.

    Every step is known by what it depends on: the same call goes on after a kill, and a call
    with a changed setting does again only what depends on it. Answers and judgments are on
    disk as they arrive, and are bought once.

    Args:
        recipe: A recipe, its settings, or its YAML file; see docs/aligning.md.
        out: The run folder: ``steps``, ``ledger.sqlite`` (answers and judgments),
            ``align.json``, ``steps.jsonl`` (what became of each step, every time) and
            ``config.yaml``.
        judge: Another judge than the recipe's: the judge itself, a function, or a spec.
        tell: Called with each step when it is done.
        begun: Called with each step, and its iteration, as it begins; not if it is reused.
        store: A folder whose steps, answers and judgments several runs share, so that equal
            steps are done once; None: the run keeps its own. `out` gets links to them.

    Returns:
        What came of it.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If data, policy or judge cannot be used, or the judge reverses more than 40 %
            of the off-policy labels and the recipe does not accept that.
        RunFolderError: If `out` holds something else, or another process works in it.

    Source:
        Sun et al. 2025, arXiv:2508.10530: the stages, and training in iterations whose
        reference is each iteration's start.
    """
    folder, out = Path(out), Path(out).absolute()
    space = open_workspace(recipe, out, judge)
    # By the path as it was written, which is what an error should repeat.
    with (
        run_folder(folder, command="align", inputs={}),
        space.opened(None if store is None else Path(store)),
    ):
        write_config(space.recipe, out / CONFIG)
        steps = Steps(space, tell, begun=begun)
        result = Walk(space, steps).run()
        write_json(out / ALIGNED, result)
        write_result(
            out,
            "align",
            headline=f"{len(result['iterations'])} iterations: {result['stopped']}",
            facts={
                **{name: result[name] for name in ("start", "judge", "policy")},
                "schedule": ", ".join(result["schedule"]),
                "reference": _REFERENCES[space.recipe.reference],
                "ended": result["stopped"],
                "put aside as bad": ", ".join(
                    f"{bad['rows']:,} of {bad['of']:,} rows of {name}"
                    for name, bad in result["put_aside"].items()
                ),
            },
            parts=[{"kind": "align", "iteration": 0, "folder": "."}, *steps.parts],
        )
    return Aligned(
        summary=_summary(result, steps.records, folder),
        result=result,
        written=(out / ALIGNED, Path(result["policy"])),
        steps=tuple(steps.records),
        policy=result["policy"],
    )


@dataclass(frozen=True, kw_only=True)
class Advised(Outcome):
    """What to train on next; its `result` has all figures, as in advise.json.

    Attributes:
        choice: The entry of `advise.candidates` to train on.
        steps: What became of each step in this call.
    """

    choice: str
    steps: tuple[StepRecord, ...]


def advise(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
    judge: Judge | PreferenceFunction | str | None = None,
    depth: Depth | None = None,
    tell: Tell | None = None,
    begun: Begun | None = None,
    store: Path | str | None = None,
) -> Advised:
    """Tell which of several data sets a policy should be trained on next.

    At the depth "stage" by the boundary score alone; at "forecast" also by gradients, without
    training; at "pilot" also by short trainings, raced. The same call with another depth goes on
    in the same folder: nothing is sampled, judged or trained twice.

    Args:
        recipe: As for `align`; its section `advise` names the candidates and the depth.
        out: The run folder: as of `align`, with ``advise.json`` in place of ``align.json``.
        judge: Another judge than the recipe's: the judge itself, a function, or a spec.
        depth: Where to stop; None: as the recipe says.
        tell: Called with each step when it is done.
        begun: Called with each step, and 0, as it begins; not if it is reused.
        store: As of `align`: advice and alignments that share a store do equal steps once.

    Returns:
        The answer.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If data, policy or judge cannot be used.
        RunFolderError: If `out` holds something else, or another process works in it.
    """
    folder, out = Path(out), Path(out).absolute()
    space = open_workspace(recipe, out, judge)
    with (
        run_folder(folder, command="advise", inputs={}),
        space.opened(None if store is None else Path(store)),
    ):
        write_config(space.recipe, out / CONFIG)
        steps = Steps(space, tell, begun=begun)
        start = space.policy("start", space.recipe.policy)
        result = Advice(Walk(space, steps), start, depth=depth).run()
        depths = depths_of(space.recipe)
        deeper = depths[depths.index(result["depth"]) + 1 :]
        result["next"] = None
        if deeper:  # what the next depth would take on top of what is done, at most
            more = sum((step.estimate for step in _planned(space, deeper[0])), Estimate())
            result["next"] = {"depth": deeper[0], **asdict(more)}
        doubt = "" if result["decided"] else " (too close to call)"
        headline = f"train on {result['choice']}{doubt}: {result['reason']}"
        write_json(out / ADVISED, result)
        write_result(
            out,
            "advise",
            headline=headline,
            facts={name: result[name] for name in ("policy", "judge", "depth", "choice")},
            parts=[{"kind": "advise", "iteration": 0, "folder": "."}, *steps.parts],
        )
    table = [] if result["depth"] == "stage" else ["", markdown_table(*advice_rows(result)), ""]
    return Advised(
        summary="\n".join(
            [
                headline,
                *table,
                *_notes(result),
                f"bought: {bought(steps.spent()[0])}",
            ]
        ),
        result=result,
        written=(out / ADVISED,),
        choice=result["choice"],
        steps=tuple(steps.records),
    )


def open_workspace(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    out: Path,
    judge: Judge | PreferenceFunction | str | None = None,
    *,
    quarantine: Path | None = None,
) -> Workspace:
    """Read a recipe, load its judge, and set up the workspace of its steps.

    Args:
        recipe: As for `align`.
        out: As for `align`; need not exist.
        judge: As for `align`.
        quarantine: As for `Workspace`.

    Returns:
        The workspace; its stores are not open yet.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If the judge cannot be loaded.
    """
    recipe = load_recipe(recipe)
    # A run that goes on another day keeps the date that its chat template read at first.
    recipe = with_date(recipe, recipe.policy, out)
    judge = as_judge(recipe.judge if judge is None else judge)
    return Workspace(recipe, judge, out, quarantine=quarantine)


# --- Plans ---------------------------------------------------------------------------------------


def plan_alignment(
    recipe: Recipe | Mapping[str, object] | Path | str,
    *,
    out: Path | str,
    judge: Judge | PreferenceFunction | str | None = None,
) -> tuple[PlannedStep, ...]:
    """Tell what `align` would do, without doing any of it.

    Args:
        recipe: As for `align`.
        out: As for `align`; need not exist.
        judge: As for `align`.

    Returns:
        The steps in order. What follows from a stage that is not measured yet is planned for
        on-policy data, which cost more. For how costs are estimated see `BASIS`.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If data, policy or judge cannot be used.
    """
    # Bad rows go to a folder that is thrown away: only a run puts them aside.
    with scratch_folder() as folder:
        plan = Plan(open_workspace(recipe, Path(out), judge, quarantine=folder))
        plan.run()
    return tuple(plan.planned)


def plan_advice(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
    judge: Judge | PreferenceFunction | str | None = None,
    depth: Depth | None = None,
) -> tuple[PlannedStep, ...]:
    """Tell what `advise` would do at most, without doing any of it.

    Args:
        recipe: As for `advise`.
        out: As for `advise`; need not exist.
        judge: As for `advise`.
        depth: As for `advise`.

    Returns:
        The steps in order; a race may end before its last heats. For how costs are estimated see
        `prefstage.aligning.runs.BASIS`.

    Raises:
        ConfigError: If the recipe is wrong.
        InputError: If data, policy or judge cannot be used.
    """
    with scratch_folder() as folder:
        space = open_workspace(recipe, Path(out), judge, quarantine=folder)
        return _planned(space, depth or space.recipe.advise.depth)


def _planned(space: Workspace, depth: Depth) -> tuple[PlannedStep, ...]:
    plan = Plan(space)
    Advice(plan, space.policy("start", space.recipe.policy), depth=depth).run()
    return tuple(plan.planned)


def plan_outcome(planned: Sequence[PlannedStep]) -> Outcome:
    """A plan for people and machines.

    Args:
        planned: The steps.

    Returns:
        Its summary is Markdown: a table with a last row of sums (of memory the largest), what is
        known of labels that a judge would replace, and how costs are estimated. Its result has
        "steps", their "total", and "basis".
    """
    total = sum((step.estimate for step in planned), Estimate())
    head = ("iteration", "step", "will", "answers", "judgments", "tokens", "memory", "time")
    rows = [
        *(
            (s.iteration, s.step or f"{s.kind}: {s.note}", s.will, *_cells(s.estimate))
            for s in planned
        ),
        ("", "in all", "", *_cells(total)),
    ]
    # The same figure of labels is told once, at the first iteration that it is of.
    reversals = {step.reversal: step.iteration for step in reversed(planned) if step.reversal}
    lines = [f"iteration {number}: {text}" for text, number in reversed(reversals.items())]
    return Outcome(
        "\n\n".join(filter(None, (markdown_table(head, rows), "\n".join(lines), BASIS))),
        {"steps": [asdict(step) for step in planned], "total": asdict(total), "basis": BASIS},
    )


def _cells(estimate: Estimate) -> list[str]:
    return [
        *(f"{count:,}" for count in (estimate.answers, estimate.judgments, estimate.tokens)),
        f"{estimate.memory_bytes / 2**20:,.0f} MiB",
        f"{estimate.seconds:,.1f} s",
    ]


# --- Texts ---------------------------------------------------------------------------------------


def _summary(result: Mapping[str, Any], records: list[StepRecord], out: Path) -> str:
    counts = Counter(record.did for record in records)
    did = ", ".join(f"{counts[x]} {x}" for x in ("ran", "reused", "remade") if counts[x])
    schedule, bad = ", ".join(result["schedule"]), result["put_aside"].items()
    return "\n".join(
        [
            f"aligned {result['start']} by {schedule}, judged by {result['judge']}",
            "",
            table(result),
            "",
            *(
                [f"win rates are over {rates['baseline']}, the start's too"]
                if (rates := result["start_evaluation"])
                else []
            ),
            *reversal_lines(result),
            *in_sample_lines(result),
            f"ended: {result['stopped']}",
            f"steps: {did}",
            f"bought: {bought(result['costs'])}",
            *(
                f"put aside as bad: {x['rows']} of {x['of']} rows of {name} ({out / x['file']})"
                for name, x in bad
            ),
            *(
                f"remade {record.step}: {record.why}"
                for record in records
                if record.did == "remade"
            ),
        ]
    )


def _notes(result: Mapping[str, Any]) -> list[str]:
    lines = how_often_right(result)
    if result["depth"] == "pilot" and result["candidates"][0]["pilots"][-1]["seeds"] == 1:
        lines.append("this tells of these trainings; advise.seeds: 2 tells of the recipe")
    if result["target_agreement"] is not None:
        lines.append(
            f"the judged answers to {result['target_prompts']} prompts point one way with cosine "
            f"{result['target_agreement']:.2f} between two halves of them"
        )
    deeper = result["right_deeper"]
    if (cost := result["next"]) is not None:
        lines.append(
            f"--depth {cost['depth']} would take at most {cost['answers']:,} answers, "
            f"{cost['judgments']:,} judgments and {cost['seconds']:,.0f} s of arithmetic more"
            + ("" if deeper is None else f"; right in {deeper['share']:.0%} of such cases")
        )
    return lines


def bought(costs: Mapping[str, int]) -> str:
    """Costs in words.

    Args:
        costs: Counts by name, as in align.json.

    Returns:
        Such as "12 judgments, 3 answers of 45 tokens".
    """
    judged = costs.get("judgments", 0) + costs.get("judge_replies", 0)
    answers, tokens = costs.get("answers", 0), costs.get("response_tokens", 0)
    return f"{judged:,} judgments, {answers:,} answers of {tokens:,} tokens"


def table(result: Mapping[str, Any]) -> str:
    """The iterations as a Markdown table, a row each.

    Args:
        result: As in align.json.

    Returns:
        The table; a dash where something was not measured or done.
    """
    head = ("stage", "boundary score", "data", "pairs", "steps", "loss", "win rate", "length")
    rows, first = [], result.get("start_evaluation")
    if first is not None:
        rows.append(("start", *["-"] * (len(head) - 2), *_rates(first)))
    for row in result["iterations"]:
        stage, training, rates = row["stage"], row["training"], row["evaluation"]
        has_losses = training is not None and training["first_loss"] is not None
        cells = (
            stage and stage["stage"],
            stage and "{boundary_score:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]".format(**stage),
            row["data"],
            row["pairs"],
            training and describe_steps(training),
            "{first_loss:.3f} to {last_loss:.3f}".format(**training) if has_losses else None,
            *((None, None) if rates is None else _rates(rates)),
        )
        rows.append((row["iteration"], *("-" if cell is None else cell for cell in cells)))
    return markdown_table(("iteration", *head), rows)


def _rates(rates: Mapping[str, Any]) -> tuple[str, str]:
    return (
        "{win_rate:.1f} % [{interval[0]:.1f}, {interval[1]:.1f}]".format(**rates),
        "{avg_length:.0f} ({avg_length_start:.0f})".format(**rates),
    )


def reversal_lines(result: Mapping[str, Any]) -> list[str]:
    """How often the judge reversed the labels that it replaced.

    Args:
        result: As in align.json.

    Returns:
        A line for each iteration that relabelled.
    """
    return [
        f"iteration {row['iteration']}: {describe_reversal(row['reversal'])}"
        for row in result["iterations"]
        if row.get("reversal") is not None  # unknown to runs of older versions
    ]


def in_sample_lines(result: Mapping[str, Any]) -> list[str]:
    """Which boundary scores are of prompts that the policy was trained on before.

    Args:
        result: As in align.json.

    Returns:
        A line for each iteration whose score is in-sample, in whole or in part.
    """
    return [
        f"iteration {row['iteration']}: the boundary score is in-sample, as the policy was trained "
        f"on {seen['prompts']} of the {seen['of']} measured prompts before; measure.off_policy "
        "takes held-out pairs"
        for row in result["iterations"]
        if (seen := row.get("in_sample")) and seen["prompts"]
    ]
