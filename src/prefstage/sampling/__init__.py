"""Who writes answers: transformers in process, any OpenAI-compatible server."""

from typing import TYPE_CHECKING, Any

from prefstage.sampling.answering import SampleConfig, Sampled, SampleSettings, sample
from prefstage.sampling.base import (
    AnswerConfig,
    LoadOptions,
    Sample,
    Sampler,
    SampleRequest,
    SamplingConfig,
    as_sampler,
    collect,
    load_sampler,
    requests_for,
    to_candidates,
)

if TYPE_CHECKING:
    from prefstage.sampling.server_sampler import ServedSampler as ServedSampler
    from prefstage.sampling.server_sampler import ServerSampler as ServerSampler
    from prefstage.sampling.transformers_sampler import TransformersSampler as TransformersSampler

_HEAVY = {
    "ServedSampler": "server_sampler",
    "ServerSampler": "server_sampler",
    "TransformersSampler": "transformers_sampler",
}

__all__ = [
    "AnswerConfig",
    "LoadOptions",
    "Sample",
    "SampleConfig",
    "SampleRequest",
    "SampleSettings",
    "Sampled",
    "Sampler",
    "SamplingConfig",
    "ServedSampler",
    "ServerSampler",
    "TransformersSampler",
    "as_sampler",
    "collect",
    "load_sampler",
    "requests_for",
    "sample",
    "to_candidates",
]


def __getattr__(name: str) -> Any:
    """Import samplers on first use: torch is only needed by one of them."""
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HEAVY[name]}"), name)
