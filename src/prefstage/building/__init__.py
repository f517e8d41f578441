"""Candidates to pairs: best and worst, tiers, gaps, mixing, filters."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefstage.building.account import Account as Account
    from prefstage.building.build import BuildResult as BuildResult
    from prefstage.building.build import build_pairs as build_pairs
    from prefstage.building.gaps import gap_quality_pairs as gap_quality_pairs
    from prefstage.building.mixing import mixed_pairs as mixed_pairs
    from prefstage.building.per_prompt import per_prompt_pairs as per_prompt_pairs
    from prefstage.building.recipe import Recipe as Recipe
    from prefstage.building.recipe import read_recipe as read_recipe
    from prefstage.building.relabelling import relabelled as relabelled
    from prefstage.building.statistics import pair_statistics as pair_statistics
    from prefstage.building.tiers import quality_tiers as quality_tiers
    from prefstage.building.tiers import tier_pairs as tier_pairs

_HOMES = {
    "Account": "account",
    "BuildResult": "build",
    "Recipe": "recipe",
    "build_pairs": "build",
    "gap_quality_pairs": "gaps",
    "mixed_pairs": "mixing",
    "pair_statistics": "statistics",
    "per_prompt_pairs": "per_prompt",
    "quality_tiers": "tiers",
    "read_recipe": "recipe",
    "relabelled": "relabelling",
    "tier_pairs": "tiers",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the public names, each imported on first use


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a recipe alone must not load datasets."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefstage.building' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.building.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
