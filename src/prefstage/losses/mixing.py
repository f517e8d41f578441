"""Which loss to minimise: one of the registry, or a weighted sum of several."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from prefstage.core import ConfigError, check_config, did_you_mean
from prefstage.losses import pairwise as pair, reference_free as free, unpaired as single
from prefstage.losses.base import (
    DataKind,
    Items,
    Loss,
    LossBatch,
    LossState,
    LossValues,
    Need,
    PairBatch,
    Responses,
    UnpairedBatch,
)
from prefstage.losses.batchwise import (
    AOT,
    BCO,
    REPO,
    BetaDPO,
    InfoNCA,
    RewardEXO,
    UnpairedAOT,
)
from prefstage.losses.tokens import LDDPO, RDPO, SGDPO, WPO, SamPO, damped_tails, policy_weights

LOSSES: Mapping[str, type[Loss]] = MappingProxyType(
    {
        loss.name: loss
        for loss in (
            *(pair.DPO, pair.NormDPO, pair.GammaDPO, SGDPO, free.SLiC, pair.Hinge, pair.IPO),
            *(pair.RobustDPO, pair.EXO, RewardEXO, pair.NCA, InfoNCA, BCO, single.UnpairedBCO),
            *(single.MatchedBCO, single.KTO, SamPO, free.SimPO, free.AlphaPO, free.ORPO),
            *(free.CPO, free.TPO, free.TPOL, RDPO, LDDPO, pair.DPOP, WPO, BetaDPO, pair.ODPO),
            *(pair.ChiPO, pair.CalDPO, pair.SPPO, pair.HardSPPO, AOT, UnpairedAOT),
            *(pair.APOZero, pair.APODown, single.UnpairedAPOZero, pair.DiscoPOP, REPO),
            *(single.PIPAM, single.PIPAN, single.SFT),
        )
    }
)
"""Every loss by name, in the order of the documentation."""

_BY_NAME = {name: loss for loss in LOSSES.values() for name in (loss.name, *loss.aliases)}

LossSpec = str | Loss | Mapping[str, Any] | Sequence[Any]
"""A loss, its name, a sum such as ``sigmoid + 0.2*sft``, a mapping, or a list of these."""

_WEIGHT = r"(?P<weight>([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?)"
_TERM = re.compile(rf"({_WEIGHT}\s*\*\s*)?(?P<name>[A-Za-z_][\w-]*)")
_PLUS = re.compile(r"(?<![eE])\+")

# Margins below this share of what they are differences of are rounding: 64 times float32's.
TIE = 2.0**-17

TRL_SETTINGS = {
    "label_smoothing": "flip_rate",
    "f_divergence_type": "f_divergence",
    "f_alpha_divergence_coef": "f_alpha",
    "discopop_tau": "tau",
    "ld_alpha": "alpha",
    "cpo_alpha": "imitation",
    "simpo_gamma": "margin",
    "tpo_alpha": "imitation",
    "tpo_l_gamma": "margin",
    "loss_type": "contrast",
    "min_density_ratio": "min_ratio",
    "max_density_ratio": "max_ratio",
    "beta": "tau",
}
"""What TRL calls a setting, and what it is called here; β of IPO is τ."""


@dataclass(frozen=True)
class LossTerm:
    """A loss and its weight in the sum.

    Attributes:
        loss: The loss, with its constants.
        weight: Its weight, > 0.
        use_weighting: Whether each pair's loss is weighed as WPO weighs DPO's.
        ld_alpha: What log-probs past the shorter response's length count for, as in LD-DPO.
    """

    loss: Loss
    weight: float = 1.0
    use_weighting: bool = False
    ld_alpha: float = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        """What the loss, or the weighing of pairs, needs."""
        weighing: frozenset[Need] = frozenset({"tokens", "log_sum_squares"})
        return self.loss.needs | (weighing if self.use_weighting else frozenset())

    def compute(self, batch: LossBatch, state: LossState) -> LossValues:
        """Compute the loss of each item, weighed as asked for, without `weight`.

        Args:
            batch: The items.
            state: The loss's running statistics.

        Returns:
            Values, the state after the batch, and metrics.

        Raises:
            InputError: If the batch lacks what the loss needs.
        """
        damped = batch
        if isinstance(batch, PairBatch) and self.ld_alpha < 1:
            damped = damped_tails(batch, self.ld_alpha)
        computed = self.loss(damped, state)
        if not self.use_weighting:
            return computed
        return replace(computed, values=policy_weights(batch) * computed.values)

    def options(self) -> dict[str, Any]:
        """How pairs are weighed, where it is not as the loss has it.

        Returns:
            Settings by name, JSON-serialisable.
        """
        weighing = {"use_weighting": True} if self.use_weighting else {}
        return weighing | ({"ld_alpha": self.ld_alpha} if self.ld_alpha < 1 else {})


@dataclass(frozen=True)
class LossMix:
    """A weighted sum of losses; it answers what each of them would.

    Attributes:
        terms: The losses, each name once.
    """

    terms: tuple[LossTerm, ...]

    @property
    def data(self) -> frozenset[DataKind]:
        """Kinds of batch that all terms take."""
        return frozenset.intersection(*(term.loss.data for term in self.terms))

    @property
    def needs(self) -> frozenset[Need]:
        """What some term needs."""
        return frozenset.union(*(term.needs for term in self.terms))

    @property
    def optional(self) -> frozenset[Need]:
        """What some term reads besides, if it is there."""
        return frozenset.union(*(term.loss.optional for term in self.terms))

    @property
    def whole_batch(self) -> bool:
        """Whether some term's values depend on the other items of the batch."""
        return any(term.loss.whole_batch for term in self.terms)

    @property
    def random(self) -> bool:
        """Whether some term draws at random."""
        return any(term.loss.random for term in self.terms)

    @property
    def beta(self) -> float | None:
        """β of the first term that has one (τ for IPO), which scales rewards; else None."""
        scales = (getattr(t.loss, "beta", getattr(t.loss, "tau", None)) for t in self.terms)
        return next((scale for scale in scales if scale is not None), None)

    def start_state(self) -> LossState:
        """Running statistics of the terms that keep some, by name."""
        return {t.loss.name: t.loss.start_state() for t in self.terms if t.loss.initial}

    def compute(self, batch: LossBatch, state: LossState) -> LossValues:
        """Compute the weighted sum for each item.

        Args:
            batch: The items; the whole optimiser batch where `whole_batch` says so.
            state: Running statistics before it; see `start_state`.

        Returns:
            Values, the state after the batch, and metrics: those of the terms
            (``loss/NAME`` where there are several), and of the responses, under TRL's names:
            log-probs, lengths, and of the sides of pairs and of labelled responses rewards.

        Raises:
            InputError: If the batch lacks what a term needs.
        """
        parts, after, metrics = [], dict(state), _response_metrics(batch, self.terms)
        for term in self.terms:
            computed = term.compute(batch, state.get(term.loss.name, {}))
            parts.append(term.weight * computed.values)
            if computed.state:
                after[term.loss.name] = computed.state
            metrics |= {name: value.detach() for name, value in computed.metrics.items()}
            if len(self.terms) > 1:
                metrics[f"loss/{term.loss.name}"] = computed.values.detach()
        return LossValues(sum(parts[1:], start=parts[0]), after, metrics)

    def resolved(self) -> list[dict[str, Any]]:
        """The terms with all their constants, JSON-serialisable."""
        return [
            {
                **{"name": t.loss.name, "weight": t.weight},
                **t.options(),
                **t.loss.model_dump(mode="json"),
            }
            for t in self.terms
        ]


