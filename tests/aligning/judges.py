"""A judge with another taste."""

from prefstage.data import Prompt


def shorter(a: str, b: str, prompt: Prompt) -> float:
    """P(a ≻ b): the shorter one."""
    return 0.5 if len(a) == len(b) else float(len(a) < len(b))
