"""What training needs of transformers, accelerate, peft and torch and they keep private.

Nothing else in this package touches their privates: when a release moves one of them, this is
the file to change. `tests/training/test_compat.py` looks for every one in what is installed.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from prefstage.core import redacted_values, write_json
from prefstage.scoring.compat import replaced
from prefstage.scoring.engine import ModelParts, score_pass
from prefstage.scoring.layout import Batch
from prefstage.training.arguments import check_metric
from prefstage.training.checkpoints import reading_checkpoint, step_of

_log = logging.getLogger(__name__)

# Parameter names of B [out, rank] and A [rank, in], and the scale s of W + sBA.
LoraFactors = tuple[str, str, float]


def without_paths(value: Any) -> Any:
    """Settings without the paths of this machine, however deep inside.

    Args:
        value: JSON-serialisable.

    Returns:
        A copy.
    """

    def local(inner: Any) -> bool:
        return isinstance(inner, str) and Path(inner).is_absolute()

    if isinstance(value, Mapping):
        return {k: without_paths(inner) for k, inner in value.items() if not local(inner)}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value if not local(inner)]
    return value


class HookedTrainer(Trainer):  # type: ignore[misc]  # transformers has no types here
    """`transformers.Trainer` whose private turning points are methods of public name.

    transformers has callbacks for what happens, none for where a checkpoint is written, from
    where a run goes on, or what a gradient's norm is. Subclasses have methods for these:

    - `has_ended(max_steps)`: whether a resumed run had ended, its state being loaded.
    - `write_checkpoint(folder, write)`: writes a checkpoint, which it returns, for the Hub;
      `write` is the base class's way.
    - `check_norm(norm)`: the gradient's, before clipping and before the optimiser's step.

    Attributes:
        staging: Folder that checkpoints are written under while one is being written.
        best_step: Step of the best checkpoint, once `load_best_model_at_end` has loaded it.
    """

    control: Any
    model: Any
    staging: Path | None = None
    best_step: int | None = None

    # --- What they may use ------------------------------------------------------------------

    @property
    def loop_sums(self) -> dict[str, Any]:
        """What the loop holds between two log entries and does not save.

        Returns:
            "running_loss" (sum of the steps' losses since the last log entry, on this process),
            "total_loss" (up to that entry, of all processes' mean) and "last_logged_step".
        """
        return {
            "running_loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
        }

    def restore_loop_sums(self, sums: Mapping[str, Any]) -> None:
        """Go on from the sums of a checkpoint."""
        self._tr_loss += sums["running_loss"]  # in place: the loop holds the same tensor
        self._total_loss_scalar = sums["total_loss"]
        self._globalstep_last_logged = sums["last_logged_step"]

    def save_gathered(self, folder: str) -> None:
        """Write the weights whole, where FSDP would write shards."""
        self._save(folder, state_dict=self.accelerator.get_state_dict(self.model))

    def prepare_sharded(self) -> None:
        """Let accelerate shard a model that is evaluated before it was trained."""
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and not self.accelerator._models:
            self.model = self.model_wrapped = self.accelerator.prepare(self.model)

    # --- The private methods ------------------------------------------------------------------

    def _init_training_state(self, max_steps: int, *rest: Any) -> tuple[int, int]:
        # The loop takes one step before it compares with max_steps, so a run that is resumed at
        # its end would take another: tell it that all epochs are done.
        begin: tuple[int, int] = super()._init_training_state(max_steps, *rest)
        return (self.state.num_train_epochs, 0) if self.has_ended(max_steps) else begin

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading_checkpoint(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading_checkpoint(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading_checkpoint(Path(checkpoint or "")):
            super()._load_scaler(checkpoint)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        with reading_checkpoint(Path(checkpoint)):
            super()._load_from_checkpoint(checkpoint, model)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging) if self.staging else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoint = self.write_checkpoint(
            Path(self._get_output_dir(trial)), partial(super()._save_checkpoint, model, trial)
        )
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # Beside weights transformers writes its arguments as a pickle, which runs code when it is
        # read, with every path of this machine.
        folder = Path(output_dir or self.args.output_dir)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        values = redacted_values(without_paths(self.args.to_dict()))
        write_json(folder / "training_args.json", values)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Called inside the base class's _save_checkpoint, when it has not got its name yet.
        pass

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        check_metric(self.args.metric_for_best_model, metrics)
        return bool(super()._determine_best_metric(metrics, trial))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        # not the step of the best metric: evaluations may come oftener than checkpoints
        best = Path(self.state.best_model_checkpoint)
        self.best_step = step_of(best) if best.is_dir() else None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's scaler skips steps whose gradient overflows, and lowers its scale, by itself.
        if getattr(self.accelerator, "scaler", None) is None:
            self.check_norm(norm)
        return norm

    def _track_num_input_tokens(self, inputs: Any) -> None:
        # It looks for `input_ids` in the batch; a batch of ours only names its items, whose tokens
        # the step counts.
        if "items" not in inputs:
            super()._track_num_input_tokens(inputs)

    def _finalize_training(self, *args: Any) -> Any:
        # With save_total_limit=1 the base class deletes the last checkpoint here and keeps the
        # best; a run that goes on needs the last.
        with patch.object(self.args, "save_total_limit", None):
            return super()._finalize_training(*args)


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks (`accelerate launch` sets RANK)."""
    return int(os.environ.get("RANK", "0")) == 0


# --- TrainingArguments ---------------------------------------------------------------------------


def use_one_gpu(args: Any) -> None:
    """Keep the Trainer from wrapping the model in DataParallel, which splits inside a step."""
    if args.n_gpu > 1:
        _log.warning(
            "%d GPUs and one process: one GPU is used; start with `accelerate launch` for all",
            args.n_gpu,
        )
        args._n_gpu = 1


def probe_trainer(args: Any) -> Trainer:
    """A Trainer that has nothing but what making optimiser and schedule reads.

    The constructor would seed, make folders and move models; what transformers would refuse is
    only known by asking its own methods.
    """
    # A meta layer that is then emptied draws no random numbers, so that nothing is disturbed.
    layer = nn.Linear(8, 8, device="meta").to_empty(device=args.device)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    trainer = Trainer.__new__(Trainer)
    trainer.args, trainer.model = args, nn.ModuleDict({"layer": layer})
    trainer.optimizer = trainer.lr_scheduler = trainer.optimizer_cls_and_kwargs = None
    return trainer


# --- The model's call ----------------------------------------------------------------------------


class ScoringCalls:
    """Lets a model's call take forward passes of the engine: ``model(scoring_passes=...)``.

    DDP, FSDP and DeepSpeed act on a model's call: they gather weights before it and attach the
    exchange of gradients to its output. Passes that went around the call would train each
    process by itself. Without `scoring_passes` the model does what it did before, and outside of
    `installed` it is as it was.

    Args:
        model: A causal LM, bare or with PEFT adapters, not yet wrapped.
    """

    def __init__(self, model: Any) -> None:
        before = vars(model).get("forward")  # accelerate's placement hooks set one

        @wraps(type(model).forward)
        def forward(
            module: Any,
            *args: Any,
            scoring_passes: Sequence[Batch] | None = None,
            statistics: tuple[str, ...] = (),
            **kwargs: Any,
        ) -> Any:
            if scoring_passes is not None:
                parts = ModelParts.of(module)
                scored = [score_pass(parts, row, statistics=statistics) for row in scoring_passes]
                # Tensors alone, as wrappers attach the exchange of gradients to them.
                names = ("log_probs", *statistics)
                return tuple(torch.cat([getattr(row, name) for row in scored]) for name in names)
            if before is not None:
                return before(*args, **kwargs)
            return type(module).forward(module, *args, **kwargs)

        self._model = model
        self._patch = {"forward": MethodType(forward, model)}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model take passes inside the block.

        Yields:
            Nothing.
        """
        attributes, names = vars(self._model), ("forward", "_original_forward")
        before = {name: attributes[name] for name in names if name in attributes}
        # Nothing inside of another such block: the patch is on already.
        attributes.update(self._patch)
        self._patch = {}
        try:
            yield
        finally:
            # accelerate's mixed precision wraps the patch when training begins, and counts on it
            # from then on: both go off together, and come back together.
            self._patch = {n: attributes.pop(n) for n in names if n in attributes}
            attributes.update(before)


def unwrapped_forward(model: Any) -> AbstractContextManager[None]:
    """Take accelerate's mixed-precision wrapper off a model's forward pass for the block.

    The engine calls the model's parts, which have no wrapper; trying its layout against a
    wrapped forward would compare two precisions.

    Args:
        model: The model, prepared by accelerate or not.

    Returns:
        The context of the block.
    """
    wrapped, original = (vars(model).get(name) for name in ("forward", "_original_forward"))
    return replaced({model: {"forward": original}} if wrapped and original else {})


def exchanging_gradients(
    accelerator: Any, model: Any, *, last: bool
) -> AbstractContextManager[None]:
    """Exchange gradients between processes in the last micro-batch of a step only.

    Args:
        accelerator: accelerate's.
        model: The model with its wrappers.
        last: Whether the block computes the last micro-batch.

    Returns:
        The context in which the backward pass runs.
    """
    # As the Trainer does it for its own micro-batches; DeepSpeed reads the flag itself.
    accelerator.gradient_state._set_sync_gradients(last)
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    return nullcontext() if last or deepspeed else accelerator.no_sync(model)


# --- Weights -------------------------------------------------------------------------------------


def spread_over_processes(model: Any) -> str | None:
    """Who spreads a model's weights, if anyone does: one process cannot score it then."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP"
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            return "FSDP or tensor parallelism"
        if hasattr(parameter, "ds_id"):  # DeepSpeed's mark on a parameter that it has split
            return "DeepSpeed ZeRO stage 3"
    return None


def lora_factors(model: Any) -> list[LoraFactors]:
    """The factors of every trained LoRA pair; none if any of them is not a plain product.

    peft has no public list of them: names are those of its own parameters, and a layer's
    `lora_variant` says where the weight is not W + sBA (DoRA and others).
    """
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.lora import LoraLayer

    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    factors = []
    for path, module in model.named_modules():
        for adapter in module.active_adapters if isinstance(module, LoraLayer) else ():
            names = [
                (f"{path}.lora_B.{adapter}.weight", f"{path}.lora_A.{adapter}.weight"),
                (f"{path}.lora_embedding_B.{adapter}", f"{path}.lora_embedding_A.{adapter}"),
            ]
            for left, right in [pair for pair in names if trained.keys() >= {*pair}]:
                plain = trained[left].ndim == trained[right].ndim == 2  # noqa: PLR2004 - matrices
                if not plain or module.lora_variant.get(adapter) is not None:
                    return []
                factors.append((left, right, float(module.scaling[adapter])))
    return factors
