"""The log-prob engine: log π(y|x) of many responses to shared prompts, exactly and fast."""

import lazy_loader

# Public names are imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
