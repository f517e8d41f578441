"""A reward model as judge: each response is scored once, P(a ≻ b) = σ(r_a - r_b)."""

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from pydantic import Field

from prefstage.core.checkpoints import CLASSIFIER, load_checkpoint
from prefstage.core.config import Config
from prefstage.core.errors import InputError, ModelError
from prefstage.core.hashing import digest
from prefstage.core.weights import check_token_ids, embedding_rows, weights_fingerprint
from prefstage.data.conversation_tokens import ControlText
from prefstage.data.records import Message, Prompt, prompt_id_of
from prefstage.data.rendering import ChatTemplate
from prefstage.data.tokenizer_files import load_tokenizer
from prefstage.judging.base import Item, Judge, plain_prompt
from prefstage.judging.models import (
    batches_by_length,
    loading_settings,
    padded,
    tokenizer_fingerprint,
)

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
) -> PairEncoder | ChatEncoder:
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
    limit = max_length or _declared_limit(tokenizer, config)
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


def _declared_limit(tokenizer: Any, config: Any) -> int:
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


class RewardModelOptions(Config):
    """How a reward model reads its input, and where it runs."""

    max_length: int | None = Field(
        default=None, ge=8, description="Tokens of prompt and response; None: the model's limit."
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="Prompt tokens kept; None: cut only what does not fit."
    )
    chat_template: bool | None = Field(
        default=None, description="Use the chat template; None: if the tokenizer has one."
    )
    batch_size: int = Field(default=16, ge=1, description="Responses a forward pass.")
    device: str = Field(
        default="auto", description="auto (all GPUs, or the CPU), cpu, cuda:1, mps."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: float32 on a CPU, the checkpoint's own elsewhere."
    )


class RewardModelJudge(Judge):
    """Bradley-Terry judge around any sequence classifier with a single logit.

    Rewards are kept in memory by (prompt, response): m + n forward passes serve the m·n
    comparisons of a prompt, and asking again costs nothing.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        options: RewardModelOptions | None = None,
        name: str | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: A transformers sequence classifier with one logit, higher is better.
            tokenizer: Its tokenizer.
            options: How to encode and batch; `device` and `dtype` are not applied to a
                model that is loaded already.
            name: Short name for people; the model's own if None.

        Raises:
            ModelError: If the model has several logits, or its input limit is unknown.
        """
        self._options = options or RewardModelOptions()
        self._model = model.eval()
        self._tokenizer = tokenizer
        self.name = name or str(model.config.name_or_path or type(model).__name__)
        _check_single_logit(model, self.name)
        self._encode = make_encoder(
            tokenizer,
            model.config,
            chat_template=self._options.chat_template,
            max_length=self._options.max_length,
            max_prompt_tokens=self._options.max_prompt_tokens,
        )
        self._rewards: dict[tuple[str, str], float] = {}
        self._counts: Counter[str] = Counter(calls=0, truncated=0, responses_truncated=0)

    @classmethod
    def load(cls, path: str, *, options: RewardModelOptions | None = None) -> Self:
        """Load a reward model from a checkpoint folder or the Hub.

        Args:
            path: Folder or Hub id of an `AutoModelForSequenceClassification` checkpoint, or of
                a PEFT adapter that makes its base one.
            options: How to encode, batch and run it.

        Returns:
            The judge.

        Raises:
            ModelError: If there is no such checkpoint; a weight is missing, unexpected, of
                another shape or not finite; or it has several logits.
        """
        options = options or RewardModelOptions()
        tokenizer = load_tokenizer(path)
        device_map, dtype = loading_settings(options.device, options.dtype)
        model = load_checkpoint(path, CLASSIFIER, dtype=dtype, device_map=device_map, merge=True)
        return cls(model, tokenizer, options=options, name=path)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when first read
        """Hash of weights, precision, tokenizer, template and length limits."""
        limits = {name: getattr(self._encode, name) for name in ("max_length", "max_prompt_tokens")}
        encoder = {"kind": type(self._encode).__name__, **limits}
        weights, tokens = weights_fingerprint(self._model), tokenizer_fingerprint(self._tokenizer)
        return digest({"weights": weights, "tokenizer": tokens, "encoder": encoder})

    @property
    def counts(self) -> Mapping[str, int]:
        """Responses scored ("calls"), and how many were read with something cut off.

        "truncated" counts every (prompt, response) that did not fit; "responses_truncated"
        those of them whose response lost tokens too.
        """
        return dict(self._counts)

    def stream_scores(self, items: Sequence[Item]) -> Iterator[tuple[int, float]]:
        """Yield (position, reward) as batches finish; known rewards come first."""
        positions: dict[tuple[str, str], list[int]] = {}
        for position, (prompt, response) in enumerate(items):
            positions.setdefault((prompt_id_of(prompt), response), []).append(position)
        for key in [key for key in positions if key in self._rewards]:
            yield from ((position, self._rewards[key]) for position in positions.pop(key))
        missing = list(positions)
        encodings = [self._encode(*items[positions[key][0]]) for key in missing]
        for index, reward in self._forward(encodings):
            key = missing[index]
            self._rewards[key] = reward
            yield from ((position, reward) for position in positions[key])

    def _forward(self, encodings: Sequence[Encoding]) -> Iterator[tuple[int, float]]:
        pad_id = self._model.config.get_text_config().pad_token_id
        # Without a pad token the model itself refuses batches: it could not find the end.
        size = 1 if pad_id is None else self._options.batch_size
        rows = embedding_rows(self._model)
        for encoding in encodings:
            ids = encoding.ids["input_ids"]
            check_token_ids(ids, rows, where=f"judge {self.name}", tokenizer=self._tokenizer)
        lengths = [len(encoding.ids["input_ids"]) for encoding in encodings]
        for batch in batches_by_length(lengths, batch_size=size):
            chosen = [encodings[index] for index in batch]
            inputs = padded(
                [encoding.ids for encoding in chosen],
                pad_id=pad_id or 0,
                device=self._model.device,
            )
            with torch.inference_mode():
                logits = self._model(**inputs).logits[:, 0].float().tolist()
            cuts = [(encoding.prompt_cut, encoding.response_cut) for encoding in chosen]
            self._counts.update(
                calls=len(cuts),
                truncated=sum(map(any, cuts)),
                responses_truncated=sum(response for _, response in cuts),
            )
            yield from zip(batch, logits, strict=True)


def _check_single_logit(model: Any, name: str) -> None:
    if model.config.num_labels != 1:
        raise ModelError.of(
            saw=f"{name} gives {model.config.num_labels} logits",
            expected="a reward model with one logit (num_labels = 1)",
            cure="use a Bradley-Terry reward model; classifiers and multi-objective reward "
            "models can be wrapped in a Python function (python:module:function)",
        )
