"""From a model and token trees to the log-prob of every response token."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core import InputError, ModelError, check_token_ids
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import Backend, RowAttention, choose_backend, patched
from prefstage.scoring.layout import Batch, Layout, Leaf, Row, leaves_of, plan_passes
from prefstage.scoring.linear import STATISTICS, Head, TokenLogProbs, linear_log_probs

_log = logging.getLogger(__name__)


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
        ModelError.unless(
            not any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()),
            saw="adapters that put virtual tokens before the prompt",
            expected="adapters inside the layers, such as LoRA",
            cure="merge them, or use LoRA",
        )
        bare = model.get_base_model() if hasattr(model, "peft_config") else model
        projection = getattr(bare, "get_output_embeddings", lambda: None)()
        ModelError.unless(
            projection is not None,
            saw=f"{type(bare).__name__}, which has no output embeddings",
            expected="a causal language model",
            cure="load it with AutoModelForCausalLM",
        )
        config = bare.config.get_text_config()
        # Cohere multiplies the logits, Granite divides them.
        factor = getattr(config, "logit_scale", None)
        return ModelParts(
            model=bare,
            body=bare.get_decoder(),
            projection=projection,
            scale=float(1 if factor is None else factor)
            / float(getattr(config, "logits_scaling", None) or 1),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return torch.device(self.body.get_input_embeddings().weight.device)

    def head(self) -> Head:
        """The head as it is now (its weights may be trained, sharded or adapted)."""
        return Head(
            self.projection.weight,
            getattr(self.projection, "bias", None),
            self.scale,
            self.softcap,
        )


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
    too_long = 0
    for index, tree in enumerate(trees):
        used = [*tree.prompt_ids, *(t for ids in tree.response_ids for t in ids)]
        where = f"tree {index} ({tree.prompt_id})"
        check_token_ids(used, vocabulary, where=where, tokenizer=tokenizer)
        longest = len(tree.prompt_ids) + max(map(len, tree.response_ids), default=1) - 1
        if positions is not None and longest > positions:
            too_long += 1
            InputError.unless(
                getattr(parts.body.config, "rope_parameters", None) is not None,
                saw=f"{where}: a text of {longest} tokens",
                expected=f"at most {positions}, the positions of the model",
                cure="lower max_prompt_tokens or max_response_tokens of the encoder",
            )
    if too_long:
        _log.warning("%d texts are longer than the model's %d positions", too_long, positions)


# --- Passes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TreeLogProbs:
    """Log-probs of one tree's responses, in nats.

    Attributes:
        per_token: For each response, log π(y_t | x, y_<t) of each token. [tokens], float32.
        entropy: For each response, the entropy of π(· | x, y_<t). [tokens]; empty unless
            requested.
        log_sum_squares: For each response, log Σ_v π(v | x, y_<t)². Likewise.
    """

    per_token: tuple[Float[Tensor, " _"], ...]
    entropy: tuple[Float[Tensor, " _"], ...] = ()
    log_sum_squares: tuple[Float[Tensor, " _"], ...] = ()

    @cached_property
    def sums(self) -> Float[Tensor, " responses"]:
        """Σ_t log π(y_t | x, y_<t) of each response. [responses]."""
        tokens = self.per_token
        return torch.stack([t.sum() for t in tokens]) if tokens else torch.zeros(0)


def response_log_probs(
    model: Any,
    trees: Sequence[TokenTree],
    *,
    token_budget: int | None = None,
    layout: Layout = "tree",
    backend: Backend | None = None,
    statistics: Sequence[str] = (),
) -> list[TreeLogProbs]:
    """Log-probs of responses, differentiable with respect to the model's parameters.

    A prompt and its responses are computed as one tree: the prompt once. Gradients flow
    from every response into the shared prompt, so they equal those of separate sequences.

    Args:
        model: A transformers causal LM, bare or with PEFT adapters.
        trees: Prompts with their responses, as tokens.
        token_budget: Tokens a forward pass; None for one pass.
        layout: "tree", or "flat" for models whose layers mix tokens in their own way.
        backend: Implementation of tree attention; None chooses by device.
        statistics: Of "entropy" and "log_sum_squares", those wanted (no gradient).

    Returns:
        One result a tree, in the order of the trees.

    Raises:
        InputError: If a prompt or response is empty, or a statistic is unknown.
        ModelError: If the model cannot take tree attention, or drops attention weights.
    """
    parts = ModelParts.of(model)
    gathered = Gathered(trees, statistics)
    for planned in plan_passes(
        parts.body.config, leaves_of(trees), layout=layout, token_budget=token_budget
    ):
        gathered.add(
            planned.leaves,
            score_pass(parts, planned, backend=backend, statistics=gathered.names),
        )
    return gathered.trees()


def score_pass(
    parts: ModelParts,
    planned: Batch,
    *,
    backend: Backend | None = None,
    attention: RowAttention | None = None,
    statistics: tuple[str, ...] = (),
) -> TokenLogProbs:
    """Run one forward pass and read the log-probs of its targets off it.

    Args:
        parts: The model.
        planned: A row (tree layout) or a padded batch (flat layout).
        backend: Implementation of tree attention; None chooses by device.
        attention: What a row's layers are told; None makes it.
        statistics: Those wanted.

    Returns:
        Log-probs of the targets, one response of `planned` after another.
    """
    ids = planned.input_ids.to(parts.device)
    if isinstance(planned, Row):
        with patched(parts.body, tree=True):
            output = parts.body(
                input_ids=ids[None],
                position_ids=planned.position_ids[None].to(parts.device),
                # A mask of four axes is handed through as it is: none is built, none is read.
                attention_mask=torch.empty(1, 1, 0, 0, device=parts.device),
                use_cache=False,
                row_attention=attention
                or RowAttention(planned, backend or choose_backend(parts.device)[0]),
            )
    else:
        with patched(parts.body, tree=False):
            output = parts.body(input_ids=ids, use_cache=False)
    hidden, head = output.last_hidden_state.flatten(0, 1), parts.head()
    # With a model spread over devices, the head may be elsewhere than the last layer; only the
    # states that predict something go there.
    device = head.weight.device
    return linear_log_probs(
        hidden[planned.read_at.to(hidden.device)].to(device),
        planned.target_ids.to(device),
        head,
        statistics=statistics,
    )


class Gathered:
    """The results of passes, brought back into the order of the trees.

    Args:
        trees: What was requested.
        statistics: Likewise.

    Attributes:
        names: The statistics, none of them twice.

    Raises:
        InputError: If a prompt or response is empty, or a statistic is unknown.
    """

    def __init__(self, trees: Sequence[TokenTree], statistics: Sequence[str]) -> None:
        # Every response token must have a predecessor.
        for index, tree in enumerate(trees):
            if not tree.prompt_ids and tree.response_ids:
                raise InputError.of(
                    saw=f"tree {index} ({tree.prompt_id}): a prompt without tokens",
                    expected="at least one token before the response, since nothing predicts the "
                    "first",
                    cure="begin the prompt with the tokenizer's begin-of-sequence token",
                )
            if () in tree.response_ids:
                raise InputError.of(
                    saw=f"tree {index} ({tree.prompt_id}): response {tree.response_ids.index(())} "
                    "has no token",
                    expected="at least the end-of-turn token",
                    cure="encode it with ResponseEncoder, or leave it out",
                )
        unknown = sorted(set(statistics) - set(STATISTICS))
        InputError.unless(
            not unknown,
            saw=f"statistics {', '.join(unknown)}",
            expected=f"some of {', '.join(STATISTICS)}",
            cure="fix the name",
        )
        self.names = tuple(dict.fromkeys(statistics))
        self._values: dict[str, list[list[Any]]] = {
            name: [[None] * len(tree.response_ids) for tree in trees]
            for name in ("log_probs", *self.names)
        }

    def add(self, leaves: Sequence[Leaf], scored: TokenLogProbs, *, cpu: bool = False) -> None:
        """Take the results of one pass, moved to the CPU if need be."""
        sizes = [len(leaf.response_ids) for leaf in leaves]
        for name, by_tree in self._values.items():
            values = getattr(scored, name)
            values = (values.cpu() if cpu else values).split(sizes)
            for leaf, tokens in zip(leaves, values, strict=True):
                by_tree[leaf.tree][leaf.response] = tokens

    def has(self, leaf: Leaf) -> bool:
        """Whether a response's result is there."""
        return self._values["log_probs"][leaf.tree][leaf.response] is not None

    def trees(self) -> list[TreeLogProbs]:
        """The results, one a tree."""
        return [
            TreeLogProbs(
                per_token=tuple(tokens),
                **{name: tuple(self._values[name][index]) for name in self.names},
            )
            for index, tokens in enumerate(self._values["log_probs"])
        ]
