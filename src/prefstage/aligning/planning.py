"""`plan_alignment`: what a call of `align` would do, and about what it would cost."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from prefstage.aligning.chain import Chain, Policy
from prefstage.aligning.inputs import Inputs
from prefstage.aligning.loop import choose
from prefstage.aligning.planned_reversal import planned_reversal
from prefstage.aligning.recipe import Recipe, load_recipe, train_settings
from prefstage.aligning.schedule import Data, Rule
from prefstage.aligning.steps import State, Step, Steps
from prefstage.building.build import RESULT as BUILT
from prefstage.core.ledger import LEDGER
from prefstage.data.tokenising import ResponseEncoder
from prefstage.data.tokenizer_files import load_tokenizer, with_date
from prefstage.judging.base import Judge
from prefstage.judging.loading import load_judge
from prefstage.measuring.measure import STAGE
from prefstage.measuring.stage import Stage

Will = Literal["run", "reuse", "go on", "remake"]
_WILL: dict[State, Will] = {"done": "reuse", "absent": "run", "begun": "go on", "damaged": "remake"}
_ROWS_LOOKED_AT = 64
_FULL, _LORA = 4, 1  # weights, gradients and AdamW's two moments, all float32; or weights alone
_FORWARD, _TRAINING = 2, 6  # FLOP a parameter and token
_MATRIX, _MATMUL_S = 512, 0.1
BASIS = (
    "Answers and judgments: at most. Tokens: with the mean lengths of the first 64 rows of the "
    "data, responses no longer than max_new_tokens. Memory: weights in float32, for training of "
    "all weights four times (gradients, AdamW's moments); activations come on top. Time: "
    "arithmetic alone, 2 FLOP a parameter and token to answer, 6 to train, at the rate of a "
    "matrix product measured now on the CPU; judging and loading come on top."
)


@dataclass(frozen=True)
class Estimate:
    """What a step costs, about; answers and judgments at most.

    Attributes:
        answers: Sampled.
        judgments: Asked for: comparisons, or rewards of a pointwise judge.
        tokens: Processed by the policy: prompts and responses.
        memory_bytes: Of weights, gradients and optimiser.
        seconds: Of arithmetic.
    """

    answers: int = 0
    judgments: int = 0
    tokens: int = 0
    memory_bytes: int = 0
    seconds: float = 0.0


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
    recipe: Recipe | Mapping[str, Any] | Path | str, *, out: Path, judge: Judge | None = None
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
    recipe = load_recipe(recipe)
    recipe = with_date(recipe, recipe.policy, out)
    who = judge if judge is not None else load_judge(recipe.judge)
    with tempfile.TemporaryDirectory() as folder:  # bad rows, which only a run puts aside
        inputs = Inputs(recipe, Path(folder))
        inputs.check()
        planner = _Planner(Chain(recipe, judge=who.fingerprint), who, out, inputs)
        planner.walk()
    return tuple(planner.planned)


def planned_costs(planned: tuple[PlannedStep, ...]) -> Estimate:
    """Everything together; of memory the largest.

    Args:
        planned: The steps.

    Returns:
        The sum.
    """
    each = [step.estimate for step in planned]
    return Estimate(
        answers=sum(one.answers for one in each),
        judgments=sum(one.judgments for one in each),
        tokens=sum(one.tokens for one in each),
        memory_bytes=max((one.memory_bytes for one in each), default=0),
        seconds=sum(one.seconds for one in each),
    )


def plan_table(planned: tuple[PlannedStep, ...]) -> str:
    """A plan as a Markdown table.

    Args:
        planned: The steps.

    Returns:
        The table, with a last row of sums.
    """
    head = "| iteration | step | will | answers | judgments | tokens | memory | time |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for each in planned:
        name = each.step or f"{each.kind}: {each.note}"
        lines.append(f"| {each.iteration} | {name} | {each.will} | {_cells(each.estimate)} |")
    return "\n".join([*lines, f"| | in all | | {_cells(planned_costs(planned))} |"])


def plan_told(planned: tuple[PlannedStep, ...]) -> str:
    """A plan for people: the table, and what is known of labels that a judge would replace.

    Args:
        planned: The steps.

    Returns:
        Markdown.
    """
    known = dict[str, int]()
    for each in planned:
        if each.reversal:
            known.setdefault(each.reversal, each.iteration)
    lines = [f"iteration {number}: {told}" for told, number in known.items()]
    return "\n\n".join([plan_table(planned), *(["\n".join(lines)] if lines else []), BASIS])


def _cells(estimate: Estimate) -> str:
    counts = [f"{count:,}" for count in list(asdict(estimate).values())[:3]]
    memory = f"{estimate.memory_bytes / 2**20:,.0f} MiB"
    return " | ".join([*counts, memory, f"{estimate.seconds:,.1f} s"])


@dataclass(frozen=True)
class _Sizes:
    """Of the data: prompts, responses a prompt, and mean tokens."""

    prompts: int
    responses: float
    prompt_tokens: float
    response_tokens: float
    measurable: int


class _Planner:
    def __init__(self, chain: Chain, judge: Judge, out: Path, inputs: Inputs) -> None:
        self.chain = chain
        self.recipe = chain.recipe
        self.judge, self.inputs = judge, inputs
        self.pointwise = judge.pointwise
        self.steps = Steps(out.absolute(), lambda record: None)
        self.planned: list[PlannedStep] = []
        self.sizes = _sizes(chain, inputs)
        self.weights = _weight_bytes(self.recipe.policy)
        self.rate = _flop_a_second()
        self.held_out = 0
        if self.recipe.evaluate is not None:
            self.held_out = len(inputs.held_out)

    def walk(self) -> None:
        start: Policy | None = self.chain.start()
        if self.recipe.sft is not None and start is not None:
            sft = self.chain.sft(start)
            self._add(0, "sft", sft, Estimate(memory_bytes=_FULL * self.weights))
            start = Policy("start", "", sft.key)
        baseline = self._answers(0, start)
        policy = start
        for number, rule in enumerate(self.recipe.rules, start=1):
            stage = self._measure(number, policy)
            data = None if rule.kind == "auto" and stage is None else choose(rule, stage)[0]
            built = self._pairs(number, rule, data, policy)
            policy = self._train(number, policy, built, start)
            ours = self._answers(number, policy)
            if self.recipe.evaluate is not None:
                step = None
                if ours is not None and baseline is not None:
                    step = self.chain.evaluate(ours, baseline, self.recipe.evaluate)
                asked = self.held_out * (2 if self.pointwise else 1)
                self._add(number, "evaluate", step, Estimate(judgments=asked))

    def _add(
        self, number: int, kind: str, step: Step | None, costs: Estimate, *, reversal: str = ""
    ) -> None:
        will = _WILL[self.steps.state(step)[0]] if step is not None else "run"
        note = "" if step is not None else "as the stage will ask"
        name = None if step is None else step.name
        if any(each.step == name and name is not None for each in self.planned):
            will = "reuse"
        spent = Estimate() if will == "reuse" else costs
        self.planned.append(PlannedStep(number, kind, name, will, note, spent, reversal))

    def _measure(self, number: int, policy: Policy | None) -> Stage | None:
        if self.recipe.measure is False:
            return None
        config, sizes = self.chain.measure_config, self.sizes
        prompts = min(sizes.measurable, config.max_prompts or sizes.measurable)
        off = min(sizes.responses, config.off_responses)
        asked = config.on_responses + off if self.pointwise else config.on_responses * off
        step = None if policy is None else self.chain.measure(policy)
        sampled = self._sampling(prompts, config.on_responses)
        costs = Estimate(**{**asdict(sampled), "judgments": round(prompts * asked)})
        self._add(number, "measure", step, costs)
        if step is not None and self.steps.state(step)[0] == "done":
            return Stage.load(self.steps.path(step) / STAGE)
        return None

    def _pairs(
        self, number: int, rule: Rule, data: Data | None, policy: Policy | None
    ) -> Step | None:
        if data in ("off", "mix", "per-prompt"):
            pairs = self.chain.build("off", rule, policy or self.chain.start())
            costs = self._judging(self.sizes.responses)
            self._add(number, "build", pairs, costs, reversal=self._reversal(pairs))
            if data == "off":
                return pairs
        own = self.chain.own_sampling.responses
        if data == "mix":
            mixed = None if policy is None else self.chain.build("mix", rule, policy, pairs=pairs)
            drawn = round((rule.share or 0.0) * self.sizes.prompts)
            sampled = asdict(self._sampling(drawn, own))
            judged = asdict(self._judging(own + 1)) | sampled
            self._add(number, "build", mixed, Estimate(**judged | {"judgments": drawn * (own + 1)}))
            return mixed
        writer = policy
        if data == "other":
            model = str(rule.model)
            writer = Policy(Path(model).name, model, self.chain.fingerprint(model))
        known = data is not None and writer is not None and policy is not None
        answers = self.chain.sample(writer) if known and writer is not None else None
        self._add(number, "sample", answers, self._sampling(self.sizes.prompts, own))
        built = None
        if answers is not None and data is not None and policy is not None:
            more: dict[str, Step] = {}
            if data == "per-prompt":
                more = {"measured": self.chain.measure(policy), "pairs": pairs}
            built = self.chain.build(data, rule, policy, answers=answers, **more)
        told = self._reversal(None) if data is None else ""
        self._add(number, "build", built, self._judging(own), reversal=told)
        return built

    def _reversal(self, step: Step | None) -> str:
        """What is known of the labels that the judge would replace; "" if it replaces none."""
        if self.recipe.off_policy is None or not self.chain.relabels:
            return ""
        found = None
        if step is not None and self.steps.state(step)[0] == "done":
            found = json.loads((self.steps.path(step) / BUILT).read_text("utf-8"))["reversal"]
        store = self.steps.folder.with_name(LEDGER)
        return planned_reversal(found, inputs=self.inputs, judge=self.judge, store=store)

    def _train(
        self, number: int, policy: Policy | None, built: Step | None, start: Policy | None
    ) -> Policy | None:
        settings = train_settings(self.recipe, policy="policy", data="data")
        arguments = settings.training
        sizes = self.sizes
        pair = sizes.prompt_tokens + 2 * sizes.response_tokens
        epochs = float(arguments.get("num_train_epochs", 3))
        pairs = epochs * sizes.prompts
        if int(arguments.get("max_steps", -1)) > 0:
            step_pairs = int(arguments.get("per_device_train_batch_size", 8)) * int(
                arguments.get("gradient_accumulation_steps", 1)
            )
            pairs = int(arguments["max_steps"]) * step_pairs
        tokens = round(pairs * pair)
        costs = Estimate(
            tokens=tokens,
            memory_bytes=(_LORA if settings.lora is not None else _FULL) * self.weights,
            seconds=self._seconds(tokens, _TRAINING),
        )
        step = None
        if policy is not None and built is not None and start is not None:
            reference = start if self.recipe.reference == "fixed" else policy
            step = self.chain.train(policy, built, reference)
        self._add(number, "train", step, costs)
        return None if step is None else Policy(f"iteration {number}", "", step.key)

    def _answers(self, number: int, policy: Policy | None) -> Step | None:
        evaluate = self.recipe.evaluate
        if evaluate is None:
            return None
        step = None if policy is None else self.chain.answer(policy, evaluate)
        self._add(number, "sample", step, self._sampling(self.held_out, 1))
        return step

    def _sampling(self, prompts: int, responses: int) -> Estimate:
        answers = prompts * responses
        limit = self.chain.own_sampling.max_new_tokens
        length = min(self.sizes.response_tokens, limit)
        tokens = round(prompts * self.sizes.prompt_tokens + answers * length)
        seconds = self._seconds(tokens, _FORWARD)
        return Estimate(answers=answers, tokens=tokens, memory_bytes=self.weights, seconds=seconds)

    def _judging(self, responses: float) -> Estimate:
        each = responses if self.pointwise else responses * (responses - 1) / 2
        return Estimate(judgments=round(self.sizes.prompts * each))

    def _seconds(self, tokens: int, flop: int) -> float:
        parameters = self.weights / 4
        return round(flop * parameters * tokens / self.rate, 2)


def _sizes(chain: Chain, inputs: Inputs) -> _Sizes:
    rows = inputs.prompts
    off = rows if chain.recipe.off_policy is None else inputs.off_policy
    encoder = ResponseEncoder(load_tokenizer(chain.recipe.policy), **chain.recipe.encoding)
    trees = [encoder.encode(row.prompt, row.messages()) for row in islice(off, _ROWS_LOOKED_AT)]
    lengths = [len(ids) for tree in trees for ids in tree.response_ids]
    limit = float(chain.own_sampling.max_new_tokens)
    return _Sizes(
        prompts=len(rows),
        responses=mean(len(tree.response_ids) for tree in trees),
        prompt_tokens=mean(len(tree.prompt_ids) for tree in trees),
        response_tokens=mean(lengths) if lengths else limit,
        measurable=len(off),
    )


def _weight_bytes(policy: str) -> int:
    """Of a local checkpoint in float32, from its files' headers; 0 of one that is not here."""
    from safetensors import safe_open

    parameters = 0
    for file in sorted(Path(policy).glob("*.safetensors")):
        with safe_open(file, framework="np") as held:
            for name in held.keys():  # noqa: SIM118 - safe_open is no mapping
                size = 1
                for axis in held.get_slice(name).get_shape():
                    size *= axis
                parameters += size
    return 4 * parameters


def _flop_a_second() -> float:
    import torch

    matrix = torch.ones(_MATRIX, _MATRIX)
    matrix @ matrix
    began, products = time.monotonic(), 0
    while time.monotonic() - began < _MATMUL_S:
        matrix @ matrix
        products += 1
    return 2.0 * _MATRIX**3 * products / (time.monotonic() - began)
