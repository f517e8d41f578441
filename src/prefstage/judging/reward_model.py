"""A reward model as judge, P(a ≻ b) = σ(r_a - r_b); what judges with a model of their own share."""

import datetime
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence

from prefstage.core import (
    CLASSIFIER,
    Config,
    InputError,
    ModelError,
    check_numbers,
    check_token_ids,
    digest,
    embedding_rows,
    load_checkpoint,
    weights_fingerprint,
)
from prefstage.data import Message, Prompt, load_tokenizer, prompt_id_of
from prefstage.data.conversation_tokens import ControlText
from prefstage.data.messages import common_prefix
from prefstage.data.rendering import ChatTemplate
from prefstage.judging.base import Item, Judge, answered_once, plain_prompt

# Special tokens that a text spells are split: a response must not end the prompt's segment.
_AS_TEXT = {"split_special_tokens": True, "verbose": False}
# What a judge's template reads as today: Llama 3.1's default. Stored judgments outlive the day.
_JUDGES_DATE = datetime.date(2024, 7, 26)
_UNBOUNDED = 1_000_000  # tokenizers without a limit give a huge number


class ModelOptions(Config):
    """Where a judge's model runs."""

    device: str = Field(
        default="auto", description="auto (all GPUs, or the CPU), cpu, cuda:1, mps."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: float32 on a CPU, the checkpoint's own elsewhere."
    )


