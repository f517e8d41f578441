"""What to train on next: forecasts from gradients, and what trained policies gained."""

import lazy_loader

# Public names are imported on first use: settings need no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
