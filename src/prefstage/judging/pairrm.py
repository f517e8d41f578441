"""PairRM as judge: both responses are read together, in both orders."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from prefstage.core.config import Config
from prefstage.core.errors import ModelError
from prefstage.core.foreign import unreadable_file
from prefstage.core.hashing import digest
from prefstage.core.vocabulary import check_token_ids, embedding_rows
from prefstage.core.weights import check_weights, not_finite_names, weights_fingerprint
from prefstage.data.tokenizer_files import load_tokenizer
from prefstage.judging.base import TIE, Comparison, Judge, Judgment, sigmoid
from prefstage.judging.batching import batches_by_length, padded
from prefstage.judging.identity import tokenizer_fingerprint
from prefstage.judging.models import loading_settings, told_errors
from prefstage.judging.pairrm_texts import CANDIDATES, SOURCE, PairRMEncoder

_MARKERS = {
    "source_prefix_id": SOURCE,
    "cand1_prefix_id": CANDIDATES[0],
    "cand2_prefix_id": CANDIDATES[1],
}


class PairRMOptions(Config):
    """How PairRM is shown a comparison, and where it runs."""

    style: Literal["conversation", "plain"] = Field(
        default="conversation",
        description="conversation: as compare_conversations; plain: prompt and response bare.",
    )
    batch_size: int = Field(default=4, ge=1, description="Comparisons a forward pass.")
    device: str = Field(default="auto", description="auto (a GPU, or the CPU), cpu, cuda:1, mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: float32 on a CPU, the checkpoint's own elsewhere."
    )


class PairRanker(nn.Module):
    """DeBERTa-v2 and a head on [h_source; h_candidate]; logit = s(a) - s(b).

    Parameter names are those of the published checkpoint.

    Source:
        Jiang, Ren & Lin 2023, arXiv:2306.02561, §3.2; checkpoint llm-blender/PairRM-hf.
    """

    def __init__(self, config: Any) -> None:
        """Build the modules with random weights from a DeBERTa-v2 configuration."""
        from transformers import DebertaV2Model

        super().__init__()
        self.config = config
        self.pretrained_model = DebertaV2Model(config)
        width = config.hidden_size
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * width, width),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(width, config.n_tasks),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logit that candidate 1 is better than candidate 2, s(1) - s(2), mean over tasks.

        Args:
            input_ids: Each row has each of the three marker tokens once. [batch, tokens].
            attention_mask: 1 on real tokens. [batch, tokens].

        Returns:
            Logits. [batch], nats.
        """
        states = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        source, first, second = (
            states[torch.arange(len(input_ids)), (input_ids == marker).int().argmax(dim=1)]
            for marker in (getattr(self.config, name) for name in _MARKERS)
        )
        scores = [self.head_layer(torch.cat([source, each], dim=-1)) for each in (first, second)]
        logits: Tensor = (scores[0] - scores[1]).mean(dim=-1)
        return logits


