"""The walk of `align`: sample, judge, measure, choose, build, train, evaluate; done, or planned."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean
from timeit import Timer
from typing import Any, Literal, TypeVar

import torch

from prefstage.aligning.advice import Advice
from prefstage.aligning.recipe import PER_PROMPT, Rule
from prefstage.aligning.steps import (
    REVERSAL_SETTING,
    Build,
    Estimate,
    Evaluate,
    Measure,
    Policy,
    Sample,
    Sft,
    Sizes,
    State,
    Step,
    Steps,
    Train,
    Workspace,
    check_answers,
    is_answers,
)
from prefstage.building.account import REVERSAL_LIMIT, Account, describe_reversal, is_excessive
from prefstage.building.build import RESULT as BUILT
from prefstage.building.relabelling import reversal_of, whole_pairs
from prefstage.core import LEDGER, Ledger, load_model_config
from prefstage.data import Pair, ResponseEncoder, load_tokenizer
from prefstage.judging.base import Judgment, judgment_of_rewards
from prefstage.judging.judged import comparison_of, stored_judgment, stored_reward
from prefstage.measuring.stage import Stage
from prefstage.scoring.memory import ModelShape

EVEN = 50.0
"""Win rate of the start over itself, percent."""
_HOUR_S = 3600.0
_ROWS_LOOKED_AT, _MATRIX = 64, 512
_EMPTY_ROW: dict[str, Any] = dict.fromkeys(
    (
        *("data", "reason", "stage", "in_sample", "advice", "pairs", "left_out", "reversal"),
        *("build_figures", "training", "evaluation", "stopped"),
    )
)
Will = Literal["run", "reuse", "go on", "remake"]
_WILL: dict[State, Will] = {"done": "reuse", "absent": "run", "begun": "go on", "damaged": "remake"}
S = TypeVar("S", bound=Step)


class Walk:
    """The steps of a recipe in their order: each is done as it is come to, or planned.

    Args:
        space: The workspace.
        steps: Does them.
    """

    def __init__(self, space: Workspace, steps: Steps) -> None:
        self.space, self.recipe, self.steps = space, space.recipe, steps
        # What the policy was trained on so far in this run.
        self._learnt = list[Sft | Build]()
        # Of the iteration under way, as in align.json.
        self.row: dict[str, Any] = {"iteration": 0, "steps": {}}

    def run(self) -> dict[str, Any]:
        """Go through the iterations.

        Returns:
            What align.json holds.
        """
        self.space.check_training_data()
        put_aside = self.space.put_aside()
        start, baseline = self.space.policy("start", self.recipe.policy), self._baseline()
        if self.recipe.sft is not None:
            taught = self.do(Sft(self.space, start))
            self._learnt.append(taught)
            start = taught.policy("start")
        answers = self._answers(start)
        if answers is not None and baseline is not None:
            self.do(Evaluate(self.space, answers, baseline))
        first = self.row.get("evaluation")
        policy, rows, stopped = start, list[dict[str, Any]](), "all iterations done"
        before = EVEN if first is None else first["win_rate"]
        for number, rule in enumerate(self.recipe.rules, start=1):
            if spent := self._spent():
                stopped = f"{spent} before iteration {number}"
                break
            self.row = {"iteration": number, "rule": str(rule), **_EMPTY_ROW, "steps": {}}
            rows.append(self.row)
            policy = self._iterate(rule, policy, start, baseline or answers)
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
            "start_answers": None if answers is None else answers.name,
            "start_evaluation": first,
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
        self, rule: Rule, policy: Policy, start: Policy, baseline: Sample | str | None
    ) -> Policy:
        row, stage, measured = self.row, None, None
        if self.recipe.measure is not False:
            measured = self.do(Measure(self.space, policy))
            if measured.state[0] == "done":
                stage, row["in_sample"] = measured.stage(), self._in_sample(measured)
        unknown = rule.kind == "auto" and stage is None
        if rule.kind == "advise":
            row["advice"] = Advice(self, policy).run()
            choice, row["reason"] = row["advice"]["choice"], row["advice"]["reason"]
            unknown = choice is None
            rule = {str(r): r for r in self.recipe.advise.rules}.get(choice, Rule("on"))
        else:
            rule, row["reason"] = choose(rule, stage)
        row["data"] = str(rule)
        if unknown:
            # In a plan. Nothing after an unmeasured stage has a key: a policy without one does it.
            policy = replace(policy, key=None)
        row["stopped"] = self._spent()
        if row["stopped"] is None:
            built = self.pairs(rule, policy, measured)
            row["stopped"] = self._spent()
        if row["stopped"] is not None:
            # What was built is not trained on; its figures are of no iteration.
            row.update(pairs=None, left_out=None, build_figures=None)
            return policy
        reference = start if self.recipe.reference == "fixed" else policy
        trained = self.do(Train(self.space, policy, built, reference=reference))
        self._learnt.append(built)
        policy = trained.policy(f"iteration {row['iteration']}")
        ours = self._answers(policy)
        if ours is not None and baseline is not None:
            self.do(Evaluate(self.space, ours, baseline))
        return policy

    def pairs(self, rule: Rule, policy: Policy, measured: Measure | None) -> Build:
        """Build pairs, and before them what they are made of.

        Args:
            rule: What they are made of: neither "auto" nor "advise".
            policy: Who is trained.
            measured: The measurement that a choice by prompt goes by.

        Returns:
            The step that made them.
        """
        space, recipe, off_policy = self.space, self.recipe, None
        if rule.kind in ("off", "mix", "per-prompt"):
            off_policy = self.do(Build.off_policy(space))
            if rule.kind == "off":
                return off_policy
            if rule.kind == "mix":
                answers = recipe.sampling.responses
                method = {"name": "mixing", "share": rule.share, "answers": answers}
                return self.do(Build(space, method, {"pairs": off_policy}, policy=policy))
        if rule.kind == "data":
            return self.do(Build.off_policy(space.with_data(off_policy=str(rule.source))))
        if rule.kind == "other":
            policy = space.policy(Path(str(rule.source)).name, str(rule.source))
        sampled = self.do(Sample(space, policy))
        if off_policy is not None and measured is not None:
            both = {"pairs": off_policy, "on_policy": sampled}
            return self.do(Build(space, PER_PROMPT, both, measured=measured))
        return self.do(Build(space, recipe.build.on, {"candidates": sampled}))

    # How many of the measured prompts the policy was trained on before: the score is of new prompts
    # only where none was. None before any training of the run.
    def _in_sample(self, measured: Measure) -> dict[str, int] | None:
        if not self._learnt:
            return None
        prompts = measured.prompt_ids()
        learnt = {i for step in self._learnt for i in step.prompt_ids() if i in prompts}
        return {"prompts": len(learnt), "of": len(prompts)}

    def _answers(self, policy: Policy) -> Sample | None:
        evaluates = self.recipe.evaluate is not None
        return self.do(Sample(self.space, policy, held_out=True)) if evaluates else None

    # The answers that all policies are compared with; None: the start's.
    def _baseline(self) -> Sample | str | None:
        evaluate = self.recipe.evaluate
        if evaluate is None or evaluate.baseline is None:
            return None
        spec = evaluate.baseline
        if is_answers(spec):
            check_answers(spec, self.space.held_out)  # before anything is sampled or judged
            return spec
        who = self.space.policy(Path(spec).name, spec)
        return self.do(Sample(self.space, who, held_out=True))

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


def choose(rule: Rule, stage: Stage | None) -> tuple[Rule, str]:
    """Which data an iteration trains on.

    In the injection stage off-policy data, in the fine-tuning stage on-policy data; where the
    stage is undecided, by the votes at hand (Algorithm 1: off only if it has more).

    Args:
        rule: The iteration's.
        stage: As measured; read by "auto".

    Returns:
        The rule that names the data, and why these.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1.
    """
    if rule.kind != "auto" or stage is None:
        return Rule("on") if rule.kind == "auto" else rule, "fixed by the schedule"
    undecided = stage.stage == "undecided"
    decisive = stage.algorithm_1 if undecided else stage.stage
    reason = "undecided; the votes at hand favour it" if undecided else f"{stage.stage} stage"
    return Rule("off" if decisive == "injection" else "on"), reason


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
        rows = space.prompts if self.recipe.off_policy is None else space.off_policy
        encode = ResponseEncoder(load_tokenizer(self.recipe.policy), **self.recipe.encoding).encode
        trees = [encode(row.prompt, row.messages()) for row in islice(rows, _ROWS_LOOKED_AT)]
        lengths = [len(ids) for tree in trees for ids in tree.response_ids]
        matrix = torch.ones(_MATRIX, _MATRIX)
        # The first product also starts the thread pool, which is no part of the rate.
        matrix @ matrix
        products, seconds = Timer(lambda: matrix @ matrix).autorange()  # for at least 0.2 s
        self._sizes = Sizes(
            responses=mean(len(tree.response_ids) for tree in trees),
            prompt_tokens=mean(len(tree.prompt_ids) for tree in trees),
            response_tokens=(
                mean(lengths) if lengths else float(self.recipe.sampling.max_new_tokens)
            ),
            policy=ModelShape.of_config(load_model_config(self.recipe.policy), dtype="float32"),
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            flop_a_second=2.0 * _MATRIX**3 * products / seconds,
        )

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
            measured = reversal_of(_judged(self.space, store))
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
            first, second = (
                stored_reward(judge, (asked.prompt, text), ledger) for text in (asked.a, asked.b)
            )
            if first is not None and second is not None:
                yield pair, judgment_of_rewards(first, second)
            elif known := stored_judgment(judge, asked, ledger):
                yield pair, known
