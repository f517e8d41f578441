"""`align`: sample, judge, measure, choose, build, train, evaluate; and again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.aligning.chain import Chain, Policy
from prefstage.aligning.inputs import Inputs
from prefstage.aligning.keeping import Kept, opened
from prefstage.aligning.recipe import Recipe, load_recipe, sft_settings, train_settings
from prefstage.aligning.results import (
    RESULT,
    Budget,
    accepted_reversal,
    facts_of,
    iteration_result,
    parts_of,
    total_costs,
)
from prefstage.aligning.schedule import Data, Rule
from prefstage.aligning.steps import Begun, Step, StepRecord, Steps
from prefstage.aligning.work import (
    EVALUATION,
    PAIRS,
    run_build,
    run_evaluate,
    run_measure,
    run_sample,
    run_train,
    trained_model,
)
from prefstage.building.build import RESULT as BUILT
from prefstage.building.recipe import METHODS
from prefstage.core.config import write_config
from prefstage.core.files import write_json
from prefstage.core.results import write_result
from prefstage.core.runs import RunFolder
from prefstage.data.tokenizer_files import with_date
from prefstage.judging.base import Judge
from prefstage.judging.loading import load_judge
from prefstage.measuring.measure import CANDIDATES
from prefstage.measuring.measure import STAGE as STAGE_FILE
from prefstage.measuring.stage import Stage
from prefstage.training.recipe_run import RESULT as TRAINED

CONFIG = "config.yaml"
Tell = Callable[[StepRecord], None]
Answered = tuple[Step, Path]


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
    out: Path,
    judge: Judge | None = None,
    tell: Tell | None = None,
    begun: Begun | None = None,
    store: Path | None = None,
) -> Aligned:
    """Align a policy: in each iteration with the data that its stage asks for.

    Every step is known by what it depends on: the same call goes on after a kill, and a call
    with a changed setting does again only what depends on it. Answers and judgments are on
    disk as they arrive, and are bought once.

    Args:
        recipe: A recipe, its settings, or its YAML file; see docs/aligning.md.
        out: The run folder: ``steps``, ``samples``, ``judgments.sqlite``, ``align.json``,
            ``steps.jsonl`` (what became of each step, every time) and ``config.yaml``.
        judge: The judge itself, in place of loading the recipe's.
        tell: Called with each step when it is done.
        begun: Called with each step, and its iteration, as it begins; not if it is reused.
        store: A folder whose steps, answers and judgments several runs share, so that equal
            steps are done once; None: the run's own. `out` gets links to them.

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
    recipe = load_recipe(recipe)
    recipe = with_date(recipe, recipe.policy, out)
    who = judge if judge is not None else load_judge(recipe.judge)
    RunFolder.open(out, command="align", inputs={})
    out = out.absolute()
    with opened(out, who, store=store) as kept:
        write_config(recipe, out / CONFIG)
        steps = Steps(out, tell or (lambda _: None), begun=begun)
        loop = Loop(Chain(recipe, judge=who.fingerprint), kept, steps, Inputs(recipe, out))
        result = loop.run()
        write_json(out / RESULT, result)
        parts = [{"kind": "align", "iteration": 0, "folder": "."}, *parts_of(steps)]
        headline = f"{len(result['iterations'])} iterations: {result['stopped']}"
        write_result(out, "align", headline=headline, facts=facts_of(result), parts=parts)
    written = (out / RESULT, Path(result["policy"]))
    return Aligned(result, tuple(loop.steps.records), result["policy"], written)


