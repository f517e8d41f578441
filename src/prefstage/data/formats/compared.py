"""Formats whose rows hold two responses and who won: labels, graded preferences, votes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import (
    PROMPT_NAMES,
    Format,
    Row,
    first_of,
    read_number,
    read_prompt,
    read_response,
    read_source,
    require,
    with_system_and_tools,
)
from prefstage.data.labels import LabelScheme, Verdict, infer_scheme
from prefstage.data.messages import common_prefix, is_messages, read_messages
from prefstage.data.records import TIE, Message, Pair, Prompt
from prefstage.data.validation import make_pair

_STEMS = "output|response|answer|completion|candidate|generation|conversation|summary|text"
_RESPONSE = re.compile(rf"(?P<stem>{_STEMS})(?P<gap>[ _-]?)(?P<end>[abAB012])")
_ENDS = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"))
_LABELS = ("label", "winner", "preferred", "preference", "verdict", "choice", "better_response_id")
_SOURCE_STEMS = ("model", "source", "generator")
_SCORE_STEMS = ("score", "rating", "reward")
AUTO_J = LabelScheme({"0": "first", "1": "second", "2": "tie"}, "the convention of Auto-J")
SHP = LabelScheme({"1": "first", "0": "second"}, "the convention of SHP: 1 prefers A")

Responses = tuple[tuple[Message, ...], tuple[Message, ...]]


def response_columns(row: Row) -> tuple[str, str] | None:
    """The two response columns of a row, as ``output_A`` and ``output_B``."""
    for name in row:
        match = _RESPONSE.fullmatch(name)
        if not match:
            continue
        for first, second in _ENDS:
            partner = f"{match['stem']}{match['gap']}{second}"
            if match["end"] == first and partner in row:
                return name, partner
    return None


def _label_column(row: Row) -> str | None:
    return next((name for name in _LABELS if name in row), None)


def _beside(row: Row, names: tuple[str, str], stems: Sequence[str]) -> tuple[str, str] | None:
    """Columns like ``model_a``/``model_b`` that go with ``response_a``/``response_b``."""
    ends = names[0][-1], names[1][-1]
    for stem in stems:
        for gap in ("_", "", " "):
            columns = f"{stem}{gap}{ends[0]}", f"{stem}{gap}{ends[1]}"
            if all(column in row for column in columns):
                return columns
    return None


def _sides(row: Row, names: tuple[str, str]) -> tuple[Prompt, Responses]:
    """Prompt and both responses; without a prompt column, the turns that both share."""
    if first_of(row, PROMPT_NAMES) is not None:
        prompt = read_prompt(row)
        first, second = (read_response(require(row, name), name, prompt) for name in names)
        return prompt, (first, second)
    if not all(is_messages(row.get(name)) for name in names):
        require(row, *PROMPT_NAMES)
    first, second = (read_messages(require(row, name), name) for name in names)
    shared = common_prefix(first, second)
    if shared == len(first) == len(second):
        shared -= 1
    return with_system_and_tools(row, first[:shared]), (first[shared:], second[shared:])


def _known_sides(row: Row, names: tuple[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Source and score of each side, where the row has them."""
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    sources, scores = _beside(row, names, _SOURCE_STEMS), _beside(row, names, _SCORE_STEMS)
    for index, side in enumerate(sides):
        if sources:
            side["source"] = read_source(row, sources[index])
        if scores:
            side["score"] = read_number(row, scores[index])
    return sides


def _ordered(row: Row, names: tuple[str, str], verdict: Verdict, agreement: float | None) -> Pair:
    """The pair that a verdict makes of a row; a tie keeps the row's order."""
    prompt, responses = _sides(row, names)
    known = _known_sides(row, names)
    order = (1, 0) if verdict == "second" else (0, 1)
    optional = {
        f"{name}_{side}": value
        for side, index in zip(("chosen", "rejected"), order, strict=True)
        for name, value in known[index].items()
    }
    chosen, rejected = (responses[index] for index in order)
    fields = names[order[0]], names[order[1]]
    return make_pair(prompt, chosen, rejected, fields=fields, agreement=agreement, **optional)


def _read_verdict(row: Row, column: str, scheme: LabelScheme) -> Verdict:
    verdict = scheme.read(row.get(column))
    if verdict is None:
        raise RowFault(
            column,
            saw="no label" if row.get(column) is None else show(row[column]),
            expected=f"a label: {scheme}",
            cure="mend the row, or say what each label means with labels={...}",
        )
    return verdict


def _read_labelled(row: Row, scheme: LabelScheme | None) -> Pair:
    names = response_columns(row) or ("response_a", "response_b")
    verdict = _read_verdict(row, _label_column(row) or "label", scheme or AUTO_J)
    agreement = TIE if verdict == "tie" else read_number(row, "agreement")
    return _ordered(row, names, verdict, agreement)


def _infer_labels(rows: Sequence[Row], source: str) -> LabelScheme:
    first = rows[0]
    column = _label_column(first) or "label"
    names = response_columns(first) or ("response_a", "response_b")
    labels = [row.get(column) for row in rows]
    return infer_scheme(labels, names, column=column, source=source)


def _read_shp(row: Row, scheme: LabelScheme | None) -> Pair:
    renamed = {
        "prompt": require(row, "history"),
        "response_a": require(row, "human_ref_A"),
        "response_b": require(row, "human_ref_B"),
        "score_a": row.get("score_A"),
        "score_b": row.get("score_B"),
    }
    verdict = _read_verdict(row, "labels", scheme or SHP)
    return _ordered(renamed, ("response_a", "response_b"), verdict, None)


