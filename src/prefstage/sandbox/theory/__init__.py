"""Statements of the papers, each as a check that runs on random tabular worlds."""

from prefstage.sandbox.theory.chapter import CHECKS, Checked, as_table, choose_checks, run_checks
from prefstage.sandbox.theory.evidence import Check, Evidence, Finding, Setting
from prefstage.sandbox.theory.two_stage import consistency, general_policy
from prefstage.sandbox.theory.worlds import Worlds, draw_worlds, preference_of

__all__ = [
    "CHECKS",
    "Check",
    "Checked",
    "Evidence",
    "Finding",
    "Setting",
    "Worlds",
    "as_table",
    "choose_checks",
    "consistency",
    "draw_worlds",
    "general_policy",
    "preference_of",
    "run_checks",
]
