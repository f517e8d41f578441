"""What runs found, as one self-contained HTML page and as figures for papers."""

import lazy_loader

# Import on first use: settings alone load neither templates nor tables.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
