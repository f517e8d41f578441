"""The steps of an alignment, one class a kind: what it depends on, does, costs and reports."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
