"""Candidates to pairs: best and worst, tiers, gaps, mixing, filters."""

import lazy_loader

# Import a public name on first use: a recipe alone must not load datasets.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
