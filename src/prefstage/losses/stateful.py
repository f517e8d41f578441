"""Losses with running statistics or values that hang together, from batches to values."""

import torch

from prefstage.losses import settings as constants
from prefstage.losses.batch_wise import (
    aot_loss,
    dynamic_beta,
    filter_pairs,
    label_trust,
    trusted_loss,
)
from prefstage.losses.batches import Items, PairBatch
from prefstage.losses.pairwise import bco_loss, sigmoid_loss
from prefstage.losses.registry import LossState, LossValues

ANONYMOUS = "anonymous"
"""Annotator of pairs that name none."""

MIN_STD = 1e-3
"""Nats. A narrower spread of margins (that of rounding, at the first step) decides nothing."""

SUREST = 1e-6
"""η is read as at least this far from 0 and 1, where no label could ever change it again."""


def aot(batch: PairBatch, s: constants.AotSettings, _: LossState) -> LossValues:
    """AOT on margins. See `aot_loss`."""
    policy = batch.chosen.log_probs - batch.rejected.log_probs
    reference = batch.chosen.reference_log_probs - batch.rejected.reference_log_probs
    return LossValues(aot_loss(policy, reference, beta=s.beta, flip_rate=s.flip_rate))


def aot_unpaired(batch: PairBatch, s: constants.AotSettings, _: LossState) -> LossValues:
    """AOT on log-ratios of the two sides. See `aot_loss`."""
    ratios = batch.chosen.log_ratios, batch.rejected.log_ratios
    return LossValues(aot_loss(*ratios, beta=s.beta, flip_rate=s.flip_rate))


def bco(batch: PairBatch, s: constants.BcoSettings, state: LossState) -> LossValues:
    """BCO; the running mean counts every pair so far, the present batch with them."""
    chosen, rejected = batch.chosen.log_ratios, batch.rejected.log_ratios
    if s.shift == "none":
        return LossValues(bco_loss(chosen, rejected, beta=s.beta, shift=0.0), state)
    present = float(0.5 * s.beta * (chosen + rejected).detach().double().mean())
    count = state["count"] + len(chosen)
    mean = state["mean"] + (present - state["mean"]) * len(chosen) / count
    after = {"mean": mean, "count": count}
    return LossValues(bco_loss(chosen, rejected, beta=s.beta, shift=mean), after)


def beta_dpo(batch: PairBatch, s: constants.BetaDpoSettings, state: LossState) -> LossValues:
    """β-DPO: filter by the running mean and spread of margins, then set β by those kept.

    The first batch has no past: its own mean and spread stand for it.
    """
    chosen, rejected = batch.chosen.log_ratios, batch.rejected.log_ratios
    margins = (chosen - rejected).detach().double()
    present = float(margins.mean()), float(margins.std(correction=0))
    mean, std = (state["mean"], state["std"]) if state["count"] else present
    if batch.seeds is None:  # excluded by the registry's check
        raise ValueError("seeds are needed")
    kept = filter_pairs(margins, batch.seeds, mean=mean, std=max(std, MIN_STD), share=s.keep)
    beta = float(dynamic_beta(margins[kept], mean, beta=s.beta, gain=s.gain))
    values = torch.where(kept, sigmoid_loss(chosen, rejected, beta=beta), 0.0)
    blend = [
        s.memory * old + (1 - s.memory) * new for old, new in zip((mean, std), present, strict=True)
    ]
    after = {"mean": blend[0], "std": blend[1], "count": state["count"] + len(chosen)}
    metrics = {"beta": margins.new_full((1,), beta), "kept": kept.double()}
    return LossValues(values * (len(kept) / int(kept.sum())), after, metrics)


def re_po(batch: PairBatch, s: constants.RePoSettings, state: LossState) -> LossValues:
    """RE-PO: trust in each label, and each annotator's reliability, learnt as it goes."""
    chosen, rejected = batch.chosen.log_ratios, batch.rejected.log_ratios
    named = batch.annotators or (None,) * len(chosen)
    names = [ANONYMOUS if name is None else name for name in named]
    known = state["reliability"]
    reliability = chosen.new_tensor([_sound(known.get(name, s.reliability)) for name in names])
    trust = label_trust(chosen, rejected, reliability, beta=s.beta)
    after = dict(known)
    for name in dict.fromkeys(names):
        own = torch.tensor([each == name for each in names], device=trust.device)
        seen = float(trust[own].double().mean())
        after[name] = (1 - s.rate) * known.get(name, s.reliability) + s.rate * seen
    values: Items = trusted_loss(chosen, rejected, trust, beta=s.beta)
    return LossValues(values, {"reliability": after}, {"trust": trust})


def _sound(reliability: float) -> float:
    return min(max(reliability, SUREST), 1 - SUREST)