def get_loss(name: str) -> type[Loss]:
    """Find a loss by its name or alias.

    Args:
        name: The name, such as "sigmoid", or an alias, such as TRL's "exo_pair".

    Returns:
        The loss's class.

    Raises:
        ConfigError: If there is none; the nearest name is given.
    """
    ConfigError.unless(
        name in _BY_NAME,
        saw=f"loss {name!r}",
        expected=f"one of {', '.join(sorted(LOSSES))}",
        cure=did_you_mean(name.lower(), _BY_NAME, "see the list of losses"),
    )
    return _BY_NAME[name]


def parse_loss(spec: LossSpec | object) -> LossMix:
    """Read which loss to minimise.

    Args:
        spec: A loss, such as ``DPO(beta=0.2)``; a name; a sum such as ``sigmoid + 0.2*sft``; a
            mapping with `name`, perhaps `weight`, `use_weighting`, `ld_alpha` (see `LossTerm`),
            and the loss's constants; or a list of these.

    Returns:
        The weighted sum, of one term at least.

    Raises:
        ConfigError: If a name or constant is unknown or out of range, a loss stands twice,
            or the losses take no common kind of data.
    """
    if isinstance(spec, Loss):
        terms = [LossTerm(spec)]
    elif isinstance(spec, str):
        terms = [_term(_read_term(part.strip(), of=spec)) for part in _PLUS.split(spec)]
    elif isinstance(spec, Mapping):
        terms = [_term(spec)]
    elif isinstance(spec, Sequence):
        terms = [term for part in spec for term in parse_loss(part).terms]
    else:
        raise ConfigError.of(
            saw=f"loss {spec!r}",
            expected="a name, a mapping with a name, or a list of them",
            cure="write loss: sigmoid, for instance",
        )
    names = [term.loss.name for term in terms]
    twice = next((name for name in names if names.count(name) > 1), None)
    ConfigError.unless(
        terms and twice is None,
        saw=f"loss {twice!r} twice in a sum" if terms else f"no loss in {spec!r}",
        expected="each loss once, with its weight",
        cure="add the weights" if terms else "name a loss, such as sigmoid",
    )
    mix = LossMix(tuple(terms))
    kinds = (f"{term.loss.name}: {', '.join(sorted(term.loss.data))}" for term in terms)
    ConfigError.unless(
        mix.data,
        saw=f"a sum of losses on different data ({'; '.join(kinds)})",
        expected="losses that take the same kind of data",
        cure="train on one after the other, or choose other losses",
    )
    return mix


