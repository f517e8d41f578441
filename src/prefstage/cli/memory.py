"""What a job needs in memory, from a model's configuration alone: no weight is loaded."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefstage.core.errors import InputError, ModelError
from prefstage.scoring.kept import LayerShape
from prefstage.scoring.linear import KEPT_ELEMENTS

Job = Literal["score", "sample", "train"]
JOBS: tuple[Job, ...] = ("score", "sample", "train")

DTYPES = ("float32", "bfloat16", "float16")
_FLOAT32_BYTES = 4
_ADAM_MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class ModelShape(LayerShape):
    """The sizes of a causal language model that its memory depends on, in one dtype.

    Attributes:
        architecture: Name of its class.
        dtype: Of weights and activations: "float32", "bfloat16" or "float16".
        parameters: Number of weights, tied ones once.
        weight_bytes: Their memory.
        value_bytes: Memory of one value.
        pass_bytes: Memory that a forward pass without gradient takes for one token.
        step_bytes: Memory that the trainer allows for one token when it chooses its budget.
        vocabulary: Entries of the vocabulary.
    """

    architecture: str
    dtype: str
    parameters: int
    weight_bytes: int
    value_bytes: int
    pass_bytes: int
    step_bytes: int
    vocabulary: int


@dataclass(frozen=True)
class JobSize:
    """How much is computed at once.

    Attributes:
        job: What is done.
        batch: Prompts in memory together, >= 1.
        responses: Responses of each, >= 1.
        prompt_tokens: Tokens of a prompt, >= 1.
        max_tokens: Tokens of a response at most, >= 1.
    """

    job: Job
    batch: int = 8
    responses: int = 2
    prompt_tokens: int = 256
    max_tokens: int = 256

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: If the job is unknown or a size is below 1.
        """
        if self.job not in JOBS:
            raise InputError.of(
                saw=f"--job {self.job}", expected=f"one of {', '.join(JOBS)}", cure="choose one"
            )
        for name in ("batch", "responses", "prompt_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError.of(
                    saw=f"--{name.replace('_', '-')} {getattr(self, name)}",
                    expected="at least 1",
                    cure="raise it",
                )

    @property
    def row_tokens(self) -> int:
        """Tokens of all prompts, each once, and of all responses."""
        return self.batch * self.item_tokens

    @property
    def item_tokens(self) -> int:
        """Tokens of one prompt and its responses."""
        return self.prompt_tokens + self.responses * self.max_tokens


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a job by what it is for, in bytes; what does not apply is 0.

    Attributes:
        weights: The model.
        kv_cache: Keys and values of prompts and responses so far.
        activations: The largest set of intermediate results held at once.
        logits: Logits kept for the backward pass.
        gradients: One a weight.
        optimizer: AdamW's two moments.
    """

    weights: int
    kv_cache: int = 0
    activations: int = 0
    logits: int = 0
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        """The parts and their total, JSON-serialisable."""
        return {**asdict(self), "total": self.total}


def check_dtype(dtype: str) -> None:
    """Check the name of a dtype.

    Args:
        dtype: The name.

    Raises:
        InputError: If it is none of those that models are kept in.
    """
    if dtype not in DTYPES:
        raise InputError.of(
            saw=f"--dtype {dtype}", expected=f"one of {', '.join(DTYPES)}", cure="choose one"
        )


def model_shape(config: Any, *, dtype: str) -> ModelShape:
    """Read a model's sizes off its configuration, counting weights on the meta device.

    Args:
        config: A transformers configuration of a causal language model.
        dtype: Of weights and activations: "float32", "bfloat16" or "float16".

    Returns:
        The sizes.

    Raises:
        InputError: If the dtype is unknown.
        ModelError: If the configuration is of no causal language model.
    """
    check_dtype(dtype)
    import torch
    from transformers import AutoModelForCausalLM

    from prefstage.scoring.budget import bytes_per_token
    from prefstage.scoring.model_parts import ModelParts
    from prefstage.training.memory import training_bytes_per_token

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except ValueError as error:
        raise ModelError.of(
            saw=f"{type(config).__name__}: {next(iter(str(error).splitlines()), '')[:200]}",
            expected="the configuration of a causal language model",
            cure="name a model that AutoModelForCausalLM loads",
        ) from None
    weights, parts = list(model.parameters()), ModelParts.of(model)
    return ModelShape(
        **asdict(LayerShape.of(model)),
        architecture=type(model).__name__,
        dtype=dtype,
        parameters=sum(weight.numel() for weight in weights),
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        value_bytes=getattr(torch, dtype).itemsize,
        pass_bytes=bytes_per_token(parts),
        step_bytes=training_bytes_per_token(parts, checkpointing=False),
        vocabulary=config.get_text_config().vocab_size,
    )


def estimate_memory(
    shape: ModelShape, size: JobSize, *, pass_tokens: int, on_cpu: bool = True
) -> MemoryEstimate:
    """Estimate what a job needs beside the libraries themselves.

    With v bytes a value, h the hidden, i the intermediate, q and k the query and key width,
    T = batch · (prompt + responses · response) tokens, and F the bytes that one token of a
    forward pass takes (`prefstage.scoring.budget.bytes_per_token`: one layer's tensors live
    at a time, so the number of layers plays no part; log-probs are computed in chunks that are
    small beside it):

    - score: F · min(T, P), where P is the scorer's token budget, or one text if that is
      longer.
    - sample: the larger of the prompts' forward pass, F · batch · prompt, and the last logits
      of every row with their float32 copy; keys and values of every row,
      ``2 v k · (layers + 1) · batch · responses · (prompt + response)``, one layer twice
      while rows are chosen.
    - train: what the backward pass needs of every layer, ``v · layers · w`` bytes a token of
      a micro-batch, one layer's forward pass beside it, gradients of the size of the weights,
      and AdamW's two moments of the same size each. A micro-batch has min(T, P) tokens, or
      those of one prompt with its responses if they are more; on a CPU such a long one keeps
      no more than P tokens do. With norms and MLPs of a form that runs as single steps
      ``w = 2 h + 2 q + 2 k + 2 i`` on a CPU, where norms are computed again, and 2 h more
      elsewhere; otherwise ``w = 6 h + 2 q + 2 k + 4 i``. On a CPU also the float32 logits of
      its response tokens, up to 128 MiB (`prefstage.scoring.linear.KEPT_ELEMENTS`) and what P
      tokens would keep more. Without gradient checkpointing, in one process; reference
      log-probs are stored data and need no second model.

    Args:
        shape: The model, in the dtype that it will have.
        size: The job.
        pass_tokens: The token budget P of the scorer, or of the trainer.
        on_cpu: Whether it is done on a CPU.

    Returns:
        The estimate, in bytes.
    """
    if size.job == "sample":
        return MemoryEstimate(
            weights=shape.weight_bytes,
            kv_cache=_kv_cache(shape, size),
            activations=max(
                shape.pass_bytes * size.batch * size.prompt_tokens,
                size.batch * size.responses * shape.vocabulary * _logit_bytes(shape),
            ),
        )
    if size.job == "score":
        text = size.prompt_tokens + size.max_tokens
        tokens = min(size.row_tokens, max(pass_tokens, text))
        return MemoryEstimate(weights=shape.weight_bytes, activations=shape.pass_bytes * tokens)
    return _training_memory(shape, size, pass_tokens, on_cpu)


def trainer_budget(shape: ModelShape, free_bytes: int, *, on_cpu: bool) -> int:
    """The token budget that the trainer would choose on a machine.

    Args:
        shape: The model, all of whose weights are trained.
        free_bytes: Memory that is free before the model is loaded.
        on_cpu: Whether it is trained on a CPU.

    Returns:
        Tokens of a micro-batch.
    """
    from prefstage.training.memory import STATES_A_PARAMETER, tokens_that_fit

    states = shape.parameters * _FLOAT32_BYTES * STATES_A_PARAMETER
    reserved = 2 * shape.weight_bytes + states  # gradients are as large as the weights
    return tokens_that_fit(free_bytes - reserved, shape.step_bytes, on_cpu=on_cpu)


def _training_memory(
    shape: ModelShape, size: JobSize, pass_tokens: int, on_cpu: bool
) -> MemoryEstimate:
    tokens = min(size.row_tokens, max(pass_tokens, size.item_tokens))
    kept_tokens = min(tokens, pass_tokens) if on_cpu else tokens
    token_bytes = shape.layers * shape.value_bytes * shape.kept_values(norms_again=on_cpu)
    response_tokens = tokens * size.responses * size.max_tokens // size.item_tokens
    room = _FLOAT32_BYTES * KEPT_ELEMENTS + token_bytes * (pass_tokens - kept_tokens)
    return MemoryEstimate(
        weights=shape.weight_bytes,
        activations=token_bytes * kept_tokens + shape.pass_bytes * tokens,
        logits=min(_FLOAT32_BYTES * shape.vocabulary * response_tokens, room) if on_cpu else 0,
        gradients=shape.weight_bytes,
        optimizer=_ADAM_MOMENTS * shape.weight_bytes,
    )


def _kv_cache(shape: ModelShape, size: JobSize) -> int:
    places = size.batch * size.responses * (size.prompt_tokens + size.max_tokens)
    return 2 * shape.value_bytes * shape.key_width * places * (shape.layers + 1)


def _logit_bytes(shape: ModelShape) -> int:
    return shape.value_bytes + _FLOAT32_BYTES
