"""Readers for every known preference format, validation, and tokenisation."""

import lazy_loader

# Public names are imported on first use: records alone must not load transformers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
