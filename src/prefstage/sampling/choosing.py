"""From logits to tokens: temperature, top-k, top-p, and one number from each row's own stream."""

from collections.abc import Sequence

import torch

from prefstage.sampling.base import SamplingConfig


def choose_tokens(
    logits: torch.Tensor, uniforms: Sequence[float], config: SamplingConfig
) -> list[int]:
    """Choose the next token of each row.

    Logits are divided by the temperature, cut to the `top_k` largest, then to the smallest
    set of mass >= `top_p`, in this order, as transformers does. The token is the inverse of
    the cumulative distribution, in the order of token ids, at the row's uniform number, all
    in float64: a row's choice depends on its own logits and number alone, and rounding
    errors in the logits (which a batch's composition perturbs) change it only if the number
    falls within the error of a border between two tokens.

    Args:
        logits: [rows, vocabulary], any float type.
        uniforms: One number in [0, 1) a row.
        config: Temperature (0 takes the likeliest token), top_k, top_p.

    Returns:
        One token id a row.

    Source:
        Top-p: Holtzman et al. 2020, arXiv:1904.09751, Eq. 3; top-k: Fan et al. 2018,
        arXiv:1805.04833, section 5.1.
    """
    if config.temperature == 0:
        return _listed(logits.argmax(dim=-1))
    kept, ids = _largest(logits, config)
    probabilities = torch.softmax(kept.double() / config.temperature, dim=-1)
    if config.top_p < 1:
        above = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(above >= config.top_p, 0.0)
    if ids is not None:  # near-ties in probability must not exchange their intervals
        order = ids.argsort(dim=-1)
        ids, probabilities = ids.gather(-1, order), probabilities.gather(-1, order)
    cumulative = probabilities.cumsum(dim=-1)
    points = torch.tensor(list(uniforms), dtype=torch.float64, device=logits.device)[:, None]
    places = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    places = places.clamp_max(cumulative.shape[-1] - 1)
    chosen = places if ids is None else ids.gather(-1, places)
    return _listed(chosen[:, 0])


def _largest(
    logits: torch.Tensor, config: SamplingConfig
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits that top-k keeps, largest first, with their ids; all, if nothing is cut."""
    vocabulary = logits.shape[-1]
    if 0 < config.top_k < vocabulary:
        return logits.topk(config.top_k, dim=-1)
    if config.top_p < 1:
        return logits.sort(dim=-1, descending=True)
    return logits, None


def _listed(tokens: torch.Tensor) -> list[int]:
    return [int(token) for token in tokens.tolist()]
