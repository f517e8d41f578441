"""Reward-augmented pairs: the score that is asked for stands in the prompt."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.building.relabelling import exchanged
from prefstage.core.errors import InputError
from prefstage.data.records import Message, Pair, Prompt, prompt_id_of

TEMPLATE = "Answer so that a judge of answers would score your answer {score}."


def reward_augmented(
    groups: Iterable[Group], *, template: str = TEMPLATE, digits: int = 1, account: Account
) -> Iterator[Group]:
    """Take each pair twice, once for either score as the goal.

    With the goal g in the prompt, a response earns ``-(g - r(y))²``. With g = r(y_w) the
    order stays; with g = r(y_l) the rejected response is the right one, and the order turns.

    Args:
        groups: Built pairs with both scores; others are counted and left out.
        template: What the system message says, with ``{score}`` where the goal stands; it
            is added to a system message that is there.
        digits: Decimal places of the goal. Pairs whose scores read the same are left out.
        account: Counts what was left out.

    Yields:
        For each pair two, whose scores are those of the goal; the ids are of the new prompts.

    Raises:
        InputError: If the template has no place for the score.

    Source:
        Zhang et al. 2024, arXiv:2410.08067, §3.
    """
    if "{score}" not in template:
        raise InputError.of(
            saw=f"template {template!r}", expected="a text with {score} in it", cure="add {score}"
        )
    for group in groups:
        made: Group = []
        for built in group:
            high, low = built.pair.score_chosen, built.pair.score_rejected
            if high is None or low is None or not math.isfinite(high - low):
                account.skip("pair without both scores", built.pair.prompt_id)
                continue
            goals = [f"{goal:.{digits}f}" for goal in (high, low)]
            if goals[0] == goals[1]:
                account.skip("pair whose scores read the same as goals", built.pair.prompt_id)
                continue
            worse = -((high - low) ** 2)
            texts = [template.replace("{score}", goal) for goal in goals]
            made += [
                _asked(built, built.pair, texts[0], worse),
                _asked(built, exchanged(built.pair), texts[1], worse),
            ]
        account.pairs += len(made) - len(group)
        if made:
            yield made


def with_system_text(prompt: Prompt, text: str) -> Prompt:
    """Add a text to a prompt's system message, or put one before it.

    Args:
        prompt: The messages.
        text: What the system message shall say (too).

    Returns:
        The new messages.
    """
    first: Message = {"role": "system", "content": text}
    if prompt and prompt[0].get("role") == "system" and isinstance(prompt[0].get("content"), str):
        first = {**prompt[0], "content": f"{prompt[0]['content']}\n\n{text}"}
        return (first, *prompt[1:])
    return (first, *prompt)


def _asked(built: Built, pair: Pair, text: str, worse: float) -> Built:
    prompt = with_system_text(built.pair.prompt, text)
    made = replace(
        pair,
        prompt=prompt,
        prompt_id=prompt_id_of(prompt),
        score_chosen=0.0,
        score_rejected=worse,
        judge_probability=None,  # of the responses as such, whatever is asked for
    )
    return replace(
        built,
        pair=made,
        method="reward-augmented",
        part="reward-augmented",
        origin_prompt_id=built.split_key,
        gap=-worse,
    )
