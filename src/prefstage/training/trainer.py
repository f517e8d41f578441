"""`PreferenceTrainer`: transformers' Trainer with our optimiser step."""

import logging
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput
from typing_extensions import override

from prefstage.data import ResponseEncoder
from prefstage.data.settings import CHAT_SETTINGS
from prefstage.losses import LossState, parse_loss
from prefstage.scoring import Scorer
from prefstage.scoring.model import ModelParts, check_fits, model_fingerprint
from prefstage.training.arguments import PreferenceArguments, refuse_arguments
from prefstage.training.batches import StepItems, StepLoader, StepSampler, as_step, step_seeds
from prefstage.training.compat import ScoringCalls, use_one_gpu
from prefstage.training.datasets import (
    check_item_sets,
    check_sources,
    item_set_of,
    item_sets_in,
    item_sets_of,
)
from prefstage.training.durable import DurableTrainer
from prefstage.training.export import card_fields, names_of, provenance_of, write_export
from prefstage.training.faults import StepGuard, check_start, start_tolerance
from prefstage.training.items import ItemSet
from prefstage.training.metrics import EvaluationSet, Means, Speed, evaluate_items, item_metrics
from prefstage.training.policy import (
    adapter_is_identity,
    check_adapter_off,
    layout_for,
    prepare_policy,
    tokenizer_for,
    warn_of_precision,
)
from prefstage.training.reference import START, References
from prefstage.training.setting_checks import check_settings
from prefstage.training.step import StepOutcome, StepRunner, token_budget_of

_log = logging.getLogger(__name__)

_ENCODING = (*CHAT_SETTINGS, "max_prompt_tokens", "max_response_tokens")
_DATA_AND_MODEL = ("train_dataset", "eval_dataset", "processing_class", "peft_config", "callbacks")
_FLOPS_PER_TOKEN_AND_PARAMETER = 6


