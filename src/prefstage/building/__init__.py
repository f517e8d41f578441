"""Candidates to pairs: best and worst, tiers, gaps, mixing, filters."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefstage.building.account import Account
    from prefstage.building.answers import mixed_pairs
    from prefstage.building.build import BuildResult, build_pairs
    from prefstage.building.card import pair_statistics
    from prefstage.building.per_prompt import per_prompt_pairs
    from prefstage.building.quality import gap_quality_pairs, quality_tiers, tier_pairs
    from prefstage.building.recipe import Recipe, read_recipe
    from prefstage.building.relabelling import relabelled

_MODULES = {
    "Account": "account",
    "BuildResult": "build",
    "Recipe": "recipe",
    "build_pairs": "build",
    "gap_quality_pairs": "quality",
    "mixed_pairs": "answers",
    "pair_statistics": "card",
    "per_prompt_pairs": "per_prompt",
    "quality_tiers": "quality",
    "read_recipe": "recipe",
    "relabelled": "relabelling",
    "tier_pairs": "quality",
}

__all__ = [
    "Account",
    "BuildResult",
    "Recipe",
    "build_pairs",
    "gap_quality_pairs",
    "mixed_pairs",
    "pair_statistics",
    "per_prompt_pairs",
    "quality_tiers",
    "read_recipe",
    "relabelled",
    "tier_pairs",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a recipe alone must not load datasets."""
    if name not in _MODULES:
        raise AttributeError(f"module 'prefstage.building' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.building.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
