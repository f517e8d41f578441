"""Tokens without embeddings, and embeddings without tokens."""

import re
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import InputError
from prefstage.core.weights import check_token_ids, ids_without_token
from prefstage.data import ResponseEncoder, prompt_id_of
from prefstage.judging import load_judge
from prefstage.sampling import SampleRequest, SamplingConfig
from prefstage.sampling.transformers_sampler import TransformersSampler
from prefstage.scoring import Scorer
from tests.judging.tiny_judges import comparison, word_tokenizer
from tests.tiny_models import save_tiny_llama, tiny_llama, tiny_tokenizer

NEW = "<new>"
SAID = rf"token \d+ \('{NEW}'\); expected ids from 0 to \d+, the model's vocabulary"


def larger_tokenizer() -> tuple[Any, Any]:
    """A tokenizer with one token more than its model has embeddings."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(tokenizer)
    tokenizer.add_tokens([NEW])
    return tokenizer, model


def prompt(text: str) -> tuple[Any, ...]:
    return ({"role": "user", "content": text},)


def pairs(text: str) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {n}", "chosen": f"answer {text}", "rejected": "none"}
        for n in range(4)
    ]


@pytest.mark.parametrize("used", [False, True])
def test_training(used: bool, tmp_path: Path) -> None:
    import datasets

    from prefstage.training import PreferenceTrainer
    from tests.training.preference_runs import arguments

    tokenizer, model = larger_tokenizer()
    data = datasets.Dataset.from_list(pairs(NEW if used else "yes"))
    settings = {"train_dataset": data, "processing_class": tokenizer}
    if not used:
        PreferenceTrainer(model, arguments(tmp_path, max_steps=1), **settings).train()
        return
    with pytest.raises(InputError, match=SAID):
        PreferenceTrainer(model, arguments(tmp_path), **settings)


def request(text: str, index: int = 0) -> SampleRequest:
    return SampleRequest(prompt_id_of(prompt(text)), prompt(text), index)


@pytest.mark.parametrize("used", [False, True])
def test_sampling(used: bool) -> None:
    tokenizer, model = larger_tokenizer()
    sampler = TransformersSampler(model, tokenizer, SamplingConfig(max_new_tokens=2))
    asked = [request("Hello " + (NEW if used else "you"))]
    if not used:
        assert len(list(sampler.sample(asked))) == 1
        return
    with pytest.raises(InputError, match=SAID):
        list(sampler.sample(asked))


@pytest.mark.parametrize("used", [False, True])
def test_judging(used: bool, tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    settings = {"kind": "LlamaForSequenceClassification", "num_labels": 1, "pad_token_id": 0}
    save_tiny_llama(tmp_path, tokenizer, max_position_embeddings=64, **settings)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(tmp_path)
    judge = load_judge(f"reward:{tmp_path}")
    asked = [comparison("the cat", "the dog", "new" if used else "the mat")]
    if not used:
        assert len(judge.compare(asked)) == 1
        return
    with pytest.raises(InputError, match=r"token \d+ \('new'\)"):
        judge.compare(asked)


def test_scoring() -> None:
    tokenizer, model = larger_tokenizer()
    encoder = ResponseEncoder(tokenizer)
    scorer = Scorer(model)
    assert len(scorer.score([encoder.encode(prompt("Hi"), ["yes", "no"])])) == 1
    with pytest.raises(InputError, match=rf"token {len(tokenizer) - 1}; expected ids from 0"):
        scorer.score([encoder.encode(prompt("Hi"), ["yes", NEW])])


def test_ids_are_checked_and_named() -> None:
    tokenizer = tiny_tokenizer()
    check_token_ids([0, 9], 10, where="here")
    with pytest.raises(InputError, match=re.escape("here: token 10 ('")):
        check_token_ids([0, 10], 10, where="here", tokenizer=tokenizer)
    with pytest.raises(InputError, match="here: token -1;"):
        check_token_ids([-1], 10, where="here", tokenizer=tokenizer)


@pytest.mark.parametrize("beams", [1, 2])
def test_padded_embeddings_are_never_sampled(beams: int) -> None:
    """With 4,000 rows for 400 tokens, a random model takes nine of ten ids from the padding."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(tokenizer, vocab_size=4000)
    assert ids_without_token(tokenizer, 4000) == list(range(len(tokenizer), 4000))
    config = SamplingConfig(max_new_tokens=16, temperature=1.0, beams=beams)
    sampler = TransformersSampler(model, tokenizer, config)
    samples = list(sampler.sample([request("Hi", index) for index in range(4)]))
    texts = [sample.text for sample in samples]
    assert all(len(tokenizer(text)["input_ids"]) > 3 for text in texts)
