"""Training items: what one item of an optimiser's batch is, as token trees."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, cast

from prefstage.core import DataError, digest
from prefstage.data import (
    Candidates,
    CandidateSet,
    Conversation,
    ConversationSet,
    Message,
    Pair,
    PairSet,
    ResponseEncoder,
    TokenTree,
    Unpaired,
    UnpairedSet,
)
from prefstage.data.records import TIE, Ties
from prefstage.data.rendering import RenderingError
from prefstage.data.rows import RowFault
from prefstage.data.tokenising import CAUSES, cause_of
from prefstage.training.compat import is_first_process

ItemKind = Literal["pairs", "groups", "unpaired", "responses"]
LoadedSet = PairSet | CandidateSet | UnpairedSet | ConversationSet

_FEWEST_OF_A_GROUP = 2
_SHOWN_ROWS = 3
_SIDES: dict[type, tuple[str, ...]] = {
    PairSet: ("chosen", "rejected"),
    UnpairedSet: ("completion",),
    ConversationSet: ("completion",),
}

# What is left out of an item set, by the name of its count, in words.
LEFT_OUT = {
    "rows_refused": "rows that the chat template cannot render set aside in the quarantine file",
    "ties_left_out": "ties left out (ties: keep trains on them)",
    "tie_votes_left_out": "votes for neither response left out",
    "without_preference_left_out": "pairs without a preference left out",
    "same_tokens_by_text": "of the same text on both sides left out",
    "same_tokens_by_truncation": "of the same tokens on both sides after truncation left out "
    "(raise max_response_tokens)",
    "same_tokens_by_template": "of the same tokens on both sides left out, as the chat template "
    "drops what differs",
    "same_tokens_by_normalisation": "of the same tokens on both sides left out, as the tokenizer "
    "reads both alike",
}


@dataclass(frozen=True)
class TrainingItem:
    """One item of the optimiser's batch.

    Attributes:
        index: Row in its set.
        trees: Its prompts and responses as tokens. Pairs: one tree with (chosen, rejected) and,
            where the loss imitates it, the gold response;
            groups: one with K responses; unpaired: one with one response; responses: one
            tree for each assistant turn that is to be learnt, whose prompt is all before it.
        scores: Each response's score, where known.
        preference: P(chosen ≻ rejected), where known: the judge's, or else the share of raters.
        annotator: Who labelled it, where known.
        desirable: Whether the response is wanted (unpaired data).
        tied: Whether the raters of the pair are split evenly.
        density_ratio: p(prompt | desirable) / p(prompt | undesirable), where estimated.
    """

    index: int
    trees: tuple[TokenTree, ...]
    scores: tuple[float, ...] | None = None
    preference: float | None = None
    annotator: str | None = None
    desirable: bool | None = None
    tied: bool = False
    density_ratio: float | None = None

    @property
    def gold(self) -> tuple[int, ...] | None:
        """Tokens of a pair's third response, where the loss imitates it."""
        return next(iter(self.trees[0].response_ids[2:]), None)

    def with_responses(self, *responses: tuple[int, ...]) -> Self:
        """The item with other responses to its prompt; it has one tree.

        Args:
            responses: Their tokens.

        Returns:
            A changed copy; scores and the like stay.
        """
        return replace(self, trees=(replace(self.trees[0], response_ids=responses),))


@dataclass(frozen=True)
class ItemSet:
    """The items of one dataset.

    Attributes:
        kind: What an item is.
        items: The items, in the order of the dataset.
        counts: What encoding did: prompts and responses encoded, cut off and so on, as in
            `prefstage.data.tokenising.EncodingCounts`; what was cut by side; what was left
            out (`LEFT_OUT`); and how many annotators there are, where the loss reads them.
        fingerprint: Hash of the data and of the encoding.
    """

    kind: ItemKind
    items: tuple[TrainingItem, ...]
    counts: dict[str, Any]
    fingerprint: str

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def __getitem__(self, index: int) -> TrainingItem:
        """The item at a position."""
        return self.items[index]


