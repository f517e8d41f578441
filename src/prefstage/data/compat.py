"""Every reach into what transformers and datasets do not promise, and why it is needed."""

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from datasets import IterableDataset
from datasets.utils.json import ujson_loads

from prefstage.data.rows import show

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Only its name, since importing transformers takes seconds.
Tokenizer: TypeAlias = "PreTrainedTokenizerBase"


def marking() -> Any:
    """The module with `mark_control_tokens(message, pattern)` and `encode_marked_chat`.

    The first puts marks around what matches in a message, as the second looks for them in the
    rendered text. transformers applies both only to a whole conversation with patterns of its
    own (``sanitize_control_tokens=True``), which also takes marks of thoughts out of the
    assistant's language.
    """
    from transformers.utils import chat_template_utils

    return chat_template_utils


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text in which no added token is looked for.

    transformers' public switch, `split_special_tokens`, still finds added tokens that are not
    special; this is what its `encode_marked_chat` uses.
    """
    return list(tokenizer._encode_without_added_tokens(text))


def arrow_origin(dataset: IterableDataset) -> bool | None:
    """Whether a stream's rows come as Arrow tables; None if a function changed such rows.

    Rows that come as Arrow tables are padded with nulls, and `datasets` knows their features
    only after it has read some; nothing public tells such a stream from one of Python objects.
    """
    source = first = getattr(dataset, "_ex_iterable", None)
    while source is not None:
        if getattr(source, "iter_arrow", None) is not None:
            return True if source is first else None
        source = getattr(source, "ex_iterable", None)
    return False


def check_storable(value: Any) -> None:
    """Raise ValueError for a value that a column of JSON would not give back as it is.

    The parser that `datasets` uses for such columns refuses numbers above 64 bits.
    """
    text = json.dumps(value)
    ujson_loads(text)
    # JSON turns keys that are no text into text, and tuples into lists: what would not
    # come back as it was is refused rather than changed.
    if json.loads(text) != value:
        raise ValueError(show(value))
