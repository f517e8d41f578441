"""Which stage is a policy in? Votes, the sequential test, and how far the answer can be trusted."""

import lazy_loader

# Import on first use: the settings alone, which every help text needs, load no arrays.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
