"""`PreferenceTrainer`: transformers' Trainer with our optimiser step."""

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_utils import EvalLoopOutput
from typing_extensions import override

from prefstage.core import locked, seed_for
from prefstage.data import ResponseEncoder
from prefstage.data.settings import CHAT_SETTINGS
from prefstage.losses import LossState, parse_loss
from prefstage.scoring import Scorer, model_fingerprint
from prefstage.scoring.engine import ModelParts, check_fits
from prefstage.training.arguments import PreferenceArguments, refuse_arguments
from prefstage.training.batches import (
    Flat,
    Means,
    StepItems,
    StepLoader,
    StepSampler,
    as_step,
)
from prefstage.training.compat import ScoringCalls, use_one_gpu
from prefstage.training.datasets import (
    check_item_sets,
    check_sources,
    item_set_of,
    item_sets_in,
    item_sets_of,
)
from prefstage.training.durable import DurableTrainer
from prefstage.training.export import names_of, provenance_of, write_export
from prefstage.training.faults import StepGuard, start_tolerance
from prefstage.training.items import ItemSet
from prefstage.training.moving_reference import MovingReference, check_moving_reference
from prefstage.training.policy import (
    START,
    PrecisionWarning,
    References,
    drops,
    precision_note,
    prepare_policy,
    tokenizer_for,
)
from prefstage.training.setting_checks import check_settings
from prefstage.training.step import StepOutcome, StepRunner, token_budget_of

_log = logging.getLogger(__name__)

