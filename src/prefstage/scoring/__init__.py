"""The log-prob engine: log π(y|x) of many responses to shared prompts, exactly and fast."""

from prefstage.scoring.attention import choose_backend
from prefstage.scoring.engine import TreeLogProbs, response_log_probs
from prefstage.scoring.linear import Head, linear_log_probs
from prefstage.scoring.reference_cache import ReferenceCache, model_fingerprint
from prefstage.scoring.scorer import LayoutChoice, Scorer, ScoringWarning, choose_layout

__all__ = [
    "Head",
    "LayoutChoice",
    "ReferenceCache",
    "Scorer",
    "ScoringWarning",
    "TreeLogProbs",
    "choose_backend",
    "choose_layout",
    "linear_log_probs",
    "model_fingerprint",
    "response_log_probs",
]