def _read_annotation(row: Row, _: LabelScheme | None) -> Pair:
    """AlpacaEval: preference in [1, 2] is 1 + P(output_2 is better); 0 and 1.5 are draws."""
    preference = read_number(row, "preference")
    if preference == 0:
        preference = 1 + TIE
    if preference is None or not 1 <= preference <= 2:  # noqa: PLR2004 - the format's scale
        raise RowFault(
            "preference",
            saw="no preference" if preference is None else show(row["preference"]),
            expected="a number from 1 (output_1) to 2 (output_2), or 0 for a draw",
            cure="annotate the row again, or remove it",
        )
    second = preference - 1
    verdict: Verdict = "tie" if second == TIE else "second" if second > TIE else "first"
    return _ordered(row, ("output_1", "output_2"), verdict, max(second, 1 - second))


def _vote_columns(row: Row) -> tuple[str, str] | None:
    names = response_columns(row)
    return _beside(row, names, ("votes", "vote", "n_votes", "num_votes")) if names else None


def _read_votes(row: Row, _: LabelScheme | None) -> Pair:
    names = response_columns(row) or ("response_a", "response_b")
    columns = _vote_columns(row) or ("votes_a", "votes_b")
    tied = first_of(row, ("votes_tie", "tie_votes", "votes_draw"))
    counts = [read_number(row, name) or 0.0 for name in (*columns, *([tied] if tied else []))]
    total = sum(counts)
    if total <= 0 or min(counts) < 0:
        raise RowFault(
            columns[0],
            saw=f"votes {counts}",
            expected="counts that are not negative, and at least one vote",
            cure="remove the row, or collect votes for it",
        )
    return _by_share(row, names, (counts[0] + (counts[2] / 2 if tied else 0.0)) / total)


def _by_share(row: Row, names: tuple[str, str], first: float) -> Pair:
    """The pair of a row whose first response got this share of the votes."""
    verdict: Verdict = "tie" if first == TIE else "first" if first > TIE else "second"
    return _ordered(row, names, verdict, max(first, 1 - first))


def _read_vote_list(row: Row, scheme: LabelScheme | None) -> Pair:
    """Each rater's label in a list; a tie counts half for each response."""
    votes = require(row, "votes")
    if isinstance(votes, str) or not isinstance(votes, Sequence) or not votes:
        raise RowFault(
            "votes",
            saw=show(votes),
            expected="a list with at least one label",
            cure="remove the row, or collect votes for it",
        )
    names = response_columns(row) or ("response_a", "response_b")
    named = {f"votes[{index}]": vote for index, vote in enumerate(votes)}
    verdicts = [_read_verdict(named, place, scheme or AUTO_J) for place in named]
    first = verdicts.count("first") + verdicts.count("tie") / 2
    return _by_share(row, names, first / len(verdicts))


def _infer_vote_labels(rows: Sequence[Row], source: str) -> LabelScheme:
    names = response_columns(rows[0]) or ("response_a", "response_b")
    labels = [vote for row in rows for vote in _as_list(row.get("votes"))]
    return infer_scheme(labels, names, column="votes", source=source)


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _has_sides(row: Row) -> bool:
    names = response_columns(row)
    if names is None:
        return False
    return first_of(row, PROMPT_NAMES) is not None or all(is_messages(row[n]) for n in names)


def _fixed(scheme: LabelScheme) -> Any:
    """Labels whose meaning the format itself fixes; seen ones are not needed."""

    def meaning(rows: Sequence[Row], source: str) -> LabelScheme:
        return replace(scheme)

    return meaning


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_annotation(row: Mapping[str, Any]) -> bool:
    return {"instruction", "output_1", "output_2", "preference"} <= row.keys() and (
        row["preference"] is None or not isinstance(row["preference"], str)
    )


COMPARED = (
    Format(
        name="auto-j",
        kind="pairs",
        needs=("prompt", "response 1", "response 2", "label"),
        recognises=lambda row: {"prompt", "response 1", "response 2", "label"} <= row.keys(),
        read=_read_labelled,
        labels=_fixed(AUTO_J),
    ),
    Format(
        name="shp",
        kind="pairs",
        needs=("history", "human_ref_A", "human_ref_B", "labels"),
        recognises=lambda row: {"history", "human_ref_A", "human_ref_B", "labels"} <= row.keys(),
        read=_read_shp,
        labels=_fixed(SHP),
    ),
    Format(
        name="alpacaeval-annotations",
        kind="pairs",
        needs=("instruction", "output_1", "output_2", "preference"),
        recognises=_is_annotation,
        read=_read_annotation,
        note="preference read as 1 + P(output_2 is better); agreement is the winner's share",
    ),
    Format(
        name="votes",
        kind="pairs",
        needs=("prompt", "response_a", "response_b", "votes_a", "votes_b"),
        recognises=lambda row: _has_sides(row) and _vote_columns(row) is not None,
        read=_read_votes,
        note="agreement is the winner's share of the votes; a tie vote counts half for each",
    ),
    Format(
        name="vote-list",
        kind="pairs",
        needs=("prompt", "response_a", "response_b", "votes"),
        recognises=lambda row: _has_sides(row) and bool(_as_list(row.get("votes"))),
        read=_read_vote_list,
        labels=_infer_vote_labels,
        note="agreement is the winner's share of the votes; a tie vote counts half for each",
    ),
    Format(
        name="labelled",
        kind="pairs",
        needs=("prompt", "output_A", "output_B", "label"),
        recognises=lambda row: _has_sides(row) and _label_column(row) is not None,
        read=_read_labelled,
        labels=_infer_labels,
    ),
)
"""Tried in this order: the more special before the more general."""
