"""Prompts and responses as tokens: borders, ends of turns, truncation."""

import pytest

from prefstage.data import ResponseEncoder
from tests.tiny_models import TEMPLATES, tiny_tokenizer

USER = {"role": "user", "content": "What is the capital?"}


@pytest.mark.parametrize("kind", sorted(set(TEMPLATES) - {"base"}))
def test_a_response_is_its_text_and_the_end_of_turn(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    encoder = ResponseEncoder(tokenizer)
    tree = encoder.encode([USER], ["Paris is.", "The fox\nis"])
    for text, ids in zip(["Paris is.", "The fox\nis"], tree.response_ids, strict=True):
        assert tokenizer.decode(ids).lstrip(" ") == text + encoder.end_of_turn
        assert encoder.decode(ids) == text
        assert ids[-1] == encoder.end_of_turn_ids[-1]
