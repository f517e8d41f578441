"""`DynamicsCallback`: what training does to the rankings of fixed pairs, in any Trainer."""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from typing_extensions import override

from prefstage.core import InputError, ModelError
from prefstage.data import Candidates, ResponseEncoder
from prefstage.data.records import Ties
from prefstage.losses.pairwise import IPO
from prefstage.scoring import Scorer
from prefstage.training.compat import spread_over_processes, unwrapped_forward
from prefstage.training.datasets import sets_by_name
from prefstage.training.dynamics.criterion import Criterion
from prefstage.training.dynamics.distance import StartWeights, kind_of
from prefstage.training.dynamics.pairs import (
    Pairs,
    PairSample,
    PairScores,
    measure_pairs,
    metric_key,
    sample_pairs,
    score_pairs,
    summarise_pairs,
)
from prefstage.training.dynamics.records import DynamicsFolder
from prefstage.training.dynamics.win_rates import StartWinRate, WinRateSettings
from prefstage.training.items import ItemSet
from prefstage.training.policy import ADAPTER_OFF, NONE, START, undisturbed

# As transformers prefixes the metrics of sets.
_NAMES = ("train", "eval", "eval_{}")
DEFAULT_BETA = 0.1
PRINTING = (PrinterCallback, ProgressCallback)
HEADLINES = ("loss", "rankings/accuracy", "rewards/accuracies")


# β of the trainer's loss (τ of IPO), as TRL and `PreferenceTrainer` have it. IPO, of whose loss
# DPO's threshold says nothing, is followed by its own.
def _criterion(trainer: Any, beta: float | None) -> Criterion:
    loss = getattr(trainer, "loss", None)
    scales = [beta, *(getattr(owner, "beta", None) for owner in (trainer.args, loss)), DEFAULT_BETA]
    scale = float(next(value for value in scales if value is not None))
    ours = getattr(loss, "terms", None)
    kinds = getattr(trainer.args, "loss_type", None) or ()  # TRL's, whose IPO is one of means
    first = ours[0].loss if ours else next(iter([kinds] if isinstance(kinds, str) else kinds), None)
    if isinstance(first, IPO):
        return Criterion(scale, "IPO", first.per_token)
    return Criterion(scale, "IPO", per_token=True) if first == "ipo" else Criterion(scale)


class DisplacementWarning(UserWarning):
    """Training goes on, and makes chosen and rejected responses both less likely."""


