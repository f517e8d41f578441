"""One optimiser step: log-probs, loss and gradient of its items over micro-batches."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from prefstage.data.tokenising import TokenTree
from prefstage.losses import LossMix, LossState, LossValues
from prefstage.scoring.attention import Backend
from prefstage.scoring.direct import direct_gradients, reserve_gradients
from prefstage.scoring.engine import Layout, plan_passes
from prefstage.scoring.fused_layers import recomputes_layers, weights_of
from prefstage.scoring.kept import LayerShape
from prefstage.scoring.linear import KEPT_ELEMENTS, room_for_logits
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.padded import Batch
from prefstage.scoring.recipes import Recipes
from prefstage.scoring.recomputed import recomputed_layers
from prefstage.scoring.rotary import length_rule
from prefstage.scoring.rows import Row, leaves_of
from prefstage.scoring.short_lived import pooled
from prefstage.training.batches import Flat, StepItems
from prefstage.training.planning import MicroBatch, Plan, plan_step


@dataclass(frozen=True)
class Scored:
    """Log-probs of all items of a step, the same on every process.

    Attributes:
        log_probs: log π of every response token, nats, without gradient.
        log_sum_squares: log Σ_v π(v)² of each, if the loss needs it.
    """

    log_probs: Flat
    log_sum_squares: Flat | None = None


Objective = Callable[[MicroBatch, Scored], Tensor]
"""A micro-batch's share of the objective, from its positions and log-probs."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step found, over all processes.

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


