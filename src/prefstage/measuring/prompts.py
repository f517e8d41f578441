"""What each prompt said: the table on disk, and the examples in the summary."""

from collections.abc import Sequence
from pathlib import Path

from prefstage.core.files import atomic_path
from prefstage.data.records import Candidates, Prompt
from prefstage.judging.texts import content_of
from prefstage.measuring.judged import JudgedPrompt

_EXCERPT = 200


def write_prompts(prompts: Sequence[JudgedPrompt], path: Path) -> None:
    """Write one row a prompt as Parquet, atomically, in the order of use.

    Columns: `order`, `prompt_id`, `prompt` (the beginning of the last message), `score` in
    [0, 1], `favours`, `votes_on`, `votes_off`, `ties`, `undecided`, `on_responses`,
    `off_responses`.

    Args:
        prompts: The judged prompts.
        path: The file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "order": each.order,
            "prompt_id": each.match.prompt_id,
            "prompt": excerpt_of(each.match.prompt, length=_EXCERPT),
            "score": each.votes.score,
            "favours": each.favours,
            "votes_on": each.votes.votes_on,
            "votes_off": each.votes.votes_off,
            "ties": each.votes.ties,
            "undecided": each.votes.undecided,
            "on_responses": len(each.match.on),
            "off_responses": len(each.match.off),
        }
        for each in prompts
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def on_policy_candidates(prompts: Sequence[JudgedPrompt], source: str) -> list[Candidates]:
    """The on-policy responses as candidates, to be used again as ``--on``.

    Empty ones are left out, since no dataset reader takes an empty response.

    Args:
        prompts: The judged prompts.
        source: The policy's name.

    Returns:
        One row a prompt that has a response, in the order of use; no scores.
    """
    rows = [prompt.match.on_policy(source) for prompt in prompts]
    spoken = [[n for n, text in enumerate(row.responses) if text.strip()] for row in rows]
    return [row.only(kept) for row, kept in zip(rows, spoken, strict=True) if kept]


def excerpt_of(prompt: Prompt, *, length: int) -> str:
    """The beginning of the prompt's last message, on one line."""
    text = " ".join(content_of(prompt[-1]).split()) if prompt else ""
    return text if len(text) <= length else text[: length - 1] + "…"


def clearest_prompts(
    prompts: Sequence[JudgedPrompt], *, favours: str, count: int
) -> list[JudgedPrompt]:
    """The prompts that favour one side most, the earliest used first among equals.

    Args:
        prompts: The judged prompts.
        favours: "on" or "off".
        count: How many at most.

    Returns:
        Prompts whose score is on that side of ½.
    """
    sign = 1.0 if favours == "on" else -1.0
    found = [each for each in prompts if each.favours == favours]
    return sorted(found, key=lambda each: (-sign * each.votes.score, each.order))[:count]
