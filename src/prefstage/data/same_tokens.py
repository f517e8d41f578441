"""What tokenising does to two responses that differ: which was cut, and why they became one."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

from prefstage.data.records import Message
from prefstage.data.token_trees import EncodingCounts, TokenTree
from prefstage.data.tokenising import ResponseEncoder

Cause = Literal["text", "truncation", "template", "normalisation"]
CAUSES: tuple[Cause, ...] = get_args(Cause)


def encode_noting_cuts(
    prompt: Sequence[Message], responses: Sequence[Message | str], encoder: ResponseEncoder
) -> tuple[TokenTree, tuple[bool, ...]]:
    """Encode responses, and say which of them lost their end.

    Args:
        prompt: Messages before the responses.
        responses: The responses.
        encoder: Turns text into tokens, and counts.

    Returns:
        The tree, and for each response whether it was cut.
    """
    before = encoder.counts.responses_truncated
    tree = encoder.encode(prompt, responses)
    cut = encoder.counts.responses_truncated - before
    limit = encoder.max_response_tokens
    if limit is None or not cut:
        return tree, (False,) * len(responses)
    full = tuple(len(ids) == limit for ids in tree.response_ids)
    if sum(full) > cut:  # a response of exactly the limit stands beside a longer one
        whole = without_limits(encoder).encode(prompt, responses)
        full = tuple(len(ids) > limit for ids in whole.response_ids)
    return tree, full


def cause_of(
    prompt: Sequence[Message], first: Message, second: Message, encoder: ResponseEncoder
) -> Cause:
    """Why two responses are the same tokens.

    Args:
        prompt: Messages before them.
        first: One response.
        second: The other one, whose tokens are the same.
        encoder: What encoded them.

    Returns:
        "text" where they are the same response; "truncation" where they differ behind the
        limit; "normalisation" where the tokenizer gives both texts the same tokens; otherwise
        "template", which does not write what differs (a field that it does not read, space at
        the ends of a text).
    """
    if first == second:
        return "text"
    one, other = without_limits(encoder).encode(prompt, [first, second]).response_ids
    if one != other:
        return "truncation"
    texts = [str(message.get("content") or "") for message in (first, second)]
    fields = [{k: v for k, v in each.items() if k != "content"} for each in (first, second)]
    ids = [_ids(encoder, text) for text in texts]
    return "normalisation" if fields[0] == fields[1] and ids[0] == ids[1] else "template"


def without_limits(encoder: ResponseEncoder) -> ResponseEncoder:
    """The same encoder without truncation, and with counts of its own."""
    whole = copy.copy(encoder)
    whole.max_prompt_tokens = whole.max_response_tokens = None
    whole.counts = EncodingCounts()
    return whole


def _ids(encoder: ResponseEncoder, text: str) -> Any:
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