def _read_term(text: str, *, of: str) -> dict[str, Any]:
    term = _TERM.fullmatch(text)
    if term is None:
        raise ConfigError.of(
            saw=f"loss {of!r}",
            expected="a name or a sum such as 'sigmoid + 0.2*sft'",
            cure=f"mend {text!r}",
        )
    return {"name": term["name"], "weight": float(term["weight"] or 1)}


def _term(spec: Mapping[str, Any]) -> LossTerm:
    values = dict(spec)
    name, weight = values.pop("name", None), values.pop("weight", 1.0)
    ConfigError.unless(
        isinstance(name, str),
        saw=f"loss {dict(spec)!r}",
        expected="a mapping with the loss's name",
        cure="add name: sigmoid, or another",
    )
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    ConfigError.unless(
        is_number and 0 < weight < math.inf,
        saw=f"weight {weight!r} of loss {name!r}",
        expected="a number above 0",
        cure="leave a loss out rather than give it no weight",
    )
    loss = get_loss(name)
    options = _pair_options(loss, values)
    fields = list(loss.model_fields)
    for unknown in (key for key in values if key not in fields):
        trl = TRL_SETTINGS.get(unknown)
        meant = trl if trl in fields else unknown
        raise ConfigError.of(
            saw=f"loss {loss.name}: unknown setting {unknown!r}",
            expected=f"one of {', '.join([*fields, 'weight'])}",
            cure=did_you_mean(meant, [*fields, "name", "weight"], "remove it"),
        )
    return LossTerm(check_config(loss, values, origin=f"loss {name}"), float(weight), **options)


