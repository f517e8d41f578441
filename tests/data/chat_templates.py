"""Real chat templates, tokenizers that know their marks, and conversations of every kind."""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefstage.core.errors import ModelError
from prefstage.data import ResponseEncoder

_MARK = re.compile(
    r"<[|｜][^<>|｜\n']{1,40}[|｜]>|<\|?/?[a-z_]{3,30}\|?>|\[/?[A-Z_]{4,20}\]|</?s>|<bos>"
)
_WORDS = re.compile(r"think|tool|arg|function|parameter|invoke|response|image|code|name|IMPORT")
_TEXTS = [
    "What is the weather in Paris? It is sunny and 21 degrees; take no umbrella.",
    "user assistant system developer tool model final analysis commentary \n\n\n",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
]
# As Llama 3 and Qwen cut texts, and as GPT-2 does.
_PATTERNS = {
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
KINDS = ("llama", "gpt2", "spaces")


def template_files() -> list[Path]:
    """The templates that trl carries."""
    spec = find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted(Path(spec.submodule_search_locations[0], "chat_templates").glob("*.jinja"))


@cache
def tokenizer_for(template: str, kind: str) -> Any:
    """A small tokenizer in which the marks of a template are added tokens.

    Marks of turns are special; those of thoughts and tools are not, as in Qwen's. "spaces" is
    one of SentencePiece's kind, which writes spaces as marks and puts one before a text.
    """
    marks = sorted(set(_MARK.findall(template)) | {"<|end|>", "<|user|>"} & _built(template))
    special = [mark for mark in marks if not _WORDS.search(mark)]
    if kind == "spaces":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace(prepend_scheme="first")]
        )
        alphabet = [*map(chr, range(32, 127)), "\n", "▁"]
        first = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        tokenizer = Tokenizer(models.BPE())
        cut = pre_tokenizers.Split(Regex(_PATTERNS[kind]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, first = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=alphabet,
        special_tokens=[*first, "<|bos|>", "<|eos|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [
        t for t in content["added_tokens"] if not t["content"].startswith("<0x")
    ]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in special])
    tokenizer.add_tokens(
        [AddedToken(m, special=False, normalized=False) for m in marks if m not in special]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>"
    )
    made.chat_template = template
    return made


def _built(template: str) -> set[str]:
    """Marks that Phi's templates put together from a role."""
    return {"<|end|>", "<|user|>", "<|assistant|>", "<|system|>"} if "'<|' +" in template else set()


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}


def _call(arguments: Any, content: str = "") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


_ASKED = {"role": "user", "content": "What is the weather?"}
_WITH_TOOLS = {**_ASKED, "tools": [TOOL]}
_RESULT = {
    **{"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "abcdefghi"},
    "name": "get_weather",
}
_PARIS = {"city": "Paris", "days": 3}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [_ASKED, {"role": "assistant", "content": "Sunny."}],
    "system": [
        {"role": "system", "content": "Be brief."},
        _ASKED,
        {"role": "assistant", "content": "Sunny."},
    ],
    "several turns": [
        _ASKED,
        {"role": "assistant", "content": "Where?"},
        {"role": "user", "content": "In Paris.\n"},
        {"role": "assistant", "content": "Sunny,\n\nand 21 degrees."},
    ],
    "Unicode": [
        {"role": "user", "content": "Wie wird’s in Zürich? 天气 🌦️"},
        {"role": "assistant", "content": " Schön! ☀️ é\u200b\n"},
    ],
    "tools": [_WITH_TOOLS, {"role": "assistant", "content": "I do not know."}],
    "call in the response": [_WITH_TOOLS, _call(_PARIS)],
    "call with text in the response": [_WITH_TOOLS, _call(_PARIS, "Let me look.")],
    "call before the response": [
        _WITH_TOOLS,
        _call(_PARIS),
        _RESULT,
        {"role": "assistant", "content": "21 degrees."},
    ],
    "thought in the response": [
        _ASKED,
        {"role": "assistant", "content": "Sunny.", "reasoning_content": "It is July."},
    ],
    "thought before the response": [
        _ASKED,
        {"role": "assistant", "content": "Where?", "reasoning_content": "No city."},
        {"role": "user", "content": "In Paris."},
        {"role": "assistant", "content": "Sunny."},
    ],
    "thought as text": [
        _ASKED,
        {"role": "assistant", "content": "<think>\nIt is July.\n</think>\n\nSunny."},
    ],
}
"""Conversations by kind; the last turn is the response."""


def with_control_tokens(tokenizer: Any) -> list[dict[str, Any]]:
    """A conversation whose texts spell every special token of a tokenizer."""
    forged = "".join(
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    )
    return [
        {"role": "system", "content": f"Be brief.{forged}"},
        {"role": "user", "content": f"Hello {forged}\nuser {forged} there"},
        {"role": "assistant", "content": f"Hi {forged} you."},
    ]


def conversations_for(tokenizer: Any) -> dict[str, list[dict[str, Any]]]:
    """All conversations, with one whose texts spell this tokenizer's special tokens."""
    return {**CONVERSATIONS, "control tokens in texts": with_control_tokens(tokenizer)}


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **settings: Any) -> list[int]:
    """What transformers makes of a conversation."""
    bare = [{k: v for k, v in message.items() if k != "tools"} for message in messages]
    if not _shows_texts(tokenizer):  # a vision-language template reads texts as parts
        bare = [{**m, "content": [{"type": "text", "text": m.get("content") or ""}]} for m in bare]
    made = tokenizer.apply_chat_template(bare, tools=messages[0].get("tools"), **settings)
    return list(made["input_ids"])


def _shows_texts(tokenizer: Any) -> bool:
    asked = [{"role": "user", "content": "Hello"}]
    try:
        return "Hello" in tokenizer.apply_chat_template(asked, tokenize=False)
    except Exception:
        return False


def outcome(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    """Whether a conversation's tokens are "equal" to transformers', "refused", or how they differ.

    What a template writes after the end of the turn is not generated, and not compared.
    """
    try:
        tree = ResponseEncoder(tokenizer).encode(messages[:-1], [messages[-1]])
    except ModelError:
        return "refused"
    ids = [*tree.prompt_ids, *tree.response_ids[0]]
    forged = messages == with_control_tokens(tokenizer)
    whole = rendered(tokenizer, messages, sanitize_control_tokens=forged)
    rest = tokenizer.decode(whole[len(ids) :]).strip()
    if ids == whole[: len(ids)] and rest in ("", tokenizer.eos_token):
        return "equal"
    return f"{tokenizer.decode(ids)!r} for {tokenizer.decode(whole)!r}"
