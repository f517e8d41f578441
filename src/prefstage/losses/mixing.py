"""Which loss to minimise: one of the registry, or a weighted sum of several."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Any

from torch import Tensor

from prefstage.core.config import check_config, nearest
from prefstage.core.errors import ConfigError
from prefstage.losses import pairwise as pair
from prefstage.losses.base import DataKind, Loss, LossState, LossValues, Need
from prefstage.losses.batches import LossBatch, PairBatch, UnpairedBatch
from prefstage.losses.responses import KTO, SFT, InfoNCA, RewardEXO
from prefstage.losses.tokens import LDDPO, RDPO, SGDPO, WPO, SamPO
from prefstage.losses.whole_batch import AOT, BCO, REPO, BetaDPO, UnpairedAOT

LOSSES: Mapping[str, type[Loss]] = MappingProxyType(
    {
        loss.name: loss
        for loss in (
            *(pair.DPO, pair.NormDPO, pair.GammaDPO, SGDPO, pair.SLiC, pair.Hinge, pair.IPO),
            *(pair.RobustDPO, pair.EXO, RewardEXO, pair.NCA, InfoNCA, BCO, KTO, SamPO),
            *(pair.SimPO, pair.ORPO, pair.CPO, RDPO, LDDPO, pair.DPOP, WPO, BetaDPO),
            *(pair.CalDPO, pair.SPPO, pair.HardSPPO, AOT, UnpairedAOT, pair.APOZero),
            *(pair.APODown, pair.DiscoPOP, REPO, SFT),
        )
    }
)
"""Every loss by name, in the order of the documentation."""

LossSpec = str | Loss | Mapping[str, Any] | Sequence[Any]
"""A loss, its name, a sum such as ``sigmoid + 0.2*sft``, a mapping, or a list of these."""

_TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*\*\s*)?(?P<name>[A-Za-z_]\w*)")
_PLUS = re.compile(r"(?<![eE])\+")

TRL_SETTINGS = {
    "label_smoothing": "flip_rate",
    "f_divergence_type": "f_divergence",
    "f_alpha_divergence_coef": "f_alpha",
    "discopop_tau": "tau",
    "ld_alpha": "alpha",
    "cpo_alpha": "imitation",
    "simpo_gamma": "margin",
    "beta": "tau",
}
"""What TRL calls a setting, and what it is called here; β of IPO is τ."""


@dataclass(frozen=True)
class LossTerm:
    """A loss and its weight in the sum.

    Attributes:
        loss: The loss, with its constants.
        weight: Its weight, > 0.
    """

    loss: Loss
    weight: float = 1.0


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
        return frozenset.union(*(term.loss.needs for term in self.terms))

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
        constants = (term.loss.model_dump() for term in self.terms)
        betas = (settings.get("beta", settings.get("tau")) for settings in constants)
        return next((float(beta) for beta in betas if beta is not None), None)

    def start_state(self) -> LossState:
        """Running statistics of the terms that keep some, by name."""
        states = {term.loss.name: term.loss.start_state() for term in self.terms}
        return {name: state for name, state in states.items() if state}

    def compute(self, batch: LossBatch, state: LossState) -> LossValues:
        """Compute the weighted sum for each item.

        Args:
            batch: The items; the whole optimiser batch where `whole_batch` says so.
            state: Running statistics before it; see `start_state`.

        Returns:
            Values, the state after the batch, and metrics: those of the terms
            (``loss/NAME`` where there are several), and TRL's rewards where there is a
            reference.

        Raises:
            InputError: If the batch lacks what a term needs.
        """
        parts, after, metrics = [], dict(state), _rewards(batch, self.beta or 1.0)
        for term in self.terms:
            computed = term.loss(batch, state.get(term.loss.name, {}))
            parts.append(term.weight * computed.values)
            if computed.state:
                after[term.loss.name] = computed.state
            metrics |= {name: value.detach() for name, value in computed.metrics.items()}
            if len(self.terms) > 1:
                metrics[f"loss/{term.loss.name}"] = computed.values.detach()
        return LossValues(reduce(operator.add, parts), after, metrics)

    def resolved(self) -> list[dict[str, Any]]:
        """The terms with all their constants, JSON-serialisable."""
        return [
            {"name": t.loss.name, "weight": t.weight, **t.loss.model_dump(mode="json")}
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
    by_alias = {alias: loss for loss in LOSSES.values() for alias in loss.aliases}
    loss = LOSSES.get(name) or by_alias.get(name)
    if loss is None:
        guess = nearest(name, [*LOSSES, *by_alias])
        raise ConfigError.of(
            saw=f"loss {name!r}",
            expected=f"one of {', '.join(sorted(LOSSES))}",
            cure=f"did you mean {guess!r}?" if guess else "see the list of losses",
        )
    return loss


def parse_loss(spec: LossSpec | object) -> LossMix:
    """Read which loss to minimise.

    Args:
        spec: A loss, such as ``DPO(beta=0.2)``; a name; a sum such as ``sigmoid + 0.2*sft``; a
            mapping with `name`, perhaps `weight`, and the loss's constants; or a list of these.

    Returns:
        The weighted sum, of one term at least.

    Raises:
        ConfigError: If a name or constant is unknown or out of range, a loss stands twice,
            or the losses take no common kind of data.
    """
    if isinstance(spec, Loss):
        terms = [LossTerm(spec)]
    elif isinstance(spec, str):
        terms = [_term({"name": name, "weight": weight}) for weight, name in _split(spec)]
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
    if twice is not None or not terms:
        raise ConfigError.of(
            saw=f"loss {twice!r} twice in a sum" if twice else f"no loss in {spec!r}",
            expected="each loss once, with its weight",
            cure="add the weights" if twice else "name a loss, such as sigmoid",
        )
    mix = LossMix(tuple(terms))
    if not mix.data:
        kinds = "; ".join(f"{t.loss.name}: {', '.join(sorted(t.loss.data))}" for t in mix.terms)
        raise ConfigError.of(
            saw=f"a sum of losses on different data ({kinds})",
            expected="losses that take the same kind of data",
            cure="train on one after the other, or choose other losses",
        )
    return mix


def _split(text: str) -> list[tuple[float, str]]:
    terms = []
    for part in _PLUS.split(text):
        match = _TERM.fullmatch(part.strip())
        try:
            # Python's own reading of a number decides: the pattern lets "1.2.3" through.
            terms.append((float(match["weight"] or 1), match["name"]))  # type: ignore[index]  # caught
        except (TypeError, ValueError):
            raise ConfigError.of(
                saw=f"loss {text!r}",
                expected="a name or a sum such as 'sigmoid + 0.2*sft'",
                cure=f"mend {part.strip()!r}",
            ) from None
    return terms


def _term(spec: Mapping[str, Any]) -> LossTerm:
    values = dict(spec)
    name, weight = values.pop("name", None), values.pop("weight", 1.0)
    if not isinstance(name, str):
        raise ConfigError.of(
            saw=f"loss {dict(spec)!r}",
            expected="a mapping with the loss's name",
            cure="add name: sigmoid, or another",
        )
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ConfigError.of(
            saw=f"weight {weight!r} of loss {name!r}",
            expected="a number above 0",
            cure="leave a loss out rather than give it no weight",
        )
    loss = get_loss(name)
    fields = list(loss.model_fields)
    unknown = next((key for key in values if key not in fields), None)
    if unknown is not None:
        trl = TRL_SETTINGS.get(unknown)
        guess = trl if trl in fields else nearest(unknown, [*fields, "name", "weight"])
        raise ConfigError.of(
            saw=f"loss {loss.name}: unknown setting {unknown!r}",
            expected=f"one of {', '.join([*fields, 'weight'])}",
            cure=f"did you mean {guess!r}?" if guess else "remove it",
        )
    return LossTerm(check_config(loss, values, origin=f"loss {name}"), float(weight))


# TRL's reward metrics: β times the log-ratio of each side; none without a reference.
def _rewards(batch: LossBatch, beta: float) -> dict[str, Tensor]:
    if isinstance(batch, PairBatch):
        if batch.chosen.reference is None or batch.rejected.reference is None:
            return {}
        chosen, rejected = (
            beta * side.log_ratios.detach() for side in (batch.chosen, batch.rejected)
        )
        margins = chosen - rejected
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margins,
            # A tie is half right: at the first step, where policy and reference are the same,
            # the accuracy is then 0.5 and not a matter of rounding.
            "rewards/accuracies": 0.5 * (1 + margins.sign()),
        }
    if isinstance(batch, UnpairedBatch) and batch.responses.reference is not None:
        rewards = beta * batch.responses.log_ratios.detach()
        sides = {"chosen": batch.desirable, "rejected": ~batch.desirable}
        return {f"rewards/{side}": rewards[mask] for side, mask in sides.items() if mask.any()}
    return {}
