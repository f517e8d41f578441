from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from prefstage.core.errors import InputError, ModelError
from prefstage.data import TokenTree
from prefstage.training.datasets import check_item_sets, check_sources
from prefstage.training.items import ItemSet, TrainingItem
from prefstage.training.policy import tokenizer_for
from tests.tiny_models import tiny_tokenizer
from tests.training.plain_runs import tiny_model


def test_a_tokenizer_with_more_tokens_than_the_model_is_no_fault_by_itself() -> None:
    tokenizer_for(tiny_model(), tiny_tokenizer())


def test_a_tokenizer_of_another_model_of_the_same_size(tmp_path: Path) -> None:
    own = tiny_tokenizer()
    model = tiny_model()
    model.resize_token_embeddings(len(own))
    model.config._name_or_path = str(tmp_path)
    own.save_pretrained(tmp_path)
    tokenizer_for(model, own)
    more = tiny_tokenizer()
    more.add_tokens(["<new>"])
    model.resize_token_embeddings(len(more))
    tokenizer_for(model, more)
    with pytest.raises(ModelError, match="tokens have other ids than in the tokenizer beside"):
        tokenizer_for(model, swapped(own))


def swapped(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokens, two of them with each other's ids."""
    import json

    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))


def items_of(*pairs: tuple[tuple[int, ...], tuple[int, ...]], cut: int = 0) -> ItemSet:
    items = [TrainingItem(n, (TokenTree("p", (1,), pair),)) for n, pair in enumerate(pairs)]
    return ItemSet("pairs", tuple(items), {"responses_truncated": cut}, "f")


def test_sets_that_hold_something_pass() -> None:
    check_item_sets(items_of(((1,), (2,))), {"held-out": items_of(((1,), (1,)), ((2,), (3,)))})
    check_item_sets(None, items_of(((1,), (2,))))


@pytest.mark.parametrize(
    ("train", "evaluated", "said"),
    [
        (items_of(((1,), (2,)), ((1,), ())), {}, "1 of 2 items have a response .*rows 1"),
        (items_of(((1,), (1,)), ((2,), (2,))), {}, "same tokens in every pair; .*columns"),
        (items_of(((1,), (1,)), cut=2), {}, "2 responses having lost.*raise max_response_tokens"),
    ],
)
def test_sets_without_anything_to_learn_from(train, evaluated, said) -> None:
    with pytest.raises(InputError, match=said):
        check_item_sets(train, evaluated)


@pytest.mark.parametrize(
    ("train", "evaluated", "said"),
    [
        (items_of(), {}, "the training set is empty"),
        (items_of(((1,), (2,))), {"held-out": items_of()}, "evaluation set 'held-out' is empty"),
    ],
)
def test_sets_without_anything(train, evaluated, said) -> None:
    with pytest.raises(InputError, match=said):
        check_sources(train, evaluated)


def test_evaluation_without_a_set() -> None:
    with pytest.raises(InputError, match="eval_strategy asks for evaluation"):
        check_item_sets(items_of(((1,), (2,))), None, evaluates=True)


def test_the_models_own_tokenizer_is_the_default(tmp_path: Path) -> None:
    own, model = tiny_tokenizer(), tiny_model()
    model.resize_token_embeddings(len(own))
    model.config._name_or_path = str(tmp_path)
    own.save_pretrained(tmp_path)
    assert tokenizer_for(model).get_vocab() == own.get_vocab()
    assert tokenizer_for(model, own) is own
