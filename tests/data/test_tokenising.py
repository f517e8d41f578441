"""Prompts and responses as tokens: true prefixes, ends of turns, borders, truncation."""

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from prefstage.core.errors import InputError, ModelError
from prefstage.data import ResponseEncoder, load_tokenizer, prompt_id_of
from prefstage.data.settings import CHAT_FORMATS
from tests.tiny_models import TEMPLATES, tiny_tokenizer

ASKED = [{"role": "user", "content": "What is the capital?"}]
CHAT_KINDS = sorted(set(TEMPLATES) - {"base"})
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "zephyr": "</s>",
    "mistral": "</s>",
    "phi3": "<|end|>",
    "qwen3": "<|im_end|>",
}
TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in TEMPLATES}


def encoder_of(kind: str, **settings: Any) -> ResponseEncoder:
    chat_format = "plain" if kind == "base" else None
    return ResponseEncoder(TOKENIZERS[kind], **{"chat_format": chat_format, **settings})


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_a_response_is_its_text_and_the_end_of_turn_and_nothing_after_it(kind: str) -> None:
    tokenizer, encoder = TOKENIZERS[kind], encoder_of(kind)
    tree = encoder.encode(ASKED, ["Paris is.", "The fox\nis"])
    assert encoder.end_of_turn == ENDS[kind]
    assert tree.prompt_id == prompt_id_of(ASKED)
    # This tokenizer reads two line breaks otherwise where a word follows them (Llama 3).
    lead = {"mistral": " ", "llama3": "\n\n", "qwen3": "<think>\n\n</think>\n\n"}.get(kind, "")
    for text, ids in zip(["Paris is.", "The fox\nis"], tree.response_ids, strict=True):
        assert tokenizer.decode(ids) == lead + text + ENDS[kind]
        assert ids[-len(encoder.end_of_turn_ids) :] == encoder.end_of_turn_ids
        assert encoder.read(ids).answer.strip() == text
    assert encoder.counts.borders_moved == (kind == "llama3")


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_the_prompt_is_what_the_template_makes_of_it(kind: str) -> None:
    tokenizer, encoder = TOKENIZERS[kind], encoder_of(kind)
    expected = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]
    assert list(encoder.prompt_ids(ASKED)) == expected
    bos = tokenizer.bos_token_id
    assert bos is None or expected.count(bos) <= 1


@pytest.mark.parametrize("kind", CHAT_KINDS)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=3))
def test_prompt_and_response_are_the_tokens_of_the_whole(kind: str, texts: list[str]) -> None:
    """Whatever the texts, and whatever the other responses of the row are."""
    tokenizer, encoder = TOKENIZERS[kind], encoder_of(kind)
    tree = encoder.encode(ASKED, texts)
    for text, response in zip(texts, tree.response_ids, strict=True):
        whole = tokenizer.apply_chat_template([*ASKED, {"role": "assistant", "content": text}])
        ids = [*tree.prompt_ids, *response]
        assert ids == whole["input_ids"][: len(ids)]
        assert tokenizer.decode(ids).endswith(ENDS[kind])
        after = tokenizer.decode(whole["input_ids"][len(ids) :]).strip()
        assert after in ("", tokenizer.eos_token)


def test_a_merge_across_the_border_moves_it_and_is_counted() -> None:
    """The role's line break and those that a text starts with are one token."""
    tokenizer, encoder = TOKENIZERS["zephyr"], encoder_of("zephyr")
    tree = encoder.encode(ASKED, ["\n\nParis.", "Paris."])
    assert encoder.counts.borders_moved == 1
    assert tokenizer.decode(tree.prompt_ids) == encoder.tokenizer.decode(
        encoder.prompt_ids(ASKED)
    ).removesuffix("\n")
    texts = [tokenizer.decode(ids) for ids in tree.response_ids]
    assert texts == ["\n\n\nParis.</s>", "\nParis.</s>"]


