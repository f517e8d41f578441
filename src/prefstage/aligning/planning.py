"""`plan_alignment`: what a call of `align` would do, and about what it would cost."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from timeit import Timer
from typing import Literal

import torch

from prefstage.aligning.loop import S, Walk, open_workspace
from prefstage.aligning.recipe import Recipe
from prefstage.aligning.steps import (
    REVERSAL_SETTING,
    Build,
    Estimate,
    Sizes,
    State,
    Steps,
    Workspace,
)
from prefstage.building.account import REVERSAL_LIMIT, Account, describe_reversal, is_excessive
from prefstage.building.build import RESULT as BUILT
from prefstage.building.relabelling import reversal_of, whole_pairs
from prefstage.core import LEDGER, Ledger, Outcome, load_model_config, markdown_table
from prefstage.data import Pair, ResponseEncoder, load_tokenizer
from prefstage.judging.base import Judge, Judgment, judgment_of_rewards
from prefstage.judging.judged import comparison_of, stored_judgment, stored_reward
from prefstage.judging.loading import PreferenceFunction
from prefstage.scoring.memory import ModelShape

Will = Literal["run", "reuse", "go on", "remake"]
_WILL: dict[State, Will] = {"done": "reuse", "absent": "run", "begun": "go on", "damaged": "remake"}
_ROWS_LOOKED_AT = 64
_MATRIX = 512
BASIS = (
    "Answers and judgments: at most. Tokens: with the mean lengths of the first 64 rows of the "
    "data, responses no longer than max_new_tokens. Memory: at the peak, as `prefstage doctor` "
    "estimates it, with everything in float32, and without the libraries. Time: arithmetic "
    "alone, 2 FLOP a parameter and token to answer, 6 to train, at the rate of a matrix product "
    "measured now on the CPU; judging and loading come on top."
)


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan.

    Attributes:
        iteration: From 1; 0 before the first.
        kind: As of `Step`.
        step: Its folder's name; None where it depends on a stage not yet measured.
        will: "run", "reuse", "go on" (begun before), or "remake" (damaged).
        note: What else there is to say.
        estimate: What it costs; nothing if it is reused.
        reversal: Of pairs whose labels the judge replaces: how often it reverses them, as far as
            that is known, and what follows.
    """

    iteration: int
    kind: str
    step: str | None
    will: Will
    note: str
    estimate: Estimate
    reversal: str = ""


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
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(open_workspace(recipe, Path(out), judge, quarantine=Path(folder)))
        plan.run()
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


class Plan(Walk):
    """Takes the walk of a run, and notes the steps instead of doing them.

    Args:
        space: The workspace; its stores need not be open.

    Attributes:
        planned: The steps so far.
    """

    def __init__(self, space: Workspace) -> None:
        super().__init__(space, Steps(space))
        self.planned: list[PlannedStep] = []
        self._sizes = _sizes_of(space)

    def do(self, step: S) -> S:
        """Plan a step.

        Args:
            step: The step.

        Returns:
            It, as it is.
        """
        state, is_known = step.state[0], step.key is not None
        will = _WILL[state] if is_known else "run"
        if is_known and any(earlier.step == step.name for earlier in self.planned):
            will = "reuse"
        self.planned.append(
            PlannedStep(
                self.row["iteration"],
                step.kind,
                step.name if is_known else None,
                will,
                "" if is_known else "as the stage will ask",
                Estimate() if will == "reuse" else step.estimate(self._sizes),
                self._reversal(step, state) if isinstance(step, Build) else "",
            )
        )
        return step

    # How often a judge reverses the labels that it replaces, of all pairs or of those judged so
    # far, and what follows from it; "" if it replaces none. The judge is asked nothing.
    def _reversal(self, step: Build, state: State) -> str:
        # Whatever an unmeasured stage turns out to be, labels may come to be replaced.
        may = self.row["rule"] == "auto" and step.key is None and self.recipe.off_policy is not None
        if not step.relabels and not (may and Build.off_policy(self.space).relabels):
            return ""
        measured = step.read(BUILT)["reversal"] if step.relabels and state == "done" else None
        accepted = self.recipe.build.accept_reversal
        rule = (
            f"accepted whatever it is ({REVERSAL_SETTING})"
            if accepted
            else f"above {100 * REVERSAL_LIMIT:.0f} % the run stops before it trains, unless "
            f"{REVERSAL_SETTING} is true"
        )
        seen, store = "", self.space.folder / LEDGER
        if measured is None and store.exists():
            measured = reversal_of(_judged(self.space, store)).as_dict()
            judged = sum(measured[name] for name in ("kept", "reversed", "equal", "unreadable"))
            seen = f"of {judged} of {len(self.space.off_pairs)} pairs judged so far, "
        if measured is None or measured["share"] is None:
            return (
                f"how often the judge reverses labels is measured before it replaces them; {rule}"
            )
        if is_excessive(measured) and not accepted and not seen:
            rule = f"the run stops here before it trains; set {REVERSAL_SETTING}: true to go on"
        return f"{seen}{describe_reversal(measured)}; {rule}"


def _judged(space: Workspace, path: Path) -> Iterator[tuple[Pair, Judgment]]:
    judge = space.judge.fingerprint
    with Ledger(path) as ledger:
        for pair in whole_pairs(space.off_pairs, Account()):
            asked = comparison_of(pair)
            # A judge has rewards or judgments; one that is paid by the reply has only replies.
            items = ((asked.prompt, text) for text in (asked.a, asked.b))
            first, second = (stored_reward(judge, item, ledger) for item in items)
            if first is not None and second is not None:
                yield pair, judgment_of_rewards(first, second)
            elif known := stored_judgment(judge, asked, ledger):
                yield pair, known


def _sizes_of(space: Workspace) -> Sizes:
    recipe = space.recipe
    rows = space.prompts if recipe.off_policy is None else space.off_policy
    encode = ResponseEncoder(load_tokenizer(recipe.policy), **recipe.encoding).encode
    trees = [encode(row.prompt, row.messages()) for row in islice(rows, _ROWS_LOOKED_AT)]
    lengths = [len(ids) for tree in trees for ids in tree.response_ids]
    return Sizes(
        responses=mean(len(tree.response_ids) for tree in trees),
        prompt_tokens=mean(len(tree.prompt_ids) for tree in trees),
        response_tokens=mean(lengths) if lengths else float(recipe.sampling.max_new_tokens),
        policy=ModelShape.of_config(load_model_config(recipe.policy), dtype="float32"),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        flop_a_second=_flop_a_second(),
    )


def _flop_a_second() -> float:
    matrix = torch.ones(_MATRIX, _MATRIX)
    # The first product also starts the thread pool, which is no part of the rate.
    matrix @ matrix
    products, seconds = Timer(lambda: matrix @ matrix).autorange()  # for at least 0.2 s
    return 2.0 * _MATRIX**3 * products / seconds
