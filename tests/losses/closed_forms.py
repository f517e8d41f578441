"""Every loss written a second time: pair by pair, from lists of token log-probs, in float64.

Nothing here is shared with the package; log σ is written by `logaddexp`. Gradients are those
of autograd through these formulas, with what METHODS and the papers hold fixed detached.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefstage.losses import GroupBatch, PairBatch, ResponseBatch, Responses, UnpairedBatch


def log_sigma(z: Tensor) -> Tensor:
    return -torch.logaddexp(-z, torch.zeros_like(z))


def sigma(z: Tensor) -> Tensor:
    return torch.exp(log_sigma(z))


def positive(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, torch.zeros_like(z))


@dataclass
class Side:
    """One response: log-probs of its own tokens, without padding."""

    policy: Tensor
    reference: Tensor
    squares: Tensor

    @property
    def length(self) -> int:
        return len(self.policy)

    @property
    def log_prob(self) -> Tensor:
        return self.policy.sum()

    @property
    def ratio(self) -> Tensor:
        return (self.policy - self.reference).sum()


def sides_of(responses: Responses) -> list[Side]:
    lengths = responses.lengths.tolist()
    columns = responses.policy, responses.reference, responses.log_sum_squares
    return [
        Side(*(each[row, :length] for each in columns if each is not None))
        for row, length in enumerate(lengths)
    ]


# --- Pairs that stand alone: (chosen, rejected, settings) -> loss ---------------------------


def dpo(delta: Tensor, beta: float, flip: float = 0.0) -> Tensor:
    return -(1 - flip) * log_sigma(beta * delta) - flip * log_sigma(-beta * delta)


def robust(w: Side, r: Side, s: Any) -> Tensor:
    z, e = s.beta * (w.ratio - r.ratio), s.flip_rate
    return (-(1 - e) * log_sigma(z) + e * log_sigma(-z)) / (1 - 2 * e)


def exo(w: Side, r: Side, s: Any) -> Tensor:
    z = s.beta * (w.ratio - r.ratio)
    first = sigma(z) * (log_sigma(z) - math.log(1 - s.flip_rate))
    return first + sigma(-z) * (log_sigma(-z) - math.log(s.flip_rate))


def ipo(w: Side, r: Side, s: Any) -> Tensor:
    parts = (w.length, r.length) if s.per_token else (1, 1)
    return (w.ratio / parts[0] - r.ratio / parts[1] - 1 / (2 * s.tau)) ** 2


def nca(w: Side, r: Side, s: Any) -> Tensor:
    a, b = s.beta * w.ratio, s.beta * r.ratio
    return -log_sigma(a) - 0.5 * log_sigma(-a) - 0.5 * log_sigma(-b)


def orpo(w: Side, r: Side, s: Any) -> Tensor:
    def log_odds(side: Side) -> Tensor:
        mean = side.log_prob / side.length
        return mean - torch.log(-torch.expm1(mean))

    return -w.log_prob / w.length - s.odds_weight * log_sigma(log_odds(w) - log_odds(r))


def ld_dpo(w: Side, r: Side, s: Any) -> Tensor:
    shared = min(w.length, r.length)
    a, b = (
        (each.policy[:shared] - each.reference[:shared]).sum()
        + s.alpha * (each.policy[shared:] - each.reference[shared:]).sum()
        for each in (w, r)
    )
    return dpo(a - b, s.beta)


def wpo(w: Side, r: Side, s: Any) -> Tensor:
    exponent = sum(((each.policy - each.squares).mean()).item() for each in (w, r))
    return min(1.0, math.exp(min(exponent, 1.0))) * dpo(w.ratio - r.ratio, s.beta)


def cal_dpo(w: Side, r: Side, s: Any) -> Tensor:
    goal = 1 / (2 * s.beta)
    squares = (w.ratio - goal) ** 2 + (r.ratio + goal) ** 2
    return -log_sigma(w.ratio - r.ratio) + 0.5 * squares


def sppo(w: Side, r: Side, beta: float, probability: Tensor) -> Tensor:
    first = (w.ratio - (probability - 0.5) / beta) ** 2
    return 0.5 * (first + (r.ratio - ((1 - probability) - 0.5) / beta) ** 2)


def discopop(w: Side, r: Side, s: Any) -> Tensor:
    z = s.beta * (w.ratio - r.ratio)
    # m e^-z in logs: the factor overflows where the product does not.
    return -sigma(-z / s.tau) * log_sigma(z) + torch.exp(log_sigma(z / s.tau) - z)


def dpop(w: Side, r: Side, s: Any) -> Tensor:
    return -log_sigma(s.beta * (w.ratio - r.ratio - s.penalty * positive(-w.ratio)))


def gamma(w: Side, r: Side, s: Any) -> Tensor:
    own = w.log_prob - r.log_prob
    return -log_sigma(s.beta * (own - s.gamma * (w.reference.sum() - r.reference.sum())))


def simpo(w: Side, r: Side, s: Any) -> Tensor:
    means = w.log_prob / w.length - r.log_prob / r.length
    return dpo(s.beta * means - s.margin, 1.0, s.flip_rate)


def grown(x: Tensor) -> Tensor:
    """e^x - 1, and from e^30 on the straight line of its slope there."""
    line = math.exp(30.0) * (1 + x - 30.0) - 1
    return torch.where(x > 30.0, line, torch.expm1(x.clamp(max=30.0)))


def alphapo(w: Side, r: Side, s: Any) -> Tensor:
    def reward(side: Side) -> Tensor:
        mean = side.log_prob / side.length
        return -grown(-s.alpha * mean) / s.alpha if s.alpha else mean

    return dpo(s.beta * (reward(w) - reward(r)) - s.margin, 1.0, s.flip_rate)


def contrasted(w: Side, r: Side, s: Any) -> Tensor:
    gap = w.log_prob - r.log_prob
    if s.contrast == "hinge":
        return positive(1 - s.beta * gap)
    if s.contrast == "ipo":
        return (w.log_prob / w.length - r.log_prob / r.length - 1 / (2 * s.beta)) ** 2
    return dpo(gap, s.beta, s.flip_rate)


def cpo(w: Side, r: Side, s: Any) -> Tensor:
    return contrasted(w, r, s) - s.imitation * w.log_prob / w.length


def chi_po(w: Side, r: Side, s: Any) -> Tensor:
    z = s.beta * (grown(w.ratio) + w.ratio - grown(r.ratio) - r.ratio)
    return -log_sigma(z if s.max_reward is None else z.clamp(-2 * s.max_reward, 2 * s.max_reward))


def norm(w: Side, r: Side, s: Any) -> Tensor:
    return -log_sigma(s.beta * (w.ratio / w.length - r.ratio / r.length))


def r_dpo(w: Side, r: Side, s: Any) -> Tensor:
    return -log_sigma(s.beta * (w.ratio - r.ratio) + s.alpha * (w.length - r.length))


ALONE: dict[str, Callable[[Side, Side, Any], Tensor]] = {
    "sigmoid": lambda w, r, s: dpo(w.ratio - r.ratio, s.beta, s.flip_rate),
    "sigmoid_norm": norm,
    "gamma": gamma,
    "slic": lambda w, r, s: positive(s.margin - w.log_prob + r.log_prob) - s.imitation * w.log_prob,
    "hinge": lambda w, r, s: positive(1 - s.beta * (w.ratio - r.ratio)),
    "ipo": ipo,
    "robust": robust,
    "exo": exo,
    "nca": nca,
    "simpo": simpo,
    "orpo": orpo,
    "cpo": cpo,
    "r_dpo": r_dpo,
    "ld_dpo": ld_dpo,
    "dpop": dpop,
    "wpo": wpo,
    "cal_dpo": cal_dpo,
    "sppo_hard": lambda w, r, s: sppo(w, r, s.beta, torch.tensor(1.0, dtype=torch.float64)),
    "alphapo": alphapo,
    "chi_po": chi_po,
    "apo_zero": lambda w, r, s: 1 - sigma(s.beta * w.ratio) + sigma(s.beta * r.ratio),
    "apo_down": lambda w, r, s: sigma(s.beta * w.ratio) + 1 - sigma(s.beta * (w.ratio - r.ratio)),
    "discopop": discopop,
}


# --- Losses of batches: (batch, settings, state) -> losses ----------------------------------


def pairs_of(batch: PairBatch) -> list[tuple[Side, Side]]:
    return list(zip(sides_of(batch.chosen), sides_of(batch.rejected), strict=True))


def soft_sppo(batch: PairBatch, s: Any, _: Any) -> Tensor:
    assert batch.preference is not None
    pairs = zip(pairs_of(batch), batch.preference, strict=True)
    return torch.stack([sppo(w, r, s.beta, probability) for (w, r), probability in pairs])


def tpo(batch: PairBatch, s: Any, _: Any) -> Tensor:
    assert batch.gold is not None
    form = simpo if s.name == "tpo_l" else contrasted
    return torch.stack(
        [
            form(w, r, s) - s.imitation * gold.log_prob / gold.length
            for (w, r), gold in zip(pairs_of(batch), sides_of(batch.gold), strict=True)
        ]
    )


def odpo(batch: PairBatch, s: Any, _: Any) -> Tensor:
    values = []
    scores = zip(batch.chosen.scores.tolist(), batch.rejected.scores.tolist(), strict=True)
    for (w, r), (better, worse) in zip(pairs_of(batch), scores, strict=True):
        gap, z = better - worse, s.beta * (w.ratio - r.ratio)
        if s.offset == "difference":
            values.append(-log_sigma(z - s.alpha * gap))
        else:
            values.append(-log_sigma(z - s.alpha * math.log(gap)) if gap > 0 else 0 * z)
    return torch.stack(values)


def bco(batch: PairBatch, s: Any, state: Any) -> Tensor:
    pairs = pairs_of(batch)
    rewards = [0.5 * s.beta * (w.ratio + r.ratio).item() for w, r in pairs]
    seen = state["count"] + len(rewards)
    shift = (state["mean"] * state["count"] + sum(rewards)) / seen
    return torch.stack(
        [
            -log_sigma(s.beta * w.ratio - shift) - log_sigma(-(s.beta * r.ratio - shift))
            for w, r in pairs
        ]
    )


def re_po(batch: PairBatch, s: Any, state: Any) -> Tensor:
    values = []
    for (w, r), name in zip(pairs_of(batch), batch.annotators or (), strict=True):
        eta = state["reliability"].get(name, s.reliability)
        z = s.beta * (w.ratio - r.ratio)
        odds = z.item() + math.log(eta / (1 - eta))
        trust = sigma(torch.tensor(odds, dtype=torch.float64)).item()
        distrust = sigma(torch.tensor(-odds, dtype=torch.float64)).item()
        values.append(-trust * log_sigma(z) - distrust * log_sigma(-z))
    return torch.stack(values)


def aot(batch: PairBatch, s: Any, _: Any) -> Tensor:
    pairs = pairs_of(batch)
    policy = [w.log_prob - r.log_prob for w, r in pairs]
    reference = sorted((w.reference.sum() - r.reference.sum()).item() for w, r in pairs)
    return by_quantile(policy, [torch.tensor(r, dtype=torch.float64) for r in reference], s)


def aot_unpaired(batch: PairBatch, s: Any, _: Any) -> Tensor:
    pairs = pairs_of(batch)
    rejected = sorted((r.ratio for _, r in pairs), key=lambda ratio: ratio.item())
    return by_quantile([w.ratio for w, _ in pairs], rejected, s)


def by_quantile(left: list[Tensor], ascending: list[Tensor], s: Any) -> Tensor:
    order = sorted(range(len(left)), key=lambda item: left[item].item())
    values: dict[int, Tensor] = {}
    for place, item in enumerate(order):
        values[item] = dpo(left[item] - ascending[place], s.beta, s.flip_rate)
    return torch.stack([values[item] for item in range(len(left))])


def kto(batch: UnpairedBatch, s: Any, _: Any) -> Tensor:
    assert batch.mismatched is not None
    others = [side.ratio.item() for side in sides_of(batch.mismatched)]
    z = max(0.0, sum(others) / len(others))
    values = []
    for side, good in zip(sides_of(batch.responses), batch.desirable.tolist(), strict=True):
        if good:
            values.append(s.desirable_weight * (1 - sigma(s.beta * (side.ratio - z))))
        else:
            values.append(s.undesirable_weight * (1 - sigma(s.beta * (z - side.ratio))))
    return torch.stack(values)


def labelled(batch: UnpairedBatch) -> list[tuple[Side, bool]]:
    return list(zip(sides_of(batch.responses), batch.desirable.tolist(), strict=True))


def apo_zero_unpaired(batch: UnpairedBatch, s: Any, _: Any) -> Tensor:
    return torch.stack(
        [
            s.desirable_weight * (1 - sigma(s.beta * side.ratio))
            if good
            else s.undesirable_weight * sigma(s.beta * side.ratio)
            for side, good in labelled(batch)
        ]
    )


def bco_unpaired(batch: UnpairedBatch, s: Any, state: Any) -> Tensor:
    means = []
    for label, wanted in (("desirable", True), ("undesirable", False)):
        rewards = [s.beta * side.ratio.item() for side, good in labelled(batch) if good == wanted]
        before = state["counts"].get(label, 0)
        if number := before + len(rewards):
            means.append((state["means"].get(label, 0.0) * before + sum(rewards)) / number)
    shift = sum(means) / len(means)
    values = []
    for row, (side, good) in enumerate(labelled(batch)):
        weight = 1.0
        if s.name == "bco_udm" and not good:
            weight = min(max(batch.density_ratio[row].item(), s.min_ratio), s.max_ratio)
        z = s.beta * side.ratio - shift
        values.append(-weight * log_sigma(z if good else -z))
    return torch.stack(values)


def pipa_m(batch: UnpairedBatch, s: Any, _: Any) -> Tensor:
    values = []
    for side, good in labelled(batch):
        log_q, top = side.ratio + math.log(s.prior), math.log(0.99)
        if good:
            values.append(-torch.minimum(log_q, torch.zeros_like(log_q)))
        elif log_q.item() <= top:
            values.append(-torch.log1p(-torch.exp(log_q)))
        else:
            values.append(-math.log(0.01) + 99 * (log_q - top))
    return torch.stack(values)


def pipa_n(batch: UnpairedBatch, s: Any, _: Any) -> Tensor:
    prior = math.log(s.prior / (1 - s.prior))
    return torch.stack(
        [
            -log_sigma(side.ratio + prior if good else -side.ratio - prior)
            for side, good in labelled(batch)
        ]
    )


def groups_of(batch: GroupBatch) -> list[tuple[Tensor, Tensor]]:
    """Log-ratios and scores of each group."""
    assert batch.responses.scores is not None
    ratios = torch.stack([side.ratio for side in sides_of(batch.responses)])
    groups = [batch.group == item for item in range(int(batch.group.max()) + 1)]
    return [(ratios[own], batch.responses.scores[own]) for own in groups]


def exo_rw(batch: GroupBatch, s: Any, _: Any) -> Tensor:
    values = []
    for ratios, scores in groups_of(batch):
        own = s.beta * ratios - torch.logsumexp(s.beta * ratios, 0)
        goal = scores / s.temperature - torch.logsumexp(scores / s.temperature, 0)
        values.append((own.exp() * (own - goal)).sum())
    return torch.stack(values)


def infonca(batch: GroupBatch, s: Any, _: Any) -> Tensor:
    values = []
    for ratios, scores in groups_of(batch):
        own = s.beta * ratios - torch.logsumexp(s.beta * ratios, 0)
        goal = torch.exp(scores / s.temperature - torch.logsumexp(scores / s.temperature, 0))
        values.append(-(goal * own).sum())
    return torch.stack(values)


def sft(batch: PairBatch | ResponseBatch | UnpairedBatch, _: Any, __: Any) -> Tensor:
    responses = batch.chosen if isinstance(batch, PairBatch) else batch.responses
    sides = sides_of(responses)
    learnt = batch.desirable.tolist() if isinstance(batch, UnpairedBatch) else [True] * len(sides)
    tokens = sum(side.length for side, learns in zip(sides, learnt, strict=True) if learns)
    return torch.stack(
        [
            -side.log_prob * len(sides) / tokens if learns else 0 * side.log_prob
            for side, learns in zip(sides, learnt, strict=True)
        ]
    )


def alone(name: str) -> Callable[[Any, Any, Any], Tensor]:
    form = ALONE[name]
    return lambda batch, s, _: torch.stack([form(w, r, s) for w, r in pairs_of(batch)])


CLOSED_FORMS: dict[str, Callable[[Any, Any, Any], Tensor]] = {
    **{name: alone(name) for name in ALONE},
    "sppo": soft_sppo,
    "tpo": tpo,
    "tpo_l": tpo,
    "odpo": odpo,
    "apo_zero_unpaired": apo_zero_unpaired,
    "bco_unpaired": bco_unpaired,
    "bco_udm": bco_unpaired,
    "pipa_m": pipa_m,
    "pipa_n": pipa_n,
    "bco": bco,
    "re_po": re_po,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "kto": kto,
    "exo_rw": exo_rw,
    "infonca": infonca,
    "sft": sft,
}
"""Of the losses that draw at random, `test_drawn_losses.py` holds the closed forms."""