def encode_items(
    dataset: LoadedSet,
    encoder: ResponseEncoder,
    *,
    ties: Ties = "leave-out",
    by_vote: bool = False,
    gold: bool = False,
) -> ItemSet:
    """Encode a dataset's rows as token trees.

    Pairs whose two sides become the same tokens can teach nothing: they are left out and
    counted by cause, as are responses that become the same tokens as one of the other label.

    Args:
        dataset: Pairs; candidates (groups of scored responses; a prompt with fewer than two
            is left out and counted); labelled responses; or conversations (an item each).
        encoder: Turns text into tokens.
        ties: Whether pairs whose raters are split evenly become items.
        by_vote: Each annotator's vote on a pair is an item of its own, in the order that the
            annotator gave; votes for neither response are left out and counted.
        gold: Whether a pair's gold response is its third one.

    Returns:
        The items, with what encoding this dataset did.

    Raises:
        DataError: If no row is left, or the chat template cannot render one and the data's
            `on_bad_row` sets none aside.
    """
    before = asdict(encoder.counts)
    kind, items_of = KINDS[type(dataset)]
    work = Encoding(encoder, ties, by_vote, gold)
    items, refused = list[TrainingItem](), list[tuple[int, Any, RowFault]]()
    for index, row in enumerate(dataset):
        try:
            items += items_of(index, row, work)
        except RenderingError as error:
            refused.append((index, row, error.fault))
    if refused:
        work.counts["rows_refused"] = len(refused)
        _set_aside(dataset, refused)
    if isinstance(dataset, UnpairedSet):
        items = _without_contradictions(items, dataset, work)
    # Differences, as an encoder counts over all sets that it has encoded.
    counts = {name: count - before[name] for name, count in asdict(encoder.counts).items()}
    counts |= work.counts
    if isinstance(dataset, UnpairedSet | ConversationSet) and dataset.report.ties:
        counts["ties_left_out"] = dataset.report.ties
    if by_vote and kind == "pairs":
        counts["annotators"] = len({item.annotator for item in items} - {None})
    if not items:
        raise _nothing_left(kind, dataset.report.source, counts)
    choices: list[Any] = [] if (ties, by_vote) == ("leave-out", False) else [ties, by_vote]
    choices += ["gold"] if gold else []
    return ItemSet(
        kind, tuple(items), counts, digest([dataset.fingerprint, encoder.fingerprint, *choices])
    )


def left_out(counts: Mapping[str, Any]) -> list[str]:
    """What was left out of a set, as lines for people.

    Args:
        counts: As of `ItemSet`.

    Returns:
        Lines such as "12 ties left out (ties: keep trains on them)".
    """
    return [f"{counts[name]:,} {words}" for name, words in LEFT_OUT.items() if counts.get(name)]


@dataclass
class Encoding:
    """How the rows of one set become items; one a set, as an encoder counts over all of them.

    Attributes:
        encoder: Turns text into tokens.
        ties: As for `encode_items`.
        by_vote: As for `encode_items`.
        gold: As for `encode_items`.
        counts: What was left out, and which sides were cut.
    """

    encoder: ResponseEncoder
    ties: Ties
    by_vote: bool = False
    gold: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def tree(
        self, prompt: Sequence[Message], responses: Sequence[Any], sides: Sequence[str]
    ) -> TokenTree:
        """Encode a prompt's responses, and count by side which of them were cut."""
        tree = self.encoder.encode(prompt, responses)
        # groups have no sides
        self.counts.update(f"{s}_truncated" for s, cut in zip(sides, tree.cut, strict=False) if cut)
        return tree


def pair_items(index: int, pair: Pair, work: Encoding) -> Iterator[TrainingItem]:
    """The items of a pair; none where it can teach nothing, which is counted.

    Args:
        index: Its row.
        pair: The pair.
        work: How it is encoded.

    Yields:
        The pair, or an item a vote.
    """
    votes = pair.votes if work.by_vote else ()
    if pair.tied and not votes and work.ties == "leave-out":
        work.counts["ties_left_out"] += 1
        return
    sides = pair.chosen[0], pair.rejected[0]
    gold = pair.gold if work.gold else ()
    tree = work.tree(pair.prompt, (*sides, *gold), ("chosen", "rejected", "gold"))
    if tree.response_ids[0] == tree.response_ids[1]:
        work.counts[f"same_tokens_by_{cause_of(pair.prompt, *sides, work.encoder)}"] += 1
        return
    item = TrainingItem(
        index,
        (tree,),
        scores=_all_known(pair.score_chosen, pair.score_rejected),
        preference=pair.preference,
        annotator=pair.annotator,
        tied=pair.tied,
    )
    if not votes:
        yield item
    exchanged = replace(
        item.with_responses(*tree.response_ids[1::-1], *tree.response_ids[2:]),
        scores=item.scores and item.scores[::-1],
        preference=None if item.preference is None else 1.0 - item.preference,
    )
    for vote in votes:
        if vote.preference == TIE:
            work.counts["tie_votes_left_out"] += 1
            continue
        yield replace(
            item if vote.preference > TIE else exchanged, annotator=vote.annotator, tied=False
        )


def _group_items(index: int, row: Candidates, work: Encoding) -> Iterator[TrainingItem]:
    if len(row.responses) < _FEWEST_OF_A_GROUP:
        work.counts["prompts_with_one_response"] += 1
        return
    tree = work.tree(row.prompt, [row.message(n) for n in range(len(row.responses))], ())
    if repeated := len(tree.response_ids) - len(set(tree.response_ids)):
        work.counts["responses_repeated_in_groups"] += repeated
    yield TrainingItem(index, (tree,), scores=_all_known(*row.scores))


