"""The one memory model: what a model's weights, passes and steps take, and what is free.

The doctor, dry runs, the scorer's and the trainer's token budgets and the advice after memory ran
out all ask here. Estimates come from a configuration alone; no weight is loaded for them.
"""

import re
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil
import torch

from prefstage.core import InputError, ModelError, trust_remote_code
from prefstage.scoring.cpu.fused import has_fused_form
from prefstage.scoring.cpu.lean import KEPT_ELEMENTS
from prefstage.scoring.engine import ModelParts

Job = Literal["score", "sample", "train"]
JOBS: tuple[Job, ...] = ("score", "sample", "train")
DTYPES = ("float32", "bfloat16", "float16")

CPU_TOKENS = 1024
"""More gains nothing on a CPU: products are large enough, and activations leave the cache."""

TRAINING_CPU_TOKENS = 896
"""Tokens of a micro-batch on a CPU at most: larger ones keep more for the backward pass."""

GPU_TOKENS = 1 << 14
"""Likewise on a GPU."""

MIN_TOKENS = 128
SCORING_SHARE, TRAINING_SHARE = 0.5, 0.6
"""Shares of the free memory that passes may take; the rest is for what is not counted."""

ADAM_MOMENTS = 2
"""Values that an optimiser keeps a parameter, in float32."""

_FLOAT32_BYTES = 4
_SAFE_SHARE = 0.9
_ROUND_TOKENS = 64
# torch's CPU allocator raises a bare RuntimeError, in words that differ by platform and version.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


