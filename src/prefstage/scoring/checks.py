"""Checks of token trees against a model, before any time is spent."""

import logging
from collections.abc import Sequence
from typing import Any

from prefstage.core.errors import InputError
from prefstage.core.weights import check_token_ids
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.model_parts import ModelParts

_log = logging.getLogger(__name__)


def check_fits(trees: Sequence[TokenTree], parts: ModelParts, *, tokenizer: Any = None) -> None:
    """Check that a model knows every token and every position.

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
            if not _is_rotary(parts.body.config):
                raise InputError.of(
                    saw=f"tree {index} ({tree.prompt_id}): a text of {longest} tokens",
                    expected=f"at most {positions}, the positions of the model",
                    cure="lower max_prompt_tokens or max_response_tokens of the encoder",
                )
    if too_long:
        _log.warning("%d texts are longer than the model's %d positions", too_long, positions)


def _is_rotary(config: Any) -> bool:
    return getattr(config, "rope_parameters", None) is not None