class DynamicsCallback(TrainerCallback):  # type: ignore[misc] # transformers is not typed here
    """Follows fixed pairs through training: rankings, flips, displacement, distance.

    Before the first step, at every evaluation, every `every` steps and after the last step
    the pairs are scored by the policy in evaluation mode. Each pair goes into Parquet files
    under `out` (`read_dynamics`, `draw_dynamics`), the means go to the trackers through the
    trainer's own log. Weights, random numbers and logs of the training stay exactly as they
    are without the callback, and a run that was killed and resumed has every step once.

    Works in `PreferenceTrainer`, TRL's DPOTrainer and a plain Trainer on one process, or
    under DDP, where the first process measures while the others wait in their next step.

    Args:
        out: Folder of the records; one a training run.
        train_pairs: Pairs that are trained on: a `PairSet`, pairs, or token trees of chosen
            and rejected. With neither these nor `eval_pairs` a `PreferenceTrainer`'s own.
        eval_pairs: Pairs that are not: one set, or several by name.
        encoder: Tokenizer, template and limits of the training; None for those of a
            `PreferenceTrainer`, or another trainer's tokenizer with its own template and
            no limits.
        reference: Whose log-probs the policy is compared with: "start", the policy before
            the first step; "adapter-off", the policy beneath its adapters; or a folder or
            Hub id, loaded, scored once and freed. None for a `PreferenceTrainer`'s own,
            elsewhere the start.
        beta: β of losses, rewards and thresholds, 1/nats; None for the trainer's own, or
            0.1 if its loss has none. An IPO training is followed by IPO's loss and threshold,
            at τ.
        subsample: Pairs of each set at most, chosen by the seed.
        ties: Whether pairs whose raters are split evenly are followed ("keep"), where
            `train_pairs` or `eval_pairs` are pairs; rankings never count them. A
            `PreferenceTrainer`'s sets follow its own setting.
        every: Optimiser steps between measurements besides evaluations; None for none.
        distance: Whether to measure how far the weights have moved. Keeps the trainable
            weights of the start on disk under `out`.
        win_rate: Also sample answers to `win_rate_prompts` at each measurement, and let a judge
            compare them with the start's.
        win_rate_prompts: Prompts, such as of `load_prompts`.
        displacement_nats: How far the mean log-prob of the chosen responses must have
            fallen, the rejected ones' having fallen too, for the warning. > 0, nats.
        seed: Of the choice of pairs.
        token_budget: Tokens of a scoring pass, or "auto".

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        train_pairs: Pairs | None = None,
        eval_pairs: Pairs | Mapping[str, Pairs] | None = None,
        encoder: ResponseEncoder | None = None,
        reference: str | None = None,
        beta: float | None = None,
        subsample: int = 1000,
        ties: Ties = "leave-out",
        every: int | None = None,
        distance: bool = True,
        win_rate: WinRateSettings | None = None,
        win_rate_prompts: Sequence[Candidates] = (),
        displacement_nats: float = 1.0,
        seed: int = 0,
        token_budget: int | Literal["auto"] = "auto",
    ) -> None:
        for name, value in {
            "every": every,
            "displacement_nats": displacement_nats,
            "beta": beta,
        }.items():
            InputError.unless(
                value is None or value > 0,
                saw=f"{name}={value}",
                expected="a positive number",
                cure=f"set {name} > 0",
            )
        self._sets = sets_by_name(train_pairs, eval_pairs, *_NAMES)
        self._encoder, self._reference, self._beta = encoder, reference, beta
        self._sampling: Any = {"subsample": subsample, "seed": seed, "ties": ties}
        self._every, self._with_distance = every, distance
        self._displacement_nats, self._token_budget = displacement_nats, token_budget
        self._folder = DynamicsFolder(Path(out))
        self._start = StartWeights(Path(out) / "start_weights")
        InputError.unless(
            (win_rate is None) == (not win_rate_prompts),
            saw=f"{len(win_rate_prompts)} win_rate_prompts with win_rate={win_rate}",
            expected="both, or neither",
            cure="give prompts to answer, or leave win_rate out",
        )
        self._win_rate = (
            None if win_rate is None else StartWinRate(win_rate, win_rate_prompts, Path(out))
        )
        self._trainer: Any = None
        self._samples = list[PairSample]()

    def attach(self, trainer: Any) -> Self:
        """Join a trainer: its callbacks, and its log.

        Args:
            trainer: A transformers Trainer or a subclass, before `train()`. A
                `PreferenceTrainer` attaches the callbacks that it is given itself.

        Returns:
            The callback.
        """
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    # --- Events, as transformers calls them -----------------------------------------------

    # The reference is scored before the first step: afterwards the start is gone.
    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        model = event["model"]
        InputError.unless(
            self._trainer is not None,
            saw="a DynamicsCallback that knows no trainer",
            expected="one that is attached, as its figures go through the trainer's log",
            cure="call DynamicsCallback(...).attach(trainer) before trainer.train()",
        )
        spread = spread_over_processes(model)
        ModelError.unless(
            spread is None,
            saw=f"a model whose weights are spread over processes ({spread})",
            expected="whole weights on each process: one process, DDP, or ZeRO stage 1 or 2",
            cure="leave DynamicsCallback out, and score saved checkpoints instead",
        )
        if not state.is_world_process_zero:
            return
        with undisturbed(model):
            self._prepare(model, int(state.global_step))
        if state.global_step == 0:
            self._measure(state, model)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        if self._every is not None and state.global_step % self._every == 0:
            self._measure(state, event["model"])

    @override
    def on_evaluate(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        if self._samples:  # an evaluation outside training has no dynamics
            self._measure(state, event["model"])

    # The end is measured before the trainer loads its best checkpoint.
    @override
    def on_epoch_end(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._measure(state, event["model"])

    # --- Preparing -------------------------------------------------------------------------

    def _prepare(self, model: Any, step: int) -> None:
        trainer = self._trainer
        encoder = self._encoder or getattr(trainer, "encoder", None)
        if not isinstance(encoder, ResponseEncoder):
            tokenizer = trainer.processing_class
            encoder = None if tokenizer is None else ResponseEncoder(tokenizer)
        # Else the pairs of a `PreferenceTrainer`; another trainer's data has a form of its own.
        sets = self._sets or {
            name: items
            for name, items in sets_by_name(
                trainer.train_dataset, trainer.eval_dataset, *_NAMES
            ).items()
            if isinstance(items, ItemSet) and items.kind == "pairs"
        }
        InputError.unless(
            sets,
            saw="neither train_pairs nor eval_pairs, and a trainer without pairs of prefstage",
            expected="pairs to follow",
            cure="give DynamicsCallback train_pairs=, eval_pairs= or both",
        )
        sampled = {"encoder": encoder, **self._sampling}
        self._samples = [sample_pairs(name, pairs, **sampled) for name, pairs in sets.items()]
        self._criterion = _criterion(trainer, self._beta)
        if self._reference is None:
            configured = getattr(trainer.args, "reference", None)
            self._reference = START if configured in (None, NONE) else configured
        with unwrapped_forward(model):
            self._scorer = Scorer(model, token_budget=self._token_budget)
        self._folder.begin(
            {
                "sets": {
                    sample.name: {
                        "available": sample.available,
                        "measured": len(sample.items),
                        "fingerprint": sample.fingerprint,
                        **sample.counts,
                    }
                    for sample in self._samples
                },
                "reference": self._reference,
                "beta": self._criterion.scale,
                **self._criterion.settings,
                "distance_of": kind_of(model) if self._with_distance else None,
            },
            step=step,
        )
        self._answer_encoder: Any = encoder
        if self._win_rate is not None:
            self._win_rate.begin(encoder, step)
        self._reference_scores = self._folder.read_reference() or self._score_reference(step)
        self._warned = False
        for metrics in self._folder.metrics():  # of a run that goes on: its warning holds still
            self._warn(int(metrics["step"]), metrics)
        if self._with_distance and (step == 0 or not self._start.exist()):
            self._check_start(step, "weights")
            self._start.save(model)

    def _score_reference(self, step: int) -> dict[str, PairScores]:
        scorer, with_adapter = self._scorer, self._reference != ADAPTER_OFF
        if self._reference == START:
            self._check_start(step, "reference")
        elif with_adapter:
            scorer = Scorer.load(str(self._reference), token_budget=self._token_budget)
        with self._trainer.accelerator.autocast():
            scores = [
                score_pairs(scorer, s.trees, with_adapter=with_adapter) for s in self._samples
            ]
        self._folder.write_reference(self._samples, scores)
        return {sample.name: pair for sample, pair in zip(self._samples, scores, strict=True)}

    def _check_start(self, step: int, what: str) -> None:
        InputError.unless(
            step <= 0,
            saw=f"a training that goes on at step {step}, and no {what} of its start in "
            f"{self._folder.path}",
            expected="the folder that was used from the start",
            cure="give that folder as out=, or a model as reference= and distance=False",
        )

    # --- Measuring -------------------------------------------------------------------------

    def _measure(self, state: Any, model: Any) -> None:
        step, recorded = int(state.global_step), self._folder.steps()
        # An evaluation after the last step, or a resumed run's first, comes to a step twice.
        if not state.is_world_process_zero or step in recorded:
            return
        began, how = time.perf_counter(), {"criterion": self._criterion}
        metrics, measured = dict[str, float](), list[dict[str, Tensor]]()
        with undisturbed(model):
            with self._trainer.accelerator.autocast():
                scores = [score_pairs(self._scorer, sample.trees) for sample in self._samples]
            if self._with_distance:
                metrics["dynamics/weight_distance"] = self._start.distance(model)
            if self._win_rate is not None:
                with unwrapped_forward(model), self._trainer.accelerator.autocast():
                    metrics |= self._win_rate.measure(model, self._answer_encoder, step)
        for sample, policy in zip(self._samples, scores, strict=True):
            pairs = measure_pairs(sample, policy, self._reference_scores[sample.name], **how)
            measured.append(pairs)
            metrics |= {
                metric_key(sample.name, n): v for n, v in summarise_pairs(pairs, **how).items()
            }
        since = max(recorded, default=0)
        norms = [
            float(entry["grad_norm"])
            for entry in state.log_history
            if "grad_norm" in entry and since <= entry["step"] < step
        ]
        if norms:
            metrics |= {
                "dynamics/grad_norm/mean": sum(norms) / len(norms),
                "dynamics/grad_norm/max": max(norms),
            }
        self._folder.write_step(step, self._samples, measured, metrics)
        self._report({**metrics, "dynamics/runtime_s": time.perf_counter() - began})
        self._warn(step, metrics)

    # Hand the figures to the trackers and leave the trainer's own logging as it was.
    def _report(self, metrics: dict[str, float]) -> None:
        handler, control = self._trainer.callback_handler, self._trainer.control
        everyone, wishes = handler.callbacks, vars(control).copy()
        printing = [callback for callback in everyone if isinstance(callback, PRINTING)]
        headlines = {
            name: value
            for name, value in metrics.items()
            if name.split("dynamics/", 1)[-1] in HEADLINES
        }
        try:
            # Trainer's log, not the subclass's: that would add, and clear, its own running means
            # (TRL's does). What prints to the console gets the headlines only: sixty figures
            # would bury the loss.
            handler.callbacks = [callback for callback in everyone if callback not in printing]
            Trainer.log(self._trainer, metrics)
            handler.callbacks = printing
            handler.on_log(self._trainer.args, self._trainer.state, control, headlines)
        finally:
            handler.callbacks = everyone
            # Any log withdraws the wish to log, and so would swallow the loss of this very step.
            vars(control).update(wishes)
            self._trainer.control = control

    # The sets whose chosen and rejected responses had both fallen at a measurement.
    def _displaced_sets(self, metrics: Mapping[str, float]) -> list[PairSample]:
        return [
            sample
            for sample in self._samples
            if metrics[metric_key(sample.name, "displacement/chosen")] <= -self._displacement_nats
            and metrics[metric_key(sample.name, "displacement/rejected")] < 0
        ]

    def _warn(self, step: int, metrics: Mapping[str, float]) -> None:
        displaced = self._displaced_sets(metrics)
        if self._warned or not displaced:
            return
        self._warned, sample = True, displaced[0]
        chosen, rejected, both_fell = (
            metrics[metric_key(sample.name, f"displacement/{name}")]
            for name in ("chosen", "rejected", "both_fell")
        )
        warnings.warn(
            f"likelihood displacement at step {step}: on {len(sample.items)} pairs of "
            f"{sample.name!r} the mean log-prob of the chosen responses fell by "
            f"{-chosen:.2f} nats and that of the rejected ones by "
            f"{-rejected:.2f} since the reference; both sides of "
            f"{both_fell:.0%} of the pairs fell. Probability goes to responses that "
            "are in no pair. A lower learning rate, a larger β, or an SFT term "
            "(sigmoid + 0.2*sft) holds the chosen ones.",
            DisplacementWarning,
            stacklevel=2,
        )
