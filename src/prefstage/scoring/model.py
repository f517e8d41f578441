"""The model that is scored: loading it, its parts, what it can take, and its fingerprint."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefstage.core.checkpoints import CAUSAL_LM, load_checkpoint
from prefstage.core.errors import InputError, ModelError
from prefstage.core.hashing import digest
from prefstage.core.weights import check_token_ids
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.linear import Head

_log = logging.getLogger(__name__)

# What a configuration says about a model's origin or use, but no log-prob depends on.
_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "dtype",  # the weights' dtypes are hashed with them
    "transformers_version",
    "use_cache",
}
_ELEMENTS_AT_ONCE = 1 << 26


def load_model(
    name_or_path: str, *, dtype: str = "auto", device_map: Any = None, adapter: str | None = None
) -> Any:
    """Load a causal LM in evaluation mode, with its adapter on if it is an adapter's folder.

    Args:
        name_or_path: Folder or Hub id of a model, or of a PEFT adapter, whose base it names.
        dtype: A torch dtype's name; "auto" takes float32 on a CPU and the checkpoint's dtype
            elsewhere.
        device_map: As transformers takes it; None for the GPU if there is one.
        adapter: Folder or Hub id of a PEFT adapter to put on the model.

    Returns:
        The model.

    Raises:
        InputError: If torch knows no such dtype.
        ModelError: If the model or the adapter cannot be loaded, or a weight of them is missing,
            unexpected, of another shape or not finite.
        MissingDependencyError: If an adapter is named and peft is not installed.
    """
    device = device_map or ("cuda" if torch.cuda.is_available() else "cpu")
    # Half precision has no fast matrix product on most CPUs.
    loaded: Any = getattr(torch, dtype, None)
    if dtype == "auto":
        loaded = torch.float32 if device == "cpu" else "auto"
    elif not isinstance(loaded, torch.dtype):
        raise InputError.of(
            saw=f"dtype={dtype!r}",
            expected="auto, float32, bfloat16 or float16",
            cure="use auto",
        )
    return load_checkpoint(
        str(name_or_path), CAUSAL_LM, dtype=loaded, device_map=device, adapter=adapter
    )


@dataclass(frozen=True)
class ModelParts:
    """A causal LM, taken apart.

    Attributes:
        model: The whole model, without wrappers.
        body: From tokens to final hidden states.
        projection: The output embeddings: a module with `weight` and perhaps `bias`.
        scale: Factor on the logits.
        softcap: Bound of the logits; None for none.
    """

    model: Any
    body: Any
    projection: Any
    scale: float
    softcap: float | None

    @staticmethod
    def of(model: Any) -> "ModelParts":
        """Find the parts of a causal LM, bare or with PEFT adapters.

        Raises:
            ModelError: If it has no output embeddings, or adapters that add tokens.
        """
        if any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()):
            raise ModelError.of(
                saw="adapters that put virtual tokens before the prompt",
                expected="adapters inside the layers, such as LoRA",
                cure="merge them, or use LoRA",
            )
        bare = model.get_base_model() if hasattr(model, "peft_config") else model
        projection = getattr(bare, "get_output_embeddings", lambda: None)()
        if projection is None:
            raise ModelError.of(
                saw=f"{type(bare).__name__}, which has no output embeddings",
                expected="a causal language model",
                cure="load it with AutoModelForCausalLM",
            )
        config = bare.config.get_text_config()
        # Cohere multiplies the logits, Granite divides them.
        factor = getattr(config, "logit_scale", None)
        divisor = getattr(config, "logits_scaling", None)
        return ModelParts(
            model=bare,
            body=bare.get_decoder(),
            projection=projection,
            scale=float(factor if factor is not None else 1) / float(divisor or 1),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device: torch.device = self.body.get_input_embeddings().weight.device
        return device

    def head(self) -> Head:
        """The head as it is now (its weights may be trained, sharded or adapted)."""
        bias = getattr(self.projection, "bias", None)
        return Head(self.projection.weight, bias, self.scale, self.softcap)


def check_fits(trees: Sequence[TokenTree], parts: ModelParts, *, tokenizer: Any = None) -> None:
    """Check that a model knows every token and every position, before any time is spent.

    Args:
        trees: Prompts with their responses.
        parts: The model.
        tokenizer: That made the trees, to name a token that is unknown.

    Raises:
        InputError: If a token id is outside the vocabulary, or a text is longer than the
            model's table of positions. Rotary models go on beyond their stated length,
            with a log line.
    """
    vocabulary = min(len(parts.projection.weight), len(parts.body.get_input_embeddings().weight))
    positions = getattr(parts.body.config, "max_position_embeddings", None)
    rotary = getattr(parts.body.config, "rope_parameters", None) is not None
    too_long = 0
    for index, tree in enumerate(trees):
        used = [*tree.prompt_ids, *(t for ids in tree.response_ids for t in ids)]
        where = f"tree {index} ({tree.prompt_id})"
        check_token_ids(used, vocabulary, where=where, tokenizer=tokenizer)
        longest = len(tree.prompt_ids) + max(map(len, tree.response_ids), default=1) - 1
        if positions is not None and longest > positions:
            too_long += 1
            if not rotary:
                raise InputError.of(
                    saw=f"{where}: a text of {longest} tokens",
                    expected=f"at most {positions}, the positions of the model",
                    cure="lower max_prompt_tokens or max_response_tokens of the encoder",
                )
    if too_long:
        _log.warning("%d texts are longer than the model's %d positions", too_long, positions)


# --- Fingerprints -----------------------------------------------------------------------------


def model_fingerprint(model: Any, *, with_adapter: bool = True) -> str:
    """Hash of everything in a model that its log-probs depend on.

    The configuration (without names and versions) and every weight, with its dtype. A
    model with adapters switched off has the fingerprint of the bare model, so that both
    share one reference.

    Args:
        model: A causal LM, bare or with PEFT adapters.
        with_adapter: Whether the adapters are on.

    Returns:
        32 hex digits.
    """
    bare = ModelParts.of(model).model
    adapters = getattr(model, "peft_config", {})
    used = {
        name: config.to_dict()
        for name, config in adapters.items()
        if with_adapter and name in model.active_adapters
    }
    config = {k: v for k, v in bare.config.to_dict().items() if k not in _IRRELEVANT}
    hasher = hashlib.sha256()
    for name, tensor in _weights(bare, tuple(adapters), with_adapter=with_adapter):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # In parts: the copy that a GPU's or a strided tensor needs stays small.
        for part in torch.split(tensor.detach().reshape(-1), _ELEMENTS_AT_ONCE):
            hasher.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    parts = [str(config), str(sorted(used.items())), hasher.hexdigest()]
    return digest(parts, length=32)


def response_key(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> str:
    """Hash of a prompt and a response as tokens: 32 hex digits."""
    return digest([prompt_ids, response_ids], length=32)


# Weights by the names that they have in the bare model, adapters by the names in PEFT's.
def _weights(
    bare: Any, adapters: tuple[str, ...], *, with_adapter: bool
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in sorted(bare.state_dict().items()):
        pieces = name.split(".")
        if not any(adapter in pieces for adapter in adapters):
            # PEFT moves a map that has an adapter to `.base_layer`.
            yield ".".join(piece for piece in pieces if piece != "base_layer"), tensor
        elif with_adapter:
            yield name, tensor
