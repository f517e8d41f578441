"""Losses on more than one pair by itself.

BCO, AOT, β-DPO and RE-PO read the other pairs of the step or pairs seen before; EXO on rewards and
InfoNCA all K responses of a prompt.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.losses.base import (
    Items,
    Loss,
    LossState,
    LossValues,
    StatelessLoss,
)
from prefstage.losses.pairwise import DPO, Beta, FlipRate, margins

Groups = Float[Tensor, " groups"]

ANONYMOUS = "anonymous"
"""Annotator of pairs that name none."""

MIN_STD = 1e-3
"""Nats. A narrower spread of margins (that of rounding, at the first step) decides nothing."""

SUREST = 1e-6
"""η is read as at least this far from 0 and 1, where no label could ever change it again."""


# --- The other pairs of the step, or pairs seen before ----------------------------------------


class BCO(
    Loss,
    name="bco",
    aliases=("bco_pair",),
    formula="-log σ(βa - δ) - log σ(-(βb - δ)), δ running mean of ½(βa + βb)",
    source="Jung et al. 2024, arXiv:2404.04656",
    whole_batch=True,
    initial={"mean": 0.0, "count": 0},
):
    """Binary classifier of chosen against rejected, shifted by the mean reward."""

    beta: Beta = 0.1
    shift: Literal["running-mean", "none"] = Field(
        default="running-mean", description="δ: the running mean of rewards, or none."
    )

    def _compute(self, batch: Any, state: LossState) -> LossValues:
        chosen, rejected = batch.chosen.log_ratios, batch.rejected.log_ratios
        mean = 0.0
        if self.shift != "none":
            # A mean over every pair so far, the present batch with them. The increment form
            # keeps its digits however many pairs there were; float64, since a float32 mean of
            # a million pairs no longer moves.
            present = float(0.5 * self.beta * (chosen + rejected).detach().double().mean())
            count = state["count"] + len(chosen)
            mean = state["mean"] + (present - state["mean"]) * len(chosen) / count
            state = {"mean": mean, "count": count}
        up, down = self.beta * chosen - mean, mean - self.beta * rejected
        return LossValues(-logsigmoid(up) - logsigmoid(down), state)


class AOT(
    StatelessLoss,
    name="aot",
    formula="-log σ(βd), d = sort(ℓ_w - ℓ_l) - sort(ℓ_w^ref - ℓ_l^ref)",
    source="Melnyk et al. 2024, arXiv:2406.05882",
    whole_batch=True,
):
    """Optimal transport between margins of policy and reference."""

    beta: Beta = 0.01
    flip_rate: FlipRate = 0.0

    def _items(self, batch: Any) -> Items:
        return self.of_samples(*margins(batch))

    def of_samples(self, left: Items, right: Items) -> Items:
        """Sorted values against sorted values: one quantile function shall lie above the other.

        Args:
            left: ℓ_w - ℓ_l (paired form) or a (unpaired form). [items], nats.
            right: ℓ_w^ref - ℓ_l^ref, or b. [items], nats.

        Returns:
            Loss of the quantile of every item's left value, unreduced. [items], nats.
        """
        # argsort of argsort is the rank: the loss of a quantile goes to the item whose left
        # value it is, so that the order of items, and of micro-batches, changes nothing.
        opposite = right.sort(stable=True).values[left.detach().argsort(stable=True).argsort()]
        return DPO(beta=self.beta, flip_rate=self.flip_rate).of_ratios(left, opposite)


class UnpairedAOT(
    AOT,
    name="aot_unpaired",
    formula="-log σ(βd), d = sort(a) - sort(b)",
    source="Melnyk et al. 2024, arXiv:2406.05882",
    whole_batch=True,
):
    """Optimal transport between log-ratios of chosen and rejected responses."""

    def _items(self, batch: Any) -> Items:
        return self.of_samples(batch.chosen.log_ratios, batch.rejected.log_ratios)


class BetaDPO(
    Loss,
    name="beta_dpo",
    formula="-log σ(β_t Δ), β_t = max(1e-3, β_0(1 + a(mean Δ_kept - μ)))",
    source="Wu et al. 2024, arXiv:2407.08639; floor and order as in the official code",
    whole_batch=True,
    random=True,
    initial={"mean": 0.0, "std": 0.0, "count": 0},
):
    """DPO whose β follows the batch's margin, on pairs of usual margin."""

    beta: Beta = 0.1
    gain: float = Field(default=0.6, ge=0, description="a: how β follows the margin, 1/nats.")
    memory: float = Field(default=0.9, ge=0, lt=1, description="Weight of the past in means.")
    keep: float = Field(default=0.8, gt=0, le=1, description="Share of pairs kept.")

    def _compute(self, batch: Any, state: LossState) -> LossValues:
        chosen, rejected = batch.chosen.log_ratios, batch.rejected.log_ratios
        margin = (chosen - rejected).detach().double()
        present = {"mean": float(margin.mean()), "std": float(margin.std(correction=0))}
        # The first batch has no past: its own mean and spread stand for it.
        past = state if state["count"] else present
        after: LossState = {
            name: self.memory * past[name] + (1 - self.memory) * value
            for name, value in present.items()
        }
        after["count"] = state["count"] + len(chosen)
        kept = self.filter(margin, batch.seeds, mean=after["mean"], std=max(after["std"], MIN_STD))
        beta = float(self.dynamic_beta(margin[kept], after["mean"]))
        values = torch.where(kept, DPO(beta=beta).of_ratios(chosen, rejected), 0.0)
        return LossValues(
            # The mean over the step is that over the pairs kept.
            values * (len(kept) / int(kept.sum())),
            after,
            {"beta": margin.new_full((1,), beta), "kept": kept.double()},
        )

    def dynamic_beta(self, kept_margins: Items, mean: float | Tensor) -> Float[Tensor, ""]:
        """β of a batch: ``max(1e-3, β_0 (1 + a (mean Δ_kept - μ)))``.

        Args:
            kept_margins: Δ of the pairs that the filter kept. [items], nats.
            mean: μ, the running mean of Δ. nats.

        Returns:
            β, a number without gradient. 1/nats.
        """
        return (self.beta * (1 + self.gain * (kept_margins.detach().mean() - mean))).clamp(min=1e-3)

    def filter(
        self, margin: Items, seeds: Int[Tensor, " items"], *, mean: float, std: float
    ) -> Bool[Tensor, " items"]:
        """Draw the pairs to keep, those of usual margin more often.

        Args:
            margin: Δ. [items], nats.
            seeds: One seed a pair and step. [items].
            mean: μ, nats.
            std: s, > 0, nats.

        Returns:
            True at the pairs kept, at least one. [items].
        """
        # Drawing without replacement with weights N(Δ; μ, s) is taking the largest
        # log-weights plus Gumbel noise; in logs no weight underflows. The noise of a pair
        # comes from its own seed, so that neither batch nor device decides.
        log_weights = -0.5 * ((margin.detach().double().cpu() - mean) / std).square()
        noise = torch.tensor([_gumbel(seed) for seed in seeds.tolist()], dtype=torch.float64)
        count = max(1, int(self.keep * len(margin) + 1e-9))
        kept = torch.zeros(len(margin), dtype=torch.bool)
        kept[torch.topk(log_weights + noise, count).indices] = True
        return kept.to(margin.device)


