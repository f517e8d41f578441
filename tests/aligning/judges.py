"""Judges of the tests' own."""

import json
import os

from prefstage.data import Prompt
from prefstage.sandbox import true_preference


def shorter(a: str, b: str, prompt: Prompt) -> float:
    """P(a ≻ b): the shorter one."""
    return 0.5 if len(a) == len(b) else float(len(a) < len(b))


def noted(a: str, b: str, prompt: Prompt) -> float:
    """The truth, every question written to a file that outlives a kill."""
    line = json.dumps([a, b, prompt[-1]["content"]]) + "\n"
    handle = os.open(os.environ["PREFSTAGE_NOTED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, line.encode())
    os.close(handle)
    return true_preference(a, b, prompt)
