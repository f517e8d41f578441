"""Every preference loss as one object, and the registry by name."""

import lazy_loader

# Public names are imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
