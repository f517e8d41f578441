"""Training: one trainer for every loss, on transformers' Trainer; ours is the step."""

import lazy_loader

# Import a public name on first use: reading a recipe or records need not load torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