def _unpaired_items(index: int, row: Unpaired, work: Encoding) -> Iterator[TrainingItem]:
    yield TrainingItem(
        index,
        (work.tree(row.prompt, row.completion, ("desirable" if row.label else "undesirable",)),),
        scores=_all_known(row.score),
        desirable=row.label,
    )


def _response_items(index: int, row: Conversation, work: Encoding) -> Iterator[TrainingItem]:
    yield TrainingItem(
        index, tuple(work.encoder.encode(before, [turn]) for before, turn in row.turns())
    )


# What is, as tokens, both desirable and undesirable pulls both ways and teaches nothing.
def _without_contradictions(
    items: list[TrainingItem], rows: UnpairedSet, work: Encoding
) -> list[TrainingItem]:
    alike = defaultdict(list)
    for item in items:
        alike[item.trees[0].prompt_id, item.trees[0].response_ids[0]].append(item)
    dropped = set[int]()
    for group in alike.values():
        first = {bool(item.desirable): item.index for item in reversed(group)}  # by label
        if len(first) == 1:
            continue
        wanted, unwanted = rows[first[True]], rows[first[False]]
        # Where the texts are equal too it is the raters who disagree: that is data, and stays.
        if wanted.completion == unwanted.completion:
            work.counts["labelled_both_ways"] += len(group)
            continue
        cause = cause_of(wanted.prompt, wanted.completion[0], unwanted.completion[0], work.encoder)
        work.counts[f"same_tokens_by_{cause}"] += len(group)
        dropped.update(item.index for item in group)
    return [item for item in items if item.index not in dropped]


# After the whole set has been tried, so that one error names how many rows are bad.
def _set_aside(dataset: LoadedSet, refused: Sequence[tuple[int, Any, RowFault]]) -> None:
    report, bad = dataset.report, list[tuple[RowFault, str, int]]()
    for index, _, fault in refused:
        column = fault.field  # the template knows responses by number, the user by their columns
        for number, side in enumerate(_SIDES.get(type(dataset), ())):
            column = column.replace(f"responses[{number}]", side)
        bad.append(
            (
                RowFault(column, saw=fault.saw, expected=fault.expected, cure=fault.cure),
                *report.position_of(index, len(dataset)),
            )
        )
    if report.quarantine_file is None:
        more = len(bad) - _SHOWN_ROWS
        raise DataError.of(
            saw=f"{report.source}: {len(bad)} of {len(dataset)} rows cannot be rendered: "
            + "; ".join(fault.at(file, row) for fault, file, row in bad[:_SHOWN_ROWS])
            + (f"; and {more} more" if more > 0 else ""),
            expected="rows that the model's chat template can render",
            cure="mend them, or set on_bad_row: quarantine with a quarantine_file",
        )
    if is_first_process():
        with open(report.quarantine_file, "a", encoding="utf-8") as stream:
            for (fault, file, number), (_, row, _) in zip(bad, refused, strict=True):
                record = {"file": file, "row": number, **vars(fault), "raw": asdict(row)}
                stream.write(json.dumps(record, default=str) + "\n")


def _nothing_left(kind: ItemKind, source: str, counts: dict[str, Any]) -> DataError:
    if kind == "groups":
        return DataError.of(
            saw=f"{source} without any prompt that has two responses",
            expected="groups of at least two responses to a prompt",
            cure="sample more responses, or choose a loss on single responses",
        )
    cures = [
        ("same_tokens_by_truncation", "raise max_response_tokens"),
        ("ties_left_out", "set ties: keep to train on ties, or use data whose raters decide"),
        *((f"same_tokens_by_{c}", "check the columns of chosen and rejected") for c in CAUSES),
    ]
    return DataError.of(
        saw=f"{source} with nothing to learn from ({'; '.join(left_out(counts)) or 'no row'})",
        expected="at least one pair whose sides differ and of which one is better"
        if kind == "pairs"
        else "at least one response that is learnt",
        cure=next((cure for name, cure in cures if counts.get(name)), "use other data"),
    )


# A loss that weighs scores has no use for some of them.
def _all_known(*scores: float | None) -> tuple[float, ...] | None:
    return None if None in scores else cast("tuple[float, ...]", scores)


# Kind of item that a loaded set has, and how its rows become such items.
KINDS: dict[type, tuple[ItemKind, Callable[[int, Any, Encoding], Iterator[TrainingItem]]]] = {
    PairSet: ("pairs", pair_items),
    CandidateSet: ("groups", _group_items),
    UnpairedSet: ("unpaired", _unpaired_items),
    ConversationSet: ("responses", _response_items),
}
