"""Who says which answer is better; with a ledger, no judgment is bought twice."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefstage.judging.base import Comparison, Judge, Judgment
    from prefstage.judging.judged import stored
    from prefstage.judging.loading import as_judge, load_judge
    from prefstage.judging.verdicts import JudgeConfig, Judged, JudgeSettings, judge

_MODULES = {
    "base": ("Comparison", "Judge", "Judgment"),
    "judged": ("stored",),
    "loading": ("as_judge", "load_judge"),
    "verdicts": ("JudgeConfig", "JudgeSettings", "Judged", "judge"),
}

__all__ = [
    "Comparison",
    "Judge",
    "JudgeConfig",
    "JudgeSettings",
    "Judged",
    "Judgment",
    "as_judge",
    "judge",
    "load_judge",
    "stored",
]


def __getattr__(name: str) -> Any:
    """Import on first use: what compares needs arrays, what reads settings does not."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'prefstage.judging' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.judging.{module}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
