"""The loop: a chunk of prompts is answered and judged, then the interval is looked at."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prefstage.core.errors import InputError
from prefstage.core.seeds import seed_for
from prefstage.data.records import Candidates
from prefstage.judging.base import Judge
from prefstage.measuring.config import MeasureConfig
from prefstage.measuring.judged import JudgedPrompt, Match, judge_matches
from prefstage.measuring.responses import Drawn, OnPolicy, Pool
from prefstage.measuring.sequential import ConfidenceSequence

Stopped = Literal["decided", "all prompts used", "prompt budget", "judgment budget"]

_LARGEST_CHUNK = 256


@dataclass(frozen=True)
class Reading:
    """Where a running measurement stands.

    Attributes:
        doing: What goes on, a few words.
        prompts_used: Prompts judged so far.
        prompts_allowed: Prompts that may be used at most.
        boundary_score: So far; ½ before the first prompt.
        interval: (low, high) so far.
    """

    doing: str
    prompts_used: int
    prompts_allowed: int
    boundary_score: float
    interval: tuple[float, float]


Watch = Callable[[Reading], None]


@dataclass(frozen=True)
class LoopEnd:
    """How the loop ended.

    Attributes:
        prompts: Every judged prompt, in the order of use.
        sequence: The confidence sequence over their scores.
        stopped: Why it ended.
        prompts_available: Prompts that both sides have responses to.
    """

    prompts: tuple[JudgedPrompt, ...]
    sequence: ConfidenceSequence
    stopped: Stopped
    prompts_available: int


def prompt_order(prompt_ids: Sequence[str], *, seed: int) -> list[str]:
    """Put prompts into a random order that depends on the seed and the prompts alone."""
    return sorted(prompt_ids, key=lambda prompt_id: seed_for(seed, "prompt order", prompt_id))


def chunk_sizes(limit: int, *, first: int) -> Iterator[int]:
    """How many prompts to use between two looks at the interval.

    Small at first, so that a clear case ends early; then a quarter of what was used, so that
    little is wasted and slow samplers still get full batches.

    Args:
        limit: Prompts in all.
        first: The smallest chunk.

    Yields:
        Sizes that sum to `limit`.
    """
    used = 0
    while used < limit:
        size = min(max(first, used // 4), _LARGEST_CHUNK, limit - used)
        yield size
        used += size


def run_loop(
    prompt_ids: Sequence[str],
    *,
    off: Pool,
    policy: OnPolicy,
    judge: Judge,
    config: MeasureConfig,
    watch: Watch | None,
) -> LoopEnd:
    """Use prompts until the interval leaves ½ or the budget is spent.

    Args:
        prompt_ids: The prompts that both sides have responses to.
        off: The off-policy side.
        policy: The on-policy side.
        judge: Gives P(a ≻ b | x).
        config: Rules and budget.
        watch: Called as things go on; the interval is computed for it at every look.

    Returns:
        Every judged prompt, and why the loop ended.
    """
    order = prompt_order(prompt_ids, seed=config.seed)
    budget = _budget(order, off, policy, config)
    sequence = ConfidenceSequence(
        available=None if config.new_prompts else len(order), confidence=config.confidence
    )
    prompts: list[JudgedPrompt] = []
    for size in chunk_sizes(budget.prompts, first=config.first_chunk):
        tell = _teller(watch, len(prompts), budget, sequence)
        chunk = [off.row(prompt_id) for prompt_id in order[len(prompts) :][:size]]
        matches = _match(chunk, policy.respond(chunk, tell), off, config)
        tell("judging")
        counted = judge_matches(judge, matches, votes=config.votes, ties=config.ties)
        prompts += map(JudgedPrompt, range(len(prompts), len(prompts) + size), matches, counted)
        sequence.update(votes.score for votes in counted)
        if sequence.side is not None and not config.all_prompts:
            break
    _teller(watch, len(prompts), budget, sequence)("done")
    return LoopEnd(tuple(prompts), sequence, _why(len(prompts), len(order), budget), len(order))


@dataclass(frozen=True)
class _Budget:
    """How many prompts may be used, and what sets the limit."""

    prompts: int
    limit: Stopped


def _budget(order: Sequence[str], off: Pool, policy: OnPolicy, config: MeasureConfig) -> _Budget:
    budget = _Budget(len(order), "all prompts used")
    if config.max_prompts is not None and config.max_prompts < len(order):
        budget = _Budget(config.max_prompts, "prompt budget")
    if config.max_judgments is None:
        return budget
    spent = 0
    for place, prompt_id in enumerate(order[: budget.prompts]):
        off_count = min(config.off_responses, len(off.row(prompt_id).responses))
        spent += policy.count(prompt_id) * off_count
        if spent > config.max_judgments:
            budget = _Budget(place, "judgment budget")
            break
    if not budget.prompts:
        raise InputError.of(
            saw=f"max_judgments {config.max_judgments}, and {spent} comparisons for one prompt",
            expected="a budget for at least one prompt",
            cure="raise max_judgments, or lower on_responses or off_responses",
        )
    return budget


def _why(used: int, available: int, budget: _Budget) -> Stopped:
    if used == available:
        return "all prompts used"
    return budget.limit if used == budget.prompts else "decided"


def _teller(
    watch: Watch | None, used: int, budget: _Budget, sequence: ConfidenceSequence
) -> Callable[[str], None]:
    if watch is None:
        return lambda doing: None
    reading = Reading("", used, budget.prompts, sequence.mean, sequence.interval)
    return lambda doing: watch(replace(reading, doing=doing))


def _match(
    chunk: Sequence[Candidates], answers: Sequence[Drawn], off: Pool, config: MeasureConfig
) -> list[Match]:
    theirs = [off.draw(each.prompt_id, config.off_responses, seed=config.seed) for each in chunk]
    return [
        Match(
            *(row.prompt_id, row.prompt, on.texts, other.texts, on.unused, other.unused),
            *(on.generations, other.generations),
        )
        for row, on, other in zip(chunk, answers, theirs, strict=True)
    ]
