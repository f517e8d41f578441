"""Who writes answers: transformers in process, any OpenAI-compatible server."""

import lazy_loader

# Import on first use: torch is only needed by one of them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
