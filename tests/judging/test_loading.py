import json
from pathlib import Path

import pytest

from prefstage.core.errors import InputError
from prefstage.judging import load_judge


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:test_function", "python:my_judges:shorter_is_better"),
        ("python:no_such_module:f", "No module named 'no_such_module'"),
        ("python:test_function:no_such", "has no attribute 'no_such'"),
        ("python:test_function:pytest", "is a module"),
        ("python:test_function:longer?symetric=true", "did you mean 'symmetric'"),
        ("oracle:everything", "expected reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE"),
        ("reward:", "expected reward:PATH"),
        ("", "expected reward:PATH"),
        ("openai:m@http://x?concurrency=0", "concurrency"),
        ("openai:m@http://x?logprob=true", "did you mean 'logprobs'"),
        ("openai:m@http://x?prompt=nowhere.yaml", "nowhere.yaml"),
        ("table:x.jsonl?missing=ignore", "missing"),
        ("table:x.jsonl?clip=0.7", "clip"),
        ("pairrm:x?style=poem", "style"),
        ("reward:x?dtype=int8", "dtype"),
    ],
)
def test_wrong_specifications_say_what_is_expected(spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_judge(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_judge_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder without config\.json"):
        load_judge(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(InputError, match=r"a checkpoint of LlamaForCausalLM.*serve it"):
        load_judge(str(tmp_path))
    config.write_text("{")
    with pytest.raises(InputError, match="expected reward:PATH"):
        load_judge(str(tmp_path))


def test_a_causal_model_lacks_the_head_of_a_reward_model(tmp_path: Path) -> None:
    from tiny_judges import word_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"1 missing \(score\.weight\)"):
        load_judge(f"reward:{tmp_path}")
