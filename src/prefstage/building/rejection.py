"""Statistical rejection sampling: responses as the optimal policy would have written them."""

import math
import random
from collections.abc import Sequence

from prefstage.building.choosing import Choose, Scored
from prefstage.core.errors import InputError
from prefstage.core.seeds import seed_for
from prefstage.data.records import Candidates

BETA, ACCEPTED = 0.5, 8


def rejection_sample(
    scores: Sequence[float], *, count: int = ACCEPTED, beta: float = BETA, draw: random.Random
) -> list[int]:
    """Accept responses by reward until there are enough.

    Round by round over those that are left: y is accepted if ``u < exp((r(y) - r_max)/β)``,
    u uniform in [0, 1) and r_max the greatest reward left, so that every round accepts.

    Args:
        scores: r of each response. [responses], finite.
        count: How many to accept, >= 1; all if there are fewer.
        beta: β > 0; small prefers the best, large takes any.
        draw: Random numbers.

    Returns:
        Places of the accepted responses, in the order of acceptance.

    Raises:
        InputError: If a setting is out of range.

    Source:
        Liu et al. 2024, arXiv:2309.06657, §3.2 and Algorithm 1 (App. A.1).
    """
    if count < 1 or not beta > 0:
        raise InputError.of(
            saw=f"count={count}, beta={beta}", expected="count >= 1 and beta > 0", cure="raise them"
        )
    left, accepted = list(range(len(scores))), list[int]()
    while left and len(accepted) < count:
        greatest = max(scores[place] for place in left)
        for place in list(left):
            if draw.random() < math.exp((scores[place] - greatest) / beta):
                accepted.append(place)
                left.remove(place)
                if len(accepted) == count:
                    break
    return accepted


def rejection_pairs(*, accepted: int = ACCEPTED, beta: float = BETA, seed: int = 0) -> Choose:
    """Pairs of accepted responses: paired at random, each response once, the better chosen.

    Args:
        accepted: Responses accepted a prompt (the paper: 8 of 64).
        beta: As for `rejection_sample`.
        seed: Of acceptance and pairing, with the prompt.

    Returns:
        The way of choosing.

    Source:
        arXiv:2309.06657, §3.3, "first-round-rank".
    """

    def choose(row: Candidates, responses: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
        draw = random.Random(seed_for(seed, "rejection-sampling", row.prompt_id))
        places = rejection_sample(
            [each.score for each in responses], count=accepted, beta=beta, draw=draw
        )
        draw.shuffle(places)
        met = zip(places[::2], places[1::2], strict=False)  # an odd one stays alone
        return [(responses[min(pair)], responses[max(pair)]) for pair in met]

    return choose