class Draws:
    """Random states of micro-batches, so that a second pass drops out what the first did.

    Args:
        device: Where the passes are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: list[tuple[Tensor, Tensor | None]] = []
        self._again = False

    def begin_again(self) -> None:
        """From now on give back the states that were taken down."""
        self._again = True

    def begin(self, turn: int) -> None:
        """Take down the random state before a micro-batch, or give it back."""
        on_gpu = self._device.type == "cuda"
        if not self._again:
            gpu = torch.cuda.get_rng_state(self._device) if on_gpu else None
            self._states.append((torch.get_rng_state(), gpu))
        elif turn < len(self._states):
            cpu, gpu = self._states[turn]
            torch.set_rng_state(cpu)
            if gpu is not None:
                torch.cuda.set_rng_state(gpu, self._device)


class StepRunner:
    """Computes steps: forward and backward passes over planned micro-batches.

    Args:
        model: The policy without wrappers, after `install_scoring`.
        accelerator: accelerate's, which knows the processes.
        loss: What to minimise.
        token_budget: Tokens a micro-batch.
        layout: "tree" or "flat".
        backend: Implementation of tree attention; None chooses by device.
    """

    def __init__(
        self,
        model: Any,
        accelerator: Any,
        loss: LossMix,
        *,
        token_budget: int,
        layout: Layout,
        backend: Backend | None = None,
    ) -> None:
        self._bare = model
        self._accelerator = accelerator
        self.loss = loss
        self.token_budget = token_budget
        self.layout: Layout = layout
        self._backend = backend
        config = ModelParts.of(model).body.config
        self._kept_bytes = _kept_bytes(model)
        self._one_pass = layout == "tree" and length_rule(config) is None
        self._recipes = Recipes()
        self._statistics = ("log_sum_squares",) if "log_sum_squares" in loss.needs else ()

    def plan(self, items: StepItems) -> Plan:
        """Divide items into micro-batches for each process."""
        tree = self.layout == "tree"
        prompts = [item.trees[0].prompt_ids for item in items.items] if tree else None
        processes = self._accelerator.num_processes
        return plan_step(self.sizes(items), self.token_budget, processes, prompts=prompts)

    def sizes(self, items: StepItems) -> list[int]:
        """Tokens that each item takes when it is computed alone."""
        size = _tree_size if self.layout == "tree" else _flat_size
        return [sum(map(size, item.trees)) for item in items.items]

    def tokens(self, items: StepItems) -> int:
        """Tokens of items, each prompt once: the same in either layout."""
        return sum(_tree_size(tree) for tree in items.trees)

    def train(self, model: Any, items: StepItems, state: LossState) -> StepOutcome:
        """Accumulate the gradient of the objective over the whole optimiser batch.

        A loss whose values depend on one another takes two passes unless everything fits
        into one: log-probs first, whose slopes then weigh the log-probs of the second.

        Args:
            model: The policy with its wrappers, in training mode.
            items: All items of the step, the same on every process.
            state: The loss's state.

        Returns:
            What the step found. Gradients stand in the parameters, such that the mean
            over processes, which wrappers take, is the gradient of the objective.
        """
        plan = self.plan(items)
        together = self._accelerator.num_processes == 1 and len(plan[0]) == 1
        if self.loss.whole_batch and not (together and items.all_learn):
            draws = Draws(self._accelerator.device)
            with torch.no_grad():
                scored = self._run(model, items, plan, None, draws)
            slopes, learning = items.learning(self._slopes(items, scored, state))
            draws.begin_again()
            again = plan if learning is items else self.plan(learning)
            self._run(model, learning, again, partial(_weighted, learning, slopes), draws)
        else:
            scored = self._run(model, items, plan, partial(self._share, items, state))
        values = self.values(items, scored, state)
        return StepOutcome(items, scored, values, float(values.values.sum()) / _count(items))

    def score(self, model: Any, items: StepItems, plan: Plan | None = None) -> Scored:
        """Log-probs of items without gradient, computed over all processes.

        Args:
            model: The policy, wrapped or not.
            items: The items, the same on every process.
            plan: Their micro-batches; None plans them.

        Returns:
            The same on every process.
        """
        with torch.no_grad():
            return self._run(model, items, plan or self.plan(items), None)

    def values(self, items: StepItems, scored: Scored, state: LossState) -> LossValues:
        """Loss values of scored items, and the state after them.

        Args:
            items: The items.
            scored: Their log-probs.
            state: The loss's state before them.

        Returns:
            Values without gradient.
        """
        with torch.no_grad():
            batch = items.loss_batch(scored.log_probs, scored.log_sum_squares)
            return self.loss.compute(batch, state)

    def _share(
        self, items: StepItems, state: LossState, positions: MicroBatch, found: Scored
    ) -> Tensor:
        """A micro-batch's share of the objective."""
        part = items.part(positions)
        values = self.loss.compute(part.loss_batch(found.log_probs, found.log_sum_squares), state)
        return values.values.sum() / _count(items)

    def _slopes(self, items: StepItems, scored: Scored, state: LossState) -> Flat:
        """Slope of the objective by each log-prob."""
        policy = scored.log_probs.detach().requires_grad_()
        values = self.loss.compute(items.loss_batch(policy, scored.log_sum_squares), state)
        (slopes,) = torch.autograd.grad(values.values.sum() / _count(items), policy)
        return slopes

    def _run(
        self,
        model: Any,
        items: StepItems,
        plan: Plan,
        objective: Objective | None,
        draws: Draws | None = None,
    ) -> Scored:
        """Run this process's micro-batches; gather the log-probs of all processes."""
        accelerator = self._accelerator
        names = ("log_probs", *self._statistics)
        gathered: Tensor | None = None
        own = plan[accelerator.process_index]
        for turn, positions in enumerate(own):
            part = items.part(positions or (0,))
            if draws is not None:
                draws.begin(turn)
            with self._synchronised(model, turn == len(own) - 1, objective is not None):
                passes = self._passes(items, plan, turn)
                with self._keeping(passes, objective is not None):
                    found = self._forward(model, part, passes)
                values = torch.stack([getattr(found, name).detach() for name in names])
                if objective is not None:
                    # Wrappers take the mean over processes; the objective is a sum over them.
                    share = objective(positions or (0,), found) * accelerator.num_processes
                    accelerator.backward(share if positions else share * 0)
            if gathered is None:
                gathered = values.new_zeros(len(names), items.tokens)
            if positions:
                for position, start in zip(positions, part.starts, strict=True):
                    span = items.span_of(position)
                    gathered[:, span] = values[:, start : start + span.stop - span.start]
        total = accelerator.reduce(gathered, "sum")
        return Scored(*total)

    def _passes(self, items: StepItems, plan: Plan, turn: int) -> list[Row | Batch]:
        """This process's forward passes of a turn, as many as any process's.

        Wrappers that shard weights gather them at every pass, so processes must agree.
        """
        parts = ModelParts.of(self._bare)

        def lay_out(process: int) -> list[Row | Batch]:
            part = items.part(plan[process][turn] or (0,))
            leaves = leaves_of(part.trees)
            return plan_passes(parts, leaves, layout=self.layout, token_budget=None)

        own = lay_out(self._accelerator.process_index)
        if self._accelerator.num_processes == 1 or self._one_pass:
            return own
        most = max(len(lay_out(process)) for process in range(len(plan)))
        return own + own[-1:] * (most - len(own))

    def _forward(self, model: Any, part: StepItems, passes: list[Row | Batch]) -> Scored:
        found = model(scoring_passes=passes, backend=self._backend, statistics=self._statistics)
        place = torch.empty(part.tokens, dtype=torch.long)
        start = 0
        for one in passes:
            for slot in one.slots:
                span = part.tree_spans[slot.tree][slot.response]
                place[span] = torch.arange(start + slot.start, start + slot.stop)
            start += len(one.target_ids)
        place = place.to(found[0].device)
        return Scored(*(values[place] for values in found))

    @contextlib.contextmanager
    def _keeping(self, passes: list[Row | Batch], training: bool) -> Iterator[None]:
        """On a CPU, in one process: large gradients added in passing, and less kept."""
        with contextlib.ExitStack() as stack:
            if training and runs_alone_on_cpu(self._accelerator):
                parts = ModelParts.of(self._bare)
                checkpointing = recomputes_layers(self._bare)
                stack.enter_context(direct_gradients(maps=not checkpointing))
                reserve_gradients([*weights_of(parts.body), parts.projection.weight])
                stack.enter_context(pooled())
                if not checkpointing:
                    stack.enter_context(self._recipes.keeping())
                    tokens = sum(one.input_ids.numel() for one in passes)
                    stack.enter_context(room_for_logits(self._room_for_logits(tokens)))
                    stack.enter_context(
                        recomputed_layers(parts.body, tokens=tokens, room=self.token_budget)
                    )
            yield

    def _room_for_logits(self, tokens: int) -> int:
        """Logits to keep: also where a micro-batch within the budget keeps less than it may."""
        return KEPT_ELEMENTS + self._kept_bytes * max(0, self.token_budget - tokens) // 4

    @contextlib.contextmanager
    def _synchronised(self, model: Any, last: bool, training: bool) -> Iterator[None]:
        """Exchange gradients between processes in the last micro-batch only."""
        if not training:
            yield
            return
        accelerator = self._accelerator
        # As the Trainer does it for its own micro-batches; DeepSpeed reads the flag itself.
        accelerator.gradient_state._set_sync_gradients(last)
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        with contextlib.nullcontext() if last or deepspeed else accelerator.no_sync(model):
            yield


def runs_alone_on_cpu(accelerator: Any) -> bool:
    """Whether no wrapper and no other device takes part in the gradient."""
    alone: bool = accelerator.distributed_type == DistributedType.NO
    return alone and accelerator.device.type == "cpu"


def _kept_bytes(model: Any) -> int:
    """Bytes that the layers keep of a token, on a CPU."""
    shape, parts = LayerShape.of(model), ModelParts.of(model)
    size: int = parts.projection.weight.element_size()
    return shape.layers * shape.kept_values(norms_again=True) * size


def _weighted(items: StepItems, slopes: Flat, positions: MicroBatch, found: Scored) -> Tensor:
    """Sum whose gradient is that of the objective through these items."""
    return (items.take(slopes, positions) * found.log_probs).sum()


def _count(items: StepItems) -> int:
    return items.whole_totals.items


def _tree_size(tree: TokenTree) -> int:
    return len(tree.prompt_ids) + sum(len(ids) - 1 for ids in tree.response_ids)


def _flat_size(tree: TokenTree) -> int:
    return sum(len(tree.prompt_ids) + len(ids) - 1 for ids in tree.response_ids)
