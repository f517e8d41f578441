"""The registry: every loss with what it needs."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prefstage.losses import adapters as adapt
from prefstage.losses import pairwise as pair
from prefstage.losses import reference_free as free
from prefstage.losses import settings as constants
from prefstage.losses import stateful
from prefstage.losses.listwise import exo_rw_loss, infonca_loss
from prefstage.losses.registry import Loss

_NONE: frozenset[Any] = frozenset()
_ENTRIES = (
    Loss(
        name="sigmoid",
        aliases=("dpo",),
        summary="DPO: Bradley-Terry likelihood of the pair; conservative with a flip rate",
        formula="-(1-ε) log σ(βΔ) - ε log σ(-βΔ)",
        source="arXiv:2305.18290",
        settings=constants.SigmoidSettings,
        function=adapt.without_state(
            lambda b, s: pair.sigmoid_loss(
                *adapt.scored_ratios(b, s), beta=s.beta, flip_rate=s.flip_rate
            )
        ),
    ),
    Loss(
        name="sigmoid_norm",
        summary="DPO on means over tokens",
        formula="-log σ(β(a/L_w - b/L_l))",
        source="TRL 1.16, loss_type sigmoid_norm",
        settings=constants.NormSettings,
        function=adapt.without_state(
            lambda b, s: pair.sigmoid_loss(*adapt.scored_ratios(b, s, per_token=True), beta=s.beta)
        ),
    ),
    Loss(
        name="gamma",
        aliases=("gamma_dpo",),
        summary="DPO with a reference of adjustable weight",
        formula="-log σ(β[(ℓ_w - ℓ_l) - γ(ℓ_w^ref - ℓ_l^ref)])",
        source="arXiv:2405.19534, Eq. 4",
        settings=constants.GammaSettings,
        function=adapt.without_state(adapt.gamma),
    ),
    Loss(
        name="sgdpo",
        summary="Self-guided DPO: each side against a pilot drawn from the other",
        formula="-½ log σ(β(a - sg[p_l])) - ½ log σ(β(sg[p_w] - b))",
        source="arXiv:2505.12435",
        settings=constants.SgdpoSettings,
        function=adapt.without_state(adapt.sgdpo),
        needs=frozenset({"reference", "tokens"}),
        random=True,
    ),
    Loss(
        name="slic",
        summary="SLiC-HF: calibrate the likelihood of the pair, imitate the chosen response",
        formula="max(0, δ - ℓ_w + ℓ_l) - λ ℓ_w",
        source="arXiv:2305.10425; arXiv:2508.10530, Eq. 25",
        settings=constants.SlicSettings,
        function=adapt.without_state(
            lambda b, s: free.slic_loss(
                b.chosen.log_probs, b.rejected.log_probs, margin=s.margin, imitation=s.imitation
            )
        ),
        needs=_NONE,
    ),
    Loss(
        name="hinge",
        summary="RSO's hinge on the normalised margin",
        formula="max(0, 1 - βΔ)",
        source="arXiv:2309.06657",
        settings=constants.HingeSettings,
        function=adapt.without_state(
            lambda b, s: pair.hinge_loss(*adapt.scored_ratios(b, s), beta=s.beta)
        ),
    ),
    Loss(
        name="ipo",
        summary="Squared distance of the margin from its goal",
        formula="(Δ̄ - 1/(2τ))², Δ̄ of means over tokens",
        source="arXiv:2310.12036, Eq. 17",
        settings=constants.IpoSettings,
        function=adapt.without_state(
            lambda b, s: pair.ipo_loss(*adapt.scored_ratios(b, s, per_token=s.per_token), tau=s.tau)
        ),
    ),
    Loss(
        name="robust",
        summary="DPO made unbiased under a known rate of flipped labels",
        formula="[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)",
        source="arXiv:2403.00409",
        settings=constants.RobustSettings,
        function=adapt.without_state(
            lambda b, s: pair.robust_loss(
                *adapt.scored_ratios(b, s), beta=s.beta, flip_rate=s.flip_rate
            )
        ),
    ),
    Loss(
        name="exo",
        aliases=("exo_pair",),
        summary="Reverse KL of the policy's preference from the smoothed label",
        formula="s(ln s - ln(1-ε)) + (1-s)(ln(1-s) - ln ε), s = σ(βΔ)",
        source="arXiv:2402.00856, Eq. 16",
        settings=constants.ExoSettings,
        function=adapt.without_state(
            lambda b, s: pair.exo_loss(
                *adapt.scored_ratios(b, s), beta=s.beta, flip_rate=s.flip_rate
            )
        ),
    ),
    Loss(
        name="exo_rw",
        summary="Reverse KL from the policy's to the rewards' distribution over K responses",
        formula="KL(softmax(β_π a) ‖ softmax(r/β_r))",
        source="arXiv:2402.00856",
        settings=constants.ExoRwSettings,
        function=adapt.without_state(adapt.listwise(exo_rw_loss)),
        data=frozenset({"groups"}),
        needs=frozenset({"reference", "scores"}),
    ),
    Loss(
        name="nca",
        aliases=("nca_pair",),
        summary="Noise-contrastive alignment on pairs",
        formula="-log σ(βa) - ½ log σ(-βa) - ½ log σ(-βb)",
        source="arXiv:2402.05369",
        settings=constants.SmallBetaSettings,
        function=adapt.without_state(lambda b, s: pair.nca_loss(*adapt.log_ratios(b), beta=s.beta)),
    ),
    Loss(
        name="infonca",
        summary="Cross-entropy of the rewards' distribution over K responses",
        formula="-Σ q_i log softmax(βa)_i, q = softmax(r/α)",
        source="arXiv:2402.05369",
        settings=constants.InfoncaSettings,
        function=adapt.without_state(adapt.listwise(infonca_loss)),
        data=frozenset({"groups"}),
        needs=frozenset({"reference", "scores"}),
    ),
    Loss(
        name="bco",
        aliases=("bco_pair",),
        summary="Binary classifier of chosen against rejected, shifted by the mean reward",
        formula="-log σ(βa - δ) - log σ(-(βb - δ)), δ running mean of ½(βa + βb)",
        source="arXiv:2404.04656",
        settings=constants.BcoSettings,
        function=stateful.bco,
        whole_batch=True,
        initial=MappingProxyType({"mean": 0.0, "count": 0}),
    ),
    Loss(
        name="kto",
        summary="Gains and losses of single responses about a reference point",
        formula="λ_D(1-σ(β(a-z))) or λ_U(1-σ(β(z-b))), z = max(0, mean mismatched log-ratio)",
        source="arXiv:2402.01306",
        settings=constants.KtoSettings,
        function=adapt.without_state(adapt.kto),
        data=frozenset({"unpaired"}),
        needs=frozenset({"reference", "mismatched"}),
        whole_batch=True,
    ),
    Loss(
        name="sampo",
        summary="DPO on equally many random tokens of each side",
        formula="-log σ(β(a_m - b_m)), sums over m = min(L_w, L_l) random tokens",
        source="arXiv:2406.10957",
        settings=constants.BetaSettings,
        function=adapt.without_state(adapt.sampo),
        needs=frozenset({"reference", "tokens"}),
        random=True,
    ),
    Loss(
        name="simpo",
        summary="Mean log-probs with a target margin, no reference",
        formula="-log σ(β(ℓ_w/L_w - ℓ_l/L_l) - γ)",
        source="arXiv:2405.14734",
        settings=constants.SimpoSettings,
        function=adapt.without_state(
            lambda b, s: free.simpo_loss(
                b.chosen.mean_log_probs, b.rejected.mean_log_probs, beta=s.beta, margin=s.margin
            )
        ),
        needs=_NONE,
    ),
    Loss(
        name="orpo",
        summary="Imitation and an odds ratio, no reference",
        formula="-ℓ_w/L_w - λ log σ(log-odds difference of e^{ℓ/L})",
        source="arXiv:2403.07691",
        settings=constants.OrpoSettings,
        function=adapt.without_state(
            lambda b, s: free.orpo_loss(
                b.chosen.mean_log_probs, b.rejected.mean_log_probs, weight=s.odds_weight
            )
        ),
        needs=_NONE,
    ),
    Loss(
        name="cpo",
        summary="DPO without a reference, and imitation",
        formula="-log σ(β(ℓ_w - ℓ_l)) - α ℓ_w/L_w",
        source="arXiv:2401.08417",
        settings=constants.CpoSettings,
        function=adapt.without_state(adapt.cpo),
        needs=_NONE,
    ),
    Loss(
        name="r_dpo",
        summary="DPO with a length term",
        formula="-log σ(βΔ + α(L_w - L_l))",
        source="arXiv:2403.19159",
        settings=constants.RDpoSettings,
        function=adapt.without_state(
            lambda b, s: pair.r_dpo_loss(
                *adapt.log_ratios(b),
                b.chosen.lengths - b.rejected.lengths,
                beta=s.beta,
                alpha=s.alpha,
            )
        ),
    ),
    Loss(
        name="ld_dpo",
        summary="DPO with the tokens past the shorter response's length damped",
        formula="DPO on Σ_{t<=m} + α Σ_{t>m}, m = min(L_w, L_l)",
        source="arXiv:2409.06411",
        settings=constants.LdDpoSettings,
        function=adapt.without_state(adapt.ld_dpo),
        needs=frozenset({"reference", "tokens"}),
    ),
    Loss(
        name="dpop",
        summary="DPO that holds the chosen response up",
        formula="-log σ(β(Δ - λ max(0, -a)))",
        source="arXiv:2402.13228",
        settings=constants.DpopSettings,
        function=adapt.without_state(
            lambda b, s: pair.dpop_loss(*adapt.log_ratios(b), beta=s.beta, penalty=s.penalty)
        ),
    ),
    Loss(
        name="wpo",
        summary="DPO weighted by how likely the policy itself would write the pair",
        formula="min(1, exp(A_w + A_l)) · DPO, A = mean_t[log π(y_t) - log Σ_v π(v)²]",
        source="arXiv:2406.11827, Eq. 2",
        settings=constants.BetaSettings,
        function=adapt.without_state(adapt.wpo),
        needs=frozenset({"reference", "tokens", "log_sum_squares"}),
    ),
    Loss(
        name="beta_dpo",
        summary="DPO whose β follows the batch's margin, on pairs of usual margin",
        formula="-log σ(β_t Δ), β_t = max(1e-3, β_0(1 + a(mean Δ_kept - μ)))",
        source="arXiv:2407.08639",
        settings=constants.BetaDpoSettings,
        function=stateful.beta_dpo,
        whole_batch=True,
        random=True,
        initial=MappingProxyType({"mean": 0.0, "std": 0.0, "count": 0}),
    ),
    Loss(
        name="cal_dpo",
        summary="DPO with log-ratios calibrated to ±1/(2β)",
        formula="-log σ(Δ) + ½[(a - 1/(2β))² + (b + 1/(2β))²]",
        source="arXiv:2412.14516",
        settings=constants.CalibratedSettings,
        function=adapt.without_state(
            lambda b, s: pair.cal_dpo_loss(*adapt.log_ratios(b), beta=s.beta)
        ),
    ),
    Loss(
        name="sppo",
        summary="Self-play: log-ratios go to the judge's win rates",
        formula="½[(a - (P_w - ½)/β)² + (b - (P_l - ½)/β)²]",
        source="arXiv:2405.00675, Eq. 4.7",
        settings=constants.CalibratedSettings,
        function=adapt.without_state(adapt.sppo),
        needs=frozenset({"reference", "preference"}),
    ),
    Loss(
        name="sppo_hard",
        summary="SPPO with a win rate of 1",
        formula="½[(a - 1/(2β))² + (b + 1/(2β))²]",
        source="arXiv:2405.00675, Eq. 4.7",
        settings=constants.CalibratedSettings,
        function=adapt.without_state(
            lambda b, s: pair.sppo_loss(*adapt.log_ratios(b), 1.0, beta=s.beta)
        ),
    ),
    Loss(
        name="aot",
        summary="Optimal transport between margins of policy and reference",
        formula="-log σ(βd), d = sort(ℓ_w - ℓ_l) - sort(ℓ_w^ref - ℓ_l^ref)",
        source="arXiv:2406.05882",
        settings=constants.AotSettings,
        function=stateful.aot,
        whole_batch=True,
    ),
    Loss(
        name="aot_unpaired",
        summary="Optimal transport between log-ratios of chosen and rejected responses",
        formula="-log σ(βd), d = sort(a) - sort(b)",
        source="arXiv:2406.05882",
        settings=constants.AotSettings,
        function=stateful.aot_unpaired,
        whole_batch=True,
    ),
    Loss(
        name="apo_zero",
        summary="Anchored: chosen up, rejected down",
        formula="1 - σ(βa) + σ(βb)",
        source="arXiv:2408.06266, Eq. 7",
        settings=constants.BetaSettings,
        function=adapt.without_state(
            lambda b, s: pair.apo_zero_loss(*adapt.log_ratios(b), beta=s.beta)
        ),
    ),
    Loss(
        name="apo_down",
        summary="Anchored: both down, rejected more",
        formula="σ(βa) + 1 - σ(βΔ)",
        source="arXiv:2408.06266, Eq. 8",
        settings=constants.BetaSettings,
        function=adapt.without_state(
            lambda b, s: pair.apo_down_loss(*adapt.log_ratios(b), beta=s.beta)
        ),
    ),
    Loss(
        name="discopop",
        summary="The discovered blend of logistic and exponential loss",
        formula="(1-m)(-log σ(βΔ)) + m e^{-βΔ}, m = σ(βΔ/τ)",
        source="arXiv:2406.08414, Eq. 5",
        settings=constants.DiscopopSettings,
        function=adapt.without_state(
            lambda b, s: pair.discopop_loss(*adapt.scored_ratios(b, s), beta=s.beta, tau=s.tau)
        ),
    ),
    Loss(
        name="re_po",
        aliases=("lcpo",),
        summary="Labels trusted as far as their annotators proved reliable",
        formula="-w ln p - (1-w) ln(1-p), w = pη/(pη + (1-p)(1-η)), p = σ(βΔ)",
        source="arXiv:2509.24159",
        settings=constants.RePoSettings,
        function=stateful.re_po,
        optional=frozenset({"annotators"}),
        initial=MappingProxyType({"reliability": {}}),
    ),
    Loss(
        name="sft",
        aliases=("nll",),
        summary="Likelihood of the chosen response, or of given responses",
        formula="-ℓ_w / L_w, as a mean over the batch's tokens",
        source="maximum likelihood",
        settings=constants.SftSettings,
        function=adapt.without_state(adapt.sft),
        data=frozenset({"pairs", "responses"}),
        needs=_NONE,
    ),
)

LOSSES: Mapping[str, Loss] = MappingProxyType({loss.name: loss for loss in _ENTRIES})
"""Every loss by name."""
