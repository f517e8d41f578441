"""Make a small world to train in, for the recipes `examples/train_*.yaml`.

    python examples/make_world.py world

writes into the folder `world`, within half a minute and without a download:

- `policy`: a tiny language model (Llama architecture) that has learnt a little of the world's
  language from an expert;
- `pairs.jsonl` and `held_out.jsonl`: two answers of scripted writers to each instruction, the
  truly better one chosen;
- `conversations.jsonl`: the expert's answers to other instructions;
- `labelled.jsonl`: answers by themselves, each labelled by whether it is good;
- `candidates.jsonl`: four answers with their true rewards to each instruction.

What is true in this world a program knows: `prefstage.sandbox.true_reward`.
"""

import argparse
from pathlib import Path

from prefstage.data import (
    Conversation,
    ConversationSet,
    ResponseEncoder,
    Unpaired,
    UnpairedSet,
    prompt_id_of,
)
from prefstage.sandbox import World, build_policy, build_tokenizer, train_sft

GOOD = 0.75
"""True reward from which an answer counts as desirable."""


def make_world(folder: Path, *, pairs: int, steps: int, seed: int) -> None:
    """Write the world's files.

    Args:
        folder: Where to.
        pairs: Pairs to train on; other sets have a size in proportion.
        steps: Optimiser steps that the policy has learnt before.
        seed: Of everything.
    """
    world = World(seed)
    folder.mkdir(parents=True, exist_ok=True)
    every = world.pairs(pairs + pairs // 4)
    for name, chosen in (("pairs", range(pairs)), ("held_out", range(pairs, len(every)))):
        type(every).of(every[place] for place in chosen).save(folder / f"{name}.jsonl")
    world.candidates(pairs, responses=4).save(folder / "candidates.jsonl")
    shown = world.demonstrations(4 * pairs)
    ConversationSet.of(
        Conversation(prompt_id_of(prompt), prompt, ({"role": "assistant", "content": text},))
        for prompt, text in shown[: 2 * pairs]
    ).save(folder / "conversations.jsonl")
    UnpairedSet.of(
        Unpaired(
            *(row.prompt_id, row.prompt, ({"role": "assistant", "content": text},)),
            *((score or 0.0) >= GOOD, score),
        )
        for row in world.candidates(pairs)
        for text, score in zip(row.responses, row.scores, strict=True)
    ).save(folder / "labelled.jsonl")
    tokenizer = build_tokenizer()
    policy = build_policy(tokenizer, seed=seed)
    encoder = ResponseEncoder(tokenizer)
    trees = [encoder.encode(prompt, [text]) for prompt, text in shown[2 * pairs :]]
    train_sft(policy, trees, steps=steps, seed=seed)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")


def main() -> None:
    """Read the command line, and make the world."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--pairs", type=int, default=512, help="pairs to train on [512]")
    parser.add_argument("--steps", type=int, default=250, help="the policy learnt before [250]")
    parser.add_argument("--seed", type=int, default=0, help="of everything [0]")
    given = parser.parse_args()
    make_world(given.folder, pairs=given.pairs, steps=given.steps, seed=given.seed)


if __name__ == "__main__":
    main()
