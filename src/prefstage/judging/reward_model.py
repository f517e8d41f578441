"""A reward model as judge: each response is scored once, P(a ≻ b) = σ(r_a - r_b)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Self

import torch
from pydantic import Field

from prefstage.core.checkpoints import CLASSIFIER, load_checkpoint
from prefstage.core.config import Config
from prefstage.core.errors import ModelError
from prefstage.core.hashing import digest
from prefstage.core.vocabulary import check_token_ids, embedding_rows
from prefstage.core.weights import weights_fingerprint
from prefstage.data.records import prompt_id_of
from prefstage.data.tokenizer_files import load_tokenizer
from prefstage.judging.base import Item, Judge
from prefstage.judging.batching import batches_by_length, padded
from prefstage.judging.encoding import Encoding, make_encoder
from prefstage.judging.identity import tokenizer_fingerprint
from prefstage.judging.models import loading_settings


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
        _check_one_logit(model, self.name)
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
        encoder = {"kind": type(self._encode).__name__, **_limits(self._encode)}
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
            self._count(chosen)
            yield from zip(batch, logits, strict=True)

    def _count(self, encodings: Sequence[Encoding]) -> None:
        self._counts["calls"] += len(encodings)
        self._counts["truncated"] += sum(e.prompt_cut or e.response_cut for e in encodings)
        self._counts["responses_truncated"] += sum(e.response_cut for e in encodings)


def _check_one_logit(model: Any, name: str) -> None:
    if model.config.num_labels != 1:
        raise ModelError.of(
            saw=f"{name} gives {model.config.num_labels} logits",
            expected="a reward model with one logit (num_labels = 1)",
            cure="use a Bradley-Terry reward model; classifiers and multi-objective reward "
            "models can be wrapped in a Python function (python:module:function)",
        )


def _limits(encoder: Any) -> dict[str, int | None]:
    return {"max_length": encoder.max_length, "max_prompt_tokens": encoder.max_prompt_tokens}
