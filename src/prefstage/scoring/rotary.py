"""Rotary embeddings whose frequencies depend on the length of what is computed together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefstage.scoring.rows import Leaf


@dataclass(frozen=True)
class LengthRule:
    """Which texts a pass may hold together.

    Attributes:
        limit: Longest text, in tokens, that has the original frequencies.
        each_its_own: Whether every longer text has frequencies of its own (dynamic
            scaling), or all longer ones share one other set (LongRoPE).
    """

    limit: int
    each_its_own: bool


def length_rule(config: Any) -> LengthRule | None:
    """The rule of a model's rotary embedding; None if frequencies do not depend on length.

    Source:
        LongRoPE: Ding et al. 2024, arXiv:2402.13753; dynamic scaling as in transformers'
        `dynamic_rope_update`.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)]
    for kind in kinds:
        name = str(kind.get("rope_type"))
        if name == "longrope" or "dynamic" in name:
            limit = kind.get("original_max_position_embeddings") or config.max_position_embeddings
            return LengthRule(int(limit), each_its_own=name != "longrope")
    return None


def separate(leaves: Sequence[Leaf], rule: LengthRule | None) -> list[list[Leaf]]:
    """Divide responses into groups that may share a pass.

    Args:
        leaves: Responses with their prompts.
        rule: The model's rule.

    Returns:
        Groups, none empty; texts that stand alone come shortest first, since transformers
        only ever raises the length that frequencies are computed for.
    """
    if rule is None:
        return [list(leaves)] if leaves else []
    short = [leaf for leaf in leaves if len(leaf.computed_ids) <= rule.limit]
    long = [leaf for leaf in leaves if len(leaf.computed_ids) > rule.limit]
    if rule.each_its_own:
        alone = sorted(long, key=lambda leaf: len(leaf.computed_ids))
        return [group for group in (short, *([leaf] for leaf in alone)) if group]
    return [group for group in (short, long) if group]