# The options that any loss on pairs has; they go out of the values.
def _pair_options(loss: type[Loss], values: dict[str, Any]) -> dict[str, Any]:
    options = {
        name: values.pop(name)
        for name, by_itself in (("use_weighting", WPO), ("ld_alpha", LDDPO))
        if name in values and loss is not by_itself
    }
    weighs, alpha = options.get("use_weighting", False), options.get("ld_alpha", 1.0)
    ConfigError.unless(
        isinstance(weighs, bool),
        saw=f"loss {loss.name}: use_weighting={weighs!r}",
        expected="true or false",
        cure="change it, or leave it out",
    )
    ConfigError.unless(
        isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 <= alpha <= 1,
        saw=f"loss {loss.name}: ld_alpha={alpha!r}",
        expected="a number from 0 (tails do not count) to 1",
        cure="change it, or leave it out",
    )
    # AOT's values are of quantiles, which are not those of one pair.
    ConfigError.unless(
        not options or (loss.data == {"pairs"} and not (weighs and issubclass(loss, AOT))),
        saw=f"loss {loss.name} with {', '.join(options)}",
        expected="these on a loss whose values are each of one pair",
        cure="leave them out, or choose another loss",
    )
    return options


# Log-probs, lengths and, of sides, rewards: those of the first term that has a constant for them.
def _response_metrics(batch: LossBatch, terms: Sequence[LossTerm]) -> dict[str, Tensor]:
    # TRL ends the names of its metrics with the side, which its users' dashboards look for.
    sides: dict[str, tuple[Responses, Any]]
    if isinstance(batch, PairBatch):
        sides = {"/chosen": (batch.chosen, ...), "/rejected": (batch.rejected, ...)}
    elif isinstance(batch, UnpairedBatch):
        sides = {
            "/chosen": (batch.responses, batch.desirable),
            "/rejected": (batch.responses, ~batch.desirable),
        }
    else:
        sides = {"": (batch.responses, ...)}
    metrics, sizes = dict[str, Tensor](), list[Tensor]()
    for side, (responses, rows) in sides.items():
        log_probs = responses.log_probs.detach()
        if side:
            weight, against = _reward_scale(terms, responses)
            changes = responses.log_ratios.detach() if against else log_probs
            metrics[f"rewards{side}"] = (weight * changes)[rows]
            sizes.append((weight * log_probs.abs())[rows])
        metrics[f"logps{side}"] = log_probs[rows]
        metrics[f"lengths{side}"] = responses.lengths[rows].to(log_probs.dtype)
    if isinstance(batch, PairBatch):
        margins = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        metrics["rewards/margins"] = margins
        metrics["rewards/accuracies"] = reward_accuracies(margins, sum(sizes[1:], sizes[0]))
    return metrics


# What a log-ratio or log-prob counts for, and whether rewards are against a reference.
def _reward_scale(terms: Sequence[LossTerm], responses: Responses) -> tuple[Items | float, bool]:
    there, lengths = responses.reference is not None, responses.lengths.to(responses.policy.dtype)
    for loss in (term.loss for term in terms):
        if (scale := loss.reward_scale(lengths)) is not None:
            return scale, there and "reference" in loss.needs
    return 1.0, there


def reward_accuracies(margins: Tensor, size: Tensor) -> Tensor:
    """How often the chosen response's reward is the larger; what rounding decides counts ½.

    ``1[m > εs] + ½·1[|m| <= εs]``, with ε = `TIE`. Where the policy is still its reference,
    margins are rounding of the forward passes, and a strict comparison gives any number.

    Args:
        margins: m, reward of the chosen response less that of the rejected one. [pairs].
        size: s, sum of the rewards' own terms, β · (|log π(y_w|x)| + |log π(y_l|x)|) or that of
            means over tokens, whose rounding the margin carries. [pairs], >= 0.

    Returns:
        1, ½ or 0. [pairs].

    Source:
        Chen et al. 2024, arXiv:2405.19534, Remark 2.5. Departure: a tie counts ½, as in
        `prefstage.diagnosing.reward_accuracy`; in TRL, 0.
    """
    return torch.where(margins.abs() <= TIE * size, 0.5, (margins > 0).to(margins.dtype))
