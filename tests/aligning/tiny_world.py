"""A tiny world to align in: policy, pairs and held-out prompts, made within a second."""

from pathlib import Path
from typing import Any

from prefstage.data import ResponseEncoder
from prefstage.sandbox import CHATTY, World, build_policy, build_tokenizer, train_sft

JUDGE = "python:prefstage.sandbox:true_preference"


def make_world(folder: Path) -> None:
    """Write `policy`, `pairs.jsonl`, `many.jsonl`, `candidates.jsonl` and `held_out.jsonl`."""
    world = World(0)
    world.pairs(12).save(folder / "pairs.jsonl")
    world.pairs(60).save(folder / "many.jsonl")
    world.candidates(12, responses=3).save(folder / "candidates.jsonl")
    world.pairs(6, split="test").save(folder / "held_out.jsonl")
    tokenizer = build_tokenizer()
    policy = build_policy(tokenizer, seed=0, hidden_size=16, layers=1, heads=2)
    encoder = ResponseEncoder(tokenizer)
    lessons = world.demonstrations(64, writer=CHATTY)
    trees = [encoder.encode(prompt, [text]) for prompt, text in lessons]
    train_sft(policy, trees, steps=30, seed=0, batch_size=16)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")


def settings(world: Path, **changed: Any) -> dict[str, Any]:
    """A recipe's settings for this world."""
    return {
        "policy": str(world / "policy"),
        "off_policy": str(world / "pairs.jsonl"),
        "judge": JUDGE,
        "sampling": {"responses": 2, "temperature": 1.0, "max_new_tokens": 12},
        "measure": {"max_prompts": 8, "first_chunk": 4},
        "train": {
            "loss": {"name": "sigmoid", "beta": 0.1},
            "training": {
                "per_device_train_batch_size": 4,
                "max_steps": 3,
                "save_steps": 1,
                "logging_steps": 1,
                "learning_rate": 1e-3,
            },
        },
        "evaluate": {
            "prompts": str(world / "held_out.jsonl"),
            "win_rate": {"length_controlled": False, "resamples": 20},
        },
        **changed,
    }
