"""Filters of built pairs: each leaves out what it should, and counts it."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.core.config import Config
from prefstage.judging.texts import content_of

Drops = Callable[[Built], str | None]
"""Why a pair is left out, in a few words; None to keep it."""


class LengthFilter(Config):
    """Limits of texts, in characters."""

    min_response: int | None = Field(default=None, ge=1, description="Characters at least.")
    max_response: int | None = Field(default=None, ge=1, description="Characters at most.")
    max_prompt: int | None = Field(default=None, ge=1, description="Characters at most.")
    max_ratio: float | None = Field(
        default=None, ge=1, description="Longer response over shorter one, at most."
    )

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError("no limit; expected one; set min_response, max_response, ...")
        return self


class GapFilter(Config):
    """Limits of score of chosen less score of rejected."""

    minimum: float | None = Field(default=None, description="Least gap.")
    maximum: float | None = Field(default=None, description="Greatest gap.")


class NearDuplicateFilter(Config):
    """MinHash over word shingles, by datasketch."""

    threshold: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity.")
    shingle_words: int = Field(default=5, ge=1, description="Words a shingle.")
    permutations: int = Field(default=128, ge=16, description="Hash functions.")
    text: Literal["prompt", "chosen", "pair"] = Field(
        default="pair", description="What is compared."
    )


class DecontaminationFilter(Config):
    """Leave out pairs that share an n-gram of words with an evaluation set."""

    evaluation: tuple[str, ...] = Field(min_length=1, description="Files, folders or Hub ids.")
    words: int = Field(default=13, ge=2, description="n of the n-grams.")
    responses: bool = Field(default=True, description="Look at responses too, not only prompts.")


class Filters(Config):
    """Which filters to apply, in this order; each None or false is off."""

    length: LengthFilter | None = None
    gap: GapFilter | None = None
    agreement: float | None = Field(
        default=None, gt=0.5, le=1, description="Share of raters at least; needs votes."
    )
    language: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="ISO 639-1 codes of responses to keep."
    )
    duplicates: bool = Field(default=False, description="Pairs that stand twice, exactly.")
    decontaminate: DecontaminationFilter | None = None
    near_duplicates: NearDuplicateFilter | None = None


def filtered(groups: Iterable[Group], filters: Filters, *, account: Account) -> Iterator[Group]:
    """Apply the filters; every pair that goes is counted under the filter that found it.

    Pairs of one prompt that several parts share stand or fall together: a prompt that loses
    a pair in one part loses it in all, so that the parts keep the same prompts.

    Args:
        groups: Built pairs, prompt by prompt.
        filters: What to apply.
        account: Where it is counted.

    Yields:
        What is left.
    """
    drops = drops_of(filters)
    for group in groups:
        reasons = [next((why for drop in drops if (why := drop(each))), None) for each in group]
        parts = {each.part for each in group}
        kept = [each for each, why in zip(group, reasons, strict=True) if why is None]
        for each, why in zip(group, reasons, strict=True):
            if why is not None:
                account.skip(f"filter: {why}", each.pair.prompt_id)
        if len(parts) > 1 and len(kept) < len(group):
            why = "filter: another part's pair of the prompt went"
            account.skip(why, group[0].pair.prompt_id, len(kept))
            continue
        if kept:
            yield kept


def drops_of(filters: Filters) -> list[Drops]:
    """The filters as functions, those that are cheap first.

    Args:
        filters: What to apply.

    Returns:
        Functions with a memory of their own where duplicates are looked for.
    """
    from prefstage.building.contamination import Contamination
    from prefstage.building.languages import other_language
    from prefstage.building.near_duplicates import ExactDuplicates, NearDuplicates

    found: list[Drops] = []
    if filters.length is not None:
        found.append(_by_length(filters.length))
    if filters.gap is not None:
        found.append(_by_gap(filters.gap))
    if filters.agreement is not None:
        found.append(_by_agreement(filters.agreement))
    if filters.language is not None:
        found.append(other_language(filters.language))
    if filters.duplicates:
        found.append(ExactDuplicates())
    if filters.decontaminate is not None:
        found.append(Contamination.of(filters.decontaminate))
    if filters.near_duplicates is not None:
        found.append(NearDuplicates(filters.near_duplicates))
    return found


def texts_of(built: Built) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text.

    Args:
        built: The pair.

    Returns:
        The three texts; messages are joined by newlines.
    """
    pair = built.pair
    prompt, chosen, rejected = (
        "\n".join(map(content_of, each)) for each in (pair.prompt, pair.chosen, pair.rejected)
    )
    return prompt, chosen, rejected


def _by_length(limits: LengthFilter) -> Drops:
    def drop(built: Built) -> str | None:
        prompt, *responses = map(len, texts_of(built))
        short, long = min(responses), max(responses)
        if limits.min_response is not None and short < limits.min_response:
            return "response too short"
        if limits.max_response is not None and long > limits.max_response:
            return "response too long"
        if limits.max_prompt is not None and prompt > limits.max_prompt:
            return "prompt too long"
        if limits.max_ratio is not None and long > limits.max_ratio * max(short, 1):
            return "responses of too different lengths"
        return None

    return drop


def _by_gap(limits: GapFilter) -> Drops:
    def drop(built: Built) -> str | None:
        if built.gap is None or not math.isfinite(built.gap):
            return "gap unknown (no scores)"
        if limits.minimum is not None and built.gap < limits.minimum:
            return "gap too small"
        if limits.maximum is not None and built.gap > limits.maximum:
            return "gap too large"
        return None

    return drop


def _by_agreement(minimum: float) -> Drops:
    def drop(built: Built) -> str | None:
        if built.pair.agreement is None:
            return "agreement unknown (no votes)"
        return "raters agree too little" if built.pair.agreement < minimum else None

    return drop