class PreferenceTrainer(DurableTrainer):
    """Trains a causal LM on preferences (or demonstrations) by any loss of `prefstage.LOSSES`.

    Everything around the step is transformers' Trainer: optimisers, schedules, callbacks,
    trackers, checkpoints, DDP and FSDP through `accelerate launch`, the Hub.

    Args:
        model: A causal LM, bare or with PEFT adapters; or its folder or Hub id, which is
            loaded in float32.
        args: The arguments; None for the defaults.
        train_dataset: Pairs, candidates, unpaired responses or conversations, as loaded by
            `prefstage.data`, as `datasets.Dataset`, as a list of dicts, as a file or Hub id,
            or already encoded.
        eval_dataset: One such set, or several by name.
        processing_class: The tokenizer; None for the model's own.
        peft_config: Puts a new adapter on the model; an adapter that is there is merged first,
            and the merged model kept in the output folder, as the new adapter's base.
        callbacks: As the Trainer takes them; those with a method `attach` are shown the trainer.
        optimizers: As the Trainer takes them.
        optimizer_cls_and_kwargs: As the Trainer takes it.
        unknown: Refused by name: what TRL or the Trainer has and this trainer has otherwise, or
            would never call.

    Attributes:
        loss: The loss, parsed.
        loss_state: Its running state; belongs into checkpoints.
        last_step: Result of the last optimiser step, before its update.
        references: Reference log-probs of the sets.
        encoder: How texts become tokens.
        notes: What the model card says besides figures.
        fresh_adapter: Whether a new adapter was made that changes nothing yet.

    Raises:
        ConfigError: If settings contradict one another, or an argument is unknown.
        InputError: If the data is not what the loss takes, or does not fit the model; or if
            `model` is none, or `args` are another trainer's.
        ModelError: If the model cannot be trained by this trainer.
    """

    tracks_tokens = False  # counted by the step itself

    def __init__(
        self,
        model: Any,
        args: PreferenceArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        **unknown: Any,
    ) -> None:
        args = PreferenceArguments.of(args)
        refuse_arguments(unknown, of="PreferenceTrainer", known=_DATA_AND_MODEL)
        makes_optimizer = optimizers[0] is None and optimizer_cls_and_kwargs is None
        check_settings(args, optimizer=makes_optimizer, scheduler=optimizers[1] is None)
        # Before an adapter is merged: the merged model has no tokenizer by its weights.
        source = getattr(getattr(model, "config", None), "name_or_path", None)
        source = str(model) if isinstance(model, str | Path) else source
        model = prepare_policy(model, peft_config, args)
        check_adapter_off(model, args.reference)
        processing_class = tokenizer_for(model, processing_class, source=source)
        self.loss = parse_loss(args.loss)
        self.loss_state: LossState = self.loss.start_state()
        self.last_step: StepOutcome | None = None
        self.encoder = ResponseEncoder(
            processing_class, **{name: getattr(args, name) for name in _ENCODING}
        )
        check_sources(train_dataset, eval_dataset)
        self.data_names = names_of(train_dataset, eval_dataset)
        self.provenance = provenance_of(train_dataset)
        train_items, eval_items = (
            item_sets_of(data, self.encoder, self.loss, ties=args.ties)
            for data in (train_dataset, eval_dataset)
        )
        check_item_sets(train_items, eval_items, evaluates=args.eval_strategy != "no")
        self._scoring_calls = ScoringCalls(model)
        use_one_gpu(args)
        super().__init__(
            model=model,
            args=args,
            data_collator=as_step,
            train_dataset=train_items,
            eval_dataset=eval_items,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.fresh_adapter = peft_config is not None and adapter_is_identity(peft_config)
        self._means, self._speed, self._step_tokens = Means(), Speed(), 0
        self._set_up_scoring()
        for callback in callbacks or ():
            if hasattr(callback, "attach"):
                callback.attach(self)

    def _set_up_scoring(self) -> None:
        self.notes: list[str] = []
        args, parts = self.args, ModelParts.of(self.model)
        for item_set in self._item_sets():
            trees = [tree for item in item_set.items for tree in item.trees]
            check_fits(trees, parts, tokenizer=self.processing_class)
        self.scorer = Scorer(self.model, layout=layout_for(self.model, args.layout))
        self.runner = StepRunner(
            self.model,
            self.accelerator,
            self.loss,
            token_budget=token_budget_of(args, self.model),
            layout=self.scorer.layout_choice.layout,
        )
        self.guard = StepGuard(self.runner, Path(args.output_dir), args.device)
        self.references = References(
            args.reference,
            needed="reference" in self.loss.needs,
            folder=Path(args.reference_cache or Path(args.output_dir) / "_reference"),
            accelerator=self.accelerator,
        )

    def _item_sets(self) -> list[ItemSet]:
        return item_sets_in([self.train_dataset, self.eval_dataset])

    # --- Training -------------------------------------------------------------------------

    @override
    def train(self, resume_from_checkpoint: Any = None, *args: Any, **others: Any) -> Any:
        """As `DurableTrainer.train`, after making sure of the reference log-probs."""
        warn_of_precision(self)
        self.compute_references()
        with self._scoring_calls.installed():
            return super().train(resume_from_checkpoint, *args, **others)

    def compute_references(self, *others: Any) -> None:
        """Compute the reference log-probs of all sets, where they are not known yet.

        Args:
            others: Further sets, by name or alone; after training has begun they are left
                out if the reference is the start and no longer there.
        """
        gone = self.references.reference == START and not self.fresh_adapter
        if not (gone and self.state.global_step):
            self.references.compute(
                [*self._item_sets(), *item_sets_in(others)],
                self.scorer,
                adapter_is_new=self.fresh_adapter,
            )

    def get_train_dataloader(self) -> StepLoader:
        """The optimiser steps; the same on every process.

        Returns:
            One batch a step, with all its items.
        """
        return StepLoader(
            StepSampler(
                len(self.train_dataset),
                self.items_per_process * self.accelerator.num_processes,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                shuffle=getattr(self.args, "train_sampling_strategy", "random") != "sequential",
            )
        )

    @override
    def training_step(
        self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Accumulate the gradient of one whole optimiser step; returns its mean loss."""
        started, step = time.perf_counter(), self.state.global_step
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # of optimisers without a schedule
            self.optimizer.train()
        items = self._step_items(self.train_dataset, inputs["items"], step=step)
        with self.guard.memory(items, step=step, optimizer=self.optimizer):
            outcome = self.runner.train(model, items, self.loss_state)
        self.guard.check(outcome, step=step, learning_rate=self.learning_rate)
        tolerance = start_tolerance(self)
        if tolerance is not None:
            check_start(outcome, tolerance=tolerance)
        self.loss_state = outcome.values.state
        self.last_step = outcome
        self._means.add(item_metrics(items, outcome.scored, outcome.values, self.loss))
        self._step_tokens = self.runner.tokens(items)
        self.state.num_input_tokens_seen += self._step_tokens
        seconds = time.perf_counter() - started
        self._speed.add(items=len(items.items), tokens=self._step_tokens, seconds=seconds)
        return torch.tensor(outcome.loss, device=self.args.device)

    def _step_items(self, item_set: ItemSet, positions: Any, *, step: int) -> StepItems:
        items = tuple(item_set.items[position] for position in positions)
        seeds = step_seeds(items, seed=self.args.seed, step=step) if self.loss.random else None
        reference = self.references.of(item_set, positions)
        if reference is not None:
            reference = reference.to(self.accelerator.device)
        return StepItems(item_set.kind, items, reference, seeds)

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base class, with the means over the items since the last log."""
        if "loss" in logs:
            logs |= self._means.take() | self._speed.take()
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Arithmetic of the last step: 6 a token and parameter.

        Args:
            inputs: Not used.

        Returns:
            Operations of this process's share.

        Source:
            Kaplan et al. 2020, arXiv:2001.08361, Section 2.1.
        """
        return int(
            _FLOPS_PER_TOKEN_AND_PARAMETER
            * (self._step_tokens // self.accelerator.num_processes)
            * self.model.num_parameters(exclude_embeddings=True)
        )

    # --- Checkpoints ----------------------------------------------------------------------

    @override
    def run_settings(self) -> dict[str, Any]:
        """What a run must agree on with the checkpoint that it goes on from."""
        data, terms = self.train_dataset, self.loss.resolved()
        return super().run_settings() | {
            "weights": self._start_fingerprint,
            "loss": {term["name"]: term for term in terms},
            "reference": self.args.reference,
            "encoding": {
                "chat_format": self.args.chat_format,
                "max_prompt_tokens": self.args.max_prompt_tokens,
                "max_response_tokens": self.args.max_response_tokens,
                "fingerprint": self.encoder.fingerprint,
            },
            "data": data
            and {"kind": data.kind, "items": len(data), "fingerprint": data.fingerprint},
        }

    # Of the weights that training begins with, new adapters left out.
    @cached_property
    def _start_fingerprint(self) -> str:
        return model_fingerprint(self.model, with_adapter=False)

    @override
    def run_state(self) -> dict[str, Any]:
        """The loss's state, the metrics since the last log, and how steps are divided."""
        return {
            "loss": self.loss_state,
            "means": self._means.state(),
            "token_budget": self.runner.token_budget,
        }

    @override
    def restore_run_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `run_state` returned."""
        self.loss_state = dict(state["loss"])
        self._means.restore(state["means"])
        if self.args.token_budget == "auto":  # another division would round differently
            self.runner.token_budget = int(state["token_budget"])

    @override
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint that others load, with card and resolved configuration."""
        folder, in_checkpoint = output_dir or self.args.output_dir, self.staging is not None
        if not in_checkpoint:
            self.check_weights(Path(self.args.output_dir))
        if self.is_fsdp_enabled and not in_checkpoint:
            self.save_gathered(folder)
        else:
            super().save_model(folder, _internal_call=True)
        if not _internal_call and self.args.should_save:
            write_export(self, Path(folder))
        if not _internal_call and self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @override
    def create_model_card(self, *args: Any, **fields: Any) -> None:
        """Write the model card and what belongs to it into the output folder."""
        if self.is_world_process_zero():
            write_export(self, Path(self.args.output_dir), **card_fields(*args, **fields))

    # --- Evaluation -----------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate on one set or several by name; metrics are means over items.

        Args:
            eval_dataset: As for the constructor, or the name of one of its sets; None for
                those of the constructor.
            ignore_keys: Not used.
            metric_key_prefix: What metric names begin with.

        Returns:
            The metrics by name.
        """
        if not isinstance(eval_dataset, str):
            eval_dataset = item_sets_of(eval_dataset, self.encoder, self.loss, ties=self.args.ties)
        self.compute_references(eval_dataset)
        with self._scoring_calls.installed():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return cast("dict[str, float]", metrics)

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> EvaluationSet:
        """The set to evaluate, in chunks; chosen by name if there are several."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        return EvaluationSet(item_set_of(chosen, self.encoder, self.loss, ties=self.args.ties))

    @override
    def evaluation_loop(
        self,
        dataloader: EvaluationSet,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score a set and take the means of its metrics over its items."""
        self.prepare_sharded()
        self.model.eval()
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()
        item_set = dataloader.dataset
        _log.info("%s on %d items", description, len(item_set))
        self.callback_handler.eval_dataloader = dataloader
        items = self._step_items(item_set, range(len(item_set)), step=-1)

        def tick() -> None:
            self.control = self.callback_handler.on_prediction_step(
                self.args, self.state, self.control
            )

        means = evaluate_items(self.runner, self.model, items, self.loss_state, tick=tick)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        return EvalLoopOutput(
            predictions=None, label_ids=None, metrics=metrics, num_samples=len(item_set)
        )
