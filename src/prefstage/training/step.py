"""One optimiser step: its items planned into micro-batches, their log-probs, loss and gradient."""

import contextlib
import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from prefstage.data.messages import common_prefix
from prefstage.data.tokenising import TokenTree
from prefstage.losses import LossMix, LossState, LossValues
from prefstage.scoring import Scorer
from prefstage.scoring.cpu.lean import lean_pass
from prefstage.scoring.engine import ModelParts
from prefstage.scoring.layout import Batch, Layout, leaves_of, length_rule, plan_passes
from prefstage.scoring.memory import ModelShape, free_bytes, training_budget
from prefstage.training.batches import Means, Scored, StepItems
from prefstage.training.compat import exchanging_gradients

# Positions of the items that are computed together.
MicroBatch = tuple[int, ...]

# For each process its micro-batches, the same number for all.
Plan = tuple[tuple[MicroBatch, ...], ...]

_log = logging.getLogger(__name__)


# --- The plan ------------------------------------------------------------------------------------


def plan_step(
    sizes: Sequence[int],
    token_budget: int,
    processes: int,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Divide the items of a step into micro-batches under a token budget.

    Every item stands in exactly one micro-batch. All processes get the same number of
    micro-batches, as few as the search finds, of about equal tokens; with fewer items than
    micro-batches some are empty. An item that is larger than the budget stands alone.
    Items whose prompts begin alike are cheaper together, and are put together where that
    pays. The plan depends on the arguments alone, so every process makes the same.

    Args:
        sizes: Tokens of each item when computed alone. [items], >= 1.
        token_budget: Tokens a micro-batch, >= 1.
        processes: Processes that share the step, >= 1.
        prompts: Tokens that each item begins with, where a micro-batch computes equal
            beginnings once; None where it does not. [items].

    Returns:
        Micro-batches of each process.
    """
    if not sizes:
        return tuple(((),) for _ in range(processes))
    costs = _Costs(sizes, prompts)
    small = [item for item, size in enumerate(sizes) if size <= token_budget]
    least = len(sizes) - len(small) + math.ceil(costs.of(small) / token_budget)
    bins = processes * max(1, math.ceil(least / processes))
    while True:
        options = [_balanced(sizes, bins), costs.runs(bins)]
        fitting = [
            option
            for option in options
            if all(len(items) <= 1 or costs.of(items) <= token_budget for items in option)
        ]
        if fitting or bins >= len(sizes):
            best = min(fitting or options[:1], key=lambda option: max(map(costs.of, option)))
            return _dealt(best, costs, processes)
        bins += processes


# Tokens of micro-batches, with common beginnings counted once.
# In the order of prompts, two items share the least that any neighbours between them do.
class _Costs:
    def __init__(self, sizes: Sequence[int], prompts: Sequence[Sequence[int]] | None) -> None:
        # Where beginnings are not computed once, they are as good as empty.
        texts = [tuple(prompt) for prompt in prompts or [()] * len(sizes)]
        self._sizes, self._order = sizes, sorted(range(len(sizes)), key=texts.__getitem__)
        self._shared = [
            0,
            *(common_prefix(b, a) for a, b in pairwise(texts[item] for item in self._order)),
        ]
        self._rank = {item: rank for rank, item in enumerate(self._order)}

    # Less than the sum of sizes, as a prompt that items share is computed once.
    def of(self, items: Sequence[int]) -> int:
        shared = sum(
            min(self._shared[a + 1 : b + 1])
            for a, b in pairwise(sorted(map(self._rank.__getitem__, items)))
        )
        return sum(map(self._sizes.__getitem__, items)) - shared

    # At most `bins` runs in the order of prompts, the largest as small as can be.
    def runs(self, bins: int) -> list[list[int]]:
        # The least capacity that needs no more runs, by bisection: more capacity never needs more.
        capacities = range(1, sum(self._sizes) + 1)
        least = bisect_left(capacities, True, key=lambda most: len(self._cut(most)) <= bins)
        return self._cut(capacities[least])

    def _cut(self, capacity: int) -> list[list[int]]:
        runs, size = list[list[int]](), 0
        for rank, item in enumerate(self._order):
            added = self._sizes[item] - self._shared[rank]
            if not runs or size + added > capacity:
                runs.append([])
                size, added = 0, self._sizes[item]
            runs[-1].append(item)
            size += added
        return runs


# The items, the largest first, each into the bin with the fewest tokens so far.
# Source: Graham 1969, "Bounds on multiprocessing timing anomalies" (LPT rule).
def _balanced(sizes: Sequence[int], bins: int) -> list[list[int]]:
    filled: list[list[int]] = [[] for _ in range(bins)]
    loads = [(0, index) for index in range(bins)]  # in order, and so a heap
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, index = loads[0]
        filled[index].append(item)
        heapreplace(loads, (load + sizes[item], index))
    return filled


# Processes wait for one another at every turn, so micro-batches of like size run together.
def _dealt(bins: Sequence[Sequence[int]], costs: _Costs, processes: int) -> Plan:
    ordered = sorted(
        (tuple(sorted(items)) for items in bins), key=lambda items: (-costs.of(items), items)
    )
    ordered += [()] * (-len(ordered) % processes)
    rounds = [ordered[start : start + processes] for start in range(0, len(ordered), processes)]
    # Every second round in reverse, so that no process always gets the largest.
    turned = [batch[::-1] if index % 2 else batch for index, batch in enumerate(rounds)]
    return tuple(tuple(batch[process] for batch in turned) for process in range(processes))


# --- The step ------------------------------------------------------------------------------------


# A micro-batch's share of the objective, from its positions and log-probs.
Objective = Callable[[MicroBatch, Scored], Tensor]


@dataclass(frozen=True)
class StepOutcome:
    """The result of a step, over all processes.

    Attributes:
        items: The items of the step.
        scored: Their log-probs by the policy before the step.
        values: Loss values, the next state and the loss's own metrics.
        loss: The objective: the mean over the optimiser batch.
    """

    items: StepItems
    scored: Scored
    values: LossValues
    loss: float


# Of the CPU, and of the GPUs.
RandomState = tuple[Tensor, list[Tensor]]


class StepRunner:
    """Computes steps: forward and backward passes over planned micro-batches.

    Args:
        scorer: Of the policy without wrappers, whose layout is taken; `ScoringCalls` are
            installed while steps are computed.
        accelerator: accelerate's, which knows the processes.
        loss: What to minimise.
        token_budget: Tokens a micro-batch.
    """

    def __init__(
        self, scorer: Scorer, accelerator: Any, loss: LossMix, *, token_budget: int
    ) -> None:
        self.scorer, self.loss, self.token_budget = scorer, loss, token_budget
        self._accelerator = accelerator
        self._body = ModelParts.of(scorer.model).body
        self._kept_bytes = ModelShape.of(scorer.model).kept_bytes(norms_recomputed=True)
        self._layout: Layout = scorer.layout_choice.layout
        self._one_pass = self._layout == "tree" and length_rule(self._body.config) is None
        self._statistics = ("log_sum_squares",) if "log_sum_squares" in loss.needs else ()

    def plan(self, items: StepItems) -> Plan:
        """Divide items into micro-batches for each process."""
        return plan_step(
            self.sizes(items),
            self.token_budget,
            self._accelerator.num_processes,
            prompts=[item.trees[0].prompt_ids for item in items.items]
            if self._layout == "tree"
            else None,
        )

    def sizes(self, items: StepItems) -> list[int]:
        """Tokens that each item takes when it is computed alone."""
        size = _tree_size if self._layout == "tree" else _flat_size
        return [sum(map(size, item.trees)) for item in items.items]

    def tokens(self, items: StepItems) -> int:
        """Tokens of items, each prompt once: the same in either layout."""
        return sum(map(_tree_size, items.trees))

    def train(self, model: Any, items: StepItems, state: LossState) -> StepOutcome:
        """Accumulate the gradient of the objective over the whole optimiser batch.

        A loss whose values depend on one another takes two passes unless everything fits
        into one: log-probs first, whose slopes then weigh the log-probs of the second.

        Args:
            model: The policy with its wrappers, in training mode.
            items: All items of the step, the same on every process.
            state: The loss's state.

        Returns:
            The step's result. Gradients stand in the parameters, such that the mean
            over processes, which wrappers take, is the gradient of the objective.
        """
        plan, count = self.plan(items), items.whole_totals.items

        def share(positions: MicroBatch, scored: Scored) -> Tensor:
            return self._compute(items.part(positions), scored, state).values.sum() / count

        if not self.loss.whole_batch or (
            self._accelerator.num_processes == 1 and len(plan[0]) == 1 and items.all_learn
        ):
            scored = self._run(model, items, plan, share)
        else:
            states = list[RandomState]()
            with torch.no_grad():
                scored = self._run(model, items, plan, None, states)
            # d objective / d θ = Σ (d objective / d log π) · (d log π / d θ): with the slopes known
            # from all items together, micro-batches can be taken one after another.
            policy = scored.log_probs.detach().requires_grad_()
            objective = self._compute(items, Scored(policy, scored.log_sum_squares), state)
            (slopes,) = torch.autograd.grad(objective.values.sum() / count, policy)
            slopes, learning = items.learning(slopes)

            def weighted(positions: MicroBatch, scored: Scored) -> Tensor:
                return (learning.take(slopes, positions) * scored.log_probs).sum()

            plan = plan if learning is items else self.plan(learning)
            self._run(model, learning, plan, weighted, states)
        with torch.no_grad():
            values = self._compute(items, scored, state)
        return StepOutcome(items, scored, values, float(values.values.sum()) / count)

    @torch.no_grad()
    def evaluate(
        self,
        model: Any,
        items: StepItems,
        state: LossState,
        *,
        chunks: Iterable[Sequence[int]],
        tick: Callable[[], object],
    ) -> dict[str, float]:
        """Metrics of a set: means over its items, every item computed once.

        A loss whose values depend on one another sees the whole set as one batch.

        Args:
            model: The policy in evaluation mode.
            items: All items of the set.
            state: The loss's state; it does not change.
            chunks: Positions of items that are planned together, each once.
            tick: Called after each chunk.

        Returns:
            Mean of each metric, "loss" among them.
        """
        parts, scored, means = list(map(items.part, chunks)), list[Scored](), Means()
        for part in parts:
            scored.append(self._run(model, part, self.plan(part), None))
            tick()
        if self.loss.whole_batch:
            columns = [values for values in zip(*scored, strict=True) if values[0] is not None]
            parts, scored = [items], [Scored(*map(torch.cat, columns))]
        for part, log_probs in zip(parts, scored, strict=True):
            means.add(part, self._compute(part, log_probs, state))
        return means.take()

    def _compute(self, items: StepItems, scored: Scored, state: LossState) -> LossValues:
        return self.loss.compute(items.loss_batch(*scored), state)

    # Log-probs are gathered from all processes, as losses may look at the whole batch. The random
    # state before each micro-batch is put down without an objective, and restored with one, so
    # that a second pass drops out what the first did.
    def _run(
        self,
        model: Any,
        items: StepItems,
        plan: Plan,
        objective: Objective | None,
        states: list[RandomState] | None = None,
    ) -> Scored:
        accelerator, training = self._accelerator, objective is not None
        # No wrapper and no other device takes part in the gradient.
        alone = accelerator.distributed_type == DistributedType.NO
        lean = training and alone and accelerator.device.type == "cpu"
        gathered: Tensor | None = None
        turns = plan[accelerator.process_index]
        for turn, positions in enumerate(turns):
            # A process without items computes some all the same and leaves their gradient out:
            # wrappers exchange gradients, or gather weights, only where all processes take part.
            part = items.part(positions or (0,))
            if states is not None and not training:
                states.append((torch.get_rng_state(), torch.cuda.get_rng_state_all()))
            elif states and turn < len(states):
                cpu, gpus = states[turn]
                torch.set_rng_state(cpu)
                torch.cuda.set_rng_state_all(gpus)
            with (
                exchanging_gradients(accelerator, model, last=turn == len(turns) - 1)
                if training
                else contextlib.nullcontext()
            ):
                passes = self._passes(items, plan, turn)
                saves = lean_pass(
                    self._body,
                    tokens=sum(planned.input_ids.numel() for planned in passes),
                    token_budget=self.token_budget,
                    kept_bytes=self._kept_bytes,
                )
                with saves if lean else contextlib.nullcontext():
                    scored = self._forward(model, part, passes)
                values = torch.stack([flat.detach() for flat in scored if flat is not None])
                if objective is not None:
                    # Wrappers take the mean over processes; the objective is a sum over them.
                    share = objective(positions or (0,), scored) * accelerator.num_processes
                    accelerator.backward(share if positions else share * 0)
            if gathered is None:
                gathered = values.new_zeros(len(values), items.tokens)
            for index, position in enumerate(positions):
                gathered[:, items.span_of(position)] = values[:, part.span_of(index)]
        # A sum gathers: every token stands at zero on all processes but one.
        return Scored(*accelerator.reduce(gathered, "sum"))

    # This process's forward passes of a turn, as many as any process's.
    # Wrappers that shard weights gather them at every pass, so processes must agree.
    def _passes(self, items: StepItems, plan: Plan, turn: int) -> list[Batch]:
        def lay_out(process: int) -> list[Batch]:
            return plan_passes(
                self._body.config,
                leaves_of(items.part(plan[process][turn] or (0,)).trees),
                layout=self._layout,
                token_budget=None,
            )

        passes = lay_out(self._accelerator.process_index)
        if self._accelerator.num_processes == 1 or self._one_pass:
            return passes
        most = max(map(len, map(lay_out, range(len(plan)))))
        return passes + passes[-1:] * (most - len(passes))

    def _forward(self, model: Any, part: StepItems, passes: list[Batch]) -> Scored:
        scored = model(scoring_passes=passes, statistics=self._statistics)
        # From the order of the passes, where equal beginnings stand together, to that of items.
        order, start = torch.empty(part.tokens, dtype=torch.long), 0
        for leaf in (leaf for planned in passes for leaf in planned.leaves):
            stop = start + len(leaf.response_ids)
            order[part.tree_spans[leaf.tree][leaf.response]] = torch.arange(start, stop)
            start = stop
        return Scored(*(values[order.to(values.device)] for values in scored))


def token_budget_of(args: Any, model: Any) -> int:
    """The token budget that the arguments ask for.

    Args:
        args: `PreferenceArguments`.
        model: The policy.

    Returns:
        Tokens a micro-batch.
    """
    if args.token_budget != "auto":
        return int(args.token_budget)
    device = ModelParts.of(model).device
    budget = training_budget(
        ModelShape.of(model),
        free_bytes(device),
        on_cpu=device.type == "cpu",
        checkpointing=bool(args.activation_checkpointing),
    )
    _log.info("token budget: %d tokens a micro-batch, from the free memory", budget)
    return budget


def _tree_size(tree: TokenTree) -> int:
    return len(tree.prompt_ids) + sum(len(ids) - 1 for ids in tree.response_ids)


def _flat_size(tree: TokenTree) -> int:
    return sum(len(tree.prompt_ids) + len(ids) - 1 for ids in tree.response_ids)
