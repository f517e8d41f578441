"""`align`: sample, judge, measure, choose, build, train, evaluate; and again."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from prefstage.aligning.advice import Advice
from prefstage.aligning.recipe import PER_PROMPT, Data, Recipe, Rule, load_recipe
from prefstage.aligning.steps import (
    Begun,
    Build,
    Evaluate,
    Measure,
    Policy,
    Sample,
    Sft,
    Step,
    StepRecord,
    Steps,
    Train,
    Workspace,
)
from prefstage.building.account import describe_reversal
from prefstage.core import (
    Outcome,
    RunFolder,
    markdown_table,
    write_config,
    write_json,
    write_result,
)
from prefstage.data.rendering import with_date
from prefstage.judging.base import Judge
from prefstage.judging.loading import PreferenceFunction, as_judge
from prefstage.measuring.stage import Stage
from prefstage.training.export import describe_steps

CONFIG, RESULT = "config.yaml", "align.json"
EVEN = 50.0
"""Win rate of the start over itself, percent."""
_HOUR_S = 3600.0
_EMPTY_ROW: dict[str, Any] = dict.fromkeys(
    (
        *("data", "reason", "stage", "advice", "pairs", "left_out", "reversal", "build_figures"),
        *("training", "evaluation", "stopped"),
    )
)
_REFERENCES = {
    "iteration": "each iteration's start",
    "fixed": "fixed: the first iteration's start",
}
Tell = Callable[[StepRecord], None]
S = TypeVar("S", bound=Step)


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
        RunFolder.hold(folder, command="align", inputs={}),
        space.opened(None if store is None else Path(store)),
    ):
        write_config(space.recipe, out / CONFIG)
        steps = Steps(space, tell, begun=begun)
        result = Walk(space, steps).run()
        write_json(out / RESULT, result)
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
        written=(out / RESULT, Path(result["policy"])),
        steps=tuple(steps.records),
        policy=result["policy"],
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


class Walk:
    """The steps of a recipe in their order: each is done as it is come to, or planned.

    Args:
        space: The workspace.
        steps: Does them.
    """

    def __init__(self, space: Workspace, steps: Steps) -> None:
        self.space, self.recipe, self.steps = space, space.recipe, steps
        # Of the iteration under way, as in align.json.
        self.row: dict[str, Any] = {"iteration": 0, "steps": {}}

    def run(self) -> dict[str, Any]:
        """Go through the iterations.

        Returns:
            What align.json holds.
        """
        self.space.check_training_data()
        put_aside = self.space.put_aside()
        start = self.space.policy("start", self.recipe.policy)
        if self.recipe.sft is not None:
            start = self.do(Sft(self.space, start)).policy("start")
        baseline = self._answers(start)
        policy, rows, stopped = start, list[dict[str, Any]](), "all iterations done"
        before = EVEN
        for number, rule in enumerate(self.recipe.rules, start=1):
            if spent := self._spent():
                stopped = f"{spent} before iteration {number}"
                break
            self.row = {"iteration": number, "rule": str(rule), **_EMPTY_ROW, "steps": {}}
            rows.append(self.row)
            policy = self._iterate(rule, policy, start, baseline)
            if self.row["stopped"] is not None:
                stopped = f"{self.row['stopped']} in iteration {number}"
                break
            if self.row["evaluation"] is not None:
                after = self.row["evaluation"]["win_rate"]
                if self.recipe.stop.no_gain and after <= before:
                    stopped = f"no gain in iteration {number}"
                    break
                before = after
        return {
            "start": start.spec,
            "start_answers": None if baseline is None else baseline.name,
            "judge": self.space.judge.name,
            "schedule": [str(rule) for rule in self.recipe.rules],
            "reference": self.recipe.reference,
            "put_aside": put_aside,
            "iterations": rows,
            "stopped": stopped,
            "policy": policy.spec,
            "costs": self.steps.spent()[0],
        }

    def do(self, step: S) -> S:
        """Do a step, and keep what it reports in the row of the iteration.

        Args:
            step: The step.

        Returns:
            It, done.
        """
        self.steps.do(step, iteration=self.row["iteration"])
        self.row["steps"][step.role] = step.name
        self.row |= step.report()
        step.check()
        return step

    def _iterate(
        self, rule: Rule, policy: Policy, start: Policy, baseline: Sample | None
    ) -> Policy:
        row, stage, measured = self.row, None, None
        if self.recipe.measure is not False:
            measured = self.do(Measure(self.space, policy))
            stage = measured.stage() if measured.state[0] == "done" else None
        if rule.kind == "advise":
            row["advice"] = Advice(self, policy).run()
            chosen = next(
                (r for r in self.recipe.advise.rules if str(r) == row["advice"]["choice"]), None
            )
            unknown = chosen is None
            rule = chosen or Rule("on")
            row["data"], row["reason"] = rule.kind, row["advice"]["reason"]
        else:
            row["data"], row["reason"] = choose(rule, stage)
            unknown = rule.kind == "auto" and stage is None
        if unknown:
            # In a plan. Nothing after an unmeasured stage has a key: a policy without one does it.
            policy = replace(policy, key=None)
        row["stopped"] = self._spent()
        if row["stopped"] is None:
            built = self.pairs(row["data"], rule, policy, measured)
            row["stopped"] = self._spent()
        if row["stopped"] is not None:
            # What was built is not trained on; its figures are of no iteration.
            row.update(pairs=None, left_out=None, build_figures=None)
            return policy
        reference = start if self.recipe.reference == "fixed" else policy
        train = Train(self.space, policy, built, reference=reference)
        policy = self.do(train).policy(f"iteration {row['iteration']}")
        ours = self._answers(policy)
        if ours is not None and baseline is not None:
            self.do(Evaluate(self.space, ours, baseline))
        return policy

    def pairs(self, data: Data, rule: Rule, policy: Policy, measured: Measure | None) -> Build:
        """Build pairs, and before them what they are made of.

        Args:
            data: What they are made of.
            rule: Has the share of a mixture, or whose answers or data it is.
            policy: Who is trained.
            measured: The measurement that a choice by prompt goes by.

        Returns:
            The step that made them.
        """
        space, recipe, off_policy = self.space, self.recipe, None
        if data in ("off", "mix", "per-prompt"):
            off_policy = self.do(Build.off_policy(space))
            if data == "off":
                return off_policy
            if data == "mix":
                count = recipe.sampling.responses
                method = {"name": "mixing", "share": rule.share, "answers": count}
                return self.do(Build(space, method, {"pairs": off_policy}, policy=policy))
        if data == "data":
            return self.do(Build.off_policy(space.with_data(off_policy=str(rule.source))))
        if data == "other":
            policy = space.policy(Path(str(rule.source)).name, str(rule.source))
        sampled = self.do(Sample(space, policy))
        if off_policy is not None and measured is not None:
            roles = {"pairs": off_policy, "on_policy": sampled}
            return self.do(Build(space, PER_PROMPT, roles, measured=measured))
        return self.do(Build(space, recipe.build.on, {"candidates": sampled}))

    def _answers(self, policy: Policy) -> Sample | None:
        if self.recipe.evaluate is None:
            return None
        return self.do(Sample(self.space, policy, held_out=True))

    # Which limit is reached.
    def _spent(self) -> str | None:
        rules, (costs, seconds) = self.recipe.stop, self.steps.spent()
        judged = costs.get("judgments", 0) + costs.get("judge_replies", 0)
        limits = {
            f"{rules.judgments} judgments": (rules.judgments, judged),
            f"{rules.tokens} tokens": (rules.tokens, costs.get("response_tokens", 0)),
            f"{rules.hours or 0:g} hours": (rules.hours, seconds / _HOUR_S),
        }
        reached = (text for text, (limit, spent) in limits.items() if limit and spent >= limit)
        return next((f"budget of {text} reached" for text in reached), None)


def choose(rule: Rule, stage: Stage | None) -> tuple[Data, str]:
    """Which data an iteration trains on.

    In the injection stage off-policy data, in the fine-tuning stage on-policy data; where the
    stage is undecided, by the votes at hand (Algorithm 1: off only if it has more).

    Args:
        rule: The iteration's.
        stage: As measured; read by "auto".

    Returns:
        The data, and why these.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1.
    """
    if rule.kind != "auto" or stage is None:
        fixed: Any = "on" if rule.kind == "auto" else rule.kind
        return fixed, "fixed by the schedule"
    undecided = stage.stage == "undecided"
    decisive = stage.algorithm_1 if undecided else stage.stage
    reason = "undecided; the votes at hand favour it" if undecided else f"{stage.stage} stage"
    return ("off" if decisive == "injection" else "on"), reason


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
            *reversal_lines(result),
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
    rows = []
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
            rates and "{win_rate:.1f} % [{interval[0]:.1f}, {interval[1]:.1f}]".format(**rates),
            rates and "{avg_length:.0f} ({avg_length_start:.0f})".format(**rates),
        )
        rows.append((row["iteration"], *("-" if cell is None else cell for cell in cells)))
    return markdown_table(("iteration", *head), rows)


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
