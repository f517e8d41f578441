"""The figures of a diagnosis: of the pairs themselves, by judges, and by a model's log-probs."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import torch

from prefstage.core import MissingDependencyError
from prefstage.data.records import Candidates, Pair
from prefstage.data.storage import DiskNumbers, Numbers, count_different, text_number
from prefstage.data.tokenising import CAUSES
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.flips import (
    LEARNABILITY_GROUPS,
    flip_threshold,
    intra_diversity,
    largest_flippable,
    learnability_groups,
    reference_log_ratio,
    right_at_loss,
)
from prefstage.diagnosing.numbers import (
    HALF,
    bootstrap_interval,
    cohens_kappa,
    describe_sorted,
    distinct_share,
    histogram,
    verdicts,
)
from prefstage.diagnosing.rankings import (
    TIE_SCALES,
    alignment_gap,
    idealized_ranking_accuracy,
    mean_log_probs,
    ranking_accuracy,
    ranking_accuracy_with_ties,
    reward_accuracy,
)
from prefstage.diagnosing.scoring import PairLogProbs
from prefstage.judging.base import (
    Judge,
    content_of,
    judgment_of_rewards,
)
from prefstage.judging.judged import agreement_with_labels, compare_all, comparison_of, score_all
from prefstage.measuring.stage import excerpt_of

_LENGTHS = ("prompt", "chosen", "rejected")
_SCORES = ("score_chosen", "score_rejected", "gap")
_CHUNK = 1024
_EXCERPT = 100


def data_figures(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Count, measure lengths and scores, and see how far length explains the labels.

    Memory does not grow with the pairs: lengths, scores and hashes of prompts wait on disk.

    Args:
        pairs: The pairs, read once.

    Returns:
        `pairs`; `prompts`, different ones; `ties`, pairs whose raters are split evenly;
        `votes`, pairs with an agreement; `identical`, pairs with the same text on both sides;
        `characters`, length of prompts, chosen and rejected responses; `longer_wins`, how often
        "the longer response is better" gives the label, equal lengths half, over pairs that are
        no ties (None without such pairs); `length_correlation`, of the difference in length with
        the label, both presentation orders taken, Σd / √(n Σd²) (None where lengths never
        differ); `scores`, distribution of chosen and rejected scores and of their gap (empty
        without); `gap_histogram`, the figure's data (None without). Quantiles are exact.
    """
    count = Counter(pairs=0, ties=0, votes=0, identical=0)
    # Of the labelled pairs: n, how often the longer one wins, Σd and Σd².
    sums = np.zeros(4)
    with ExitStack() as stack:
        columns = {name: stack.enter_context(DiskNumbers()) for name in (*_LENGTHS, *_SCORES)}
        prompts = stack.enter_context(DiskNumbers("uint64"))
        rest = iter(pairs)
        while chunk := list(islice(rest, _CHUNK)):
            lengths = np.array(
                [
                    [len(_text(part)) for part in (pair.prompt, pair.chosen, pair.rejected)]
                    for pair in chunk
                ],
                float,
            )
            # As numbers, no score (None) is NaN.
            scores = np.array([(p.score_chosen, p.score_rejected) for p in chunk], float)
            for column, values in zip(
                columns.values(),
                np.hstack([lengths, scores, scores[:, :1] - scores[:, 1:]]).T,
                strict=True,
            ):
                column.extend(values)
            prompts.extend([text_number(pair.prompt_id) for pair in chunk])
            has_label = np.array([pair.agreement != HALF for pair in chunk])
            count.update(
                pairs=len(chunk),
                ties=int((~has_label).sum()),
                votes=sum(pair.agreement is not None for pair in chunk),
                identical=sum(_text(pair.chosen) == _text(pair.rejected) for pair in chunk),
            )
            apart = (lengths[:, 1] - lengths[:, 2])[has_label]
            # "The longer one wins" as a preference: beyond ½ where the chosen one is longer.
            sums += len(apart), verdicts(HALF + apart).sum(), apart.sum(), (apart**2).sum()
        labelled, longer, apart_sum, squares = sums.tolist()
        scored = {name.removeprefix("score_"): columns[name].sort() for name in _SCORES}
        known = len(scored["gap"]) > 0 and not np.isnan(scored["gap"][0])  # NaN stand last
        return {
            **count,
            "prompts": count_different(prompts),
            "characters": {n: describe_sorted(columns[n].sort()) for n in _LENGTHS},
            "longer_wins": longer / labelled if labelled else None,
            "length_correlation": apart_sum / math.sqrt(labelled * squares) if squares else None,
            "scores": {n: describe_sorted(values) for n, values in scored.items()} if known else {},
            "gap_histogram": histogram(scored["gap"]) if known else None,
        }