class ModelJudge(Judge):
    """A judge that reads token ids with a classifier of one logit.

    Args:
        model: The classifier, as of transformers.
        tokenizer: Its tokenizer.
        name: Short name for people.
        reading: What judgments depend on besides weights and tokenizer; JSON-serialisable.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, reading: Mapping[str, Any]) -> None:
        self._model, self._tokenizer, self._reading = model.eval(), tokenizer, reading
        self.name = name
        self._counts: Counter[str] = Counter(calls=0, truncated=0)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when first read
        """Hash of weights, precision, tokenizer, and how texts are shown to the model."""
        # Of the tokenizer: its vocabulary, merges, special tokens and chat template.
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = self._tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # left there by the last call, no part of the rules
            rules.pop(state, None)
        return digest(
            {
                "weights": weights_fingerprint(self._model),
                "tokenizer": digest(
                    {"rules": rules, "chat_template": self._tokenizer.chat_template}
                ),
                **self._reading,
            }
        )

    # The logits of rows of token ids, with the positions of each batch.
    def _logits(
        self, rows: Sequence[Mapping[str, Sequence[int]]], batch_size: int
    ) -> Iterator[tuple[list[int], list[float]]]:
        known = embedding_rows(self._model)
        for row in rows:
            check_token_ids(
                row["input_ids"], known, where=f"judge {self.name}", tokenizer=self._tokenizer
            )
        pad_id = self._model.config.get_text_config().pad_token_id
        # Without a pad token the model itself refuses batches: it could not find the end.
        size = batch_size if pad_id is not None else 1
        # Padding costs what tokens cost: neighbours of like length waste the least. The longest
        # first, so that a batch that does not fit into memory fails at the start.
        order = sorted(range(len(rows)), key=lambda row: (-len(rows[row]["input_ids"]), row))
        fill = {"input_ids": pad_id or 0, "attention_mask": 0, "token_type_ids": 0}
        for batch in (order[start : start + size] for start in range(0, len(order), size)):
            texts = [{**rows[i], "attention_mask": [1] * len(rows[i]["input_ids"])} for i in batch]
            # Padded on the right to the longest of them. [batch, longest].
            inputs = {
                name: pad_sequence(
                    [torch.tensor(text[name]) for text in texts],
                    batch_first=True,
                    padding_value=fill[name],
                ).to(self._model.device)
                for name in texts[0]
            }
            with torch.inference_mode():
                logits = getattr(self._model(**inputs), "logits", None)
            if not isinstance(logits, torch.Tensor) or logits.shape != (len(batch), 1):
                raise ModelError.of(
                    saw=f"{self.name} ({type(self._model).__name__}) gives "
                    + ("no logits" if logits is None else f"{[*logits.shape]} logits")
                    + f" for {len(batch)} texts",
                    expected="a judge with one logit a text",
                    cure="wrap heads of other shapes in a Python function (python:module:function)",
                )
            check_numbers(logits, self._model, what="rewards", name=self.name)
            self._counts["calls"] += len(batch)
            yield batch, logits[:, 0].float().tolist()


def loading_settings(device: str, dtype: str) -> tuple[Any, Any]:
    """Where a judge runs and in which precision, as `from_pretrained` takes them.

    Args:
        device: A torch device, or "auto" for all GPUs if there is one (a model that does
            not fit on one is spread over them).
        dtype: A torch dtype's name, or "auto": float32 on a CPU, where half precision is
            slow, and the checkpoint's own elsewhere.

    Returns:
        (device_map, torch.dtype or "auto").

    Raises:
        InputError: If torch knows no such device, or it is not there.
    """
    with_gpu = torch.cuda.is_available()
    with InputError.instead_of(
        *(RuntimeError, AssertionError),
        saw=f"device {device!r}",
        expected="a device of this machine, such as cpu, cuda or cuda:1",
        cure="leave device out to take the GPU if there is one",
    ):
        target = torch.device(("cuda" if with_gpu else "cpu") if device == "auto" else device)
        torch.empty(0, device=target)  # torch names devices that are not there as well
    device_map = "auto" if device == "auto" and with_gpu else {"": target}
    if dtype != "auto":
        return device_map, getattr(torch, dtype)
    return device_map, torch.float32 if target.type == "cpu" else "auto"


# --- Reward models -------------------------------------------------------------------------------


# What the model reads for one (prompt, response): `input_ids`, and `token_type_ids` if it wants
# them [tokens]; and whether tokens were left out to fit, of the prompt and of the response.
Encoding = tuple[Mapping[str, Sequence[int]], bool, bool]


@dataclass(frozen=True)
class Encoder:
    """What both ways of encoding (prompt, response) have in common.

    Attributes:
        tokenizer: The model's: a fast one for pairs, one with a chat template for chats.
        max_length: Tokens of the whole, special tokens included.
        max_prompt_tokens: Prompt tokens kept at most; None cuts only when the whole does
            not fit.
    """

    tokenizer: Any
    max_length: int
    max_prompt_tokens: int | None = None

    def budget(self, prompt: int, response: int, window: int) -> int:
        """Prompt tokens to keep: cut before the response is, but never below half the window.

        Args:
            prompt: Tokens of the prompt.
            response: Tokens of the response.
            window: Tokens that both may have together.

        Returns:
            The number.
        """
        limit = prompt if self.max_prompt_tokens is None else self.max_prompt_tokens
        return min(prompt, limit, max(window - response, window // 2))


class PairEncoder(Encoder):
    """Sentence-pair encoding (prompt, response), for models without a chat template.

    The prompt's text is the lone user message, or a conversation with speakers. What does
    not fit is cut from the prompt first, down to half the window, and only then from the end
    of the response, so that no response is cut to nothing. The prompt keeps its beginning.
    """

    def __call__(self, prompt: Prompt, response: str) -> Encoding:
        """Encode one (prompt, response)."""
        text = plain_prompt(prompt)
        window = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        spans = self._spans(text)
        wanted = len(self._spans(response))
        budget = self.budget(len(spans), wanted, window)
        if budget < len(spans):
            text = text[: spans[budget - 1][1]]
        ids = self.tokenizer(
            text, response, truncation="only_second", max_length=self.max_length, **_AS_TEXT
        )
        return (
            {name: ids[name] for name in ("input_ids", "token_type_ids") if name in ids},
            budget < len(spans),
            budget + wanted > window,
        )

    # Where each token stands in the text; token by token what the model will see.
    def _spans(self, text: str) -> list[tuple[int, int]]:
        return list(
            self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **_AS_TEXT)[
                "offset_mapping"
            ]
        )


class ChatEncoder(Encoder):
    """The whole conversation through the tokenizer's chat template.

    No generation prompt, and no special token besides those of the template (so no second
    BOS). What does not fit is cut from the prompt first, its oldest tokens, down to half the
    window, and only then from the end of the response.
    """

    def __call__(self, prompt: Prompt, response: str) -> Encoding:
        """Encode one (prompt, response)."""
        whole = self._ids([*prompt, {"role": "assistant", "content": response}])
        border = common_prefix(whole, self._ids(prompt))
        wanted = len(whole) - border
        budget = self.budget(border, wanted, self.max_length)
        head = whole[:border]
        if budget < border:
            bos = [head[0]] if head[0] == self.tokenizer.bos_token_id else []
            head = bos + head[border - budget + len(bos) :]
        kept = whole[border : border + self.max_length - len(head)]
        return {"input_ids": head + kept}, budget < border, len(kept) < wanted

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        if self._control.spelled(messages):
            return self._control.encode(
                self._template.render(self._control.marked(messages), generation_prompt=False)
            )
        text = self._template.render(messages, generation_prompt=False)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, None, {}, _JUDGES_DATE)

    @cached_property
    def _control(self) -> ControlText:
        return ControlText(self.tokenizer, self._template)


class RewardModelOptions(ModelOptions):
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


class RewardModelJudge(ModelJudge):
    """Bradley-Terry judge around any sequence classifier with a single logit.

    Rewards are kept in memory by (prompt, response): m + n forward passes serve the m·n
    comparisons of a prompt, and asking again costs nothing.

    Counts responses scored ("calls"), every (prompt, response) that did not fit ("truncated"),
    and those of them whose response lost tokens too ("responses_truncated").
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
            ModelError: If the model has several logits, if a chat template is asked for and the
                tokenizer has none, if the tokenizer cannot tell token positions, or no limit is
                known.
            InputError: If the limits leave no room for a response.
        """
        self._options = options or RewardModelOptions()
        name = name or str(model.config.name_or_path or type(model).__name__)
        ModelError.unless(
            model.config.num_labels == 1,
            saw=f"{name} gives {model.config.num_labels} logits",
            expected="a reward model with one logit (num_labels = 1)",
            cure="use a Bradley-Terry reward model; classifiers and multi-objective reward "
            "models can be wrapped in a Python function (python:module:function)",
        )
        self._encode = _encoder(tokenizer, model.config, self._options)
        reading = {
            "kind": type(self._encode).__name__,
            "max_length": self._encode.max_length,
            "max_prompt_tokens": self._encode.max_prompt_tokens,
        }
        super().__init__(model, tokenizer, name, reading={"encoder": reading})
        self._counts["responses_truncated"] = 0
        self._rewards: dict[tuple[str, str], float] = {}

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
        return cls(
            load_checkpoint(path, CLASSIFIER, dtype=dtype, device_map=device_map, merge=True),
            tokenizer,
            options=options,
            name=path,
        )

    def stream_scores(self, items: Sequence[Item]) -> Iterator[tuple[int, float]]:
        """Yield (position, reward) as batches finish; known rewards come first."""
        keys = [(prompt_id_of(prompt), response) for prompt, response in items]

        def ask(positions: Sequence[int]) -> Iterator[tuple[int, float]]:
            encodings = [self._encode(*items[position]) for position in positions]
            self._counts["truncated"] += sum(any(cut) for _, *cut in encodings)
            self._counts["responses_truncated"] += sum(cut for *_, cut in encodings)
            for batch, rewards in self._logits(
                [ids for ids, *_ in encodings], self._options.batch_size
            ):
                yield from zip(batch, rewards, strict=True)

        for position, reward in answered_once(keys, (self._rewards.get(key) for key in keys), ask):
            self._rewards[keys[position]] = reward
            yield position, reward


# The encoding that a reward model was made for.
def _encoder(tokenizer: Any, config: Any, options: RewardModelOptions) -> PairEncoder | ChatEncoder:
    declared = (
        getattr(tokenizer, "model_max_length", None),
        getattr(config, "max_position_embeddings", None),
    )
    limit = options.max_length or min(
        (value for value in declared if isinstance(value, int) and 0 < value < _UNBOUNDED),
        default=None,
    )
    if limit is None:
        raise ModelError.of(
            saw="neither the judge's tokenizer nor its config says its longest input",
            expected="model_max_length or max_position_embeddings",
            cure="give it in the judge's options, e.g. reward:PATH?max_length=4096",
        )
    InputError.unless(
        options.max_prompt_tokens is None or options.max_prompt_tokens < limit,
        saw=f"max_prompt_tokens={options.max_prompt_tokens} with max_length={limit}",
        expected="a prompt limit below the whole length, so that a response has room",
        cure="lower max_prompt_tokens or raise max_length",
    )
    ModelError.unless(
        tokenizer.chat_template or not options.chat_template,
        saw="chat_template=true, and the judge's tokenizer has no chat template",
        expected="a tokenizer with a chat template",
        cure="leave chat_template out, to use the pair encoding (prompt, response)",
    )
    if tokenizer.chat_template and options.chat_template is not False:
        return ChatEncoder(tokenizer, limit, options.max_prompt_tokens)
    ModelError.unless(
        tokenizer.is_fast,
        saw=f"a slow tokenizer ({type(tokenizer).__name__})",
        expected="a fast one, which tells where each token stands in the text",
        cure="save the tokenizer in the fast format (tokenizer.json)",
    )
    return PairEncoder(tokenizer, limit, options.max_prompt_tokens)
