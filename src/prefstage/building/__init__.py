"""Candidates to pairs: best and worst, tiers, gaps, mixing, filters."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.building.account import Account
    from prefstage.building.answers import mixed_pairs
    from prefstage.building.build import BuildResult, build_pairs
    from prefstage.building.card import pair_statistics
    from prefstage.building.per_prompt import per_prompt_pairs
    from prefstage.building.quality import gap_quality_pairs, quality_tiers, tier_pairs
    from prefstage.building.recipe import Recipe, read_recipe
    from prefstage.building.relabelling import relabelled

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

# Import a public name on first use: a recipe alone must not load datasets.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "account": "Account",
        "answers": "mixed_pairs",
        "build": "BuildResult build_pairs",
        "card": "pair_statistics",
        "per_prompt": "per_prompt_pairs",
        "quality": "gap_quality_pairs quality_tiers tier_pairs",
        "recipe": "Recipe read_recipe",
        "relabelling": "relabelled",
    },
)
