"""Who labelled a pair, as datasets name and store them."""

from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.observations import SourceRow
from prefstage.data.records import Vote

NAMES = (
    *("annotator", "annotator_id", "annotator_index", "worker", "worker_id", "rater"),
    *("rater_id", "labeler", "labeler_id", "labeller", "user", "user_id"),
)
"""How datasets spell the column of who labelled the row."""


def read_annotator(row: SourceRow) -> str | None:
    """Who labelled a row's pair.

    Args:
        row: The row.

    Returns:
        The annotator's name (numbers as text), or None if the row names nobody.

    Raises:
        RowFault: If the column holds no name.
    """
    name = next((name for name in NAMES if row.get(name) not in (None, "")), None)
    if name is None:
        return None
    value = row[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables write a column of numbers in which some are missing
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowFault(
            name,
            saw=show(value),
            expected="the annotator's name or number",
            cure="mend or empty the field",
        )
    return str(value).strip() or None


def read_votes(value: Any, field_name: str) -> tuple[Vote, ...]:
    """Votes as a stored pair has them.

    Args:
        value: The column's value.
        field_name: The column, for faults.

    Returns:
        The votes; none where the column is empty.

    Raises:
        RowFault: If they are no list of {annotator, preference}.
    """
    if not value:
        return ()
    try:
        votes = tuple(Vote(str(vote["annotator"]), float(vote["preference"])) for vote in value)
        if all(0 <= vote.preference <= 1 for vote in votes):
            return votes
    except (TypeError, ValueError, KeyError):
        pass
    raise RowFault(
        field_name,
        saw=show(value),
        expected="a list of {annotator, preference} with preferences in [0, 1]",
        cure="mend or empty the field",
    )
