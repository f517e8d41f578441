"""A transformers Trainer whose checkpoints are whole and whose resumed runs are exact."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers.trainer_callback import (
    ExportableState,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from prefstage.core import CheckpointError, TrainingError, read_json, write_json
from prefstage.training.checkpoints import (
    MANIFEST,
    STAGING,
    check_same_run,
    checkpoints_in,
    discard,
    finish_checkpoint,
    newest_whole,
    package_versions,
    reading_checkpoint,
    recover,
    rotate_checkpoints,
    run_settings,
    step_of,
    verify_checkpoint,
)
from prefstage.training.compat import HookedTrainer
from prefstage.training.faults import SAVING_ERRORS, bad_weights, going_on, saving_failed

_TRAINER_STATE = "trainer_state.json"
_STATE = "prefstage_state_{}.json"  # by process

_log = logging.getLogger(__name__)


class DurableTrainer(HookedTrainer):
    """`transformers.Trainer` with checkpoints that are whole or absent, and exact resumption.

    A checkpoint appears under its name only when all its files are on disk, with a manifest
    of sizes, hashes and settings. ``train(resume_from_checkpoint=True)`` takes the newest
    checkpoint, ``"auto"`` likewise but begins anew if there is none, and a path takes that one;
    it is verified file by file, and must be of the same model, data and settings. On a CPU the
    resumed run repeats the uninterrupted one bit for bit: weights, optimiser, schedule,
    random numbers, and every logged loss.

    Subclasses add what their weights depend on in `run_settings`, and what else must survive
    in `run_state` and `restore_run_state`.
    """

    _resumed: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_LoopKeeper(self))

    # --- What subclasses add ---------------------------------------------------------------

    def run_settings(self) -> dict[str, Any]:
        """Collect what a run must agree on with the checkpoint that it goes on from.

        Returns:
            JSON-serialisable values by name; see `checkpoints.run_settings`.
        """
        return run_settings(self.args, self.model)

    def run_state(self) -> dict[str, Any]:
        """Collect what else this process must save with a checkpoint.

        Returns:
            JSON-serialisable values by name.
        """
        return {}

    def restore_run_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `run_state` returned when the checkpoint was written.

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
            self.settings_of_run = self.run_settings()
        self._resumed, self.best_step = self._checkpoint_named(resume_from_checkpoint), None
        # The evaluation of the start belongs to the start, not to every resumption.
        with patch.object(
            self.args, "eval_on_start", self.args.eval_on_start and self._resumed is None
        ):
            output = super().train(
                None if self._resumed is None else str(self._resumed), trial, ignore_keys_for_eval
            )
        return output._replace(training_loss=output.metrics["train_loss"])

    # Only the process that writes verifies: hashing reads every byte, and once is enough.
    def _checkpoint_named(self, named: str | bool | None) -> Path | None:
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            recover(folder)
        self.accelerator.wait_for_everyone()
        if not named:
            return None
        checkpoint = newest_whole(folder) if named in (True, "auto") else Path(str(named))
        others = checkpoints_in(folder)
        if checkpoint is None and named == "auto" and not others:
            _log.info("%s holds no checkpoint: training begins", folder)
            return None
        CheckpointError.unless(
            checkpoint or not others,
            saw=f"none of the {len(others)} checkpoints in {folder} has a {MANIFEST}: they "
            "were written by another trainer",
            expected="checkpoints of PreferenceTrainer",
            cure="begin a new run in another output_dir, with one of them as the model",
        )
        if checkpoint is None:
            raise CheckpointError.of(
                saw=f"no whole checkpoint in {folder}",
                expected="a folder named checkpoint-STEP, written by PreferenceTrainer",
                cure="leave resume_from_checkpoint out to begin, or check output_dir",
            )
        if self.args.should_save:
            record = verify_checkpoint(checkpoint)
            CheckpointError.unless(
                any(Path(name).name.startswith("scheduler") for name in record["files"]),
                saw=f"{checkpoint} holds the model alone (save_only_model=True)",
                expected="the state of the optimiser too",
                cure="begin a new run with this folder as the model",
            )
            with reading_checkpoint(checkpoint):
                step = TrainerState.load_from_json(str(checkpoint / _TRAINER_STATE)).global_step
                if step != step_of(checkpoint):
                    raise ValueError(f"{_TRAINER_STATE} says step {step!r}")
            check_same_run(record["settings"], self.settings_of_run, checkpoint)
            if record["processes"] != self.args.world_size:
                _log.warning(
                    "%s was written by %d processes, now there are %d: random numbers (dropout) "
                    "will not be those of an uninterrupted run",
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
        self.accelerator.wait_for_everyone()
        return checkpoint

    def has_ended(self, max_steps: int) -> bool:
        """Whether the resumed run had ended: no further step then."""
        state, saved = self.state, self.state.stateful_callbacks
        if self._resumed is None:
            return False
        state.compute_steps(self.args, max_steps)  # when to log and save may have changed
        best = self._resumed.with_name(f"checkpoint-{state.best_global_step or 0}")
        if state.best_model_checkpoint is None and best.is_dir():  # the folder has moved
            state.best_model_checkpoint = str(best)
        # Callbacks get back what they had counted. transformers restores them only on request,
        # and then makes new ones, whose settings would be those of the checkpoint.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                vars(callback).update(
                    (saved.get(type(callback).__name__) or {}).get("attributes", {})
                )
        stopped = saved.get(TrainerControl.__name__, {}).get("args", {}).get("should_training_stop")
        # The flag is set at the last step too; a run that is prolonged since was not stopped.
        before = read_json(self._resumed / _TRAINER_STATE)
        done = state.global_step
        return bool(stopped and done < before["max_steps"]) or done >= max_steps

    @cached_property
    def settings_of_run(self) -> dict[str, Any]:
        """`run_settings` as they were when training began."""
        return self.run_settings()

    # --- Saving ----------------------------------------------------------------------------

    def write_checkpoint(self, folder: Path, write: Callable[[], None]) -> Path:
        """Write into staging; the checkpoint gets its name when it is whole.

        Args:
            folder: Where checkpoints are written now.
            write: Writes its files there, as transformers does.

        Returns:
            The checkpoint.
        """
        step, state, saves = self.state.global_step, self.state, self.args.should_save
        self.check_weights(folder)
        staged = folder / STAGING / f"checkpoint-{step}"  # as transformers names checkpoints
        final = folder / staged.name
        if saves:
            discard(staged)
        # Barriers: nobody writes before the old files are gone, the manifest is made of what all
        # processes have written, and nobody trains on before it has its name.
        self.accelerator.wait_for_everyone()
        try:
            with patch.object(self, "staging", staged.parent):
                write()
            if not self.args.save_only_model:
                write_json(
                    staged / _STATE.format(self.args.process_index),
                    {"loop": self.loop_sums, "run": self.run_state()},
                )
            self.accelerator.wait_for_everyone()
            # The state names the best checkpoint by where it lay while it was written.
            if state.best_model_checkpoint == str(staged):
                state.best_model_checkpoint = str(final)
                if saves:
                    state.save_to_json(str(staged / _TRAINER_STATE))
            if saves:
                finish_checkpoint(
                    staged,
                    settings=self.settings_of_run,
                    processes=self.args.world_size,
                    versions=package_versions(),
                )
        except SAVING_ERRORS as error:
            discard(staged)
            raise saving_failed(error, folder, step, newest_whole(folder)) from error
        self.accelerator.wait_for_everyone()
        limit = self.args.save_total_limit if saves else None
        best = map(Path, filter(None, [state.best_model_checkpoint]))
        for deleted in rotate_checkpoints(folder, limit=limit, keep=[final, *best]):
            _log.info("%s deleted (save_total_limit=%s)", deleted, limit)
        return final

    def check_norm(self, norm: Any) -> None:
        """End the run before a gradient that is no number does harm.

        Args:
            norm: Of the whole gradient, before clipping; None where it is not taken.

        Raises:
            TrainingError: If it is NaN or infinite, though all losses were numbers.
        """
        if norm is not None and not math.isfinite(float(norm)):
            raise TrainingError.of(
                saw=f"step {self.state.global_step + 1}: the gradient's norm is {float(norm)}, "
                "though the loss is finite",
                expected="a finite gradient",
                cure="lower learning_rate, or train in float32 or bf16, "
                + going_on(newest_whole(Path(self.args.output_dir))),
            )

    def check_weights(self, folder: Path) -> None:
        """Refuse to save weights that are no numbers, on every process at once.

        Args:
            folder: The run's output folder, where the last whole checkpoint lies.

        Raises:
            TrainingError: If a trained weight is NaN or infinite.
        """
        step = self.state.global_step
        fault = bad_weights(self.model, step=step, last=newest_whole(folder))
        # All processes raise or none: one alone would leave the others waiting at a barrier.
        if bool(
            self.accelerator.gather(
                torch.tensor([fault is not None], device=self.args.device)
            ).any()
        ):
            raise fault or TrainingError.of(
                saw=f"step {step}: another process holds weights that are NaN or infinite",
                expected="finite weights on every process",
                cure="see the other processes' error",
            )

    # --- The loop's sums -------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base class; the mean training loss counts the steps before a resumption.

        Args:
            logs: Values by name.
            start_time: When training began, in seconds.
        """
        if "train_loss" in logs:
            logs["train_loss"] = self.loop_sums["total_loss"] / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def restore_loop(self) -> None:
        """Take up the running sums and `run_state` of the checkpoint that we go on from."""
        if self._resumed is None:
            return
        file = self._resumed / _STATE.format(self.args.process_index)
        if not file.exists():  # more processes than wrote the checkpoint: the first one's
            file = self._resumed / _STATE.format(0)
        with reading_checkpoint(self._resumed):
            saved = read_json(file)
            self.restore_loop_sums(saved["loop"])
            self.restore_run_state(saved["run"])


# Restores the loop's sums, and saves at the end of an epoch only after all else there.
# transformers saves after the last step of an epoch, and evaluates and logs at the epoch's end
# after that; a run resumed from such a checkpoint would skip both.
class _LoopKeeper(TrainerCallback):  # type: ignore[misc]  # likewise
    def __init__(self, trainer: DurableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._deferred = False
        self._trainer.restore_loop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save and (control.should_training_stop or state.epoch % 1 == 0):
            control.should_save, self._deferred = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or self._deferred
        self._deferred = False
