"""Thought and answer by any family's marks: closed, cut, unopened, quoted; all else is answer."""

import pytest
from hypothesis import given, strategies as st

from prefstage.data.thoughts import (
    THOUGHT_MARKS,
    Reply,
    opens_thought,
    read_reply,
)

HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"
WRAPPED = {
    **{start: f"{start}\n{{}}\n{end}\n\n{{}}" for start, end in THOUGHT_MARKS.items()},
    "on one line": "<think>{}</think>{}",
    "glm": "\n<think>{}</think>\n{}",
    "cohere": "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "openthinker": "<|begin_of_thought|>\n\n{}\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\n{}\n<|end_of_solution|>",
    "hunyuan": "<think>\n{}\n</think>\n<answer>\n{}\n</answer>",
    "granite 3.3": "<think>{}</think>\n<response>{}</response>",
    "gpt-oss": HARMONY,
    "muse": " to=self<|message|>{}<|eom|><|start|>assistant to=user<|message|>{}",
    "granite 3.2": "Here is my thought process:\n{}\n\nHere is my response:\n{}",
    "gpt-oss without marks": "analysis{}assistantfinal{}",
}

# Text of a thought or an answer: no marks in it, and none of the words that two families use.
_TEXTS = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>[]|◁▷"))
    .map(str.strip)
    .filter(lambda text: "assistant" not in text and "Here" not in text)
)


@pytest.mark.parametrize("family", WRAPPED)
@given(thought=_TEXTS, answer=_TEXTS)
def test_whatever_a_family_wraps_comes_back(family: str, thought: str, answer: str) -> None:
    text = WRAPPED[family].format(thought, answer)

    assert read_reply(text) == Reply(answer, thought or None)


@given(thought=_TEXTS, answer=_TEXTS)
def test_an_opened_thought_ends_at_the_first_closing_mark(thought: str, answer: str) -> None:
    text = f"{thought}\n</think>\n\n{answer}"

    assert read_reply(text, opened=True) == read_reply(text) == Reply(answer, thought or None)


@given(answer=_TEXTS)
def test_a_plain_answer_stays_as_it_is(answer: str) -> None:
    assert read_reply(answer) == read_reply(answer, opened=False) == Reply(answer)


@pytest.mark.parametrize("opening", THOUGHT_MARKS)
def test_a_thought_without_an_end_is_cut(opening: str) -> None:
    closing = THOUGHT_MARKS[opening]

    assert read_reply(f"{opening}\nstill at it") == Reply("", "still at it", cut=True)
    assert read_reply("still at it", opened=True) == Reply("", "still at it", cut=True)
    assert read_reply(f"done\n{closing}", opened=True) == Reply("", "done")
    assert opens_thought(f"<|user|>\nhi<|assistant|>\n{opening}\n")
    assert not opens_thought(f"<|user|>\nhi<|assistant|>\n{opening}\n\n{closing}\n\n")
    assert not opens_thought(f"<|user|>\nwhat is {opening}?<|assistant|>\n")


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<|channel|>analysis<|message|>hm", Reply("", "hm", cut=True)),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assist", Reply("", "hm")),
        ("<|channel|>final<|message|>yes", Reply("yes")),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis"
            "<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>c",
            Reply("c", "a\n\nb"),
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary"
            ' to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>',
            Reply('to=functions.f {"x": 1}', "a"),
        ),
        (
            "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant to=functions.f"
            "<|channel|>commentary json<|message|>{}<|call|>",
            Reply("Let me see.\n\nto=functions.f {}"),
        ),
        (" to=self<|message|>hm", Reply("", "hm", cut=True)),
        ("<|START_RESPONSE|>yes<|END_RESPONSE|>", Reply("yes")),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>cut he", Reply("cut he", "a")),
    ],
)
def test_channels_and_marks_around_answers(text: str, reply: Reply) -> None:
    assert read_reply(text) == read_reply(text, opened=False) == reply


def test_a_channel_that_the_prompt_opened() -> None:
    text = "hm<|end|><|start|>assistant<|channel|>final<|message|>yes"

    assert opens_thought(
        "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>analysis<|message|>"
    )
    assert read_reply(text, opened=True) == Reply("yes", "hm")


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>a</think><think>b</think>c", Reply("c", "a\n\nb")),
        (
            "<thinking>a</thinking>\n<reflection>b</reflection>\n<output>c</output>",
            Reply("c", "a\n\nb"),
        ),
        ("<think>a</think>\n</think>\nc", Reply("c", "a")),
        ("<think>\n\n</think>\n\nc", Reply("c")),
        ("</think>\n\nc", Reply("c")),
        ("<think>\na\n</think>\n\n    indented = code", Reply("    indented = code", "a")),
        ("<think>a</think> <answer>42</answer>", Reply("<answer>42</answer>", "a")),
    ],
)
def test_several_empty_and_doubled_thoughts(text: str, reply: Reply) -> None:
    assert read_reply(text) == read_reply(text, opened=False) == reply


@pytest.mark.parametrize(
    "answer",
    [
        "Write <think>so</think> before you answer.",
        "The tag `<think>` opens it.",
        "End it with `</think>`.",
        'End it with "</think>".',
        "```html\n<think>so</think>\n```",
        "~~~\nx\n</think>\n~~~\nThat closes it.",
        "Here is my thought process: I go by feel.",
        "analysis of the data",
        "<answer>\n42\n</answer>",
        "Say <|channel|>analysis<|message|>a<|end|> first.",
        "<b>bold</b> [THINKING] about <thought",
    ],
)
def test_marks_that_an_answer_speaks_of_are_its_text(answer: str) -> None:
    assert read_reply(answer) == read_reply(answer, opened=False) == Reply(answer)


@pytest.mark.parametrize(
    "thought",
    [
        "They ask about `</think>` here.",
        'They ask about "</think>" here.',
        "They wrote\n```\n</think>\n```\nthat is all.",
        "They wrote `<think>x</think>`.",
    ],
)
def test_a_quoted_mark_does_not_end_a_thought_that_ends_later(thought: str) -> None:
    assert read_reply(f"<think>{thought}</think>yes") == Reply("yes", thought)
    assert read_reply(f"{thought}</think>yes", opened=True) == Reply("yes", thought)


def test_the_only_mark_ends_the_thought_even_where_it_seems_quoted() -> None:
    assert read_reply('<think>say "hi"</think>"hi"') == Reply('"hi"', 'say "hi"')
    assert read_reply("<think>```py\nx\n</think>\nyes\n```\ny\n```") == Reply(
        "yes\n```\ny\n```", "```py\nx"
    )


def test_a_closing_mark_alone_counts_unless_the_prompt_is_known_to_open_nothing() -> None:
    text = "So it is.\n</think>\n\nYes."

    assert read_reply(text) == Reply("Yes.", "So it is.")
    assert read_reply(text, opened=False) == Reply(text)


@pytest.mark.parametrize("filler", ["\n", " ", "<|", "</think>", "`", "```\n", "<think>"])
def test_degenerate_text_is_read_at_once(filler: str) -> None:
    text = filler * 3000

    for opened in (None, True, False):
        assert isinstance(read_reply(text, opened=opened), Reply)
