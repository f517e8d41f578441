"""A small world whose truth is known, and the demo that runs on it."""

from prefstage.sandbox.language import Instruction, parse_instruction
from prefstage.sandbox.policy import build_policy, build_tokenizer
from prefstage.sandbox.reward import Grade, grade_response, true_preference, true_reward
from prefstage.sandbox.sft import train_sft
from prefstage.sandbox.world import World, prompt_of
from prefstage.sandbox.writers import CHATTY, EXPERT, GRUFF, GUESSER, HASTY, WRITERS, Writer

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
