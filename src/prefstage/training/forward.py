"""Log-probs through the model's own call, so that the hooks of its wrappers run."""

from collections.abc import Sequence
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from prefstage.scoring.attention import Backend
from prefstage.scoring.engine import score_pass
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.padded import Batch
from prefstage.scoring.rows import Row


def install_scoring(model: Any) -> None:
    """Let a model's call take forward passes of the engine: ``model(scoring_passes=...)``.

    DDP, FSDP and DeepSpeed act on a model's call. Without `scoring_passes` the model does
    what it did before.

    Args:
        model: A causal LM, bare or with PEFT adapters, not yet wrapped.
    """
    if getattr(model.forward, "takes_scoring_passes", False):
        return
    own_forward = model.__dict__.get("forward")  # accelerate's placement hooks set one

    @wraps(type(model).forward)
    def forward(self: Any, *args: Any, scoring_passes: Any = None, **kwargs: Any) -> Any:
        if scoring_passes is not None:
            return _score_passes(self, scoring_passes, **kwargs)
        if own_forward is not None:
            return own_forward(*args, **kwargs)
        return type(self).forward(self, *args, **kwargs)

    forward.takes_scoring_passes = True  # type: ignore[attr-defined]  # functions take attributes
    model.forward = MethodType(forward, model)


def _score_passes(
    model: Any,
    passes: Sequence[Row | Batch],
    *,
    backend: Backend | None,
    statistics: tuple[str, ...] = (),
) -> tuple[Tensor, ...]:
    """Log-probs of all targets of the passes in turn, then each statistic."""
    parts = ModelParts.of(model)
    scored = [score_pass(parts, one, backend=backend, statistics=statistics) for one in passes]
    names = ("log_probs", *statistics)
    return tuple(torch.cat([getattr(each, name) for each in scored]) for name in names)
