"""Do on- and off-policy responses differ in the policy's own eyes?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from prefstage.core.errors import InputError
from prefstage.measuring.judged import JudgedPrompt

if TYPE_CHECKING:
    from prefstage.data import ResponseEncoder
    from prefstage.scoring import Scorer


def distinctness(log_probs: Sequence[tuple[ArrayLike, ArrayLike]]) -> float:
    """Share of comparisons in which the policy finds the on-policy response likelier.

    The mean over prompts of ``mean_ij [log π_θ(y_i|x) > log π_θ(y'_j|x)]``. The boundary
    score rests on on-policy responses being likelier than off-policy ones; the paper found
    84 to 97 %. Near ½ the "off-policy" responses are as good as the policy's own, and the
    stage says little.

    Args:
        log_probs: For each prompt the sequence log-probs under the policy of its on-policy
            responses [m] and of its off-policy responses [n]. [prompts], nats.

    Returns:
        The share, in [0, 1].

    Raises:
        InputError: If there is no prompt.

    Source:
        Sun et al. 2025, arXiv:2508.10530, App. D.1, Table 7.
    """
    if not log_probs:
        raise InputError.of(
            saw="no prompt", expected="at least one prompt", cure="measure the stage first"
        )
    shares = [
        np.mean(np.asarray(on, dtype=np.float64)[:, None] > np.asarray(off, dtype=np.float64))
        for on, off in log_probs
    ]
    return float(np.mean(shares))


def measure_distinctness(
    prompts: Sequence[JudgedPrompt], *, scorer: "Scorer", encoder: "ResponseEncoder"
) -> float:
    """Score the responses of a measurement by the policy and compare the two sides.

    Args:
        prompts: What `measure` used.
        scorer: The policy.
        encoder: Its tokenizer and template, as in sampling.

    Returns:
        As `distinctness`.
    """
    matches = [each.match for each in prompts]
    trees = [
        encoder.encode(
            match.prompt, [*match.on_policy("policy").messages(), *match.off_policy().messages()]
        )
        for match in matches
    ]
    sums = [scored.sums.numpy() for scored in scorer.score(trees)]
    return distinctness(
        [
            (each[: len(match.on)], each[len(match.on) :])
            for each, match in zip(sums, matches, strict=True)
        ]
    )
