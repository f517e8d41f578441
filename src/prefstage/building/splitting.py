"""Splits by prompt: all pairs of a prompt stand in one split."""

from collections.abc import Mapping

from prefstage.building.selecting import share_of
from prefstage.core.errors import InputError

TRAIN = "train"


def split_of(prompt_id: str, shares: Mapping[str, float], *, seed: int = 0) -> str:
    """The split of a prompt; it depends on the prompt and the seed alone.

    So a prompt stays where it is when the dataset grows, and all parts of a build agree.

    Args:
        prompt_id: The prompt.
        shares: Expected share of prompts of each split besides "train".
        seed: Of the split.

    Returns:
        The split's name.
    """
    place = share_of(seed, "split", prompt_id)
    for name, share in shares.items():
        if place < share:
            return name
        place -= share
    return TRAIN


def check_shares(shares: Mapping[str, float]) -> None:
    """Check the shares of splits.

    Args:
        shares: Share of each split besides "train".

    Raises:
        InputError: If a share is not in (0, 1), they leave nothing for training, or "train"
            is named.
    """
    bad = TRAIN in shares or any(not 0 < each < 1 for each in shares.values())
    if bad or sum(shares.values()) >= 1:
        raise InputError.of(
            saw=f"splits {dict(shares)}",
            expected="shares in (0, 1) of splits besides train, together below 1",
            cure="write it as splits: {test: 0.1}",
        )