def _gumbel(seed: int) -> float:
    generator = torch.Generator().manual_seed(seed % 2**63)
    drawn = torch.rand((), generator=generator, dtype=torch.float64).clamp(min=1e-300)
    return float(-torch.log(-torch.log(drawn)))


class REPO(
    Loss,
    name="re_po",
    aliases=("lcpo",),
    formula="-w ln p - (1-w) ln(1-p), w = pη/(pη + (1-p)(1-η)), p = σ(βΔ)",
    source="RE-PO, arXiv:2509.24159",
    optional=frozenset({"annotators"}),
    initial={"reliability": {}},
):
    """Labels trusted as far as their annotators proved reliable."""

    beta: Beta = 0.1
    reliability: float = Field(default=0.9, gt=0, lt=1, description="η before the first step.")
    rate: float = Field(default=0.1, ge=0, le=1, description="α: weight of the present batch.")

    def _compute(self, batch: Any, state: LossState) -> LossValues:
        chosen, rejected = batch.chosen.log_ratios, batch.rejected.log_ratios
        annotators = batch.annotators or (None,) * len(chosen)
        names = [ANONYMOUS if name is None else name for name in annotators]
        known = dict.fromkeys(names, self.reliability) | state["reliability"]
        sound = [min(max(known[name], SUREST), 1 - SUREST) for name in names]
        scaled = self.beta * (chosen - rejected)
        # Bayes' rule as a logistic of log-odds: the products of the formula underflow.
        trust = torch.sigmoid(scaled.detach() + torch.logit(chosen.new_tensor(sound)))
        for name in set(names):
            labels = torch.tensor([other == name for other in names], device=trust.device)
            seen = float(trust[labels].double().mean())
            known[name] = (1 - self.rate) * known[name] + self.rate * seen
        values = -trust * logsigmoid(scaled) - (1 - trust) * logsigmoid(-scaled)
        return LossValues(values, {"reliability": known}, {"trust": trust})


