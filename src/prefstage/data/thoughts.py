"""What a policy wrote, read as a reader would: a thought, and the answer after it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """A generated text, read.

    Attributes:
        answer: What the policy answers; empty where it was cut while it still thought.
        thought: What it thought before; None if it did not think.
        cut: Whether the thought never ended.
    """

    answer: str
    thought: str | None = None
    cut: bool = False


def read_reply(text: str, *, opened: bool = False) -> Reply:
    """Split a generated text into thought and answer.

    Args:
        text: As generated, special tokens included, without the end-of-turn.
        opened: Whether the generation prompt has opened the thought already.

    Returns:
        The reply.
    """
    return Reply(text)
