"""What the judging tests build their tiny random judges from."""

from typing import Any

from prefstage.data.records import prompt_id_of
from prefstage.judging import Comparison

WORDS = (
    *("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "is", "was", "good", "bad", "very"),
    *("not", "and", "it", "to", "of", "in", "b", "c", "d", "e"),
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def word_tokenizer(*, template: str | None = None, extra: tuple[str, ...] = ()) -> Any:
    """A word-level fast tokenizer with BERT-style pair encoding."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    special += ["<|system|>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    if extra:
        tokenizer.add_tokens(list(extra))
    tokenizer.chat_template = template
    return tokenizer


def comparison(prompt: str, a: str, b: str) -> Comparison:
    """A comparison of two answers to a single user message."""
    messages = ({"role": "user", "content": prompt},)
    return Comparison(prompt_id_of(messages), messages, a, b)
