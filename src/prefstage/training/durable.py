"""A transformers Trainer whose checkpoints are whole and whose resumed runs are exact."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl

from prefstage.core.errors import CheckpointError
from prefstage.core.files import write_json
from prefstage.training.argument_checks import check_metric
from prefstage.training.checkpoints import (
    checkpoint_name,
    checkpoints_in,
    discard_staged,
    finish_checkpoint,
    newest_whole,
    nothing_whole,
    recover,
    rotate_checkpoints,
    staged_folder,
    step_of,
    verify_checkpoint,
)
from prefstage.training.faults import (
    SAVING_ERRORS,
    bad_weights,
    bad_weights_elsewhere,
    check_gradient,
    saving_failed,
)
from prefstage.training.run_settings import check_same_run, package_versions, run_settings

_TRAINER_STATE = "trainer_state.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopState:
    """What transformers' loop holds between two log entries and does not save.

    Attributes:
        running_loss: Sum of the steps' losses since the last log entry, on this process.
        total_loss: Sum of the steps' losses up to that entry, over all processes' mean.
        last_logged_step: Step of that entry.
    """

    running_loss: float
    total_loss: float
    last_logged_step: int


class DurableTrainer(Trainer):  # type: ignore[misc]  # transformers has no types here
    """`transformers.Trainer` with checkpoints that are whole or absent, and exact resumption.

    A checkpoint appears under its name only when all its files are on disk, with a manifest
    of sizes, hashes and settings. ``train(resume_from_checkpoint=True)`` takes the newest
    one, ``"auto"`` likewise but begins anew if there is none, and a path takes that one;
    each is verified file by file, and must be of the same model, data and settings. On a CPU the
    resumed run repeats the uninterrupted one bit for bit: weights, optimiser, schedule,
    random numbers, and every logged loss.

    Subclasses add what their weights depend on in `run_settings`, and what else must survive
    in `run_state` and `restore_run_state`. `best_step` is the step of the best checkpoint, once
    `load_best_model_at_end` has loaded it.
    """

    args: Any
    state: Any
    control: Any
    model: Any
    accelerator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the base class."""
        self._staging: Path | None = None
        self._settings: dict[str, Any] | None = None
        self._resumed: Path | None = None
        self.best_step: int | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_LoopKeeper(self))

    # --- What subclasses add ---------------------------------------------------------------

    def run_settings(self) -> dict[str, Any]:
        """Collect what a run must agree on with the checkpoint that it goes on from.

        Returns:
            JSON-serialisable values by name; see `run_settings.run_settings`.
        """
        return run_settings(self.args, self.model)

    def run_state(self) -> dict[str, Any]:
        """Collect what else this process must save with a checkpoint.

        Returns:
            JSON-serialisable values by name.
        """
        return {}

    def restore_run_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `run_state` gave when the checkpoint was written.

        Args:
            state: The values.
        """

    # --- Going on --------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: True for the newest whole checkpoint in the output
                folder; "auto" likewise, but from the beginning if there is none; a
                checkpoint's folder; None to begin.
            trial: As the base class takes it.
            ignore_keys_for_eval: As the base class takes it.

        Returns:
            As the base class; the training loss is the mean over all steps, those before
            the resumption included.

        Raises:
            CheckpointError: If there is no checkpoint to go on from, a file of it is
                missing or changed, or it is of another model, data set or configuration.
        """
        if self.args.should_save:  # others may not hold the weights
            self._settings = self.run_settings()
        self._resumed, self.best_step = self._checkpoint_named(resume_from_checkpoint), None
        before = self.args.eval_on_start
        self.args.eval_on_start = before and self._resumed is None
        try:
            path = None if self._resumed is None else str(self._resumed)
            output = super().train(path, trial, ignore_keys_for_eval)
        finally:
            self.args.eval_on_start = before
        return output._replace(training_loss=output.metrics["train_loss"])

    def _checkpoint_named(self, named: str | bool | None) -> Path | None:
        """The checkpoint to go on from, verified; None to begin."""
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            recover(folder)
        self.accelerator.wait_for_everyone()
        if not named:
            return None
        found = newest_whole(folder) if named in (True, "auto") else Path(str(named))
        if found is None and named == "auto" and not checkpoints_in(folder):
            _log.info("%s holds no checkpoint: training begins", folder)
            return None
        if found is None:
            raise nothing_whole(folder)
        if self.args.should_save:
            self._check(found)
        self.accelerator.wait_for_everyone()
        return found

    def _check(self, checkpoint: Path) -> None:
        record = verify_checkpoint(checkpoint)
        if not any(Path(name).name.startswith("scheduler") for name in record["files"]):
            raise CheckpointError.of(
                saw=f"{checkpoint} holds the model alone (save_only_model=True)",
                expected="the state of the optimiser too",
                cure="begin a new run with this folder as the model",
            )
        check_same_run(record["settings"], self._settings or {}, checkpoint)
        if record["processes"] != self.args.world_size:
            _log.warning(
                "%s was written by %d processes, now there are %d: random numbers (dropout) will "
                "not be those of an uninterrupted run",
                checkpoint,
                record["processes"],
                self.args.world_size,
            )
        other = [
            f"{name} {was} (now {now})"
            for name, now in package_versions().items()
            if (was := record["versions"].get(name)) != now
        ]
        if other:
            _log.warning("%s was written with %s", checkpoint, ", ".join(other))

    def _init_training_state(self, max_steps: int, *rest: Any) -> tuple[int, int]:
        """As the base class; a run that had ended does not take another step."""
        epochs_done, batches_done = super()._init_training_state(max_steps, *rest)
        if self._resumed is None:
            return epochs_done, batches_done
        self.state.compute_steps(self.args, max_steps)  # when to log and save may have changed
        best = self._resumed.with_name(checkpoint_name(self.state.best_global_step or 0))
        if self.state.best_model_checkpoint is None and best.is_dir():  # the folder has moved
            self.state.best_model_checkpoint = str(best)
        ended = self._restore_callbacks() or self.state.global_step >= max_steps
        return (self.state.num_train_epochs, 0) if ended else (epochs_done, batches_done)

    def _restore_callbacks(self) -> bool:
        """Give callbacks back what they had counted; whether one had stopped the training."""
        saved = self.state.stateful_callbacks
        before = json.loads((Path(str(self._resumed)) / _TRAINER_STATE).read_text("utf-8"))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                kept = saved.get(type(callback).__name__, {})
                for name, value in (kept.get("attributes", {}) if kept else {}).items():
                    setattr(callback, name, value)
        control = saved.get(TrainerControl.__name__, {})
        stopped = bool(control.get("args", {}).get("should_training_stop"))
        return stopped and self.state.global_step < before["max_steps"]

    @property
    def settings_of_run(self) -> dict[str, Any]:
        """`run_settings` as they were when training began."""
        return self.run_settings() if self._settings is None else self._settings

    @property
    def writes_checkpoint(self) -> bool:
        """Whether a checkpoint is being written just now."""
        return self._staging is not None

    # --- Saving ----------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        """As the base class, but the staging folder while a checkpoint is being written."""
        return str(self._staging) if self._staging else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the base class, into staging; the checkpoint gets its name when it is whole."""
        folder, step = Path(self._get_output_dir(trial)), self.state.global_step
        self.check_weights(folder)
        staged = staged_folder(folder, step)
        if self.args.should_save:
            discard_staged(folder, step)
        self.accelerator.wait_for_everyone()
        try:
            with self._into(staged.parent):
                super()._save_checkpoint(model, trial)
                self._save_run_state(staged)
                self.accelerator.wait_for_everyone()
            final = self._finish(folder, step)
        except SAVING_ERRORS as error:
            discard_staged(folder, step)
            raise saving_failed(error, folder, step, newest_whole(folder)) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            keep = [final] if best is None else [final, Path(best)]
            for gone in rotate_checkpoints(folder, limit=self.args.save_total_limit, keep=keep):
                _log.info("%s deleted (save_total_limit=%s)", gone, self.args.save_total_limit)

    @contextmanager
    def _into(self, staging: Path) -> Iterator[None]:
        self._staging = staging
        try:
            yield
        finally:
            self._staging = None

    def _finish(self, folder: Path, step: int) -> Path:
        """Name the best checkpoint by its final place, then give this one its name."""
        staged = staged_folder(folder, step)
        final = folder / staged.name
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / _TRAINER_STATE))
        if self.args.should_save:
            finish_checkpoint(
                folder,
                step,
                settings=self.settings_of_run,
                processes=self.args.world_size,
                versions=package_versions(),
            )
        return final

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As the base class; a metric that is none is told with those that are."""
        check_metric(self.args.metric_for_best_model, metrics)
        return bool(super()._determine_best_metric(metrics, trial))

    def _load_best_model(self) -> None:
        """As the base class, and remember whose weights they are."""
        super()._load_best_model()
        best = Path(self.state.best_model_checkpoint)
        # not the step of the best metric: evaluations may come oftener than checkpoints
        self.best_step = step_of(best) if best.is_dir() else None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As the base class, but only once the checkpoint has its name."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As the base class; a norm that is no number ends the run before it does harm."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if getattr(self.accelerator, "scaler", None) is None:  # a scaler skips such steps itself
            last = newest_whole(Path(self.args.output_dir))
            check_gradient(norm, step=self.state.global_step, last=last)
        return norm

    def check_weights(self, folder: Path) -> None:
        """Refuse to save weights that are no numbers, on every process at once.

        Args:
            folder: The run's output folder, where the last whole checkpoint lies.

        Raises:
            TrainingError: If a trained weight is NaN or infinite.
        """
        fault = bad_weights(self.model, step=self.state.global_step, last=newest_whole(folder))
        found = torch.tensor([fault is not None], device=self.args.device)
        if bool(self.accelerator.gather(found).any()):
            raise fault or bad_weights_elsewhere(self.state.global_step)

    def _finalize_training(self, *args: Any) -> Any:
        """As the base class, but the last checkpoint stays beside the best one."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    # --- The loop's own state --------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base class; the mean training loss counts the steps before a resumption.

        Args:
            logs: Values by name.
            start_time: When training began, in seconds.
        """
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _state_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"prefstage_state_{self.args.process_index}.json"

    def _save_run_state(self, staged: Path) -> None:
        if self.args.save_only_model:
            return
        loop = LoopState(
            self._tr_loss.item(), self._total_loss_scalar, self._globalstep_last_logged
        )
        write_json(self._state_file(staged), {"loop": asdict(loop), "run": self.run_state()})

    def restore_loop(self) -> None:
        """Take up the running sums and `run_state` of the checkpoint that we go on from."""
        if self._resumed is None:
            return
        file = self._state_file(self._resumed)
        if not file.exists():  # more processes than wrote the checkpoint: the first one's
            file = file.with_name("prefstage_state_0.json")
        saved = json.loads(file.read_text(encoding="utf-8"))
        loop = LoopState(**saved["loop"])
        self._tr_loss += loop.running_loss
        self._total_loss_scalar = loop.total_loss
        self._globalstep_last_logged = loop.last_logged_step
        self.restore_run_state(saved["run"])


class _LoopKeeper(TrainerCallback):  # type: ignore[misc]  # likewise
    """Restores the loop's sums, and saves at the end of an epoch only after all else there.

    transformers saves after the last step of an epoch, and evaluates and logs at the
    epoch's end after that; a run resumed from such a checkpoint would skip both.
    """

    def __init__(self, trainer: DurableTrainer) -> None:
        self._trainer = trainer
        self._deferred = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._deferred = False
        self._trainer.restore_loop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = control.should_training_stop or state.epoch == int(state.epoch)
        if control.should_save and last:
            control.should_save, self._deferred = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or self._deferred
        self._deferred = False
