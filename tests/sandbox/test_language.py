import random

import pytest

from prefstage.core.errors import InputError
from prefstage.sandbox.language import (
    NUMBERS,
    Instruction,
    apply_operation,
    draw_instruction,
    parse_instruction,
    render_response,
)


@pytest.mark.parametrize(
    ("operations", "answer"),
    [
        (("repeat",), "fox ant bee"),
        (("reverse",), "bee ant fox"),
        (("sort",), "ant bee fox"),
        (("rotate",), "ant bee fox"),
        (("count",), "three"),
        (("sort", "reverse"), "fox bee ant"),
        (("rotate", "reverse"), "fox bee ant"),
        (("reverse", "rotate"), "ant fox bee"),
    ],
)
def test_each_operation_gives_the_answer_worked_out_by_hand(operations, answer):
    instruction = Instruction(operations, ("fox", "ant", "bee"), "commas", polite=False)
    assert " ".join(instruction.answer) == answer


def test_an_unknown_operation_is_refused():
    with pytest.raises(InputError, match="'shuffle'"):
        apply_operation("shuffle", ("fox",))


def test_instructions_read_as_sentences_and_parse_back():
    instruction = Instruction(("sort", "reverse"), ("fox", "ant"), "semicolons", polite=True)
    assert instruction.text == "Sort then reverse: fox, ant. Use semicolons. Be polite."
    assert parse_instruction(instruction.text) == instruction
    source = random.Random(0)
    drawn = [draw_instruction(source) for _ in range(500)]
    assert [parse_instruction(one.text) for one in drawn] == drawn
    assert {len(one.operations) for one in drawn} == {1, 2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello!",
        "Sort: fox, ant. Use commas",
        "Shuffle: fox, ant. Use commas.",
        "Sort then shuffle: fox, ant. Use commas.",
        "Sort: fox, zebra. Use commas.",
        "Sort: fox, ant. Use dashes.",
        "Count: ant, bee, cat, dog, elk, fox, gnu. Use commas.",
        "Sort: fox, ant. Use commas. Be polite. Now!",
    ],
)
def test_other_text_is_refused(text):
    assert len(NUMBERS) < 7
    with pytest.raises(InputError, match=r"World\.instructions"):
        parse_instruction(text)


def test_responses_are_rendered_with_opening_and_preface():
    words = ("ant", "fox")
    assert render_response(words, separator="commas") == "ant, fox."
    assert (
        render_response(words, separator="semicolons", opening="Sure", preface="Here you go:")
        == "Sure! Here you go: ant; fox."
    )
