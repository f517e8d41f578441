"""`align`: sample, judge, measure, choose, build, train, evaluate; and again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefstage.aligning.recipe import Data, Recipe, Rule, StopRules, load_recipe
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
from prefstage.core.config import write_config
from prefstage.core.files import write_json
from prefstage.core.results import write_result
from prefstage.core.runs import RunFolder
from prefstage.data.tokenizer_files import with_date
from prefstage.judging.base import Judge
from prefstage.judging.loading import PreferenceFunction, as_judge
from prefstage.measuring.stage import Stage
from prefstage.training.export import describe_steps

CONFIG, RESULT = "config.yaml", "align.json"
EVEN = 50.0
"""Win rate of the start over itself, percent."""
_HOUR_S = 3600.0
Tell = Callable[[StepRecord], None]
S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Aligned:
    """What an alignment came to.

    Attributes:
        result: Figures and names, as in align.json: the same however often it was stopped.
        steps: What became of each step in this call: ran, reused or remade.
        policy: Folder of the last policy, or the start where nothing was trained.
        written: Files and folders of the run that hold something to use.
    """

    result: dict[str, Any]
    steps: tuple[StepRecord, ...]
    policy: str
    written: tuple[Path, ...]


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
        loop = _Loop(space, Steps(space, tell, begun=begun))
        result = loop.run()
        write_json(out / RESULT, result)
        write_result(
            out,
            "align",
            headline=f"{len(result['iterations'])} iterations: {result['stopped']}",
            facts=_facts(result),
            parts=[{"kind": "align", "iteration": 0, "folder": "."}, *loop.steps.parts()],
        )
    policy = result["policy"]
    return Aligned(result, tuple(loop.steps.records), policy, (out / RESULT, Path(policy)))


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
    """The steps of a recipe in their order; each is done, or planned, as it is come to.

    Args:
        space: The workspace.
        do: Does or plans a step.
    """

    def __init__(self, space: Workspace, do: Callable[[Step], object]) -> None:
        self.space, self.recipe = space, space.recipe
        self._do = do

    def start(self) -> tuple[Policy, Sample | None]:
        """What is done before the first iteration.

        Returns:
            The policy that goes into it, and its held-out answers, which later ones are
            compared with.
        """
        policy = self.space.policy("start", self.recipe.policy)
        if self.recipe.sft is not None:
            policy = self._did(Sft(self.space, policy)).policy("start")
        return policy, self._answers(policy)

    def measure(self, policy: Policy) -> Measure | None:
        """The measurement of a policy's stage, if the recipe has one."""
        return None if self.recipe.measure is False else self._did(Measure(self.space, policy))

    def pairs(
        self, data: Data, rule: Rule, policy: Policy, measured: Measure | None = None
    ) -> Build:
        """The pairs of an iteration, and before them what they are made of.

        Args:
            data: What they are made of.
            rule: The iteration's, for the share of a mixture and the name of another model.
            policy: Whose iteration it is.
            measured: What a choice by prompt goes by.

        Returns:
            The step that leaves them.
        """
        off_policy, writer = None, policy
        if data in ("off", "mix", "per-prompt"):
            off_policy = self._did(Build.off_policy(self.space))
            if data == "off":
                return off_policy
            if data == "mix":
                return self._did(Build.mixture(self.space, rule, policy, off_policy))
        if data == "other":
            model = str(rule.model)
            writer = self.space.policy(Path(model).name, model)
        answers = self._did(Sample(self.space, writer))
        if off_policy is not None and measured is not None:
            return self._did(Build.per_prompt(self.space, off_policy, answers, measured))
        return self._did(Build.of_answers(self.space, answers))

    def train(self, policy: Policy, built: Build, start: Policy, *, iteration: int) -> Policy:
        """The policy that an iteration's training leaves."""
        reference = start if self.recipe.reference == "fixed" else policy
        trained = self._did(Train(self.space, policy, built, reference=reference))
        return trained.policy(f"iteration {iteration}")

    def evaluate(self, policy: Policy, baseline: Sample | None) -> None:
        """The win rate of a policy over the start, if the recipe asks for it."""
        ours = self._answers(policy)
        if ours is not None and baseline is not None:
            self._did(Evaluate(self.space, ours, baseline))

    def _answers(self, policy: Policy) -> Sample | None:
        if self.recipe.evaluate is None:
            return None
        return self._did(Sample(self.space, policy, held_out=True))

    def _did(self, step: S) -> S:
        self._do(step)
        return step


