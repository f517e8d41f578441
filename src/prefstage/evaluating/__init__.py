"""How good is the policy: win rates one can trust, and benchmarks that users expect."""

from prefstage.evaluating.length_controlled import (
    LengthControlledWinRate,
    LengthWeights,
    length_controlled_interval,
    length_controlled_win_rate,
)

__all__ = [
    "LengthControlledWinRate",
    "LengthWeights",
    "length_controlled_interval",
    "length_controlled_win_rate",
]