def test_a_thought_in_a_text_is_read_as_the_template_reads_it() -> None:
    tokenizer, encoder = TOKENIZERS["qwen3"], encoder_of("qwen3")
    tree = encoder.encode(ASKED, ["Paris.", "<think>\nHm.\n</think>\n\nParis."])
    # This template drops a thought that is text; what it writes itself stays.
    assert {tokenizer.decode(ids) for ids in tree.response_ids} == {
        "<think>\n\n</think>\n\nParis.<|im_end|>"
    }


def test_template_options_reach_the_template() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    encoder = encoder_of("qwen3", template_options={"enable_thinking": False})
    assert tokenizer.decode(encoder.prompt_ids(ASKED)).endswith("<think>\n\n</think>\n\n")
    tree = encoder.encode(ASKED, ["Paris."])
    assert tokenizer.decode([*tree.prompt_ids, *tree.response_ids[0]]).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\nParis.<|im_end|>"
    )
    assert encoder.fingerprint != encoder_of("qwen3").fingerprint


def test_where_a_template_alters_earlier_turns_the_prompt_is_what_the_response_follows() -> None:
    """Here the user's turn changes once an answer follows it."""
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if m['role'] == 'user' and loop.last %}{{ ' /think' }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder = ResponseEncoder(tokenizer)
    tree = encoder.encode(ASKED, ["Paris."])
    text = tokenizer.decode(tree.prompt_ids)
    assert text.endswith("capital?<|im_end|>\n<|im_start|>assistant\n")
    assert encoder.tokenizer.decode(encoder.prompt_ids(ASKED)).endswith(
        "/think<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(tree.response_ids[0]) == "Paris.<|im_end|>"


def test_templates_that_strip_are_followed() -> None:
    """What such a model is trained to write has no outer whitespace."""
    tree = encoder_of("gemma").encode(ASKED, [" Paris. \n"])
    assert TOKENIZERS["gemma"].decode(tree.response_ids[0]) == "Paris.<end_of_turn>"


@pytest.mark.parametrize("chat_format", sorted(CHAT_FORMATS))
def test_base_models_read_a_named_format(chat_format: str) -> None:
    tokenizer = TOKENIZERS["base"]
    encoder = encoder_of("base", chat_format=chat_format)
    turns = [*ASKED, {"role": "assistant", "content": "Paris."}, *ASKED]
    tree = encoder.encode(turns, ["Rome."])
    prompt, response = tokenizer.decode(tree.prompt_ids), tokenizer.decode(tree.response_ids[0])
    question = ASKED[0]["content"]
    if chat_format == "plain":
        assert prompt + response == (
            f"<|bos|>{question}\n\nParis.\n\n{question}\n\nRome.<|endoftext|>"
        )
    else:
        asked = f"\n\nHuman: {question}"
        assert prompt == f"<|bos|>{asked}\n\nAssistant: Paris.{asked}\n\nAssistant:"
        assert response == " Rome.<|endoftext|>"
    assert encoder.read(tree.response_ids[0]).answer.strip() == "Rome."
    assert tree.prompt_ids.count(tokenizer.bos_token_id) == 1


def test_tools_reach_the_template_and_tool_calls_may_be_responses() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if m['tool_calls'] %}{{ 'CALL ' + (m['tool_calls'] | tojson) }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    encoder = ResponseEncoder(tokenizer)
    tree = encoder.encode([{**ASKED[0], "tools": tools}], [call, "Paris."])
    assert tokenizer.decode(tree.prompt_ids).startswith('<|im_start|>tools\n[{"type": "function"')
    assert [tokenizer.decode(ids) for ids in tree.response_ids] == [
        'CALL [{"name": "add"}]<|im_end|>',
        "Paris.<|im_end|>",
    ]


@pytest.mark.parametrize("kind", ["chatml", "gemma", "base"])
def test_a_long_prompt_keeps_its_end(kind: str) -> None:
    whole = encoder_of(kind).prompt_ids(ASKED)
    encoder = encoder_of(kind, max_prompt_tokens=5)
    ids = encoder.prompt_ids(ASKED)
    starts_with_bos = whole[0] == TOKENIZERS[kind].bos_token_id
    assert ids == ((whole[0], *whole[-4:]) if starts_with_bos else whole[-5:])
    assert encoder.counts.prompts_truncated == 1
    assert encoder.counts.prompt_tokens_dropped == len(whole) - 5


def test_a_long_response_keeps_its_start_and_loses_its_end_of_turn() -> None:
    whole = encoder_of("chatml").encode(ASKED, ["The capital is Paris.", "A"]).response_ids
    encoder = encoder_of("chatml", max_response_tokens=3)
    first, second = encoder.encode(ASKED, ["The capital is Paris.", "A"]).response_ids
    assert (first, second) == (whole[0][:3], whole[1])
    assert encoder.counts.responses_truncated == 1
    assert encoder.counts.response_tokens_dropped == len(whole[0]) - 3


@given(limit=st.integers(1, 5), text=st.text(min_size=1).filter(str.strip))
@settings(deadline=None, max_examples=30)
def test_no_response_is_ever_empty(limit: int, text: str) -> None:
    encoder = encoder_of("llama3", max_prompt_tokens=limit, max_response_tokens=limit)
    tree = encoder.encode(ASKED, [text])
    assert 1 <= len(tree.prompt_ids) <= limit
    assert 1 <= len(tree.response_ids[0]) <= limit


def test_text_that_spells_a_special_token_is_counted() -> None:
    encoder = encoder_of("chatml")
    encoder.encode(ASKED, ["Say <|im_start|> now.", "Paris."])
    assert encoder.counts.control_tokens == 1


def test_runs_of_spaces_that_are_added_tokens_mean_nothing() -> None:
    """Pythia's and Phi-2's tokenizers have such tokens."""
    tokenizer = tiny_tokenizer("base")
    tokenizer.add_tokens(["   "])
    encoder = ResponseEncoder(tokenizer, chat_format="plain")
    encoder.encode(ASKED, ["a   b"])
    assert encoder.counts.control_tokens == 0
    assert encoder.end_of_turn == "<|endoftext|>"


def test_fingerprints_differ_where_tokens_would() -> None:
    same = [encoder_of("chatml").fingerprint, encoder_of("chatml").fingerprint]
    tokenizer = tiny_tokenizer("chatml")
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)  # leaves its state
    assert {*same, ResponseEncoder(tokenizer).fingerprint} == {same[0]}
    others = [
        encoder_of("chatml", max_prompt_tokens=9),
        encoder_of("chatml", max_response_tokens=9),
        encoder_of("chatml", chat_format="plain"),
        encoder_of("zephyr"),
        ResponseEncoder(tiny_tokenizer("chatml", vocabulary=390)),
    ]
    assert len({same[0], *(other.fingerprint for other in others)}) == 6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ResponseEncoder(TOKENIZERS["base"]), "without a chat template.*plain, human"),
        (lambda: encoder_of("base", chat_format="plane"), "chat_format='plane'; expected one of"),
        (lambda: encoder_of("chatml", max_prompt_tokens=0), "max_prompt_tokens=0; .*at least 1"),
        (lambda: encoder_of("chatml", max_response_tokens=-1), "max_response_tokens=-1"),
        (
            lambda: encoder_of("gemma").encode([{"role": "system", "content": "x"}, *ASKED], ["A"]),
            r"turns system, user, which the chat template refuses \(no system\)",
        ),
        (lambda: load_tokenizer("no/such/model/folder"), "no tokenizer at 'no/such/model/folder'"),
    ],
)
def test_what_cannot_be_tokenised_is_one_line(make: Any, said: str) -> None:
    with pytest.raises((InputError, ModelError), match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_templates_without_an_end_or_a_response_are_refused() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ModelError, match="leaves the assistant's text out"):
        ResponseEncoder(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert ResponseEncoder(tokenizer).end_of_turn == "<|im_end|>"
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"no special token ends a turn.*set tokenizer\.eos_token"):
        ResponseEncoder(tokenizer)


def test_a_saved_tokenizer_loads_again(tmp_path: Any) -> None:
    TOKENIZERS["llama3"].save_pretrained(tmp_path)
    loaded = ResponseEncoder(load_tokenizer(tmp_path))
    assert loaded.encode(ASKED, ["Paris."]) == encoder_of("llama3").encode(ASKED, ["Paris."])
