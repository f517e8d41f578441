"""Who says which answer is better; with a ledger, no judgment is bought twice."""

import lazy_loader

# Import on first use: what compares needs arrays, what reads settings does not.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
