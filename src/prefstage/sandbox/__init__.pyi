# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .language import (
    CHATTY as CHATTY,
    EXPERT as EXPERT,
    GRUFF as GRUFF,
    GUESSER as GUESSER,
    HASTY as HASTY,
    WRITERS as WRITERS,
    Instruction as Instruction,
    Writer as Writer,
    parse_instruction as parse_instruction,
)
from .policy import (
    build_policy as build_policy,
    build_tokenizer as build_tokenizer,
    train_sft as train_sft,
)
from .world import (
    Grade as Grade,
    World as World,
    grade_response as grade_response,
    prompt_of as prompt_of,
    true_preference as true_preference,
    true_reward as true_reward,
)
