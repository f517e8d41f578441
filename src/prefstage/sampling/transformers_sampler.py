"""Sampling with transformers in this process."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from prefstage.core import (
    CAUSAL_LM,
    InputError,
    check_token_ids,
    digest,
    embedding_rows,
    ids_without_token,
    load_checkpoint,
    weights_fingerprint,
)
from prefstage.data import ResponseEncoder, load_tokenizer
from prefstage.data.rendering import RenderingError
from prefstage.data.rows import show
from prefstage.sampling.base import (
    Sample,
    Sampler,
    SampleRequest,
    SamplingConfig,
    sample_seed,
    shared_settings,
)
from prefstage.sampling.decoding import Row, generate_rows


def plan_batches(
    lengths: Sequence[int], *, new_tokens: int, token_budget: int
) -> list[tuple[int, ...]]:
    """Put rows of like length together, so that padding wastes little.

    Rows are taken from the longest prompt down (if memory does not suffice, it shows at
    once); rows of equal length keep their order, so that the responses to one prompt stay
    together and share its computation.

    Args:
        lengths: Prompt tokens of each row. [rows].
        new_tokens: Tokens that a row may grow by.
        token_budget: Tokens that a batch may hold when every row is full-grown, padding
            included; a single row may exceed it.

    Returns:
        Positions of the rows that are generated together, each row once, the longest first.
    """
    order, batches = sorted(range(len(lengths)), key=lambda row: -lengths[row]), []
    while order:
        rows = max(1, token_budget // (lengths[order[0]] + new_tokens))
        batches.append(tuple(order[:rows]))
        order = order[rows:]
    return batches


DEFAULT_BATCH_TOKENS = 32_768


class TransformersSampler(Sampler):
    """Samples from a causal language model in this process.

    Each response has random numbers of its own, from the seed, the prompt and the response's
    index, so that it depends neither on batch size nor on order nor on resuming: exactly so
    where the logits do not depend on the batch, and up to one token in about a million in
    float32, whose last bits depend on the shape of a batch. In bfloat16 and float16 the
    logits themselves depend on the batch's shape in the third digit; responses are then
    equal in distribution, and equal in fact for equal batches.

    Only temperature, top_k, top_p and beams shape the distribution: a repetition penalty or other
    processors of the model's generation_config are not applied. An id that no token of the
    tokenizer has (of padded embeddings) is never chosen.

    Args:
        model: A transformers causal language model; it is put into evaluation mode.
        tokenizer: Its tokenizer.
        config: How to sample.
        name: For people, and for the `sources` column.
        batch_tokens: Tokens that a batch may hold when every response has grown to
            max_new_tokens; memory grows with it.
        encoder: The encoder itself, in place of one made of `tokenizer` and `encoding`.
        encoding: Arguments of `ResponseEncoder`: chat_format, max_prompt_tokens (truncated
            prompts are counted), template_options and so on.

    Raises:
        ModelError: As `ResponseEncoder`.
        InputError: If batch_tokens is below 1, or as `ResponseEncoder`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        *,
        name: str = "policy",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        encoder: ResponseEncoder | None = None,
        **encoding: Any,
    ) -> None:
        self.encoder = encoder or ResponseEncoder(tokenizer, **encoding)
        self.batch_tokens = _checked_budget(batch_tokens)
        self.model = model.eval()
        self.config = config
        self.name = name
        # All tokens that end a response: the model's, and the template's end-of-turn.
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        turn_end = self.encoder.end_of_turn_ids[-1]
        self.stop_ids = frozenset({*ends, tokenizer.eos_token_id, turn_end} - {None})
        # Ids of padded embeddings would be chosen and then vanish from the text.
        words = getattr(model.get_output_embeddings(), "out_features", None)
        rows = words or model.config.get_text_config().vocab_size
        self._forbidden = [
            token for token in ids_without_token(tokenizer, rows) if token not in self.stop_ids
        ]

    @classmethod
    def load(
        cls,
        name_or_path: str,
        config: SamplingConfig,
        *,
        dtype: str = "auto",
        device: str = "auto",
        adapter: str | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        **encoding: Any,
    ) -> Self:
        """Load a model and its tokenizer from a folder or the Hub.

        Args:
            name_or_path: A folder or an id of the Hub: of a model, or of a PEFT adapter, which
                is merged into the model that it names as its base.
            config: How to sample.
            dtype: "auto" (as the checkpoint), "float32", "bfloat16" or "float16".
            device: "auto" (all GPUs, or the CPU where there are none), "cpu", "cuda:0", ...
            adapter: Folder or Hub id of a PEFT adapter to merge into the weights.
            batch_tokens: As for the class.
            encoding: As for the class.

        Returns:
            The sampler, named after the last part of the path.

        Raises:
            ModelError: If there is no such model or adapter; if a weight of them is missing,
                unexpected, of another shape or not finite; or as for the class.
            InputError: As for the class.
        """
        InputError.unless(
            name_or_path.strip(),
            saw="an empty policy",
            expected="a model folder, a Hub id, openai:MODEL@URL or serve:COMMAND",
            cure="name one",
        )
        tokenizer = load_tokenizer(name_or_path)
        # Made here for its faults, which show in a moment; weights take minutes to load.
        ResponseEncoder(tokenizer, **encoding)
        _checked_budget(batch_tokens)
        model = load_checkpoint(
            name_or_path,
            CAUSAL_LM,
            dtype=dtype,
            device_map="cpu" if device == "auto" and not torch.cuda.is_available() else device,
            adapter=adapter,
            merge=True,
        )
        name = "+".join(Path(part).name for part in (name_or_path, adapter) if part is not None)
        return cls(model, tokenizer, config, name=name, batch_tokens=batch_tokens, **encoding)

    @cached_property
    def settings(self) -> Mapping[str, Any]:  # type: ignore[override]  # computed when first read
        """Everything that the answers depend on, by name."""
        return {
            "kind": "transformers",
            "weights": weights_fingerprint(self.model),
            "prompt_format": self.encoder.fingerprint,
            "stop_ids": sorted(self.stop_ids),
            **shared_settings(self.config),
        }

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when first read
        """Hash of weights, tokenizer, template, truncation, settings and seed."""
        return digest(dict(self.settings))

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened so far besides sampling: prompts and tokens lost to truncation."""
        return {
            name: getattr(self.encoder.counts, name)
            for name in ("prompts_truncated", "prompt_tokens_dropped")
        }

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        """Answer every request once, those with the longest prompts first.

        Args:
            requests: What is wanted.

        Yields:
            Each answer as soon as it is finished.

        Raises:
            InputError: If a prompt leaves no room for a token within the model's context, or
                has a token that the model does not know; raised before anything is generated.
        """
        prompts = self._prompts(requests)
        for batch in plan_batches(
            [len(prompts[request.prompt_id]) for request in requests],
            new_tokens=self.config.max_new_tokens,
            token_budget=self.batch_tokens // self.config.beams,
        ):
            yield from self._sample_batch([requests[row] for row in batch], prompts)

    def _sample_batch(
        self, requests: Sequence[SampleRequest], prompts: Mapping[str, tuple[int, ...]]
    ) -> Iterator[Sample]:
        names = list(dict.fromkeys(request.prompt_id for request in requests))
        rows = [
            Row(
                prompt=names.index(request.prompt_id),
                seed=sample_seed(self.config, request),
                max_new_tokens=self._room(prompts[request.prompt_id]),
            )
            for request in requests
        ]
        for position, ids in generate_rows(
            self.model,
            [prompts[name] for name in names],
            rows,
            config=self.config,
            stop_ids=self.stop_ids,
            forbidden=self._forbidden,
        ):
            request = requests[position]
            reply = self.encoder.read(ids, prompts[request.prompt_id])
            yield Sample(
                prompt_id=request.prompt_id,
                index=request.index,
                text=reply.answer,
                finish_reason="stop" if ids[-1] in self.stop_ids else "length",
                prompt_tokens=len(prompts[request.prompt_id]),
                response_tokens=len(ids),
                thought=reply.thought,
                thought_cut=reply.cut,
                token_ids=ids,
                tokenizer=self.encoder.tokenizer_fingerprint,
            )

    # Tokens of each prompt, once, all of them within the context.
    def _prompts(self, requests: Sequence[SampleRequest]) -> dict[str, tuple[int, ...]]:
        rows, prompts = embedding_rows(self.model), dict[str, tuple[int, ...]]()
        for name, prompt in {request.prompt_id: request.prompt for request in requests}.items():
            try:
                ids = prompts[name] = self.encoder.prompt_ids(prompt)
            except RenderingError as error:
                text = str(prompt[-1].get("content") or "")
                raise error.within(f"prompt {name} ({show(text)})") from None
            check_token_ids(ids, rows, where=f"prompt {name}", tokenizer=self.encoder.tokenizer)
        too_long = [name for name, ids in prompts.items() if self._room(ids) < 1]
        if too_long:
            worst = max(len(prompts[name]) for name in too_long)
            raise InputError.of(
                saw=f"{len(too_long)} of {len(prompts)} prompts fill the model's context of "
                f"{_context(self.model)} tokens (the longest has {worst}; the first is "
                f"{too_long[0]})",
                expected="prompts that leave room for a response",
                cure="set max_prompt_tokens to keep their ends, or remove them",
            )
        return prompts

    def _room(self, prompt_ids: tuple[int, ...]) -> int:
        context = _context(self.model)
        wanted = self.config.max_new_tokens
        return wanted if context is None else min(wanted, context - len(prompt_ids))


def _checked_budget(batch_tokens: int) -> int:
    InputError.unless(
        batch_tokens >= 1,
        saw=f"batch_tokens={batch_tokens}",
        expected="at least 1",
        cure="raise it",
    )
    return batch_tokens


def _context(model: Any) -> int | None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if context is None else int(context)
