"""Token ids against the embeddings of a model: those that are used must be there."""

from collections.abc import Iterable
from typing import Any

from prefstage.core.errors import InputError


def check_token_ids(ids: Iterable[int], rows: int, *, where: str, tokenizer: Any = None) -> None:
    """Check that a model has an embedding for every token of a text.

    A tokenizer may know more tokens than the model, as long as no text uses them.

    Args:
        ids: Of one text.
        rows: Embeddings of the model.
        where: Which text, for the message.
        tokenizer: That made the ids, to name the token.

    Raises:
        InputError: If an id is negative or beyond the embeddings.
    """
    unknown = next((token for token in ids if not 0 <= token < rows), None)
    if unknown is None:
        return
    text = None
    if tokenizer is not None and unknown >= 0:
        text = tokenizer.convert_ids_to_tokens(int(unknown))
    raise InputError.of(
        saw=f"{where}: token {unknown}" + (f" ({text!r})" if text else ""),
        expected=f"ids from 0 to {rows - 1}, the model's vocabulary",
        cure="use the model's own tokenizer, or give the model embeddings for the new tokens "
        "(model.resize_token_embeddings)",
    )


def ids_without_token(tokenizer: Any, rows: int) -> list[int]:
    """Ids of a model's embeddings that no token of its tokenizer has.

    Embeddings are often padded to a round number; a text never holds such an id.

    Args:
        tokenizer: Of transformers.
        rows: Embeddings of the model.

    Returns:
        The ids, ascending.
    """
    known = set(tokenizer.get_vocab().values())
    return [token for token in range(rows) if token not in known]


def embedding_rows(model: Any) -> int:
    """How many token ids a model has embeddings for.

    Args:
        model: Of transformers.

    Returns:
        The number.
    """
    embeddings = model.get_input_embeddings()
    return int(getattr(embeddings, "num_embeddings", None) or len(embeddings.weight))