class _Loop(Walk):
    """Does the steps, and keeps the row of the iteration under way."""

    def __init__(self, space: Workspace, steps: Steps) -> None:
        super().__init__(space, self._done)
        self.steps = steps
        self._row: dict[str, Any] = {"iteration": 0, "steps": {}}

    def _done(self, step: Step) -> None:
        self.steps.do(step, iteration=self._row["iteration"])
        self._row["steps"][step.role] = step.name
        self._row |= step.report()
        step.check()

    def run(self) -> dict[str, Any]:
        """Go through the iterations; the result is that of align.json."""
        self.space.check_training_data()
        put_aside = self.space.put_aside()
        start, baseline = self.start()
        policy, rows, stopped = start, list[dict[str, Any]](), "all iterations done"
        before = EVEN
        for number, rule in enumerate(self.recipe.rules, start=1):
            if spent := self._spent():
                stopped = f"{spent} before iteration {number}"
                break
            row = self._row = _empty_row(number, rule)
            rows.append(row)
            policy = self._iterate(rule, policy, start, baseline)
            if row["stopped"] is not None:
                stopped = f"{row['stopped']} in iteration {number}"
                break
            after = before if row["evaluation"] is None else row["evaluation"]["win_rate"]
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

    def _iterate(
        self, rule: Rule, policy: Policy, start: Policy, baseline: Sample | None
    ) -> Policy:
        row, measured = self._row, self.measure(policy)
        data, row["reason"] = choose(rule, None if measured is None else measured.stage())
        row["data"] = data
        row["stopped"] = self._spent()
        if row["stopped"] is None:
            built = self.pairs(data, rule, policy, measured)
            row["stopped"] = self._spent()
        if row["stopped"] is not None:
            # What was built is not trained on; its figures are of no iteration.
            row.update(pairs=None, left_out=None, build_figures=None)
            return policy
        trained = self.train(policy, built, start, iteration=row["iteration"])
        self.evaluate(trained, baseline)
        return trained

    def _spent(self) -> str | None:
        """Which limit is reached."""
        rules: StopRules = self.recipe.stop
        costs, seconds = self.steps.spent()
        judged = costs.get("judgments", 0) + costs.get("judge_replies", 0)
        for limit, spent, told in (
            (rules.judgments, judged, f"{rules.judgments} judgments"),
            (rules.tokens, costs.get("response_tokens", 0), f"{rules.tokens} tokens"),
            (rules.hours, seconds / _HOUR_S, f"{rules.hours or 0:g} hours"),
        ):
            if limit is not None and spent >= limit:
                return f"budget of {told} reached"
        return None


def _empty_row(number: int, rule: Rule) -> dict[str, Any]:
    names = ("data", "reason", "stage", "pairs", "left_out", "reversal", "build_figures")
    return {
        "iteration": number,
        "rule": str(rule),
        **dict.fromkeys((*names, "training", "evaluation", "stopped")),
        "steps": {},
    }


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
        return ("on" if rule.kind == "auto" else rule.kind), "fixed by the schedule"
    undecided = stage.stage == "undecided"
    decisive = stage.algorithm_1 if undecided else stage.stage
    reason = "undecided; the votes at hand favour it" if undecided else f"{stage.stage} stage"
    return ("off" if decisive == "injection" else "on"), reason


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    put_aside = result["put_aside"].items()
    bad = (f"{count['rows']:,} of {count['of']:,} rows of {name}" for name, count in put_aside)
    fixed = "fixed: the first iteration's start"
    return {
        "start": result["start"],
        "judge": result["judge"],
        "schedule": ", ".join(result["schedule"]),
        "reference": "each iteration's start" if result["reference"] == "iteration" else fixed,
        "ended": result["stopped"],
        "policy": result["policy"],
        "put aside as bad": ", ".join(bad),
    }


def table(result: Mapping[str, Any]) -> str:
    """The iterations as a Markdown table, a row each.

    Args:
        result: As in align.json.

    Returns:
        The table; a dash where something was not measured or done.
    """
    head = (
        "| iteration | stage | boundary score | data | pairs | steps | loss | win rate | length |"
    )
    rows = [_table_row(row) for row in result["iterations"]]
    return "\n".join([head, "|---|---|---|---|---|---|---|---|---|", *rows])


def _table_row(row: Mapping[str, Any]) -> str:
    stage, training, evaluation = row["stage"], row["training"], row["evaluation"]
    cells = [str(row["iteration"]), "-", "-", row["data"], "-", "-", "-", "-", "-"]
    if stage is not None:
        low, high = stage["interval"]
        cells[1:3] = [stage["stage"], f"{stage['boundary_score']:.2f} [{low:.2f}, {high:.2f}]"]
    if row["pairs"] is not None:
        cells[4] = str(row["pairs"])
    if training is not None:
        cells[5] = describe_steps(training)
        if training["first_loss"] is not None:
            cells[6] = f"{training['first_loss']:.3f} to {training['last_loss']:.3f}"
    if evaluation is not None:
        low, high = evaluation["interval"]
        cells[7] = f"{evaluation['win_rate']:.1f} % [{low:.1f}, {high:.1f}]"
        cells[8] = f"{evaluation['avg_length']:.0f} ({evaluation['avg_length_start']:.0f})"
    return "| " + " | ".join(cells) + " |"


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
