"""Who says which answer is better; with a ledger, no judgment is bought twice."""

from prefstage.judging.base import Comparison, Judge, Judgment
from prefstage.judging.judged import stored
from prefstage.judging.loading import as_judge, load_judge

__all__ = ["Comparison", "Judge", "Judgment", "as_judge", "load_judge", "stored"]
