# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .attention import (
    choose_backend as choose_backend,
)
from .engine import (
    TreeLogProbs as TreeLogProbs,
    response_log_probs as response_log_probs,
)
from .linear import (
    Head as Head,
    linear_log_probs as linear_log_probs,
)
from .reference_cache import (
    ReferenceCache as ReferenceCache,
    model_fingerprint as model_fingerprint,
)
from .scorer import (
    LayoutChoice as LayoutChoice,
    Scorer as Scorer,
    ScoringWarning as ScoringWarning,
    choose_layout as choose_layout,
)