def diversity_of(rows: Sequence[Candidates]) -> dict[str, float | int | None]:
    """How different the responses to one prompt are, averaged over prompts.

    Args:
        rows: Prompts with candidates; those with one response are counted and left out.

    Returns:
        distinct-1 and distinct-2 (different n-grams of words over all, of a prompt's
        responses together), self-BLEU (each response against the others, 0 to 100; high
        means alike), and the counts of prompts.

    Raises:
        MissingDependencyError: If sacrebleu is not installed.

    Source:
        distinct-n: Li et al. 2016, arXiv:1510.03055; self-BLEU: Zhu et al. 2018,
        arXiv:1802.01886, by sacrebleu's sentence BLEU.
    """
    with MissingDependencyError.instead_of(
        ImportError,
        saw="no package sacrebleu, which computes self-BLEU",
        expected="it installed",
        cure="pip install 'prefstage[build]'",
    ):
        from sacrebleu import sentence_bleu
    several = [row.responses for row in rows if len(row.responses) > 1]
    bleu = [
        [sentence_bleu(text, texts[:n] + texts[n + 1 :]).score for n, text in enumerate(texts)]
        for texts in several
    ]
    return {
        "prompts": len(several),
        "prompts_with_one_response": len(rows) - len(several),
        "distinct_1": _mean([distinct_share(texts, 1) for texts in several]),
        "distinct_2": _mean([distinct_share(texts, 2) for texts in several]),
        "self_bleu": _mean([float(np.mean(scores)) for scores in bleu]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _text(messages: Sequence[Any]) -> str:
    return "\n".join(map(content_of, messages))


def judge_figures(pairs: Sequence[Pair], judge: Judge) -> tuple[dict[str, Any], Numbers]:
    """Ask a judge about every pair; what scores responses scores every different one once.

    Args:
        pairs: The pairs, ties included.
        judge: The judge.

    Returns:
        The figures, and P(chosen ≻ rejected) of each pair. [pairs]. Figures: `judge`, its name;
        `agreement`, as `agreement_with_labels` counts, over pairs that are no ties; `kappa`,
        Cohen's κ of judge and labels over all pairs, ties a category of their own;
        `position_bias`, the share of comparisons whose two orders prefer the same position, None
        where every response is scored by itself or the judge does not tell; `position_note`, why
        it is None; `scores`, of a judge that scores responses by themselves, the distribution of
        its scores of the chosen and of the rejected responses, and of their gap (Table 5), else
        empty.
    """
    comparisons = [comparison_of(pair) for pair in pairs]
    bias: float | None = None
    note: str | None = "this judge does not tell its orders apart"
    scores = dict[str, Any]()
    if judge.pointwise:
        note = "scores each response by itself: no place to prefer"
        items = {(c.prompt_id, text): (c.prompt, text) for c in comparisons for text in (c.a, c.b)}
        rewards = dict(zip(items, score_all(judge, list(items.values())), strict=True))
        chosen = np.array([rewards[c.prompt_id, c.a] for c in comparisons])
        rejected = np.array([rewards[c.prompt_id, c.b] for c in comparisons])
        judgments = [judgment_of_rewards(a, b) for a, b in zip(chosen, rejected, strict=True)]
        scores = {
            n: describe_sorted(np.sort(side[np.isfinite(side)]))
            for n, side in {
                "chosen": chosen,
                "rejected": rejected,
                "gap": chosen - rejected,
            }.items()
        }
    else:
        # The counts are of the judge's whole life: the difference is what these pairs added.
        before = judge.counts.get("order_dependent")
        judgments = compare_all(judge, comparisons)
        after = judge.counts.get("order_dependent")
        if before is not None and after is not None:
            bias, note = (after - before) / len(pairs), None
    probabilities = np.array([judgment.probability for judgment in judgments])
    return {
        "judge": judge.name,
        "agreement": agreement_with_labels(pairs, judgments),
        "kappa": cohens_kappa(
            np.array([HALF if pair.agreement == HALF else 1.0 for pair in pairs]),
            verdicts(probabilities),
        ),
        "position_bias": bias,
        "position_note": note,
        "scores": scores,
    }, probabilities


def preference_consistency(first: Numbers, second: Numbers) -> float:
    """How often two preferences order a pair alike.

    ``E[1(P1(y1 ≻ y2) > ½) XNOR 1(P2(y1 ≻ y2) > ½)]``

    Args:
        first: P1, or anything that is positive beyond ½ where y1 is preferred. [pairs].
        second: P2. [pairs].

    Returns:
        The share, in [0, 1].

    Source:
        arXiv:2508.10530, Definition 5.5; a policy's P_θ is σ(log π(y1|x) - log π(y2|x)),
        Eq. 10.
    """
    return float(((first > HALF) == (second > HALF)).mean())


def rankings_of(
    pairs: Sequence[Pair],
    policy: PairLogProbs,
    reference: PairLogProbs | None,
    config: DiagnosisConfig,
) -> dict[str, Any]:
    """How a policy orders pairs, and how its reference could have taught it to.

    Args:
        pairs: The pairs; an `agreement` of ½ is a tie.
        policy: Their log-probs under the policy.
        reference: Under its reference; None before training, when both are the same.
        config: β and intervals.

    Returns:
        `accuracy`: R with its interval, over pairs that are no ties and whose sides are
        different tokens, None without such pairs; `accuracy_normalised`: R̃ likewise;
        `with_ties`: accuracy over all pairs of different tokens where ties have to be ties, by
        scale, empty without ties; `reward_accuracy`: of the model against its reference, None
        without; `idealized`: R* and R̃* of the reference over β, and the alignment gaps, or why
        not; `intra_diversity`: mean, spread and quantiles of log π(y_w) - log π(y_l), nats;
        `tokens_scored` and `tokens_unique`: response tokens that went through the models, and
        different ones, the same number; `left_out`: pairs that R does not count, by why;
        `counts`: truncations and the like.
    """
    labelled = _labelled(pairs, policy)
    ids = np.array([pair.prompt_id for pair in pairs])
    chosen, rejected = _sums(policy)

    def mean(values: torch.Tensor, over: Numbers) -> dict[str, Any] | None:
        if not over.any():
            return None
        return asdict(
            bootstrap_interval(values.numpy()[over], ids[over].tolist(), **config.bootstrap)
        )

    shares = [1.0 if pair.agreement is None else pair.agreement for pair in pairs]
    lengths: Any = tuple(_tensors(policy.chosen_tokens, policy.rejected_tokens))
    ties = {
        scale: mean(
            ranking_accuracy_with_ties(
                chosen,
                rejected,
                torch.tensor(shares, dtype=torch.double),
                lengths=None if scale == "probability" else lengths,
                scale=scale,
            ),
            ~policy.same_tokens,
        )
        or {}
        for scale in (TIE_SCALES if any(pair.tied for pair in pairs) else ())
    }
    before = [] if reference is None else [reference]
    left_out = {
        f"same tokens on both sides ({cause})": policy.counts.get(f"same_tokens_by_{cause}", 0)
        for cause in CAUSES
    } | {"ties of the raters": sum(pair.tied for pair in pairs)}
    return {
        "accuracy": mean(ranking_accuracy(chosen, rejected), labelled),
        "accuracy_normalised": mean(ranking_accuracy(*_means(policy)), labelled),
        "with_ties": ties,
        "reward_accuracy": mean(
            reward_accuracy(
                *_tensors(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
            ),
            labelled,
        )
        if reference
        else None,
        "idealized": _idealized(pairs, policy, reference or policy),
        "intra_diversity": asdict(intra_diversity(chosen, rejected)),
        "tokens_scored": sum(model.tokens_scored for model in (policy, *before)),
        "tokens_unique": sum(model.tokens_unique for model in (policy, *before)),
        "left_out": {f"rankings: {why}": count for why, count in left_out.items() if count},
        "counts": policy.counts,
    }


def learnability_of(
    pairs: Sequence[Pair], reference: PairLogProbs, config: DiagnosisConfig
) -> dict[str, Any] | None:
    """Which pairs are hard, easy and easy to flip, and what a target loss would fix.

    Args:
        pairs: The pairs; those without a right order are left out, as R leaves them out.
        reference: Their log-probs under the model that training starts from.
        config: β, the target loss and the limits of the groups.

    Returns:
        None where no pair has a right order; otherwise `groups`: how many pairs are easy, easy
        to flip, between and hard; `wrong`: pairs that the reference orders wrongly (c > 0);
        `flippable_at_loss`: the target loss, c* that it overcomes, the share of wrong pairs it
        fixes, and the share of all pairs then right; `log_ratio`: distribution of
        c = log π_ref(y_l) - log π_ref(y_w), nats; `histogram`: its counts, the figure's data;
        `thresholds`: at those edges the DPO loss below which a pair is right; `examples`: of
        each group the pairs furthest into it, with c and the beginnings of their texts.

    Source:
        arXiv:2405.19534, Theorem 4.1 and App. F.
    """
    kept = _labelled(pairs, reference)
    if not kept.any():
        return None
    pairs = [pair for pair, keep in zip(pairs, kept, strict=True) if keep]
    ratio = reference_log_ratio(*_tensors(reference.chosen[kept], reference.rejected[kept]))
    groups = learnability_groups(
        ratio, **config.model_dump(include={"easy_below", "flip_below", "hard_above"})
    ).numpy()
    right = right_at_loss(ratio, loss=config.target_loss, beta=config.beta).numpy()
    c = ratio.numpy()
    wrong = c > 0
    shown = histogram(c)
    examples = {}
    for number, name in enumerate(LEARNABILITY_GROUPS):
        if name != "between":
            inside = np.flatnonzero(groups == number)
            order = inside[np.argsort(-c[inside] if name == "hard" else c[inside], kind="stable")]
            examples[name] = [
                {
                    "prompt_id": pairs[i].prompt_id,
                    "log_ratio_nats": float(c[i]),
                    **{
                        part: excerpt_of(getattr(pairs[i], part), length=_EXCERPT)
                        for part in _LENGTHS
                    },
                }
                for i in order[: config.examples]
            ]
    return {
        "groups": {name: int((groups == n).sum()) for n, name in enumerate(LEARNABILITY_GROUPS)},
        "wrong": int(wrong.sum()),
        "flippable_at_loss": {
            "loss": config.target_loss,
            "beta": config.beta,
            "largest_log_ratio": largest_flippable(config.target_loss, beta=config.beta),
            "share_of_wrong": float(right[wrong].mean()) if wrong.any() else None,
            "share_right": float(right.mean()),
        },
        "log_ratio": describe_sorted(np.sort(c)),
        "histogram": shown,
        "thresholds": flip_threshold(
            torch.tensor(shown["edges"], dtype=torch.float64), beta=config.beta
        ).tolist(),
        "examples": examples,
    }


# The pairs that have a right order: no ties of the raters, nor of the tokens.
def _labelled(pairs: Sequence[Pair], scored: PairLogProbs) -> Numbers:
    return np.array([not pair.tied for pair in pairs]) & ~scored.same_tokens


# R* and R̃* of the pairs with votes, with what it takes.
def _idealized(
    pairs: Sequence[Pair], policy: PairLogProbs, reference: PairLogProbs
) -> dict[str, Any]:
    votes = np.array([pair.agreement is not None for pair in pairs]) & _labelled(pairs, policy)
    shares = [pair.agreement for pair, keep in zip(pairs, votes, strict=True) if keep]
    if not any(share is not None and share < 1 for share in shares):
        return {
            "missing": "needs votes (column agreement) that are not all unanimous; "
            "the labels here are bare"
        }
    alpha, kept = torch.tensor(shares, dtype=torch.float64), torch.from_numpy(votes)
    tied = torch.from_numpy(np.array([pair.tied for pair in pairs]) & ~policy.same_tokens)
    figures: dict[str, Any] = {"pairs": int(votes.sum()), "ties": int(tied.sum())}
    lengths = [side[tied] for side in _tensors(reference.chosen_tokens, reference.rejected_tokens)]
    scales: Any = (
        ("plain", _sums, {}),
        ("normalised", _means, {"scale": "normalised_log_prob", "lengths": tuple(lengths)}),
    )
    for kind, sides, how in scales:
        start, trained = ([side[kept] for side in sides(model)] for model in (reference, policy))
        ideal = idealized_ranking_accuracy(start[0], start[1], alpha)
        now = float(ranking_accuracy(trained[0], trained[1]).mean())
        figures[kind] = {
            "by_beta": {str(beta): value for beta, value in ideal.by_beta.items()},
            "min": ideal.min,
            "median": ideal.median,
            "max": ideal.max,
            "ranking_accuracy": now,
            "alignment_gap": alignment_gap(ideal, now),
        }
        if tied.any():
            # Votes that are even leave the reference's ratio: a tie is right if it has one already.
            chosen, rejected = (side[tied] for side in _sums(reference))
            halves = torch.full_like(chosen, HALF)
            right = float(ranking_accuracy_with_ties(chosen, rejected, halves, **how).sum())
            count, ties = len(alpha), int(tied.sum())
            figures[kind]["with_ties"] = {
                name: (getattr(ideal, name) * count + right) / (count + ties)
                for name in ("min", "median", "max")
            }
    return figures


def _tensors(*arrays: Numbers) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def _sums(scored: PairLogProbs) -> list[torch.Tensor]:
    return _tensors(scored.chosen, scored.rejected)


def _means(scored: PairLogProbs) -> list[torch.Tensor]:
    return [
        mean_log_probs(*_tensors(scored.chosen, scored.chosen_tokens)),
        mean_log_probs(*_tensors(scored.rejected, scored.rejected_tokens)),
    ]
