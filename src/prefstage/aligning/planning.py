"""`plan_alignment`: what a call of `align` would do, and about what it would cost."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from prefstage.aligning.loop import Walk, choose, open_workspace
from prefstage.aligning.recipe import Recipe
from prefstage.aligning.steps import (
    REVERSAL_SETTING,
    Build,
    Estimate,
    Sizes,
    State,
    Step,
    Steps,
    Workspace,
)
from prefstage.building.account import REVERSAL_LIMIT, Account, describe_reversal, is_excessive
from prefstage.building.build import RESULT as BUILT
from prefstage.building.relabelling import reversal_of, whole_pairs
from prefstage.core.ledger import LEDGER, Ledger
from prefstage.data.records import Pair
from prefstage.data.tokenising import ResponseEncoder
from prefstage.data.tokenizer_files import load_tokenizer
from prefstage.judging.base import Judge, Judgment, judgment_of_rewards
from prefstage.judging.judged import comparison_of, stored_judgment, stored_reward
from prefstage.judging.loading import PreferenceFunction

Will = Literal["run", "reuse", "go on", "remake"]
_WILL: dict[State, Will] = {"done": "reuse", "absent": "run", "begun": "go on", "damaged": "remake"}
_ROWS_LOOKED_AT = 64
_MATRIX, _MATMUL_S = 512, 0.1
BASIS = (
    "Answers and judgments: at most. Tokens: with the mean lengths of the first 64 rows of the "
    "data, responses no longer than max_new_tokens. Memory: weights in float32, for training of "
    "all weights four times (gradients, AdamW's moments); activations come on top. Time: "
    "arithmetic alone, 2 FLOP a parameter and token to answer, 6 to train, at the rate of a "
    "matrix product measured now on the CPU; judging and loading come on top."
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
        space = open_workspace(recipe, Path(out), judge, quarantine=Path(folder))
        space.check_training_data()
        planner = _Planner(space)
        planner.plan()
    return tuple(planner.planned)


def planned_costs(planned: Sequence[PlannedStep]) -> Estimate:
    """Everything together; of memory the largest.

    Args:
        planned: The steps.

    Returns:
        The sum.
    """
    return sum((step.estimate for step in planned), Estimate())


def plan_text(planned: Sequence[PlannedStep]) -> str:
    """A plan for people.

    Args:
        planned: The steps.

    Returns:
        Markdown: a table with a last row of sums, what is known of labels that a judge would
        replace, and how costs are estimated.
    """
    head = "| iteration | step | will | answers | judgments | tokens | memory | time |"
    table = [head, "|---|---|---|---|---|---|---|---|"]
    for step in planned:
        name = step.step or f"{step.kind}: {step.note}"
        table.append(f"| {step.iteration} | {name} | {step.will} | {_cells(step.estimate)} |")
    table.append(f"| | in all | | {_cells(planned_costs(planned))} |")
    # The same figure of labels is told once, at the first iteration that it is of.
    reversals = {step.reversal: step.iteration for step in reversed(planned) if step.reversal}
    lines = [f"iteration {number}: {text}" for text, number in reversed(reversals.items())]
    return "\n\n".join(["\n".join(table), *(["\n".join(lines)] if lines else []), BASIS])


def _cells(estimate: Estimate) -> str:
    counts = (estimate.answers, estimate.judgments, estimate.tokens)
    memory = f"{estimate.memory_bytes / 2**20:,.0f} MiB"
    return " | ".join([*(f"{n:,}" for n in counts), memory, f"{estimate.seconds:,.1f} s"])


class _Planner(Walk):
    """Takes the walk of a run, and notes the steps instead of doing them."""

    def __init__(self, space: Workspace) -> None:
        super().__init__(space, self._plan)
        self.planned: list[PlannedStep] = []
        self._steps = Steps(space)
        self._sizes = _sizes_of(space)
        self._iteration = 0
        self._undecided = False

    def plan(self) -> None:
        """Note all steps."""
        start, baseline = self.start()
        policy = start
        for number, rule in enumerate(self.recipe.rules, start=1):
            self._iteration = number
            measured = self.measure(policy)
            known = measured is not None and self._steps.state(measured)[0] == "done"
            stage = measured.stage() if known and measured is not None else None
            self._undecided = rule.kind == "auto" and stage is None
            if self._undecided:
                # Nothing after an unmeasured stage has a key: a policy without one makes it so.
                policy = replace(policy, key=None)
            built = self.pairs(choose(rule, stage)[0], rule, policy, measured)
            policy = self.train(policy, built, start, iteration=number)
            self.evaluate(policy, baseline)

    def _plan(self, step: Step) -> None:
        known = step.key is not None
        name = step.name if known else None
        will = _WILL[self._steps.state(step)[0]] if known else "run"
        if known and any(earlier.step == name for earlier in self.planned):
            will = "reuse"
        self.planned.append(
            PlannedStep(
                self._iteration,
                step.kind,
                name,
                will,
                "" if known else "as the stage will ask",
                Estimate() if will == "reuse" else step.estimate(self._sizes),
                self._reversal(step) if isinstance(step, Build) else "",
            )
        )

    def _reversal(self, step: Build) -> str:
        """What is known of the labels that the judge would replace; "" if it replaces none."""
        if step.relabels:
            done = self._steps.state(step)[0] == "done"
            measured = step.read(BUILT)["reversal"] if done else None
            return planned_reversal(self.space, measured)
        # Whatever the stage turns out to be, labels may come to be replaced.
        undecided = self._undecided and self.recipe.off_policy is not None
        may = undecided and Build.off_policy(self.space).relabels
        return planned_reversal(self.space, None) if may else ""


def planned_reversal(space: Workspace, measured: Mapping[str, Any] | None) -> str:
    """Say how often a judge reverses labels, as far as that was bought before.

    Args:
        space: The workspace; its judge is asked nothing.
        measured: What the step found that replaced the labels, as of `Reversal.as_dict`; None
            if it has not run.

    Returns:
        The figure, of all pairs or of those judged so far, and what follows from it; or that
        it will be measured.
    """
    accepted = space.recipe.build.accept_reversal
    rule = (
        f"accepted whatever it is ({REVERSAL_SETTING})"
        if accepted
        else f"above {100 * REVERSAL_LIMIT:.0f} % the run stops before it trains, unless "
        f"{REVERSAL_SETTING} is true"
    )
    seen, store = "", space.folder / LEDGER
    if measured is None and store.exists():
        measured = reversal_of(_known(space, store)).as_dict()
        judged = sum(measured[name] for name in ("kept", "reversed", "equal", "unreadable"))
        seen = f"of {judged} of {len(space.off_pairs)} pairs judged so far, "
    if measured is None or measured["share"] is None:
        return f"how often the judge reverses labels is measured before it replaces them; {rule}"
    if is_excessive(measured) and not accepted and not seen:
        rule = f"the run stops here before it trains; set {REVERSAL_SETTING}: true to go on"
    return f"{seen}{describe_reversal(measured)}; {rule}"


def _known(space: Workspace, path: Path) -> Iterator[tuple[Pair, Judgment]]:
    judge = space.judge
    with Ledger(path) as ledger:
        for pair in whole_pairs(space.off_pairs, Account()):
            asked = comparison_of(pair)
            # A judge that is paid by the reply has none of these, but replies.
            known = stored_judgment(judge.fingerprint, asked, ledger)
            if judge.pointwise:
                first, second = (
                    stored_reward(judge.fingerprint, (asked.prompt, text), ledger)
                    for text in (asked.a, asked.b)
                )
                if first is not None and second is not None:
                    known = judgment_of_rewards(first, second)
            if known is not None:
                yield pair, known


def _sizes_of(space: Workspace) -> Sizes:
    recipe, prompts = space.recipe, space.prompts
    off = prompts if recipe.off_policy is None else space.off_policy
    encoder = ResponseEncoder(load_tokenizer(recipe.policy), **recipe.encoding)
    trees = [encoder.encode(row.prompt, row.messages()) for row in islice(off, _ROWS_LOOKED_AT)]
    lengths = [len(ids) for tree in trees for ids in tree.response_ids]
    return Sizes(
        prompts=len(prompts),
        off_policy=len(off),
        held_out=0 if recipe.evaluate is None else len(space.held_out),
        responses=mean(len(tree.response_ids) for tree in trees),
        prompt_tokens=mean(len(tree.prompt_ids) for tree in trees),
        response_tokens=mean(lengths) if lengths else float(recipe.sampling.max_new_tokens),
        weight_bytes=_weight_bytes(recipe.policy),
        flop_a_second=_flop_a_second(),
        pointwise=space.pointwise,
    )


def _weight_bytes(policy: str) -> int:
    """Of a local checkpoint in float32, from its files' headers; 0 of one that is not here."""
    from safetensors import safe_open

    parameters = 0
    for file in sorted(Path(policy).glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            names = tensors.keys()
            parameters += sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    return 4 * parameters


def _flop_a_second() -> float:
    import torch

    matrix = torch.ones(_MATRIX, _MATRIX)
    # The first product also starts the thread pool, which is no part of the rate.
    matrix @ matrix
    began, products = time.monotonic(), 0
    while time.monotonic() - began < _MATMUL_S:
        matrix @ matrix
        products += 1
    return 2.0 * _MATRIX**3 * products / (time.monotonic() - began)
