"""From batches to the arguments of the losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefstage.losses import pairwise as pair
from prefstage.losses import reference_free as free
from prefstage.losses import settings as constants
from prefstage.losses.batches import (
    GroupBatch,
    Items,
    PairBatch,
    ResponseBatch,
    Responses,
    UnpairedBatch,
)
from prefstage.losses.divergences import divergence_score
from prefstage.losses.registry import LossState, LossValues
from prefstage.losses.token_sampled import damped_sums, draw_tokens, pilot_counts, sgdpo_loss
from prefstage.losses.unpaired import kto_loss, kto_reference_point


def without_state(
    formula: Callable[[Any, Any], Items],
) -> Callable[[Any, Any, LossState], LossValues]:
    """A loss without running statistics."""
    return lambda batch, settings, _: LossValues(formula(batch, settings))


def scored_ratios(batch: PairBatch, s: Any, *, per_token: bool = False) -> tuple[Items, Items]:
    """Both sides' log-ratios under the divergence, perhaps as means over tokens."""
    sides, alpha = (batch.chosen, batch.rejected), 0.5 if s.f_alpha is None else s.f_alpha
    chosen, rejected = (
        divergence_score(side.log_ratios, divergence=s.f_divergence, alpha=alpha)
        / (side.lengths if per_token else 1)
        for side in sides
    )
    return chosen, rejected


def log_ratios(batch: PairBatch) -> tuple[Items, Items]:
    """Log-ratios of the chosen and the rejected responses."""
    return batch.chosen.log_ratios, batch.rejected.log_ratios


def _shorter(batch: PairBatch) -> Tensor:
    return torch.minimum(batch.chosen.lengths, batch.rejected.lengths)


def _seeds(batch: PairBatch) -> Tensor:
    if batch.seeds is None:  # excluded by the registry's check
        raise ValueError("seeds are needed")
    return batch.seeds


def gamma(batch: PairBatch, s: constants.GammaSettings) -> Items:
    """γ-DPO. See `gamma_loss`."""
    sides = (batch.chosen, batch.rejected)
    policy = sides[0].log_probs - sides[1].log_probs
    reference = sides[0].reference_log_probs - sides[1].reference_log_probs
    return pair.gamma_loss(policy, reference, beta=s.beta, gamma=s.gamma)


def wpo(batch: PairBatch, s: constants.BetaSettings) -> Items:
    """WPO. See `wpo_weights`."""
    return pair.wpo_weights(
        _alignment(batch.chosen), _alignment(batch.rejected)
    ) * pair.sigmoid_loss(*log_ratios(batch), beta=s.beta)


def _sampled(side: Responses, counts: Tensor, seeds: Tensor, stream: int) -> Items:
    """Log-ratio summed over drawn tokens."""
    width = side.policy.shape[1]
    drawn = draw_tokens(side.lengths, counts, seeds, tokens=width, stream=stream)
    return (side.token_log_ratios * drawn).sum(1)


def _alignment(side: Responses) -> Items:
    if side.log_sum_squares is None:  # excluded by the registry's check
        raise ValueError("log_sum_squares is needed")
    return ((side.policy - side.log_sum_squares) * side.mask).sum(1) / side.lengths


def sgdpo(batch: PairBatch, s: constants.SgdpoSettings) -> Items:
    """SGDPO with pilots drawn anew. See `sgdpo_loss`."""
    shorter, seeds = _shorter(batch), _seeds(batch)
    pilots = [
        _sampled(side, pilot_counts(shorter, share=share), seeds, stream)
        for stream, (side, share) in enumerate(((batch.chosen, s.r1), (batch.rejected, s.r2)))
    ]
    return sgdpo_loss(*log_ratios(batch), *pilots, beta=s.beta)


def sampo(batch: PairBatch, s: constants.BetaSettings) -> Items:
    """DPO on equally many drawn tokens of each side."""
    shorter, seeds = _shorter(batch), _seeds(batch)
    chosen = _sampled(batch.chosen, shorter, seeds, 0)
    return pair.sigmoid_loss(chosen, _sampled(batch.rejected, shorter, seeds, 1), beta=s.beta)


def sppo(batch: PairBatch, s: constants.CalibratedSettings) -> Items:
    """SPPO with the judge's preference, which carries no gradient. See `sppo_loss`."""
    if batch.preference is None:  # excluded by the registry's check
        raise ValueError("preference is needed")
    return pair.sppo_loss(*log_ratios(batch), batch.preference.detach(), beta=s.beta)


def ld_dpo(batch: PairBatch, s: constants.LdDpoSettings) -> Items:
    """DPO on damped sums. See `damped_sums`."""
    shared = _shorter(batch)
    chosen, rejected = (
        damped_sums(side.token_log_ratios, shared, alpha=s.alpha)
        for side in (batch.chosen, batch.rejected)
    )
    return pair.sigmoid_loss(chosen, rejected, beta=s.beta)


def cpo(batch: PairBatch, s: constants.CpoSettings) -> Items:
    """CPO. See `cpo_loss`."""
    chosen, rejected = batch.chosen, batch.rejected
    return free.cpo_loss(
        chosen.log_probs,
        rejected.log_probs,
        chosen.mean_log_probs,
        beta=s.beta,
        imitation=s.imitation,
    )


def kto(batch: UnpairedBatch, s: constants.KtoSettings) -> Items:
    """KTO. See `kto_loss`."""
    if batch.mismatched is None:  # excluded by the registry's check
        raise ValueError("mismatched responses are needed")
    return kto_loss(
        batch.responses.log_ratios,
        batch.desirable,
        kto_reference_point(batch.mismatched.log_ratios),
        beta=s.beta,
        desirable_weight=s.desirable_weight,
        undesirable_weight=s.undesirable_weight,
    )


def listwise(formula: Callable[..., Items]) -> Callable[[GroupBatch, Any], Items]:
    """A loss over scored groups, from a batch; scores carry no gradient."""

    def compute(batch: GroupBatch, s: Any) -> Items:
        if batch.responses.scores is None:  # excluded by the registry's check
            raise ValueError("scores are needed")
        return formula(
            batch.responses.log_ratios,
            batch.responses.scores.detach(),
            batch.group,
            beta=s.beta,
            temperature=s.temperature,
        )

    return compute


def sft(batch: PairBatch | ResponseBatch, _: constants.SftSettings) -> Items:
    """Likelihood of chosen or given responses. See `sft_loss`."""
    responses = batch.chosen if isinstance(batch, PairBatch) else batch.responses
    totals = batch.totals
    return free.sft_loss(responses.log_probs, items=totals.items, tokens=totals.chosen_tokens)
