# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .answering import (
    SampleConfig as SampleConfig,
    Sampled as Sampled,
    SampleSettings as SampleSettings,
    sample as sample,
)
from .base import (
    AnswerConfig as AnswerConfig,
    LoadOptions as LoadOptions,
    Sample as Sample,
    Sampler as Sampler,
    SampleRequest as SampleRequest,
    SamplingConfig as SamplingConfig,
    as_sampler as as_sampler,
    collect as collect,
    load_sampler as load_sampler,
    requests_for as requests_for,
    to_candidates as to_candidates,
)
from .server_sampler import ServedSampler as ServedSampler, ServerSampler as ServerSampler
from .transformers_sampler import TransformersSampler as TransformersSampler