# --- What a model takes -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a causal language model that its memory depends on, in one dtype.

    Attributes:
        architecture: Name of its class.
        dtype: Of weights and activations, such as "float32".
        value_bytes: Memory of one value.
        parameters: Number of weights, tied ones once.
        weight_bytes: Their memory.
        trained: Weights that are trained.
        trained_bytes: Their memory, which is also that of their gradients.
        vocabulary: Entries of the vocabulary.
        layers: Number of layers.
        hidden: Width of the residual stream.
        intermediate: Width inside the MLP; of a mixture, of the experts a token visits.
        query_width: Heads times head_dim.
        key_width: Key-value heads times head_dim.
        fused: Whether norms and MLPs are of a form that runs as single steps.
    """

    architecture: str
    dtype: str
    value_bytes: int
    parameters: int
    weight_bytes: int
    trained: int
    trained_bytes: int
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    query_width: int
    key_width: int
    fused: bool

    @staticmethod
    def of(model: Any) -> "ModelShape":
        """Read the sizes off a causal language model, on any device.

        Args:
            model: A transformers model, bare or with adapters.
        """
        parts = ModelParts.of(model)
        config = parts.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 1
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        head = parts.projection.weight
        weights = list(model.parameters())
        trained = [w for w in weights if w.requires_grad]
        experts = int(getattr(config, "num_experts_per_tok", None) or 0)
        return ModelShape(
            architecture=type(parts.model).__name__,
            dtype=str(head.dtype).removeprefix("torch."),
            value_bytes=head.element_size(),
            parameters=sum(w.numel() for w in weights),
            weight_bytes=_bytes(weights),
            trained=sum(w.numel() for w in trained),
            trained_bytes=_bytes(trained),
            vocabulary=config.vocab_size,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=_intermediate(config, experts),
            query_width=heads * head_dim,
            key_width=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
            # The experts of a mixture are no plain MLPs, whatever its norms are.
            fused=has_fused_form(parts.body) and not experts,
        )

    @staticmethod
    def of_config(config: Any, *, dtype: str) -> "ModelShape":
        """Read the sizes off a configuration.

        Args:
            config: A transformers configuration of a causal language model.
            dtype: Of weights and activations: "float32", "bfloat16" or "float16".

        Raises:
            InputError: If the dtype is unknown.
            ModelError: If the configuration is of no causal language model.
        """
        check_dtype(dtype)
        from transformers import AutoModelForCausalLM

        try:
            # On the meta device tensors have a shape and no storage: a model of 70 billion
            # weights is built in a second.
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code()
                )
        except ValueError as error:
            raise ModelError.of(
                saw=f"{type(config).__name__}: {next(iter(str(error).splitlines()), '')[:200]}",
                expected="the configuration of a causal language model",
                cure="name a model that AutoModelForCausalLM loads",
            ) from None
        return ModelShape.of(model)

    @property
    def pass_bytes(self) -> int:
        """Upper estimate of what a token of a pass without gradient takes. Bytes."""
        # One layer's tensors live at a time: residual, queries, keys, values and output (about
        # 8 widths), the two inner tensors of the gated MLP with their product and activation
        # (4 inner widths), and for a response token two float32 copies of its final state.
        values = 8 * self.hidden + 4 * self.intermediate
        return values * self.value_bytes + 2 * _FLOAT32_BYTES * self.hidden

    def step_bytes(self, *, checkpointing: bool) -> int:
        """Upper estimate of what a token's activations take until the backward pass. Bytes.

        Args:
            checkpointing: Whether layers are computed again in the backward pass.
        """
        # A layer keeps about 12 widths (residuals, normalised inputs, queries, keys, values,
        # attention's output) and 5 inner widths of the gated MLP; checkpointing keeps one
        # width a layer, and in full the one layer that is being computed again.
        layer = 12 * self.hidden + 5 * self.intermediate
        kept = layer + self.layers * self.hidden if checkpointing else self.layers * layer
        return kept * self.value_bytes + 2 * _FLOAT32_BYTES * self.hidden

    def kept_bytes(self, *, norms_recomputed: bool) -> int:
        """What all layers keep of a token until the backward pass. Bytes.

        ``v · layers · w``, with v bytes a value and, by the hidden, intermediate, query and key
        width h, i, q and k, w = 2 h + 2 q + 2 k + 2 i where norms and MLPs run as single steps,
        2 h more if norms are not computed again; 6 h + 2 q + 2 k + 4 i elsewhere.

        Args:
            norms_recomputed: Whether norms are computed again in the backward pass.
        """
        residuals, inner = (2 if norms_recomputed else 4, 2) if self.fused else (6, 4)
        kept = residuals * self.hidden + 2 * (self.query_width + self.key_width)
        return self.layers * self.value_bytes * (kept + inner * self.intermediate)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# Width inside the MLP; where layers differ, the largest.
def _intermediate(config: Any, experts: int) -> int:
    dense = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    widest = max(dense) if isinstance(dense, list | tuple) else dense
    width = int(widest or 4 * config.hidden_size)
    expert_width = int(getattr(config, "moe_intermediate_size", None) or width)
    return experts * expert_width if experts else width


# --- Token budgets ----------------------------------------------------------------------------


def scoring_budget(shape: ModelShape, free: int, *, on_cpu: bool) -> int:
    """Choose the tokens of a forward pass without gradient.

    Args:
        shape: The model, already loaded.
        free: Free memory, bytes.
        on_cpu: Whether it is a CPU's.

    Returns:
        Tokens a pass, in [128, 1024] on a CPU, up to 16,384 elsewhere.
    """
    most = CPU_TOKENS if on_cpu else GPU_TOKENS
    return int(max(MIN_TOKENS, min(SCORING_SHARE * free / shape.pass_bytes, most)))


def training_budget(
    shape: ModelShape, free: int, *, on_cpu: bool, checkpointing: bool = False, loaded: bool = True
) -> int:
    """Choose the tokens of a micro-batch, leaving room for gradients and optimiser.

    Args:
        shape: The policy.
        free: Free memory, bytes.
        on_cpu: Whether it is a CPU's.
        checkpointing: Whether layers are computed again in the backward pass.
        loaded: Whether the weights are in memory already.

    Returns:
        Tokens, in [128, 896] on a CPU, up to 16,384 elsewhere.
    """
    states = shape.trained * _FLOAT32_BYTES * ADAM_MOMENTS
    reserved = shape.trained_bytes + states + (0 if loaded else shape.weight_bytes)
    affordable = TRAINING_SHARE * (free - reserved) / shape.step_bytes(checkpointing=checkpointing)
    return int(max(MIN_TOKENS, min(affordable, TRAINING_CPU_TOKENS if on_cpu else GPU_TOKENS)))


# --- What a job takes -------------------------------------------------------------------------


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
        InputError.unless(
            self.job in JOBS,
            saw=f"--job {self.job}",
            expected=f"one of {', '.join(JOBS)}",
            cure="choose one",
        )
        for name, value in asdict(self).items():
            InputError.unless(
                name == "job" or value >= 1,
                saw=f"--{name.replace('_', '-')} {value}",
                expected="at least 1",
                cure="raise it",
            )

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
    InputError.unless(
        dtype in DTYPES,
        saw=f"--dtype {dtype}",
        expected=f"one of {', '.join(DTYPES)}",
        cure="choose one",
    )


def estimate_memory(
    shape: ModelShape, size: JobSize, *, pass_tokens: int, on_cpu: bool = True
) -> MemoryEstimate:
    """Estimate what a job needs on top of the libraries themselves.

    With v bytes a value, h the hidden, i the intermediate, q and k the query and key width,
    T = batch · (prompt + responses · response) tokens, and F the bytes that one token of a
    forward pass takes (`ModelShape.pass_bytes`: one layer's tensors live at a time, so the
    number of layers plays no part; log-probs are computed in chunks that are small):

    - score: F · min(T, P), where P is the scorer's token budget, or one text if that is
      longer.
    - sample: the larger of the prompts' forward pass, F · batch · prompt, and the last logits
      of every row with their float32 copy; keys and values of every row,
      ``2 v k · (layers + 1) · batch · responses · (prompt + response)``, one layer twice
      while rows are chosen.
    - train: what the backward pass needs of every layer, ``v · layers · w`` bytes a token of
      a micro-batch, one layer's forward pass, gradients of the size of the weights, and
      AdamW's two moments of the same size each. A micro-batch has min(T, P) tokens, or those
      of one prompt with its responses if they are more; on a CPU such a long one keeps no
      more than P tokens do. This is `ModelShape.kept_bytes`: on a CPU norms are computed again.
      On a CPU also the float32 logits of its response tokens, up to 128 MiB
      (`prefstage.scoring.cpu.lean.KEPT_ELEMENTS`) and what P tokens would keep more. Without
      gradient checkpointing, in one process; reference log-probs are stored data and need no
      second model.

    Args:
        shape: The model, in the dtype that it will have.
        size: The job.
        pass_tokens: The token budget P of the scorer, or of the trainer.
        on_cpu: Whether it is done on a CPU.

    Returns:
        The estimate, in bytes.
    """
    row_tokens = size.batch * size.item_tokens
    if size.job == "score":
        tokens = min(row_tokens, max(pass_tokens, size.prompt_tokens + size.max_tokens))
        return MemoryEstimate(weights=shape.weight_bytes, activations=shape.pass_bytes * tokens)
    if size.job == "sample":
        texts = size.batch * size.responses
        positions = texts * (size.prompt_tokens + size.max_tokens)
        logits = texts * shape.vocabulary * (shape.value_bytes + _FLOAT32_BYTES)
        return MemoryEstimate(
            weights=shape.weight_bytes,
            kv_cache=2 * shape.value_bytes * shape.key_width * positions * (shape.layers + 1),
            activations=max(shape.pass_bytes * size.batch * size.prompt_tokens, logits),
        )
    tokens = min(row_tokens, max(pass_tokens, size.item_tokens))
    kept_tokens = min(tokens, pass_tokens) if on_cpu else tokens
    token_bytes = shape.kept_bytes(norms_recomputed=on_cpu)
    response_tokens = tokens * size.responses * size.max_tokens // size.item_tokens
    room = _FLOAT32_BYTES * KEPT_ELEMENTS + token_bytes * (pass_tokens - kept_tokens)
    return MemoryEstimate(
        weights=shape.weight_bytes,
        activations=token_bytes * kept_tokens + shape.pass_bytes * tokens,
        logits=min(_FLOAT32_BYTES * shape.vocabulary * response_tokens, room) if on_cpu else 0,
        gradients=shape.trained_bytes,
        optimizer=ADAM_MOMENTS * shape.trained_bytes,
    )


# --- What is free, and what was taken ---------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch's allocator holds and nobody uses is free for us, though not for others.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    return int(psutil.virtual_memory().available)


def held_bytes(device: torch.device) -> int:
    """Memory that this process holds on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held on a device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def bytes_to_come(optimizer: Any) -> int:
    """Gradients, made anew at every step, and the optimiser's state before its first step."""
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    states = 0 if optimizer.state else sum(w.numel() for w in weights)
    return _bytes(weights) + states * _FLOAT32_BYTES * ADAM_MOMENTS


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


