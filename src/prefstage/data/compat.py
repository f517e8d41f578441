"""Every reach into what transformers and datasets do not promise, and why it is needed."""

import re
from typing import TYPE_CHECKING

from datasets import IterableDataset
from datasets.utils.json import ujson_loads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prefstage.data.records import Message


def mark_control_tokens(message: "Message", pattern: re.Pattern[str]) -> "Message":
    """A message with marks around what matches, as `encode_marked_chat` looks for them.

    transformers applies both only to a whole conversation with patterns of its own
    (``sanitize_control_tokens=True``), which also takes marks of thoughts out of the
    assistant's language.
    """
    from transformers.utils import chat_template_utils

    marked: Message = chat_template_utils.mark_control_tokens(message, pattern)
    return marked


def encode_marked_chat(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a text that was rendered from marked messages."""
    from transformers.utils import chat_template_utils

    return list(chat_template_utils.encode_marked_chat(tokenizer, text))


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
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


def check_readable(text: str) -> None:
    """Raise ValueError for JSON that `datasets` could not read for other people.

    Its own parser, which `datasets` uses for JSON columns, refuses numbers above 64 bits.
    """
    ujson_loads(text)
