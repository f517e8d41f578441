"""How good is the policy: win rates one can trust, and benchmarks that users expect."""

import lazy_loader

# Import on first use: the settings alone, which help texts need, load no arrays.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
