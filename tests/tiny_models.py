"""Tiny tokenizers with the chat templates of well-known families, and random Llama models for them.

Built by hand; no downloads.
"""

from pathlib import Path
from typing import Any, Literal

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Kind = Literal["chatml", "llama3", "gemma", "zephyr", "mistral", "phi3", "qwen3", "base"]

_CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "Human: hello Assistant: hi there, how can I help you today? user system assistant model",
    "Write a short story about a fox. Once upon a time there was a quick brown fox.",
    "1 2 3 4 5 6 7 8 9 10 [INST] [/INST] <think> </think> \n\n\n",
]

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
        "'<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
        " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
        "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
        "{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
    ),
    "phi3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% else %}{{ eos_token }}{% endif %}"
    ),
    # Thinking of earlier turns is dropped, and an empty thought is put into the last turn.
    "qwen3": (
        "{% for m in messages %}{% set text = m['content'].split('</think>')[-1].lstrip('\n')"
        " if m['role'] == 'assistant' else m['content'] %}"
        "{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ text + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    ),
    "base": None,
}

_SPECIAL: dict[str, dict[str, Any]] = {
    "chatml": {"eos": "<|im_end|>", "other": ["<|im_start|>"]},
    "llama3": {
        "bos": "<|begin_of_text|>",
        "eos": "<|end_of_text|>",
        "other": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    },
    "gemma": {"bos": "<bos>", "eos": "<eos>", "other": ["<start_of_turn>", "<end_of_turn>"]},
    "zephyr": {"bos": "<s>", "eos": "</s>", "other": []},
    "mistral": {"bos": "<s>", "eos": "</s>", "other": []},
    "phi3": {
        "eos": "<|endoftext|>",
        "other": ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
    },
    "qwen3": {"eos": "<|im_end|>", "other": ["<|im_start|>"]},
    "base": {"bos": "<|bos|>", "eos": "<|endoftext|>", "other": []},
}


def tiny_tokenizer(kind: Kind = "chatml", *, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about `vocabulary` tokens, with the special tokens and template of `kind`.

    Every text round-trips through it. "base" has no chat template; its tokenizer adds a
    begin-of-sequence token, as Llama's does.
    """
    special = _SPECIAL[kind]
    ends = [special[key] for key in ("bos", "eos") if key in special]
    names = [*ends, *special["other"], "<pad>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in names],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if kind == "base":
        from tokenizers.processors import TemplateProcessing

        bos = special["bos"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special.get("bos"),
        eos_token=special["eos"],
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATES[kind]
    return wrapped


def tiny_llama(
    tokenizer: Any, *, seed: int = 0, kind: str = "LlamaForCausalLM", **changes: Any
) -> Any:
    """A Llama model of random weights for a tokenizer; other draws go on as if it had made none.

    The weights depend on the seed and the changes to the configuration alone. `kind` is a class
    of transformers.
    """
    import torch

    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, kind)(transformers.LlamaConfig(**config))


def save_tiny_llama(folder: Path, tokenizer: Any, **settings: Any) -> Path:
    """Save a `tiny_llama` of these settings with its tokenizer; the folder, to load them from."""
    tiny_llama(tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