@dataclass
class MemoryWatch:
    """Remembers what micro-batches took, so that a failure can say what would fit.

    Attributes:
        tokens: Tokens of the largest micro-batch that succeeded.
        bytes_taken: What it took beyond what was held before it, at its peak.
    """

    tokens: int = 0
    bytes_taken: int = 0

    def note(self, tokens: int, *, held: int, peak: int) -> None:
        """Take down a micro-batch that succeeded.

        Args:
            tokens: Its tokens, prompts and responses.
            held: Bytes held before it: weights, gradients, optimiser.
            peak: Bytes at its peak.
        """
        if tokens > self.tokens and peak > held:
            self.tokens, self.bytes_taken = tokens, peak - held

    def budget(self, *, held: int, capacity: int, tokens: int, reached: int) -> int:
        """Tokens of a micro-batch that would fit.

        Memory grows with the tokens, so ``budget = share · (capacity - held) / per_token``,
        where per_token is what the largest micro-batch that succeeded took a token; if none
        did, what the failing one had taken when it failed, a lower bound.

        Args:
            held: Bytes held before the failing micro-batch.
            capacity: Bytes that the device gives.
            tokens: Tokens of the failing micro-batch.
            reached: Bytes held and requested when it failed.

        Returns:
            A multiple of 64, fewer than the failing micro-batch's tokens, at least 64.
        """
        measured = self.bytes_taken / self.tokens if self.tokens else 0.0
        per_token = max(measured, (reached - held) / tokens, 1.0)
        fitting = min(max(0, capacity - held) / per_token, tokens)
        return max(_ROUND_TOKENS, int(_SAFE_SHARE * fitting) // _ROUND_TOKENS * _ROUND_TOKENS)
