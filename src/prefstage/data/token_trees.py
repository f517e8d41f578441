"""Prompts and responses as tokens, and the account of their encoding."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenTree:
    """One prompt and its responses as tokens; the prompt stands once.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt_ids: Tokens of the prompt, generation prompt included.
        response_ids: Tokens of each response, end-of-turn included unless truncated;
            none is empty.
        opening_ids: What the generation prompt has after `prompt_ids`, where the border moved:
            a policy that is asked for a response reads both.
    """

    prompt_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[tuple[int, ...], ...]
    opening_ids: tuple[int, ...] = ()


@dataclass
class EncodingCounts:
    """What encoding did so far.

    Attributes:
        prompts: Prompts encoded.
        responses: Responses encoded.
        prompts_truncated: Prompts that lost their beginning.
        prompt_tokens_dropped: Tokens they lost.
        responses_truncated: Responses that lost their end, end-of-turn included.
        response_tokens_dropped: Tokens they lost.
        borders_moved: Trees whose responses begin before the generation prompt's end: the
            template renders another opening once a response follows, or the tokenizer
            merges the prompt's end with a response's start.
        openings_removed: Prompts that ended with the generation prompt's own opening.
        without_end: Responses after which the chat template writes no end-of-turn.
        control_tokens: Prompts and responses whose text spells a control token.
        thoughts_left_out: Responses whose thought the chat template does not show.
        sampled: Responses that are the tokens which a policy generated.
    """

    prompts: int = 0
    responses: int = 0
    prompts_truncated: int = 0
    prompt_tokens_dropped: int = 0
    responses_truncated: int = 0
    response_tokens_dropped: int = 0
    borders_moved: int = 0
    openings_removed: int = 0
    without_end: int = 0
    control_tokens: int = 0
    thoughts_left_out: int = 0
    sampled: int = 0
