"""Formats whose rows hold two responses and who won."""

from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import Format, Row, make_pair, read_text
from prefstage.data.labels import LabelScheme, Verdict
from prefstage.data.messages import assistant, user_prompt
from prefstage.data.records import Message, Pair, Prompt

AUTO_J = LabelScheme({"0": "first", "1": "second", "2": "tie"})


def pair_of_verdict(
    prompt: Prompt,
    responses: tuple[tuple[Message, ...], tuple[Message, ...]],
    verdict: Verdict,
    **optional: object,
) -> Pair:
    """Order two responses by a verdict; a tie keeps their order and has agreement ½."""
    first, second = responses
    chosen, rejected = (second, first) if verdict == "second" else (first, second)
    agreement = 0.5 if verdict == "tie" else None
    return make_pair(prompt, chosen, rejected, **{"agreement": agreement, **optional})


def read_verdict(row: Row, column: str, scheme: LabelScheme) -> Verdict:
    """The verdict of a row's label, or a fault that says how labels are read."""
    verdict = scheme.read(row.get(column))
    if verdict is None:
        raise RowFault(
            column,
            saw="no label" if row.get(column) is None else show(row[column]),
            expected=f"a label: {scheme}",
            cure="mend the row, or say what each label means with labels={...}",
        )
    return verdict


def _read_auto_j(row: Row, scheme: LabelScheme | None) -> Pair:
    responses = (assistant(read_text(row, "response 1")), assistant(read_text(row, "response 2")))
    verdict = read_verdict(row, "label", scheme or AUTO_J)
    return pair_of_verdict(user_prompt(read_text(row, "prompt")), responses, verdict)


COMPARED = (
    Format(
        name="auto-j",
        kind="pairs",
        columns="prompt, 'response 1', 'response 2', label (0 first, 1 second, 2 tie)",
        recognises=lambda row: {"prompt", "response 1", "response 2", "label"} <= row.keys(),
        read=_read_auto_j,
        note=f"labels read as {AUTO_J} (the convention of Auto-J)",
    ),
)