class PairRMJudge(Judge):
    """P(a ≻ b | x) = σ(½·(f(a, b) - f(b, a))), with f(a, b) = s(a) - s(b) read in that order.

    The verdict, f(a, b) - f(b, a) > 0, is the published one of both orders; halving makes
    the logit the mean of the two orders' logits, each of which PairRM was trained to pass
    through σ.
    """

    def __init__(
        self,
        model: PairRanker,
        tokenizer: Any,
        *,
        options: PairRMOptions | None = None,
        name: str = "PairRM",
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: The ranker.
            tokenizer: Its tokenizer, with the marker tokens.
            options: How to show comparisons and batch them.
            name: Short name for people.

        Raises:
            ModelError: If tokenizer and configuration disagree about the marker tokens.
        """
        self.name = name
        self._options = options or PairRMOptions()
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._encode = PairRMEncoder(tokenizer, style=self._options.style)
        self._counts: Counter[str] = Counter(calls=0, truncated=0)
        _check_markers(model.config, tokenizer, name)

    @classmethod
    def load(cls, path: str, *, options: PairRMOptions | None = None) -> Self:
        """Load a checkpoint in the layout of ``llm-blender/PairRM-hf``.

        Args:
            path: Folder or Hub id: config.json (DeBERTa-v2 with the marker ids), tokenizer
                files, and weights named ``pretrained_model.*`` and ``head_layer.*``.
            options: How to show comparisons, batch and run it.

        Returns:
            The judge.

        Raises:
            ModelError: If the files are not there, or weights are missing, left over, of
                another shape, or not finite.
        """
        from transformers import DebertaV2Config

        options = options or PairRMOptions()
        with told_errors(path, wanted="a checkpoint in the layout of llm-blender/PairRM-hf"):
            config = DebertaV2Config.from_pretrained(path)
        _check_config(config, path)
        tokenizer = load_tokenizer(path)
        device_map, dtype = loading_settings(options.device, options.dtype)
        model = PairRanker(config)
        weights = _read_weights(path)
        _load_weights(model, weights, path)
        if dtype == "auto":
            dtype = next(iter(weights.values())).dtype
        device = "cuda" if device_map == "auto" else device_map[""]  # 0.4 B fit on any GPU
        return cls(model.to(device=device, dtype=dtype), tokenizer, options=options, name=path)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when first read
        """Hash of weights, precision, tokenizer and the way comparisons are shown."""
        weights, tokens = weights_fingerprint(self._model), tokenizer_fingerprint(self._tokenizer)
        return digest({"weights": weights, "tokenizer": tokens, "style": self._options.style})

    @property
    def counts(self) -> Mapping[str, int]:
        """Forward passes ("calls", two a comparison) and comparisons "truncated" to fit."""
        return dict(self._counts)

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        """Judge in both orders, batch by batch; equal texts are a tie without a call."""
        wanted = []
        for position, comparison in enumerate(comparisons):
            if comparison.a == comparison.b:
                yield position, TIE
            else:
                wanted.append(position)
        encodings = [self._encode(comparisons[position]) for position in wanted]
        rows = embedding_rows(self._model.pretrained_model)
        for encoding in encodings:
            ids = encoding.forward
            check_token_ids(ids, rows, where=f"judge {self.name}", tokenizer=self._tokenizer)
        lengths = [len(encoding.forward) for encoding in encodings]
        for batch in batches_by_length(lengths, batch_size=self._options.batch_size):
            chosen = [encodings[index] for index in batch]
            orders = [order for each in chosen for order in (each.forward, each.backward)]
            logits = self._logits(orders)
            self._counts["truncated"] += sum(encoding.cut for encoding in chosen)
            for index, forward, backward in zip(batch, logits[::2], logits[1::2], strict=True):
                yield wanted[index], Judgment(sigmoid(0.5 * (forward - backward)))

    def _logits(self, rows: Sequence[Sequence[int]]) -> list[float]:
        inputs = padded(
            [{"input_ids": row} for row in rows],
            pad_id=self._tokenizer.pad_token_id,
            device=next(self._model.parameters()).device,
        )
        self._counts["calls"] += len(rows)
        with torch.inference_mode():
            logits: Tensor = self._model(**inputs)
        return [float(logit) for logit in logits.float()]


def _check_config(config: Any, path: str) -> None:
    lacking = [n for n in (*_MARKERS, "n_tasks", "drop_out") if not hasattr(config, n)]
    if lacking:
        raise ModelError.of(
            saw=f"{path}/config.json lacks {', '.join(lacking)}",
            expected="the configuration of a checkpoint like llm-blender/PairRM-hf",
            cure="use the -hf checkpoint; llm-blender/PairRM without -hf has another layout",
        )


def _check_markers(config: Any, tokenizer: Any, name: str) -> None:
    for field, token in _MARKERS.items():
        wanted, found = getattr(config, field), tokenizer.convert_tokens_to_ids(token)
        if found != wanted:
            raise ModelError.of(
                saw=f"{name}: the tokenizer has {token} as id {found}, the config says {wanted}",
                expected="the same id in both",
                cure="use the tokenizer files that were published with the checkpoint",
            )


def _read_weights(path: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    broken = unreadable_file(Path(path))
    if broken is not None:
        raise ModelError.of(
            saw=f"{broken[0]} cannot be read ({broken[1]})",
            expected="a whole file of weights",
            cure="copy or download it again",
        )
    with told_errors(path, wanted="model.safetensors or pytorch_model.bin"):
        file = cached_file(path, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        if file is not None:
            return load_file(Path(file))
        file = cached_file(path, "pytorch_model.bin")
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return weights


def _load_weights(model: PairRanker, weights: Mapping[str, Tensor], path: str) -> None:
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # Checkpoints of older transformers carry this counter; it is no weight.
    given = {n: t for n, t in weights.items() if not n.endswith(".embeddings.position_ids")}
    check_weights(
        path,
        missing=own.keys() - given.keys(),
        unexpected=given.keys() - own.keys(),
        reshaped={
            name: f"{list(given[name].shape)} in the file, {list(own[name])} by config.json"
            for name in own.keys() & given
            if own[name] != given[name].shape
        },
        not_finite=not_finite_names(given),
        expected="pretrained_model.* of the config's DeBERTa-v2 and head_layer.*",
        cure="use a checkpoint in the layout of llm-blender/PairRM-hf",
    )
    model.load_state_dict(given)
