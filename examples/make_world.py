"""Make a small world to train in, for the recipes `examples/train_*.yaml`.

    python examples/make_world.py world

writes into the folder `world`, within half a minute and without a download:

- `policy`: a tiny language model (Llama architecture) that has learnt the world's language from
  an expert, a chatty and a gruff writer in turn, so that it has manners to unlearn;
- `pairs.jsonl` and `held_out.jsonl`: the truly best (chosen) and the truly worst of four answers
  of scripted writers to each instruction;
- `conversations.jsonl`: the expert's answers to other instructions;
- `labelled.jsonl`: answers by themselves, each labelled by whether it is wholly right;
- `candidates.jsonl`: four answers with their true rewards to each instruction;
- `tiers.jsonl`: five of them.

With `--kept 100 200` also `policy-100` and `policy-200`: the policy after so many steps of the
same training.

What is true in this world a program knows: `prefstage.sandbox.true_reward`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from prefstage.data import (
    Candidates,
    CandidateSet,
    Conversation,
    ConversationSet,
    Pair,
    PairSet,
    Prompt,
    ResponseEncoder,
    Unpaired,
    UnpairedSet,
    prompt_id_of,
)
from prefstage.sandbox import (
    CHATTY,
    EXPERT,
    GRUFF,
    World,
    build_policy,
    build_tokenizer,
    train_sft,
)

GOOD = 0.95
"""True reward from which an answer counts as desirable: nothing in it is wrong."""
TEACHERS = (EXPERT, CHATTY, GRUFF)
"""Whom the policy has learnt from."""
LESSONS = 4500
"""Answers that it has learnt from."""


def make_world(
    folder: Path,
    *,
    pairs: int,
    steps: int,
    seed: int,
    held_out: int | None = None,
    kept: Sequence[int] = (),
) -> None:
    """Write the world's files.

    Args:
        folder: Where to.
        pairs: Pairs to train on; other sets have a size in proportion.
        steps: Optimiser steps that the policy has learnt before.
        seed: Of everything.
        held_out: Pairs to evaluate on; None: a quarter of those.
        kept: After which steps the policy is kept as well.
    """
    world = World(seed)
    folder.mkdir(parents=True, exist_ok=True)
    candidates = list(world.candidates(pairs + (held_out or pairs // 4), responses=4))
    every = [best_and_worst(row) for row in candidates]
    PairSet.of(every[:pairs]).save(folder / "pairs.jsonl")
    PairSet.of(every[pairs:]).save(folder / "held_out.jsonl")
    CandidateSet.of(candidates[:pairs]).save(folder / "candidates.jsonl")
    world.candidates(pairs, responses=5).save(folder / "tiers.jsonl")
    shown = world.demonstrations(2 * pairs)
    ConversationSet.of(
        Conversation(prompt_id_of(prompt), prompt, ({"role": "assistant", "content": text},))
        for prompt, text in shown
    ).save(folder / "conversations.jsonl")
    UnpairedSet.of(
        Unpaired(pair.prompt_id, pair.prompt, answer, (score or 0.0) >= GOOD, score)
        for pair in every[:pairs]
        for answer, score in (
            (pair.chosen, pair.score_chosen),
            (pair.rejected, pair.score_rejected),
        )
    ).save(folder / "labelled.jsonl")
    tokenizer = build_tokenizer()
    policy = build_policy(tokenizer, seed=seed)
    encoder = ResponseEncoder(tokenizer)
    trees = [encoder.encode(prompt, [text]) for prompt, text in lessons(world, 2 * pairs)]

    def keep(name: str) -> None:
        policy.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    def after(step: int, loss: float) -> None:
        if step in kept:
            keep(f"policy-{step}")

    train_sft(policy, trees, steps=steps, seed=seed, on_step=after)
    keep("policy")


def best_and_worst(row: Candidates) -> Pair:
    """The pair of the truly best and the truly worst of a prompt's answers."""
    scores = [score or 0.0 for score in row.scores]
    places = (scores.index(max(scores)), scores.index(min(scores)))
    chosen, rejected = (
        ({"role": "assistant", "content": row.responses[place]},) for place in places
    )
    return Pair(
        *(row.prompt_id, row.prompt, chosen, rejected),
        *(scores[place] for place in places),
        *(row.sources[place] for place in places),
    )


def lessons(world: World, after: int) -> list[tuple[Prompt, str]]:
    """What the policy has learnt from: each instruction answered by one of its teachers."""
    taught = [world.demonstrations(after + LESSONS, writer=teacher) for teacher in TEACHERS]
    return [taught[place % len(TEACHERS)][place] for place in range(after, after + LESSONS)]


def main() -> None:
    """Read the command line, and make the world."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--pairs", type=int, default=512, help="pairs to train on [512]")
    parser.add_argument("--held-out", type=int, help="pairs to evaluate on [a quarter of those]")
    parser.add_argument("--steps", type=int, default=250, help="the policy learnt before [250]")
    parser.add_argument("--seed", type=int, default=0, help="of everything [0]")
    parser.add_argument("--kept", type=int, nargs="*", default=[], help="steps to keep it after")
    given = parser.parse_args()
    make_world(**vars(given))


if __name__ == "__main__":
    main()
