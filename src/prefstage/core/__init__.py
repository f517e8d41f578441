"""What everything stands on: errors, configuration, run folders, seeds, progress."""

import lazy_loader

# On first use: errors and settings must not load torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
