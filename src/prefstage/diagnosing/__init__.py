"""What is in a dataset of pairs, and what training on it could do: rankings, flips, judges."""

import lazy_loader

# Import what works on tensors on first use: the settings alone must not load torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
