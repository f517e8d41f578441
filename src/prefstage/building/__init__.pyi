# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .account import Account as Account
from .answers import per_prompt_pairs as per_prompt_pairs
from .build import BuildResult as BuildResult, build_pairs as build_pairs
from .choosing import (
    gap_quality_pairs as gap_quality_pairs,
    quality_tiers as quality_tiers,
    tier_pairs as tier_pairs,
)
from .mixing import mixed_pairs as mixed_pairs
from .recipe import Recipe as Recipe, read_recipe as read_recipe
from .relabelling import relabelled as relabelled
from .statistics import pair_statistics as pair_statistics