_DATA_AND_MODEL = ("train_dataset", "eval_dataset", "processing_class", "peft_config", "callbacks")
_MOVING = ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps")
_LIMITS = ("max_prompt_tokens", "max_response_tokens")
# Of an evaluation, planned together: enough to fill micro-batches, few enough to plan at once.
_ITEMS_PER_CHUNK = 512


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
        check_settings(
            args,
            optimizer=optimizers[0] is None and optimizer_cls_and_kwargs is None,
            scheduler=optimizers[1] is None,
        )
        # Before an adapter is merged: the merged model has no tokenizer by its weights.
        named = getattr(getattr(model, "config", None), "name_or_path", None)
        source = str(model) if isinstance(model, str | Path) else named
        model = prepare_policy(model, peft_config, args)
        processing_class = tokenizer_for(model, processing_class, source=source)
        self.loss = parse_loss(args.loss)
        self.references = References(
            args.reference,
            model=model,
            needed="reference" in self.loss.needs,
            folder=Path(args.reference_cache or Path(args.output_dir) / "_reference"),
        )
        check_moving_reference(args, needed="reference" in self.loss.needs)
        self.moving_reference: MovingReference | None = None
        self.loss_state: LossState = self.loss.start_state()
        self.last_step: StepOutcome | None = None
        self.encoder = ResponseEncoder(
            processing_class, **{name: getattr(args, name) for name in (*CHAT_SETTINGS, *_LIMITS)}
        )
        train_items, eval_items = self._encoded(model, args, train_dataset, eval_dataset)
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
        self.fresh_adapter = getattr(peft_config, "init_lora_weights", None) is True
        self.notes = list[str]()
        self._means, self._step_tokens = Means(), 0
        for callback in callbacks or ():
            if hasattr(callback, "attach"):
                callback.attach(self)

    # What is wrong with the data is said before anything of it is computed.
    def _encoded(self, model: Any, args: Any, train: Any, evaluated: Any) -> tuple[Any, Any]:
        check_sources(train, evaluated)
        self.data_names = names_of(train, evaluated)
        self.provenance = provenance_of(train)
        train_items, eval_items = (
            item_sets_of(data, self.encoder, self.loss, ties=args.ties)
            for data in (train, evaluated)
        )
        check_item_sets(train_items, eval_items, evaluates=args.eval_strategy != "no")
        for items in item_sets_in([train_items, eval_items]):
            check_fits(
                [tree for item in items.items for tree in item.trees],
                ModelParts.of(model),
                tokenizer=self.encoder.tokenizer,
            )
        return train_items, eval_items

    # Made when first needed, as trying the layout takes passes of the model; `train` and
    # `evaluate` need it before accelerate wraps or shards the model.
    @cached_property
    def runner(self) -> StepRunner:
        """Computes the steps."""
        layout = self.args.layout
        if layout == "auto" and drops(self.model, attention=True):
            # What is dropped of a shared prompt would be dropped for all its responses alike.
            _log.warning("attention dropout is on: every sequence is computed whole (flat layout)")
            layout = "flat"
        return StepRunner(
            Scorer(self.model, layout=layout),
            self.accelerator,
            self.loss,
            token_budget=token_budget_of(self.args, self.model),
        )

    # --- Training -------------------------------------------------------------------------

    # References come first: once the weights have moved, the start cannot be scored any more.
    @override
    def train(self, resume_from_checkpoint: Any = None, *args: Any, **others: Any) -> Any:
        with ExitStack() as stack:
            # A second training would remove this one's checkpoints as its own older ones. No push
            # to the Hub takes a file of such a name.
            if self.args.process_index == 0:
                folder = Path(self.args.output_dir)
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder, "_lock"))
            note = precision_note(self.model, float(self.args.learning_rate))
            # DeepSpeed keeps weights in float32 besides.
            if note is not None and note not in self.notes and not self.is_deepspeed_enabled:
                self.notes.append(note)
                warnings.warn(note, PrecisionWarning, stacklevel=2)
            self.compute_references()
            self._guard = StepGuard(
                self.runner,
                Path(self.args.output_dir),
                self.args.device,
                tolerance=start_tolerance(self),
            )
            self._train_reference = self.references.of(self.train_dataset)
            if self.args.sync_ref_model:
                self.moving_reference = MovingReference(self.model, self.args)
                self.add_callback(self.moving_reference)
                stack.callback(self.remove_callback, self.moving_reference)
            stack.enter_context(self._scoring_calls.installed())
            return super().train(resume_from_checkpoint, *args, **others)

    def compute_references(self, *others: Any) -> None:
        """Compute the reference log-probs of all sets, where they are not known yet.

        Args:
            others: Further sets, by name or alone; after training has begun they are left
                out if the reference is the start and no longer there.
        """
        if not self.state.global_step or self.fresh_adapter or self.references.reference != START:
            self.references.compute(
                item_sets_in([self.train_dataset, self.eval_dataset, *others]),
                self.runner.scorer,
                self.accelerator,
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
                self.args.train_batch_size * self.accelerator.num_processes,
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
        items = self.step_items(
            self.train_dataset, inputs["items"], self._train_reference, step=step
        )
        outcome = self._guard.train(
            model, items, self.loss_state, step=step, optimizer=self.optimizer
        )
        self.loss_state, self.last_step = outcome.values.state, outcome
        self._means.add(items, outcome.values)
        self._step_tokens = self.runner.tokens(items)
        self.state.num_input_tokens_seen += self._step_tokens
        seconds = time.perf_counter() - started
        self._means.count("items_per_second", len(items.items), seconds)
        self._means.count("tokens_per_second", self._step_tokens, seconds)
        return torch.tensor(outcome.loss, device=self.args.device)

    def step_items(
        self, item_set: ItemSet, positions: Sequence[int], known: list[Flat] | None, *, step: int
    ) -> StepItems:
        """Some items of a set as one optimiser batch.

        Args:
            item_set: The set.
            positions: Of the items.
            known: What `references.of` gives for the set.
            step: Optimiser steps before, which seeds of losses that draw depend on.

        Returns:
            The items, with their part of the reference log-probs.
        """
        items = tuple(item_set.items[position] for position in positions)
        seeds = reference = None
        if self.loss.random:
            # One an item and step, whatever micro-batch or process computes it.
            seeds = tuple(seed_for(self.args.seed, "loss", step, item.index) for item in items)
        if known is not None:
            values = [known[position] for position in positions]
            if self.moving_reference is not None and self.moving_reference.updates:
                values = self.moving_reference.score(
                    item_set.kind, items, self.runner.scorer, self.accelerator
                )
            reference = torch.cat(values).to(self.accelerator.device)
        return StepItems(item_set.kind, items, reference, seeds)

    # Means over items, not over steps: the last step of an epoch may be shorter.
    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._means.take() | {"num_tokens": self.state.num_input_tokens_seen}
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
            6
            * (self._step_tokens // self.accelerator.num_processes)
            * self.model.num_parameters(exclude_embeddings=True)
        )

    # --- Checkpoints ----------------------------------------------------------------------

    @override
    def run_settings(self) -> dict[str, Any]:
        data = self.train_dataset
        return super().run_settings() | {
            "weights": self._start_fingerprint,
            "loss": {term["name"]: term for term in self.loss.resolved()},
            "reference": self.args.reference,
            **{name: getattr(self.args, name) for name in _MOVING if self.args.sync_ref_model},
            "encoding": {name: getattr(self.args, name) for name in ("chat_format", *_LIMITS)}
            | {"fingerprint": self.encoder.fingerprint},
            "data": data
            and {"kind": data.kind, "items": len(data), "fingerprint": data.fingerprint},
        }

    # Without new adapters, whose weights are drawn anew when a run goes on.
    @cached_property
    def _start_fingerprint(self) -> str:
        return model_fingerprint(self.model, with_adapter=False)

    # The loss's state, the metrics since the last log, and how steps are divided.
    @override
    def run_state(self) -> dict[str, Any]:
        return {
            "loss": self.loss_state,
            "means": self._means.totals,
            "token_budget": self.runner.token_budget,
            "reference_updates": self.moving_reference and self.moving_reference.updates,
        }

    @override
    def restore_run_state(self, state: Mapping[str, Any]) -> None:
        self.loss_state, self._means.totals = dict(state["loss"]), dict(state["means"])
        if self.moving_reference is not None:
            self.moving_reference.load(cast("Path", self._resumed), state["reference_updates"])
        if self.args.token_budget == "auto":  # another division would round differently
            self.runner.token_budget = int(state["token_budget"])

    # Others load the folder alone, so card and resolved configuration go with the weights.
    @override
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder, in_checkpoint = output_dir or self.args.output_dir, self.staging is not None
        if not in_checkpoint:
            self.check_weights(Path(self.args.output_dir))
        if self.is_fsdp_enabled and not in_checkpoint:
            self.save_gathered(folder)
        else:
            super().save_model(folder, _internal_call=True)
        if in_checkpoint and self.moving_reference is not None and self.args.should_save:
            self.moving_reference.save(Path(folder))
        if not _internal_call and self.args.should_save:
            write_export(self, Path(folder))
        if not _internal_call and self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    # Tasks and data sets, which the Hub's upload hands over too, are known better here.
    @override
    def create_model_card(
        self,
        language: Any = None,
        license: str | None = None,
        tags: Any = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        *others: Any,
        **more: Any,
    ) -> None:
        fields = {
            "license": license,
            "name": model_name,
            "base": finetuned_from,
            "language": language,
            "tags": [tags] if isinstance(tags, str) else tags,
        }
        if self.is_world_process_zero():
            write_export(
                self,
                Path(self.args.output_dir),
                **{name: value for name, value in fields.items() if value is not None},
            )

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
            return cast(
                "dict[str, float]", super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            )

    # Of it only the positions are read, in chunks; the set is chosen by name if there are several.
    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        return DataLoader(
            cast("Any", item_set_of(chosen, self.encoder, self.loss, ties=self.args.ties)),
            batch_size=_ITEMS_PER_CHUNK,
        )

    @override
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        item_set = cast("ItemSet", dataloader.dataset)
        self.prepare_sharded()
        self.model.eval()
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()
        _log.info("%s on %d items", description, len(item_set))
        self.callback_handler.eval_dataloader = dataloader
        items = self.step_items(
            item_set, range(len(item_set)), self.references.of(item_set), step=-1
        )

        def tick() -> None:
            self.control = self.callback_handler.on_prediction_step(
                self.args, self.state, self.control
            )

        means = self.runner.evaluate(
            self.model,
            items,
            self.loss_state,
            chunks=cast("Sampler[list[int]]", dataloader.batch_sampler),
            tick=tick,
        )
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in means.items()},
            num_samples=len(item_set),
        )