# --- Groups -----------------------------------------------------------------------------------


class GroupLoss(
    StatelessLoss, data=frozenset({"groups"}), needs=frozenset({"reference", "scores"})
):
    """A loss that compares two distributions over the K responses of a prompt."""

    def log_shares(self, batch: Any, temperature: float, beta: float) -> tuple[Items, Items]:
        """Log-softmax of βa and of the scores within every prompt. [items] each.

        Args:
            batch: The groups.
            temperature: Of the scores, > 0, in their units.
            beta: Pull towards the reference, > 0. 1/nats.
        """
        return (
            group_log_softmax(beta * batch.responses.log_ratios, batch.group),
            # Scores are data, even if they come as somebody's differentiable output.
            group_log_softmax(batch.responses.scores.detach() / temperature, batch.group),
        )


class RewardEXO(
    GroupLoss,
    name="exo_rw",
    formula="KL(softmax(β_π a) ‖ softmax(r/β_r))",
    source="Ji et al. 2024, arXiv:2402.00856 (EXO on rewards)",
):
    """Reverse KL from the policy's to the rewards' distribution over K responses."""

    beta: Beta = 0.5
    temperature: float = Field(default=0.5, gt=0, description="β_r, in units of the scores.")

    def _items(self, batch: Any) -> Groups:
        shares, goal = self.log_shares(batch, self.temperature, self.beta)
        return _group_sum(shares.exp() * (shares - goal), batch.group)


class InfoNCA(
    GroupLoss,
    name="infonca",
    formula="-Σ q_i log softmax(βa)_i, q = softmax(r/α)",
    source="Chen et al. 2024, arXiv:2402.05369 (InfoNCA)",
):
    """Cross-entropy of the rewards' distribution over K responses."""

    beta: Beta = 0.01
    temperature: float = Field(default=1.0, gt=0, description="α, in units of the scores.")

    def _items(self, batch: Any) -> Groups:
        shares, goal = self.log_shares(batch, self.temperature, self.beta)
        return -_group_sum(goal.exp() * shares, batch.group)


def group_log_softmax(values: Items, group: Int[Tensor, " items"]) -> Items:
    """Log-softmax within every group.

    Args:
        values: Logits. [items].
        group: Group of each, ascending from 0. [items].

    Returns:
        Log-probabilities; those of a group add up to 1. [items].
    """
    # The largest value of the group goes first, or e^x overflows; it cancels, so that its
    # gradient may be left out.
    top = values.detach().new_full((_count(group),), -torch.inf)
    top = top.scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - top[group]
    return shifted - _group_sum(shifted.exp(), group).log()[group]


def _group_sum(values: Items, group: Tensor) -> Groups:
    return values.new_zeros(_count(group)).index_add(0, group, values)


def _count(group: Tensor) -> int:
    return int(group.max()) + 1
