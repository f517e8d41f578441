"""What a layer keeps for its backward pass, by its widths."""

from dataclasses import dataclass
from typing import Any

from prefstage.scoring.fused_layers import has_fused_form
from prefstage.scoring.model_parts import ModelParts


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The widths of a model's layers.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        intermediate: Width inside the MLP; of a mixture, of the experts a token visits.
        query_width: Heads times head_dim.
        key_width: Key-value heads times head_dim.
        fused: Whether norms and MLPs are of a form that runs as single steps.
    """

    layers: int
    hidden: int
    intermediate: int
    query_width: int
    key_width: int
    fused: bool

    @staticmethod
    def of(model: Any) -> "LayerShape":
        """Read the widths off a causal language model, on any device.

        Args:
            model: A transformers model, bare or with adapters.
        """
        parts = ModelParts.of(model)
        config = parts.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 1
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return LayerShape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=_intermediate(config),
            query_width=heads * head_dim,
            key_width=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
            fused=has_fused_form(parts.body) and not _experts(config),
        )

    def kept_values(self, *, norms_again: bool) -> int:
        """Values a token that a layer keeps.

        With h, i, q and k the hidden, intermediate, query and key width: 2 h + 2 q + 2 k + 2 i
        where norms and MLPs run as single steps, 2 h more if norms are not computed again;
        6 h + 2 q + 2 k + 4 i elsewhere.

        Args:
            norms_again: Whether norms are computed again in the backward pass.
        """
        attention = 2 * (self.query_width + self.key_width)
        if not self.fused:
            return 6 * self.hidden + attention + 4 * self.intermediate
        return (2 if norms_again else 4) * self.hidden + attention + 2 * self.intermediate


def _experts(config: Any) -> int:
    """Experts that a token visits; 0 in a model without any."""
    return int(getattr(config, "num_experts_per_tok", None) or 0)


def _intermediate(config: Any) -> int:
    """Width inside the MLP; where layers differ, the largest."""
    expert_width = getattr(config, "moe_intermediate_size", None)
    dense = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    widest = max(dense) if isinstance(dense, list | tuple) else dense
    width = int(widest or 4 * config.hidden_size)
    experts = _experts(config)
    return experts * int(expert_width or width) if experts else width