class Loop:
    """The iterations of one call.

    Args:
        chain: Makes the steps.
        kept: Stores and judge.
        steps: The run folder's steps.
        inputs: The recipe's data.
    """

    def __init__(self, chain: Chain, kept: Kept, steps: Steps, inputs: Inputs) -> None:
        self.chain = chain
        self.recipe = chain.recipe
        self.kept = kept
        self.steps = steps
        self.inputs = inputs
        self._iteration = 0
        self._done: dict[str, Step] = {}
        self._reversal: dict[str, Any] | None = None
        self._budget = Budget(self.recipe.stop, steps)

    def run(self) -> dict[str, Any]:
        """Go through the iterations.

        Returns:
            The result, as in align.json.
        """
        self.inputs.check()
        put_aside = self.inputs.put_aside()
        policy = self._after_sft(self.chain.start())
        start, stopped = policy, "all iterations done"
        rows = list[dict[str, Any]]()
        baseline = self._answers(start)
        before = 50.0
        for number, rule in enumerate(self.recipe.rules, start=1):
            self._iteration, self._done, self._reversal = number, {}, None
            why = self._budget.spent()
            if why is not None:
                stopped = f"{why} before iteration {number}"
                break
            trained, row = self._iterate(rule, policy, start, baseline)
            rows.append(row)
            if trained is None:
                stopped = f"{row['stopped']} in iteration {number}"
                break
            policy = trained
            after = row["evaluation"]["win_rate"] if row["evaluation"] else None
            if self.recipe.stop.no_gain and after is not None and after <= before:
                stopped = f"no gain in iteration {number}"
                break
            before = after if after is not None else before
        return {
            "start": start.spec,
            "start_answers": None if baseline is None else baseline[0].name,
            "judge": self.kept.judge.name,
            "schedule": [str(rule) for rule in self.recipe.rules],
            "reference": self.recipe.reference,
            "put_aside": put_aside,
            "iterations": rows,
            "stopped": stopped,
            "policy": policy.spec,
            "costs": total_costs(self.steps),
        }

    def _iterate(
        self, rule: Rule, policy: Policy, start: Policy, baseline: Answered | None
    ) -> tuple[Policy | None, dict[str, Any]]:
        stage = self._stage(policy)
        data, reason = choose(rule, stage)
        told: dict[str, Any] = {"rule": str(rule), "data": data, "reason": reason, "stage": stage}
        why = self._budget.spent()
        built = None if why else self._pairs(data, rule, policy)
        why = why or self._budget.spent()
        told["reversal"] = self._reversal
        if why is not None or built is None:
            return None, iteration_result(self._iteration, told, self._done, stopped=why)
        trained = self._train(policy, built, start)
        evaluation = self._evaluation(trained, baseline)
        folders = {name: self.steps.path(step) for name, step in self._done.items()}
        told |= {
            "built": _read(folders["build"] / BUILT),
            "trained": _read(folders["train"] / TRAINED),
            "evaluation": evaluation,
        }
        return trained, iteration_result(self._iteration, told, self._done)

    def _do(self, role: str, step: Step, work: Callable[[Path], None]) -> Path:
        path = self.steps.do(step, work, iteration=self._iteration, costs=self.kept.counts)
        self._done[role] = step
        return path

    def _after_sft(self, policy: Policy) -> Policy:
        if self.recipe.sft is None:
            return policy
        settings = sft_settings(self.recipe, policy=_place(policy.spec))
        launch = self.recipe.launch
        step = self.chain.sft(policy)
        path = self._do("sft", step, lambda folder: run_train(folder, settings, launch=launch))
        return Policy("start", str(trained_model(path)), step.key)

    def _stage(self, policy: Policy) -> Stage | None:
        if self.recipe.measure is False:
            return None
        path = self._do(
            "measure",
            self.chain.measure(policy),
            lambda folder: run_measure(
                folder, self.chain, self.kept, policy, off_policy=self.inputs.off_policy
            ),
        )
        return Stage.load(path / STAGE_FILE)

    def _samples(self, policy: Policy) -> tuple[Step, Path]:
        step = self.chain.sample(policy)
        path = self._do(
            "sample",
            step,
            lambda folder: run_sample(
                folder,
                self.kept,
                policy,
                prompts=self.inputs.prompts,
                recipe=self.recipe,
                config=self.chain.own_sampling,
            ),
        )
        return step, path

    def _pairs(self, data: Data, rule: Rule, policy: Policy) -> Step:
        if data == "off":
            return self._off_pairs(rule, policy)
        if data == "mix":
            return self._mixed_pairs(rule, policy)
        if data == "per-prompt":
            return self._pairs_by_prompt(rule, policy)
        writer = policy
        if data == "other":
            model = str(rule.model)
            writer = Policy(Path(model).name, model, self.chain.fingerprint(model))
        answers, where = self._samples(writer)
        step = self.chain.build(data, rule, policy, answers=answers)
        return self._build(step, {"candidates": str(where / CANDIDATES)})

    def _off_pairs(self, rule: Rule, policy: Policy) -> Step:
        kind = "pairs" if self._off_takes_pairs() else "candidates"
        step = self.chain.build("off", rule, policy)
        data = {kind: self.chain.off_policy, **self.inputs.aside("off_policy")}
        self._build(step, data)
        built = _read(self.steps.path(step) / BUILT)
        self._reversal = accepted_reversal(built, self.recipe.build)
        return step

    def _off_takes_pairs(self) -> bool:
        method = self.chain.method_off
        name = method if isinstance(method, str) else str(method["name"])
        return "pairs" in METHODS[name].inputs

    def _mixed_pairs(self, rule: Rule, policy: Policy) -> Step:
        pairs = self._off_pairs(rule, policy)
        step = self.chain.build("mix", rule, policy, pairs=pairs)
        data = {"pairs": str(self.steps.path(pairs) / PAIRS)}
        return self._build(step, data, policy=policy)

    def _pairs_by_prompt(self, rule: Rule, policy: Policy) -> Step:
        pairs, measured = self._off_pairs(rule, policy), self._done["measure"]
        answers, where = self._samples(policy)
        step = self.chain.build(
            "per-prompt", rule, policy, answers=answers, measured=measured, pairs=pairs
        )
        data = {
            "pairs": str(self.steps.path(pairs) / PAIRS),
            "on_policy": str(where / CANDIDATES),
        }
        method = {"name": "per-prompt", "measurement": str(self.steps.path(measured))}
        return self._build(step, data, method=method)

    def _build(
        self,
        step: Step,
        data: Mapping[str, str],
        *,
        policy: Policy | None = None,
        method: Mapping[str, Any] | None = None,
    ) -> Step:
        asked = method if method is not None else step.settings["method"]
        settings = {"name": asked} if isinstance(asked, str) else asked
        self._do(
            "build",
            step,
            lambda folder: run_build(
                folder, settings, data, chain=self.chain, kept=self.kept, policy=policy
            ),
        )
        return step

    def _train(self, policy: Policy, built: Step, start: Policy) -> Policy:
        reference = start if self.recipe.reference == "fixed" else policy
        settings = train_settings(
            self.recipe,
            policy=_place(policy.spec),
            data=str(self.steps.path(built) / PAIRS),
            reference="start" if reference.key == policy.key else _place(reference.spec),
        )
        step, launch = self.chain.train(policy, built, reference), self.recipe.launch
        path = self._do("train", step, lambda folder: run_train(folder, settings, launch=launch))
        return Policy(f"iteration {self._iteration}", str(trained_model(path)), step.key)

    def _answers(self, policy: Policy) -> Answered | None:
        evaluate = self.recipe.evaluate
        if evaluate is None:
            return None
        step = self.chain.answer(policy, evaluate)
        path = self._do(
            "answer",
            step,
            lambda folder: run_sample(
                folder,
                self.kept,
                policy,
                prompts=self.inputs.held_out,
                recipe=self.recipe,
                config=self.chain.held_out_sampling(evaluate),
            ),
        )
        return step, path

    def _evaluation(self, policy: Policy, baseline: Answered | None) -> dict[str, Any] | None:
        evaluate, ours = self.recipe.evaluate, self._answers(policy)
        if evaluate is None or baseline is None or ours is None:
            return None
        path = self._do(
            "evaluate",
            self.chain.evaluate(ours[0], baseline[0], evaluate),
            lambda folder: run_evaluate(
                folder,
                ours[1],
                baseline[1],
                chain=self.chain,
                kept=self.kept,
                evaluate=evaluate,
            ),
        )
        return _read(path / EVALUATION)


def choose(rule: Rule, stage: Stage | None) -> tuple[Data, str]:
    """Which data an iteration trains on.

    In the injection stage off-policy data, in the fine-tuning stage on-policy data; where the
    stage is undecided, by the votes at hand (Algorithm 1: off only if it has more).

    Args:
        rule: The iteration's.
        stage: As measured, or None.

    Returns:
        The data, and why these.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1.
    """
    if rule.kind != "auto" or stage is None:
        return ("on" if rule.kind == "auto" else rule.kind), "fixed by the schedule"
    plain: Data = "off" if stage.algorithm_1 == "injection" else "on"
    if stage.stage == "undecided":
        return plain, "undecided; the votes at hand favour it"
    return ("off" if stage.stage == "injection" else "on"), f"{stage.stage} stage"


def _place(spec: str) -> str:
    """A folder by its whole path; a Hub id as it is."""
    return str(Path(spec).absolute()) if Path(spec).exists() else spec


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found
