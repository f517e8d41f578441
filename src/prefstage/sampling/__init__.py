"""Who writes answers: transformers in process, any OpenAI-compatible server."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
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
    from prefstage.sampling.server_sampler import ServedSampler, ServerSampler
    from prefstage.sampling.transformers_sampler import TransformersSampler

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

# Import on first use: torch is only needed by one of them.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "answering": "SampleConfig SampleSettings Sampled sample",
        "base": "AnswerConfig LoadOptions Sample Sampler SampleRequest SamplingConfig as_sampler "
        "collect load_sampler requests_for to_candidates",
        "server_sampler": "ServedSampler ServerSampler",
        "transformers_sampler": "TransformersSampler",
    },
)
