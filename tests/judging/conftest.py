"""Tiny random judges in the layouts of real ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.judging.tiny_judges import TEMPLATE, word_tokenizer
from tests.tiny_models import save_tiny_llama


@pytest.fixture(scope="session")
def bert_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT reward model without a chat template, window of 32 tokens."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert-reward")
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_reward(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of tiny random Llama reward models with a chat template."""

    def make(*, pad_token_id: int | None = 0, num_labels: int = 1) -> Path:
        return save_tiny_llama(
            tmp_path_factory.mktemp("llama-reward"),
            word_tokenizer(template=TEMPLATE),
            kind="LlamaForSequenceClassification",
            seed=1,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            max_position_embeddings=64,
            num_labels=num_labels,
            pad_token_id=pad_token_id,
            bos_token_id=4,
            eos_token_id=5,
            initializer_range=0.3,
        )

    return make
