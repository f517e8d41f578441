"""A small world whose truth is known, and the demo that runs on it."""

from prefstage.sandbox.language import (
    CHATTY,
    EXPERT,
    GRUFF,
    GUESSER,
    HASTY,
    WRITERS,
    Instruction,
    Writer,
    parse_instruction,
)
from prefstage.sandbox.policy import build_policy, build_tokenizer, train_sft
from prefstage.sandbox.world import (
    Grade,
    World,
    grade_response,
    prompt_of,
    true_preference,
    true_reward,
)

__all__ = [
    "CHATTY",
    "EXPERT",
    "GRUFF",
    "GUESSER",
    "HASTY",
    "WRITERS",
    "Grade",
    "Instruction",
    "World",
    "Writer",
    "build_policy",
    "build_tokenizer",
    "grade_response",
    "parse_instruction",
    "prompt_of",
    "train_sft",
    "true_preference",
    "true_reward",
]
