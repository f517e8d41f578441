"""Preference divergence: keep the pairs that several aspects agree about."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.building.relabelling import exchanged, reversal_of, without_raters
from prefstage.building.reversal import check_reversal
from prefstage.core.errors import InputError
from prefstage.data.records import Pair
from prefstage.judging.base import Judge, PointwiseJudge, judgment_of_rewards
from prefstage.judging.running import compare_all, comparison_of, score_all

_PAIRS_AT_ONCE = 512
_TWO = 2


def aspect_margins(pairs: Iterable[Pair], judges: Mapping[str, Judge]) -> np.ndarray[Any, Any]:
    """How far each aspect's judge prefers the chosen response.

    Args:
        pairs: The pairs.
        judges: One an aspect. A pointwise judge gives the difference of rewards, any other
            the log-odds of P, with P kept within [1e-6, 1 - 1e-6].

    Returns:
        The margins; positive where the judge prefers chosen. [pairs, aspects].
    """
    rest, parts = iter(pairs), list[np.ndarray[Any, Any]]()
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        parts.append(np.stack([_margins(chunk, judge) for judge in judges.values()], 1))
    return np.concatenate(parts) if parts else np.zeros((0, len(judges)))


def preference_divergence(margins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How far the aspects contradict each other about each pair; negative where they agree.

    With z_k the margin of aspect k over its root mean square and s_k its sign,
    ``PD = -1/(M(M-1)) Σ_k Σ_{j≠k} s_k z_j``: what the other aspects say against each one.
    Where all agree it is minus the mean of |z|. Exchanging a pair's sides changes nothing.

    Args:
        margins: As of `aspect_margins`. [pairs, aspects], at least two aspects, finite.

    Returns:
        PD. [pairs].

    Raises:
        InputError: If there are fewer than two aspects, or a margin is not finite.

    Source:
        Zhang et al. 2025, arXiv:2508.07638: the pairs of most negative divergence are kept.
        This estimate of the term from rewards is ours.
    """
    if margins.ndim != _TWO or margins.shape[1] < _TWO or not np.isfinite(margins).all():
        raise InputError.of(
            saw=f"margins of shape {margins.shape}"
            + ("" if np.isfinite(margins).all() else " with values that are no finite numbers"),
            expected="a finite margin of each pair for at least two aspects",
            cure="name two or more judges under aspects",
        )
    scale = np.sqrt((margins**2).mean(0)) if len(margins) else np.ones(margins.shape[1])
    z = margins / np.where(scale > 0, scale, 1.0)
    signs, aspects = np.sign(z), margins.shape[1]
    total = signs.sum(1) * z.sum(1) - (signs * z).sum(1)
    result: np.ndarray[Any, Any] = -total / (aspects * (aspects - 1))
    return result


def least_divergent(
    pairs: Iterable[Pair],
    margins: np.ndarray[Any, Any],
    *,
    share: float,
    judge_name: str,
    account: Account,
    accept_reversal: bool = False,
) -> Iterator[Group]:
    """Keep the share of pairs with the most negative divergence, labelled by the aspects.

    Args:
        pairs: The pairs, in the order of `margins`.
        margins: As of `aspect_margins`. [pairs, aspects].
        share: How many to keep, ⌊share·N⌋, in (0, 1].
        judge_name: Names the aspects' judges.
        account: Counts what was read, flipped and left out; gets the `reversal`.
        accept_reversal: Whether any share of reversed labels is accepted.

    Returns:
        Each kept pair by itself, its sides exchanged where the aspects' sum says so; the
        pair's `gap` is the absolute sum of the margins over their root mean squares.

    Raises:
        InputError: If more than 40 % of the kept labels are reversed, and that is not accepted.
    """
    divergence = preference_divergence(margins)
    count = int(np.floor(share * len(divergence) + 1e-9))
    kept = np.zeros(len(divergence), dtype=bool)
    kept[np.argsort(divergence, kind="stable")[:count]] = True
    scale = np.sqrt((margins**2).mean(0)) if len(margins) else np.ones(margins.shape[1])
    sums = (margins / np.where(scale > 0, scale, 1.0)).sum(1)
    account.figures |= {
        "divergence_kept_below": float(divergence[kept].max()) if count else None,
        "divergence_mean": float(divergence.mean()) if len(divergence) else None,
    }
    rows = list(pairs) if isinstance(pairs, Iterator) else pairs
    judged = zip(rows, kept, sums, strict=True)
    account.reversal = reversal_of(
        (pair, judgment_of_rewards(float(total), 0.0)) for pair, keep, total in judged if keep
    )
    check_reversal(account.reversal.as_dict(), accepted=accept_reversal, judge=judge_name)
    return _kept(zip(rows, kept, sums, strict=True), judge_name=judge_name, account=account)


def _kept(
    judged: Iterable[tuple[Pair, Any, Any]], *, judge_name: str, account: Account
) -> Iterator[Group]:
    for pair, keep, total in judged:
        account.prompts += 1
        if not keep or total == 0:
            why = "that the aspects disagree about" if not keep else "whose aspects cancel out"
            account.skip(f"pair {why}", pair.prompt_id)
            continue
        flip = bool(total < 0)
        account.add("labels_flipped", int(flip))
        account.pairs += 1
        made = without_raters(exchanged(pair) if flip else pair)
        made = replace(made, score_chosen=None, score_rejected=None)
        name = "preference-divergence"
        yield [Built(made, name, name, gap=abs(float(total)), judge=judge_name, label_flipped=flip)]


def _margins(pairs: list[Pair], judge: Judge) -> np.ndarray[Any, Any]:
    comparisons = [comparison_of(pair) for pair in pairs]
    if isinstance(judge, PointwiseJudge):
        items = [(each.prompt, text) for each in comparisons for text in (each.a, each.b)]
        rewards = np.array(score_all(judge, items))
        return np.asarray(rewards[::2] - rewards[1::2])
    found = np.array([each.probability for each in compare_all(judge, comparisons)])
    clipped = np.clip(found, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))
