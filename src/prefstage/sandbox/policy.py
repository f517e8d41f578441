"""A tiny language model of the Llama architecture, its word-level tokenizer, and its training."""

import re
from collections.abc import Callable, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prefstage.core import seed_for
from prefstage.data import TokenTree
from prefstage.sandbox.language import (
    CHATTER,
    ITEMS,
    NUMBERS,
    OPENINGS,
    OPERATIONS,
    SEPARATORS,
)

PAD, UNKNOWN, END = "<|pad|>", "<|unk|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
MAX_POSITIONS = 128
IGNORED = -100
WARMUP_SHARE = 0.05

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the language's tokenizer: a token a word or mark, with a chat template.

    Text of the language survives encoding and decoding exactly, without unknown tokens.

    Returns:
        The tokenizer; its end-of-turn token is also the end-of-sequence token.
    """
    # A word's token carries the space before it ("▁fox"), so that joining tokens gives the
    # text back; marks stand alone.
    sentences = re.sub(r"[^A-Za-z ]", "", f"then Use Be polite {' '.join(SEPARATORS)} {CHATTER}")
    words = dict.fromkeys(
        [
            *ITEMS,
            *NUMBERS,
            *OPENINGS,
            *(form for name in OPERATIONS for form in (name, name.capitalize())),
            *sentences.split(),
        ]
    )
    marks = [PAD, UNKNOWN, END, *ROLES, *SEPARATORS.values(), ".", ":", "!"]
    numbers = {token: n for n, token in enumerate([*marks, *(f"▁{word}" for word in words)])}
    core = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(r"[,;.:!]"), behavior="isolated"),
        ]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build_policy(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
) -> LlamaForCausalLM:
    """Build an untrained policy of the Llama architecture.

    Args:
        tokenizer: From `build_tokenizer`.
        seed: Of the random weights; the global random state is left as it was.
        hidden_size: Width; a multiple of 2·heads.
        layers: Depth.
        heads: Attention heads.

    Returns:
        The model in evaluation mode, float32, on the CPU.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        # Larger initial weights and rotations made for short texts: both halve the steps
        # that learning takes.
        initializer_range=0.5 * hidden_size**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "sandbox policy"))
        return LlamaForCausalLM(config).eval()


def train_sft(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenTree],
    *,
    steps: int,
    seed: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a policy in place to give the demonstrated responses.

    Each step minimises the mean of -log π(token) over the response tokens of one batch
    (AdamW, linear warm-up, then cosine decay to zero). The batches depend on the seed alone.

    Args:
        model: The policy; left in evaluation mode.
        demonstrations: Prompts with their demonstrated response; of a tree with several
            responses the first counts.
        steps: Optimiser steps, >= 1.
        seed: Of the order of the batches.
        batch_size: Demonstrations a step.
        learning_rate: Peak rate.
        on_step: Called after each step with the steps done and the step's loss; may save a
            checkpoint, must leave the model as it is.

    Returns:
        The loss of each step, nats a token. [steps].
    """
    order = torch.Generator().manual_seed(seed_for(seed, "sft order"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=WARMUP_SHARE
    )
    losses = []
    model.train()
    for step in range(1, steps + 1):
        picks = torch.randint(len(demonstrations), (batch_size,), generator=order).tolist()
        loss = model(**_padded([demonstrations[pick] for pick in picks])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if on_step is not None:
            on_step(step, losses[-1])
    model.eval()
    return losses


def _padded(trees: Sequence[TokenTree]) -> dict[str, torch.Tensor]:
    rows = [torch.tensor([*tree.prompt_ids, *tree.response_ids[0]]) for tree in trees]
    # The loss leaves out labels of -100: those of prompts and padding.
    return {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence(
            [
                torch.tensor([*[IGNORED] * len(tree.prompt_ids), *tree.response_ids[0]])
                for tree in trees
            ],
            batch_first=True,
            padding_value=IGNORED,
        ),
    }
