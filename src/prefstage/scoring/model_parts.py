"""The parts of a transformers model that scoring calls on their own: body and head."""

from dataclasses import dataclass
from typing import Any

import torch

from prefstage.core.errors import ModelError
from prefstage.scoring.linear import Head


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
        return ModelParts(
            model=bare,
            body=bare.get_decoder(),
            projection=projection,
            scale=_logit_scale(config),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device: torch.device = self.body.get_input_embeddings().weight.device
        return device

    def head(self) -> Head:
        """The head as it is now (its weights may be trained, sharded or adapted)."""
        return Head(
            self.projection.weight,
            getattr(self.projection, "bias", None),
            self.scale,
            self.softcap,
        )


def _logit_scale(config: Any) -> float:
    """Cohere multiplies the logits, Granite divides them."""
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    return float(1.0 if factor is None else factor) / float(1.0 if divisor is None else divisor)
