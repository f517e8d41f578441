"""Every preference loss as a pure function, and the registry that says what each needs."""

from prefstage.losses.batches import (
    GroupBatch,
    LossBatch,
    PairBatch,
    ResponseBatch,
    Responses,
    Totals,
    UnpairedBatch,
)
from prefstage.losses.catalogue import LOSSES
from prefstage.losses.mixing import LossMix, LossSpec, LossTerm, get_loss, parse_loss
from prefstage.losses.registry import Loss, LossSettings, LossState, LossValues

__all__ = [
    "LOSSES",
    "GroupBatch",
    "Loss",
    "LossBatch",
    "LossMix",
    "LossSettings",
    "LossSpec",
    "LossState",
    "LossTerm",
    "LossValues",
    "PairBatch",
    "ResponseBatch",
    "Responses",
    "Totals",
    "UnpairedBatch",
    "get_loss",
    "parse_loss",
]
