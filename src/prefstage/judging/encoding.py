"""How a prompt and a response become the token ids that a reward model reads."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from prefstage.core.errors import InputError, ModelError
from prefstage.data.conversation_tokens import ControlText
from prefstage.data.records import Message, Prompt
from prefstage.data.rendering import ChatTemplate
from prefstage.judging.texts import plain_prompt

# Special tokens that a text spells are split: a response must not end the prompt's segment.
_AS_TEXT = {"split_special_tokens": True, "verbose": False}
# What a judge's template reads as today: Llama 3.1's default. Stored judgments outlive the day.
_JUDGES_DATE = datetime.date(2024, 7, 26)
_UNBOUNDED = 1_000_000  # tokenizers without a limit give a huge number


@dataclass(frozen=True)
class Encoding:
    """What the model reads for one (prompt, response).

    Attributes:
        ids: `input_ids`, and `token_type_ids` if the model wants them. [tokens] each.
        prompt_cut: Whether prompt tokens were left out to fit.
        response_cut: Whether response tokens were left out to fit.
    """

    ids: Mapping[str, Sequence[int]]
    prompt_cut: bool
    response_cut: bool


class RewardEncoder(Protocol):
    """Turns a prompt and a response into token ids within the model's length."""

    def __call__(self, prompt: Prompt, response: str) -> Encoding:
        """Encode one response; depends on nothing but its arguments."""


@dataclass(frozen=True)
class PairEncoder:
    """Sentence-pair encoding (prompt, response), for models without a chat template.

    The prompt's text is the lone user message, or a conversation with speakers. What does
    not fit is cut from the prompt first, down to half the window, and only then from the end
    of the response, so that no response is cut to nothing. The prompt keeps its beginning.

    Attributes:
        tokenizer: A fast tokenizer.
        max_length: Tokens of the whole, special tokens included.
        max_prompt_tokens: Prompt tokens kept at most; None cuts only when the whole does
            not fit.
    """

    tokenizer: Any
    max_length: int
    max_prompt_tokens: int | None = None

    def __call__(self, prompt: Prompt, response: str) -> Encoding:
        """Encode one (prompt, response)."""
        text = plain_prompt(prompt)
        window = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        spans = self._spans(text)
        wanted = len(self._spans(response))
        budget = _prompt_budget(len(spans), wanted, window, self.max_prompt_tokens)
        prompt_cut = budget < len(spans)
        if prompt_cut:
            text = text[: spans[budget - 1][1]]
        ids = self.tokenizer(
            text, response, truncation="only_second", max_length=self.max_length, **_AS_TEXT
        )
        kept = {name: ids[name] for name in ("input_ids", "token_type_ids") if name in ids}
        return Encoding(kept, prompt_cut, response_cut=budget + wanted > window)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token stands in the text; token by token what the model will see."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, **_AS_TEXT
        )
        return list(encoded["offset_mapping"])


@dataclass(frozen=True)
class ChatEncoder:
    """The whole conversation through the tokenizer's chat template.

    No generation prompt, and no special token besides those of the template (so no second
    BOS). What does not fit is cut from the prompt first, its oldest tokens, down to half the
    window, and only then from the end of the response.

    Attributes:
        tokenizer: A tokenizer with a chat template.
        max_length: Tokens of the whole.
        max_prompt_tokens: Prompt tokens kept at most; None cuts only when the whole does
            not fit.
    """

    tokenizer: Any
    max_length: int
    max_prompt_tokens: int | None = None

    def __call__(self, prompt: Prompt, response: str) -> Encoding:
        """Encode one (prompt, response)."""
        whole = self._ids([*prompt, {"role": "assistant", "content": response}])
        border = _shared_length(whole, self._ids(prompt))
        wanted = len(whole) - border
        budget = _prompt_budget(border, wanted, self.max_length, self.max_prompt_tokens)
        head = whole[:border]
        if budget < border:
            bos = [head[0]] if head[0] == self.tokenizer.bos_token_id else []
            head = bos + head[border - budget + len(bos) :]
        kept = whole[border : border + self.max_length - len(head)]
        return Encoding({"input_ids": head + kept}, budget < border, len(kept) < wanted)

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        forged = self._control.spelled(messages)
        text = self._template.render(
            self._control.marked(messages) if forged else messages, generation_prompt=False
        )
        if forged:
            return self._control.encode(text)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, None, {}, _JUDGES_DATE)

    @cached_property
    def _control(self) -> ControlText:
        return ControlText(self.tokenizer, self._template)


def make_encoder(
    tokenizer: Any,
    config: Any,
    *,
    chat_template: bool | None,
    max_length: int | None,
    max_prompt_tokens: int | None,
) -> RewardEncoder:
    """Choose the encoding that a reward model was made for.

    Args:
        tokenizer: The model's tokenizer.
        config: The model's configuration, for its longest input.
        chat_template: Use the tokenizer's chat template; None uses it if there is one.
        max_length: Tokens of the whole; None takes the model's own limit.
        max_prompt_tokens: Prompt tokens kept at most; None cuts only what does not fit.

    Returns:
        The encoder.

    Raises:
        ModelError: If a chat template is asked for and the tokenizer has none, if the
            tokenizer cannot tell token positions, or no limit is known.
        InputError: If the limits leave no room for a response.
    """
    limit = max_length or _own_limit(tokenizer, config)
    if max_prompt_tokens is not None and max_prompt_tokens >= limit:
        raise InputError.of(
            saw=f"max_prompt_tokens={max_prompt_tokens} with max_length={limit}",
            expected="a prompt limit below the whole length, so that a response has room",
            cure="lower max_prompt_tokens or raise max_length",
        )
    if chat_template and not tokenizer.chat_template:
        raise ModelError.of(
            saw="chat_template=true, and the judge's tokenizer has no chat template",
            expected="a tokenizer with a chat template",
            cure="leave chat_template out, to use the pair encoding (prompt, response)",
        )
    if chat_template or (chat_template is None and tokenizer.chat_template):
        return ChatEncoder(tokenizer, limit, max_prompt_tokens)
    if not tokenizer.is_fast:
        raise ModelError.of(
            saw=f"a slow tokenizer ({type(tokenizer).__name__})",
            expected="a fast one, which tells where each token stands in the text",
            cure="save the tokenizer in the fast format (tokenizer.json)",
        )
    return PairEncoder(tokenizer, limit, max_prompt_tokens)


def _own_limit(tokenizer: Any, config: Any) -> int:
    """The longest input that both the tokenizer and the model declare."""
    declared = (
        getattr(tokenizer, "model_max_length", None),
        getattr(config, "max_position_embeddings", None),
    )
    limits = [value for value in declared if isinstance(value, int) and 0 < value < _UNBOUNDED]
    if not limits:
        raise ModelError.of(
            saw="neither the judge's tokenizer nor its config says its longest input",
            expected="model_max_length or max_position_embeddings",
            cure="give it in the judge's options, e.g. reward:PATH?max_length=4096",
        )
    return min(limits)


def _prompt_budget(prompt: int, response: int, window: int, limit: int | None) -> int:
    """Prompt tokens to keep: cut before the response is, but never below half the window."""
    allowed = prompt if limit is None else min(prompt, limit)
    if allowed + response <= window:
        return allowed
    return min(allowed, max(window - response, window // 2))


def _shared_length(whole: Sequence[int], start: Sequence[int]) -> int:
    """Length of the common beginning of two token sequences."""
    pairs = zip(whole, start, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(start)))
