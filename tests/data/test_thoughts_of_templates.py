"""What a policy would generate under each of trl's templates is read as its thought and answer."""

from pathlib import Path

import pytest

from prefstage.data import ResponseEncoder
from prefstage.data.thoughts import Reply
from tests.data.chat_templates import template_files, tokenizer_for

ASKED = [{"role": "user", "content": "How is the weather?"}]
THOUGHT, ANSWER = "I look it up.", "It is sunny."
FILES = [file for file in template_files() if not file.stem.endswith("_training")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("thought", [THOUGHT, None])
def test_thought_and_answer_come_back(file: Path, thought: str | None) -> None:
    encoder = ResponseEncoder(tokenizer_for(file.read_text(encoding="utf-8"), "llama"))
    message = {"role": "assistant", "content": ANSWER, "reasoning_content": thought}
    shown = {name: value for name, value in message.items() if value is not None}
    asked = encoder.prompt_ids(ASKED)
    tree = encoder.encode(ASKED, [shown])
    whole = (*tree.prompt_ids, *tree.response_ids[0])
    if whole[: len(asked)] != asked:
        pytest.skip("the template never renders what a policy goes on with here")
    if encoder.opens_thought and not thought and "think" not in encoder.tokenizer.decode(whole):
        pytest.skip("the template renders no thought where its prompt opens one")

    reads_thoughts = thought and not encoder.counts.thoughts_left_out
    expected = Reply(ANSWER, thought if reads_thoughts else None)
    assert encoder.read(whole[len(asked) :]) == expected
