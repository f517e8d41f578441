"""Formats of preferences: a chosen and a rejected response, two and who won, one and a label."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from prefstage.data.formats.fields import (
    SPELLINGS,
    Format,
    Row,
    SourceRow,
    fields,
    first_of,
    is_filled,
    is_missing,
    is_response,
    is_text,
    read_number,
    read_optional,
    read_prompt,
    read_response,
    read_source,
    read_text,
    require,
    with_system_and_tools,
)
from prefstage.data.messages import (
    common_prefix,
    is_list,
    is_messages,
    is_sequence,
    is_transcript,
    read_messages,
    read_transcript,
    turn,
)
from prefstage.data.records import (
    TIE,
    Message,
    Pair,
    Prompt,
    Unpaired,
    Vote,
    check_prompt,
    check_response,
    make_pair,
    prompt_id_of,
)
from prefstage.data.rows import (
    LabelScheme,
    RowFault,
    expect,
    infer_scheme,
    read_desirable,
    show,
    spell,
)

_SIDES = ("chosen", "rejected")
_KNOWN = (
    *("score_chosen", "score_rejected", "source_chosen", "source_rejected"),
    *("agreement", "judge_probability"),
)
_FIRST_RESPONSE = re.compile(
    r"(?:output|response|answer|completion|candidate|generation|conversation|summary|text)"
    r"[ _-]?[aA01]"
)
_SECOND_ENDS = {"a": "b", "A": "B", "1": "2", "0": "1"}
_LABELS = ("label", "winner", "preferred", "preference", "verdict", "choice", "better_response_id")
# Columns that say something of one response, as `model_a` does: beginnings and reader.
_OF_SIDES: dict[str, tuple[Sequence[str], Any]] = {
    "source": (("model", "source", "generator"), read_source),
    "score": (("score", "rating", "reward"), read_number),
}
_VOTE_STEMS = ("votes", "vote", "n_votes", "num_votes")


def _pair(
    row: SourceRow, prompt: Prompt, chosen: Sequence[Message], rejected: Sequence[Message]
) -> Pair:
    known = {role: read_optional(row, role) for role in _KNOWN}
    if row.get("judge_status") == "undecided":  # as prefstage judge writes it, with a ½
        known["judge_probability"] = None
    # Votes as a stored pair has them; none where the column is empty.
    values = row["votes"] if first_of(row, "votes") else ()
    try:
        votes = [Vote(str(vote["annotator"]), float(vote["preference"])) for vote in values or ()]
        fits = all(0 <= vote.preference <= 1 for vote in votes)
    except (TypeError, ValueError, KeyError):
        fits = False
    expect(
        fits,
        *("votes", values, "a list of {annotator, preference} with preferences in [0, 1]"),
        "mend or empty the field",
    )
    known["gold"] = _gold(row, prompt)
    return make_pair(prompt, chosen, rejected, votes=tuple(votes), **known)


def _gold(row: SourceRow, prompt: Prompt) -> tuple[Message, ...]:
    # A third response; other data have numbers, names or nothing in a column of such a name.
    column = next((n for n in SPELLINGS["gold"] if is_response(row.peek(n)) and row[n]), None)
    return read_response(row[column], column, prompt) if column else ()


def _read_explicit(row: SourceRow) -> Pair:
    prompt = read_prompt(row)
    return _pair(row, prompt, *(read_response(require(row, s), s, prompt) for s in _SIDES))


def _parted(row: SourceRow, first: Prompt, second: Prompt) -> tuple[Prompt, Prompt, Prompt]:
    # Whole conversations: the turns that both share are the prompt. Equal ones are parted
    # before their last turn, so that the check of equal responses refuses them.
    shared = common_prefix(first, second)
    if shared == len(first) == len(second):
        shared -= 1
    return with_system_and_tools(row, first[:shared]), first[shared:], second[shared:]


def _read_whole_conversations(row: SourceRow) -> Pair:
    return _pair(row, *_parted(row, *(read_messages(require(row, s), s) for s in _SIDES)))


def _read_binarized(row: SourceRow) -> Pair:
    # A prompt text that repeats the last user turn of two whole conversations.
    text = read_text(row, "prompt")
    if all(is_messages(row.get(side)) and len(row[side]) == 1 for side in _SIDES):
        return _read_explicit(row)
    pair = _read_whole_conversations(row)
    if text.strip() not in (m["content"].strip() for m in pair.prompt if m["role"] == "user"):
        raise RowFault(
            first_of(row, "prompt") or "prompt",
            saw=f"{show(text)}, which is no user turn of chosen",
            expected="the prompt that both conversations start with",
            cure="mend the row, or remove the prompt column to use the shared turns",
        )
    return pair


def _read_transcripts(row: SourceRow) -> Pair:
    return _pair(
        row,
        *_parted(row, *(read_transcript(read_text(row, s), s, is_prompt=False) for s in _SIDES)),
    )


def _read_after_transcript(row: SourceRow) -> Pair:
    return _pair(
        row,
        read_prompt(row),
        *(turn(read_text(row, side).removeprefix(" ")) for side in _SIDES),
    )


def _read_implicit_texts(row: SourceRow) -> Pair:
    # Two texts; what they share up to a word's end is the prompt.
    chosen, rejected = (read_text(row, side) for side in _SIDES)
    if chosen == rejected:
        return make_pair(turn("?", "user"), turn(chosen), turn(rejected))
    # Back to the whitespace before the word in which they part: "It is so" and "It is sad"
    # answer "It is", not "It is s".
    whole = re.match(r".*\S(?=\s)", chosen[: common_prefix(chosen, rejected) + 1], re.DOTALL)
    if whole is None:
        raise RowFault(
            "chosen",
            saw=f"no prompt column, and texts that share no beginning: {show(chosen)}",
            expected="a prompt, or two texts that begin with it",
            cure="name the prompt's column with columns={'prompt': ...}",
        )
    return _pair(
        row, turn(whole.group(), "user"), turn(chosen[whole.end() :]), turn(rejected[whole.end() :])
    )


def _read_alpaca_output(row: SourceRow) -> Pair:
    output = require(row, "output")
    expect(
        not is_text(output) and [type(text) for text in output] == [str, str],
        *("output", output, "a list of two texts: chosen, rejected"),
        "mend the row, or name columns with columns={...}",
    )
    return _pair(row, read_prompt(row), *map(turn, output))


def _response_columns(row: Row) -> tuple[str, str] | None:
    # The two response columns of a row, as `output_A` and `output_B`.
    pairs = ((n, n[:-1] + _SECOND_ENDS[n[-1]]) for n in filter(_FIRST_RESPONSE.fullmatch, row))
    return next((pair for pair in pairs if pair[1] in row), None)


def _compared(row: Row) -> tuple[str, str]:
    return _response_columns(row) or ("response_a", "response_b")


def _label_column(row: Row) -> str | None:
    return next((name for name in _LABELS if name in row), None)


def _side_columns(row: Row, names: Sequence[str], stems: Sequence[str]) -> list[str]:
    # Columns like `model_a` and `model_b` that go with `response_a` and `response_b`, or none.
    pairs = ([f"{stem}{gap}{n[-1]}" for n in names] for stem in stems for gap in ("_", "", " "))
    return next((pair for pair in pairs if set(pair) <= row.keys()), [])


def _ordered(row: SourceRow, names: tuple[str, str], first: float, **known: Any) -> Pair:
    # The pair that the first response's share of the votes makes of a row; a tie keeps the row's
    # order. The winner's share is the agreement where that is not known otherwise.
    if first_of(row, "prompt") is None and all(is_messages(row.get(name)) for name in names):
        prompt, *responses = _parted(row, *(read_messages(require(row, n), n) for n in names))
    else:
        prompt = read_prompt(row)
        responses = [read_response(require(row, name), name, prompt) for name in names]
    step = -1 if first < TIE else 1
    known = {"agreement": max(first, 1 - first), **known, "gold": _gold(row, prompt)}
    for what, (stems, read) in _OF_SIDES.items():
        values = [read(row, column) for column in _side_columns(row, names, stems)][::step]
        known |= {f"{what}_{side}": value for side, value in zip(_SIDES, values, strict=False)}
    return make_pair(prompt, *responses[::step], columns=names[::step], **known)


def _read_verdict(row: Row, column: str, scheme: LabelScheme) -> float:
    # What a label counts for the first response.
    verdict = scheme.verdicts.get(spell(row.get(column)))
    if verdict is None:
        raise RowFault(
            column,
            saw="no label" if row.get(column) is None else show(row[column]),
            expected=f"a label: {scheme}",
            cure="mend the row, or say what each label means with labels={...}",
        )
    return {"first": 1.0, "tie": TIE, "second": 0.0}[verdict]


def _read_labelled(row: SourceRow, scheme: LabelScheme) -> Pair:
    first = _read_verdict(row, _label_column(row) or "label", scheme)
    return _ordered(
        *(row, _compared(row), first),
        agreement=TIE if first == TIE else read_number(row, "agreement"),
    )


def _infer_labels(rows: Sequence[Row], source: str) -> LabelScheme:
    column = _label_column(rows[0]) or "label"
    return infer_scheme(
        (row.get(column) for row in rows), _compared(rows[0]), column=column, source=source
    )


def _read_annotation(row: SourceRow) -> Pair:
    # AlpacaEval: preference in [1, 2] is 1 + P(output_2 is better); 0 and 1.5 are draws.
    preference = read_number(row, "preference")
    preference = 1 + TIE if preference == 0 else preference
    if preference is None or not 1 <= preference <= 2:  # noqa: PLR2004 - the format's scale
        raise RowFault(
            "preference",
            saw="no preference" if preference is None else show(row["preference"]),
            expected="a number from 1 (output_1) to 2 (output_2), or 0 for a draw",
            cure="annotate the row again, or remove it",
        )
    return _ordered(row, ("output_1", "output_2"), 1 - (preference - 1))


def _read_vote_counts(row: SourceRow) -> Pair:
    names = _compared(row)
    columns = _side_columns(row, names, _VOTE_STEMS) or ["votes_a", "votes_b"]
    ties = (name for name in ("votes_tie", "tie_votes", "votes_draw") if row.get(name) is not None)
    counts = [read_number(row, name) or 0.0 for name in (*columns, *islice(ties, 1))]
    RowFault.unless(
        sum(counts) > 0 and min(counts) >= 0,
        columns[0],
        saw=f"votes {counts}",
        expected="counts that are not negative, and at least one vote",
        cure="remove the row, or collect votes for it",
    )
    return _ordered(row, names, (counts[0] + sum(counts[2:]) / 2) / sum(counts))


def _read_vote_list(row: SourceRow, scheme: LabelScheme) -> Pair:
    # The label of every rater in a list.
    votes, cure = require(row, "votes"), "remove the row, or collect votes for it"
    expect(is_list(votes), "votes", votes, "a list with at least one label", cure)
    labels = {f"votes[{index}]": vote for index, vote in enumerate(votes)}
    share = sum(_read_verdict(labels, name, scheme) for name in labels) / len(labels)
    return _ordered(row, _compared(row), share)


def _infer_vote_labels(rows: Sequence[Row], source: str) -> LabelScheme:
    return infer_scheme(
        (vote for row in rows if is_list(row.get("votes")) for vote in row["votes"]),
        _compared(rows[0]),
        column="votes",
        source=source,
    )


def _has_sides(row: Row) -> bool:
    names = _response_columns(row)
    return names is not None and (
        first_of(row, "prompt") is not None or all(is_messages(row[name]) for name in names)
    )


def _both(test: Any) -> dict[str, Any]:
    return dict.fromkeys(_SIDES, test)


def _comparing(test: Any) -> Any:
    return lambda row: _has_sides(row) and test(row)


_SHARE_NOTE = "agreement is the winner's share of the votes; a tie vote counts half for each"
# Tried in this order: the more special before the more general.
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
            "output": is_sequence,
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
        labels=LabelScheme({"0": "first", "1": "second", "2": "tie"}, "the convention of Auto-J"),
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
        labels=LabelScheme({"1": "first", "0": "second"}, "the convention of SHP: 1 prefers A"),
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


def _read_unpaired(row: SourceRow) -> Unpaired:
    column = first_of(row, "completion") or "completion"
    prompt = read_prompt(row)
    return _unpaired(row, prompt, read_response(row.get(column), column, prompt), column)


def _read_implicit(row: SourceRow) -> Unpaired:
    turns = read_messages(row["completion"], "completion")
    return _unpaired(row, with_system_and_tools(row, turns[:-1]), turns[-1:], "completion")


def _unpaired(
    row: SourceRow, prompt: Prompt, completion: Sequence[Message], column: str
) -> Unpaired:
    check_prompt(prompt)
    check_response(completion, column)
    return Unpaired(
        prompt_id_of(prompt),
        tuple(prompt),
        tuple(completion),
        label=read_desirable(row.get("label")),
        score=read_number(row, "score"),
        source=read_source(row, "source"),
    )


_LABEL_NOTE = "labels read as true or 1 = desirable, false or 0 = undesirable"
# Tried in this order.
UNPAIRED = (
    Format(
        "trl-unpaired",
        "unpaired",
        fields("prompt", "completion", "label"),
        _read_unpaired,
        shapes={"prompt": is_filled, "completion": is_response},
        present=("label",),
        absent=_SIDES,
        note=_LABEL_NOTE,
    ),
    Format(
        "trl-unpaired-implicit",
        "unpaired",
        fields("completion", "label"),
        _read_implicit,
        shapes={"prompt": is_missing},
        present=("label",),
        absent=_SIDES,
        matches=lambda row: is_messages(row.get("completion")),
        note=f"prompt read as all turns of completion but the last; {_LABEL_NOTE}",
    ),
)
