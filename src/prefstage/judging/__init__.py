"""Who says which answer is better; with a ledger, no judgment is bought twice."""

from prefstage.judging.base import Comparison, Judge, Judgment
from prefstage.judging.loading import as_judge, load_judge
from prefstage.judging.stored import stored

__all__ = ["Comparison", "Judge", "Judgment", "as_judge", "load_judge", "stored"]
