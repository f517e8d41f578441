"""Formats whose rows are pairs: a chosen and a rejected response, or two and who won."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.data.formats.fields import (
    Format,
    Row,
    fields,
    first_of,
    is_filled,
    is_missing,
    is_response,
    is_text,
    overlaid,
    read_number,
    read_optional,
    read_prompt,
    read_response,
    read_source,
    read_text,
    require,
    with_system_and_tools,
)
from prefstage.data.labels import LabelScheme, Verdict, infer_scheme
from prefstage.data.messages import (
    common_prefix,
    is_list,
    is_messages,
    is_transcript,
    read_messages,
    read_transcript,
    turn,
)
from prefstage.data.records import TIE, Message, Pair, Prompt, Vote
from prefstage.data.rows import RowFault, show
from prefstage.data.validation import make_pair

Sides = tuple[Prompt, tuple[tuple[Message, ...], tuple[Message, ...]]]
_SIDES = ("chosen", "rejected")
_KNOWN = (
    *("score_chosen", "score_rejected", "source_chosen", "source_rejected"),
    *("agreement", "judge_probability"),
)
_STEMS = "output|response|answer|completion|candidate|generation|conversation|summary|text"
_RESPONSE = re.compile(rf"(?P<stem>{_STEMS})(?P<gap>[ _-]?)(?P<end>[abAB012])")
_ENDS = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"))
_LABELS = ("label", "winner", "preferred", "preference", "verdict", "choice", "better_response_id")
_SIDE_STEMS = {"source": ("model", "source", "generator"), "score": ("score", "rating", "reward")}
_VOTE_STEMS = ("votes", "vote", "n_votes", "num_votes")
AUTO_J = LabelScheme({"0": "first", "1": "second", "2": "tie"}, "the convention of Auto-J")
SHP = LabelScheme({"1": "first", "0": "second"}, "the convention of SHP: 1 prefers A")


def _pair(row: Row, prompt: Prompt, chosen: Sequence[Message], rejected: Sequence[Message]) -> Pair:
    known = {role: read_optional(row, role) for role in _KNOWN}
    if row.get("judge_status") == "undecided":  # as prefstage judge writes it, with a ½
        known["judge_probability"] = None
    votes = read_votes(row["votes"]) if first_of(row, "votes") else ()
    return make_pair(prompt, chosen, rejected, votes=votes, **known)


def read_votes(value: Any) -> tuple[Vote, ...]:
    """Votes as a stored pair has them.

    Args:
        value: Of the column of votes.

    Returns:
        The votes; none where the column is empty.

    Raises:
        RowFault: If they are no list of {annotator, preference}.
    """
    try:
        votes = tuple(
            Vote(str(vote["annotator"]), float(vote["preference"])) for vote in value or ()
        )
        if all(0 <= vote.preference <= 1 for vote in votes):
            return votes
    except (TypeError, ValueError, KeyError):
        pass
    raise RowFault(
        "votes",
        saw=show(value),
        expected="a list of {annotator, preference} with preferences in [0, 1]",
        cure="mend or empty the field",
    )


def _read_explicit(row: Row, _: LabelScheme | None) -> Pair:
    prompt = read_prompt(row)
    chosen, rejected = (read_response(require(row, side), side, prompt) for side in _SIDES)
    return _pair(row, prompt, chosen, rejected)


def _parted(row: Row, columns: Sequence[str]) -> Sides:
    # Whole conversations: the turns that both share are the prompt. Equal ones are parted
    # before their last turn, so that the check of equal responses refuses them.
    first, second = (read_messages(require(row, column), column) for column in columns)
    shared = common_prefix(first, second)
    if shared == len(first) == len(second):
        shared -= 1
    return with_system_and_tools(row, first[:shared]), (first[shared:], second[shared:])


def _read_whole_conversations(row: Row, _: LabelScheme | None) -> Pair:
    prompt, responses = _parted(row, _SIDES)
    return _pair(row, prompt, *responses)


def _read_binarized(row: Row, _: LabelScheme | None) -> Pair:
    # A prompt text that repeats the last user turn of two whole conversations.
    text = read_text(row, "prompt")
    if all(is_messages(row.get(side)) and len(row[side]) == 1 for side in _SIDES):
        return _read_explicit(row, None)
    pair = _read_whole_conversations(row, None)
    users = [message["content"].strip() for message in pair.prompt if message["role"] == "user"]
    if text.strip() not in users:
        raise RowFault(
            first_of(row, "prompt") or "prompt",
            saw=f"{show(text)}, which is no user turn of chosen",
            expected="the prompt that both conversations start with",
            cure="mend the row, or remove the prompt column to use the shared turns",
        )
    return pair


def _read_transcripts(row: Row, _: LabelScheme | None) -> Pair:
    sides = {side: read_transcript(read_text(row, side), side, is_prompt=False) for side in _SIDES}
    return _read_whole_conversations(overlaid(row, **sides), None)


def _read_after_transcript(row: Row, _: LabelScheme | None) -> Pair:
    sides = (turn(read_text(row, side).removeprefix(" ")) for side in _SIDES)
    return _pair(row, read_prompt(row), *sides)


def _read_implicit_texts(row: Row, _: LabelScheme | None) -> Pair:
    # Two texts; what they share up to a word's end is the prompt.
    chosen, rejected = (read_text(row, side) for side in _SIDES)
    if chosen == rejected:
        return make_pair(turn("?", "user"), turn(chosen), turn(rejected))
    shared = common_prefix(chosen, rejected)
    # Back to the whitespace before the word in which they part: "It is so" and "It is sad"
    # answer "It is", not "It is s".
    while shared and not (shared < len(chosen) and chosen[shared].isspace()):
        shared -= 1
    shared = len(chosen[:shared].rstrip())
    if not chosen[:shared].strip():
        raise RowFault(
            "chosen",
            saw=f"no prompt column, and texts that share no beginning: {show(chosen)}",
            expected="a prompt, or two texts that begin with it",
            cure="name the prompt's column with columns={'prompt': ...}",
        )
    return _pair(
        row, turn(chosen[:shared], "user"), *(turn(t[shared:]) for t in (chosen, rejected))
    )


def _read_alpaca_output(row: Row, _: LabelScheme | None) -> Pair:
    output = require(row, "output")
    if is_text(output) or [type(text) for text in output] != [str, str]:
        raise RowFault(
            "output",
            saw=show(output),
            expected="a list of two texts: chosen, rejected",
            cure="mend the row, or name columns with columns={...}",
        )
    return _read_explicit(overlaid(row, chosen=output[0], rejected=output[1]), None)


def response_columns(row: Row) -> tuple[str, str] | None:
    """The two response columns of a row, as ``output_A`` and ``output_B``."""
    for name in row:
        match = _RESPONSE.fullmatch(name)
        if match is None:
            continue
        for first, second in _ENDS:
            partner = f"{match['stem']}{match['gap']}{second}"
            if match["end"] == first and partner in row:
                return name, partner
    return None


def _compared(row: Row) -> tuple[str, str]:
    return response_columns(row) or ("response_a", "response_b")


def _label_column(row: Row) -> str | None:
    return next((name for name in _LABELS if name in row), None)


def _side_columns(row: Row, names: tuple[str, str], stems: Sequence[str]) -> tuple[str, str] | None:
    """Columns like ``model_a``/``model_b`` that go with ``response_a``/``response_b``."""
    for stem in stems:
        for gap in ("_", "", " "):
            first, second = (f"{stem}{gap}{name[-1]}" for name in names)
            if first in row and second in row:
                return first, second
    return None


def _ordered(row: Row, names: tuple[str, str], verdict: Verdict, agreement: float | None) -> Pair:
    # The pair that a verdict makes of a row; a tie keeps the row's order.
    if first_of(row, "prompt") is None and all(is_messages(row.get(name)) for name in names):
        prompt, responses = _parted(row, names)
    else:
        prompt = read_prompt(row)
        first, second = (read_response(require(row, name), name, prompt) for name in names)
        responses = first, second
    order = (1, 0) if verdict == "second" else (0, 1)
    known = {"agreement": agreement}
    for what, stems in _SIDE_STEMS.items():
        columns = _side_columns(row, names, stems)
        if columns:
            read: Any = read_source if what == "source" else read_number
            values = [read(row, column) for column in columns]
            known |= {f"{what}_{side}": values[i] for side, i in zip(_SIDES, order, strict=True)}
    chosen, rejected = (responses[index] for index in order)
    return make_pair(prompt, chosen, rejected, columns=[names[index] for index in order], **known)


def _by_share(row: Row, names: tuple[str, str], first: float) -> Pair:
    verdict: Verdict = "tie" if first == TIE else "first" if first > TIE else "second"
    return _ordered(row, names, verdict, max(first, 1 - first))


def _read_verdict(row: Row, column: str, scheme: LabelScheme | None) -> Verdict:
    scheme = scheme or AUTO_J
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
    verdict = _read_verdict(row, _label_column(row) or "label", scheme)
    agreement = TIE if verdict == "tie" else read_number(row, "agreement")
    return _ordered(row, _compared(row), verdict, agreement)


def _infer_labels(rows: Sequence[Row], source: str) -> LabelScheme:
    column = _label_column(rows[0]) or "label"
    labels = [row.get(column) for row in rows]
    return infer_scheme(labels, _compared(rows[0]), column=column, source=source)


def _read_annotation(row: Row, _: LabelScheme | None) -> Pair:
    # AlpacaEval: preference in [1, 2] is 1 + P(output_2 is better); 0 and 1.5 are draws.
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
    return _by_share(row, ("output_1", "output_2"), 1 - (preference - 1))


def _read_vote_counts(row: Row, _: LabelScheme | None) -> Pair:
    names = _compared(row)
    columns = _side_columns(row, names, _VOTE_STEMS) or ("votes_a", "votes_b")
    tied = next(
        (name for name in ("votes_tie", "tie_votes", "votes_draw") if row.get(name) is not None),
        None,
    )
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


def _read_vote_list(row: Row, scheme: LabelScheme | None) -> Pair:
    # The label of every rater in a list; a tie counts half for either response.
    votes = require(row, "votes")
    if not is_list(votes):
        raise RowFault(
            "votes",
            saw=show(votes),
            expected="a list with at least one label",
            cure="remove the row, or collect votes for it",
        )
    labels = {f"votes[{index}]": vote for index, vote in enumerate(votes)}
    verdicts = [_read_verdict(labels, name, scheme) for name in labels]
    first = verdicts.count("first") + verdicts.count("tie") / 2
    return _by_share(row, _compared(row), first / len(verdicts))


def _infer_vote_labels(rows: Sequence[Row], source: str) -> LabelScheme:
    lists = [row.get("votes") for row in rows]
    labels = [vote for votes in lists if is_list(votes) for vote in votes or ()]
    return infer_scheme(labels, _compared(rows[0]), column="votes", source=source)


def _has_sides(row: Row) -> bool:
    names = response_columns(row)
    if names is None:
        return False
    return first_of(row, "prompt") is not None or all(is_messages(row[name]) for name in names)


def _both(test: Any) -> dict[str, Any]:
    return dict.fromkeys(_SIDES, test)


def _comparing(test: Any) -> Any:
    return lambda row: _has_sides(row) and test(row)


_SHARE_NOTE = "agreement is the winner's share of the votes; a tie vote counts half for each"
PAIRS = (
    Format(
        "hh-transcript", "pairs", fields(*_SIDES), _read_transcripts, shapes=_both(is_transcript)
    ),
    Format(
        "hh-transcript-prompt",
        "pairs",
        fields("prompt", *_SIDES),
        _read_after_transcript,
        shapes={**_both(is_text), "prompt": is_transcript},
    ),
    Format(
        "sharegpt",
        "pairs",
        fields(*_SIDES, conversations="prompt"),
        _read_explicit,
        shapes={
            "prompt": is_messages,
            **_both(lambda value: is_response(value) or isinstance(value, Mapping)),
        },
    ),
    Format(
        "alpaca",
        "pairs",
        fields("instruction", "input", *_SIDES),
        _read_explicit,
        shapes={**_both(is_text), "instruction": is_text},
        matches=lambda row: first_of(row, "prompt") == "instruction",
    ),
    Format(
        "alpaca-output-list",
        "pairs",
        fields("instruction", "input", "output"),
        _read_alpaca_output,
        shapes={
            "instruction": is_text,
            "output": lambda value: isinstance(value, Sequence) and not is_text(value),
        },
        absent=("chosen",),
        note="output read as [chosen, rejected] (LLaMA-Factory's order)",
    ),
    Format(
        "ultrafeedback-binarized",
        "pairs",
        fields("prompt", *_SIDES, "score_chosen", "score_rejected", "messages"),
        _read_binarized,
        shapes={**_both(is_messages), "prompt": is_text},
    ),
    Format(
        "trl-conversational",
        "pairs",
        fields("prompt", *_SIDES),
        _read_explicit,
        shapes={**_both(is_filled), "prompt": is_messages},
    ),
    Format(
        "trl-conversational-implicit",
        "pairs",
        fields(*_SIDES),
        _read_whole_conversations,
        shapes={**_both(is_messages), "prompt": is_missing},
        note="prompt read from the turns that chosen and rejected share",
    ),
    Format(
        "trl-standard",
        "pairs",
        fields("prompt", *_SIDES),
        _read_explicit,
        shapes={**_both(is_response), "prompt": is_text},
    ),
    Format(
        "trl-standard-implicit",
        "pairs",
        fields(*_SIDES),
        _read_implicit_texts,
        shapes={**_both(is_text), "prompt": is_missing},
        note="prompt read from the words that chosen and rejected share at their start",
    ),
    Format(
        "auto-j",
        "pairs",
        fields("prompt", "response 1", "response 2", "label"),
        _read_labelled,
        present=("prompt", "response 1", "response 2", "label"),
        labels=AUTO_J,
    ),
    Format(
        "shp",
        "pairs",
        {
            **{"history": "prompt", "human_ref_A": "response_a", "human_ref_B": "response_b"},
            **{"labels": "label", "score_A": "score_a", "score_B": "score_b"},
        },
        _read_labelled,
        present=("history", "human_ref_A", "human_ref_B", "labels"),
        labels=SHP,
    ),
    Format(
        "alpacaeval-annotations",
        "pairs",
        fields("instruction", "output_1", "output_2", "preference"),
        _read_annotation,
        shapes={"preference": lambda value: not is_text(value)},
        present=("instruction", "output_1", "output_2", "preference"),
        note="preference read as 1 + P(output_2 is better); agreement is the winner's share",
    ),
    Format(
        "votes",
        "pairs",
        fields("prompt", "response_a", "response_b", "votes_a", "votes_b"),
        _read_vote_counts,
        matches=_comparing(lambda row: _side_columns(row, _compared(row), _VOTE_STEMS)),
        note=_SHARE_NOTE,
    ),
    Format(
        "vote-list",
        "pairs",
        fields("prompt", "response_a", "response_b", "votes"),
        _read_vote_list,
        shapes={"votes": is_list},
        matches=_has_sides,
        labels=_infer_vote_labels,
        note=_SHARE_NOTE,
    ),
    Format(
        "labelled",
        "pairs",
        fields("prompt", "output_A", "output_B", "label"),
        _read_labelled,
        matches=_comparing(_label_column),
        labels=_infer_labels,
    ),
)
"""Tried in this order: the more special before the more general."""
