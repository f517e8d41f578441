"""A tiny language model of the Llama architecture and its own word-level tokenizer."""

from typing import TYPE_CHECKING

from prefstage.core.hashing import seed_for
from prefstage.sandbox.language import ITEMS, NUMBERS, OPENINGS, OPERATIONS, SEPARATORS
from prefstage.sandbox.writers import CHATTER

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<|pad|>", "<|unk|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
MAX_POSITIONS = 128

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the language's tokenizer: a token a word or mark, with a chat template.

    Text of the language survives encoding and decoding exactly, without unknown tokens.

    Returns:
        The tokenizer; its end-of-turn token is also the end-of-sequence token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # A word's token carries the space before it ("▁fox"), so that joining tokens gives the
    # text back; marks stand alone.
    words = [f"▁{word}" for word in _words()]
    tokens = [PAD, UNKNOWN, END, *ROLES, *SEPARATORS.values(), ".", ":", "!", *words]
    core = Tokenizer(
        models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token=UNKNOWN)
    )
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
    tokenizer: "PreTrainedTokenizerFast",
    *,
    seed: int,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
) -> "LlamaForCausalLM":
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
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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
        model = LlamaForCausalLM(config)
    return model.eval()


def _words() -> list[str]:
    """Every word of the language, once, in a fixed order."""
    sentences = "then Use Be polite " + " ".join(SEPARATORS) + " " + CHATTER
    spoken = "".join(letter for letter in sentences if letter.isalpha() or letter == " ").split()
    orders = [form for name in OPERATIONS for form in (name, name.capitalize())]
    return list(dict.fromkeys([*ITEMS, *NUMBERS, *OPENINGS, *orders, *spoken]))
