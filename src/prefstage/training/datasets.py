"""What users hand to the trainer as data, made into the items that a loss takes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefstage.core.errors import InputError
from prefstage.core.hashing import digest
from prefstage.data import (
    CandidateSet,
    ConversationSet,
    Pair,
    PairSet,
    ResponseEncoder,
    UnpairedSet,
    load_candidates,
    load_conversations,
    load_pairs,
    load_unpaired,
    pairs_to_candidates,
)
from prefstage.data.formats import Wanted
from prefstage.data.reading import open_reading
from prefstage.data.records import Ties
from prefstage.data.settings import ReadOptions
from prefstage.data.tokenising import TokenTree
from prefstage.losses import LossMix
from prefstage.training.items import ItemKind, ItemSet, LoadedSet, TrainingItem, encode_items


def item_set_of(
    source: Any, encoder: ResponseEncoder, loss: LossMix, *, ties: Ties = "leave-out"
) -> ItemSet:
    """Encode a dataset as what a loss takes.

    Pairs serve losses on unpaired responses too (each pair gives two items), on groups (the
    responses of a prompt together), and demonstrations (the chosen response alone). They
    become what the loss takes before they are encoded, so that a loaded set, a file and a
    `datasets.Dataset` of the same pairs give the same items.

    Args:
        source: A loaded set, an item set, a `datasets.Dataset`, or a file or Hub id.
        encoder: Turns text into tokens.
        loss: Says what it takes. Where it reads annotators, each vote on a pair is an item.
        ties: Whether pairs whose raters are split evenly are trained on.

    Returns:
        The items.

    Raises:
        InputError: If the data is of a kind that the loss does not take.
    """
    if isinstance(source, ItemSet):
        items = _taken_by(loss, source)
    else:
        rows = as_taken(load_data(source, loss), loss, ties=ties)
        by_vote = "annotators" in loss.needs | loss.optional
        items = encode_items(rows, encoder, ties=ties, by_vote=by_vote)
    if items.kind not in loss.data:
        raise _other_kind(items.kind, loss)
    items = _with_needs(items, loss)
    alone = items.kind == "unpaired" and len(items.items[0].trees[0].response_ids) == 1
    return with_mismatched(items) if alone and "mismatched" in loss.needs else items


def load_data(source: Any, loss: LossMix, **how: Any) -> LoadedSet:
    """Load data as what a loss takes; pairs stay pairs, whatever it takes.

    Args:
        source: A loaded set, a `datasets.Dataset`, or a file or Hub id.
        loss: Says what it takes.
        how: Settings of the loader.

    Returns:
        Pairs, candidates, labelled responses or conversations.

    Raises:
        DataError: As the loaders.
    """
    if isinstance(source, PairSet | CandidateSet | UnpairedSet | ConversationSet):
        return source
    load = load_for(loss)
    if load in _OF_PAIRS and _holds_pairs(source, _OF_PAIRS[load], how):
        load = load_pairs
    return load(source, **how)


_KINDS: Mapping[type, ItemKind] = {
    PairSet: "pairs",
    CandidateSet: "groups",
    UnpairedSet: "unpaired",
    ConversationSet: "responses",
}


def check_rows(rows: LoadedSet, loss: LossMix, name: str) -> None:
    """Check, before any policy is there to encode it, that data can serve a loss.

    Args:
        rows: What was loaded.
        loss: Says what it takes, and what it needs.
        name: Of the data, for errors.

    Raises:
        InputError: If the data is of a kind that the loss does not take, or lacks scores or
            preferences that it needs.
    """
    kind = _KINDS[type(rows)]
    if kind != "pairs" and kind not in loss.data:
        raise _other_kind(kind, loss, f"{name}: ")
    if "preference" in loss.needs and isinstance(rows, PairSet):
        without = [place for place, pair in enumerate(rows) if pair.preference is None]
        if len(without) == len(rows):  # where a judge was undecided about some, they are left out
            raise _lacks("preference", kind, without, len(rows), where=f"{name}: ")
    if "scores" in loss.needs:
        without = [place for place, row in enumerate(rows) if None in _scores(row)]
        if without:
            raise _lacks("scores", kind, without, len(rows), where=f"{name}: ")


def _scores(row: Any) -> tuple[float | None, ...]:
    if isinstance(row, Pair):
        return row.score_chosen, row.score_rejected
    return tuple(row.scores) if len(row.responses) > 1 else ()


def _lacks(
    need: str, kind: str, without: Sequence[int], number: int, *, where: str = ""
) -> InputError:
    what = {"scores": "a score a response", "preference": "a preference a pair"}[need]
    return InputError.of(
        saw=f"{where}{len(without):,} of {number:,} {kind} without {need} (first: row "
        f"{without[0]})",
        expected=f"{what}, since the loss uses it",
        cure="judge the data first (prefstage judge), map its columns, or choose another loss",
    )


def _other_kind(kind: str, loss: LossMix, where: str = "") -> InputError:
    return InputError.of(
        saw=f"{where}{kind} as data for a loss on {' or '.join(sorted(loss.data))}",
        expected="data of that kind",
        cure="choose another loss, or load the data as what the loss takes",
    )


def as_taken(rows: LoadedSet, loss: LossMix, *, ties: Ties = "leave-out") -> LoadedSet:
    """Pairs as the kind of data that a loss takes; other data as they are.

    Args:
        rows: What was loaded.
        loss: Says what it takes.
        ties: Whether the chosen response of a tie is a demonstration.

    Returns:
        The rows.

    Raises:
        InputError: If ties are to be kept as desirable and undesirable responses.
    """
    if not isinstance(rows, PairSet) or ("pairs" in loss.data and "responses" not in loss.data):
        return rows
    if "groups" in loss.data:
        return pairs_to_candidates(rows)
    number = sum(pair.tied for pair in rows)
    kept = number if ties == "leave-out" else 0
    report = replace(rows.report, notes=list(rows.report.notes), ties=kept)
    usable = (pair for pair in rows if not (pair.tied and ties == "leave-out"))
    if "responses" in loss.data:
        return ConversationSet.of(map(Pair.demonstration, usable), report=report)
    if number and ties == "keep":
        raise InputError.of(
            saw=f"ties: keep, and {number:,} ties among the pairs for a loss on labelled responses",
            expected="pairs of which one response is desirable and the other is not",
            cure="leave ties out (ties: leave-out), or choose a loss on pairs",
        )
    return UnpairedSet.of((part for pair in usable for part in pair.unpaired()), report=report)


def _with_needs(items: ItemSet, loss: LossMix) -> ItemSet:
    """Check, before anything is run, that the scores and preferences that a loss needs are there.

    A judge gives no preference where it is undecided: such pairs are left out and counted.
    """
    for need in ("scores", "preference"):
        without = [item.index for item in items.items if getattr(item, need) is None]
        if need not in loss.needs or not without:
            continue
        if need == "preference" and len(without) < len(items):
            kept = tuple(item for item in items.items if item.preference is not None)
            counts = items.counts | {"without_preference_left_out": len(without)}
            items = replace(items, items=kept, counts=counts)
            continue
        raise _lacks(need, items.kind, without, len(items))
    return items


def item_sets_of(
    source: Any, encoder: ResponseEncoder, loss: LossMix, *, ties: Ties = "leave-out"
) -> ItemSet | dict[str, ItemSet] | None:
    """As `item_set_of`, for one set, several by name, or none."""
    if source is None:
        return None
    if isinstance(source, Mapping):
        return {name: item_set_of(each, encoder, loss, ties=ties) for name, each in source.items()}
    return item_set_of(source, encoder, loss, ties=ties)


def item_sets_in(found: Iterable[Any]) -> list[ItemSet]:
    """Every item set among sets, mappings of them by name, names and nothing."""
    listed = list[ItemSet]()
    for each in found:
        if isinstance(each, Mapping):
            listed += each.values()
        elif isinstance(each, ItemSet):
            listed.append(each)
    return listed


def chosen_only(pairs: ItemSet) -> ItemSet:
    """The chosen responses of pairs, as demonstrations."""
    items = tuple(
        TrainingItem(item.index, (_with_responses(item.trees[0], 0),)) for item in pairs.items
    )
    return ItemSet("responses", items, pairs.counts, digest([pairs.fingerprint, "chosen"]))


def split_pairs(pairs: ItemSet) -> ItemSet:
    """Both responses of each pair as items of their own: a desirable and an undesirable one."""
    items = tuple(
        TrainingItem(
            2 * place + side,
            (_with_responses(item.trees[0], side),),
            scores=None if item.scores is None else item.scores[side : side + 1],
            desirable=side == 0,
        )
        for place, item in enumerate(pairs.items)
        for side in (0, 1)
    )
    return ItemSet("unpaired", items, pairs.counts, digest([pairs.fingerprint, "split"]))


def with_mismatched(unpaired: ItemSet) -> ItemSet:
    """Give each item a second response: that of the next item with another prompt.

    The partner depends on the set alone, so its reference log-probs can be computed before
    training, and neither batch nor order changes it.

    Args:
        unpaired: One tree with one response an item.

    Returns:
        The items with (own, mismatched) responses. Where all prompts are equal, the next
        item's response stands in.
    """
    trees, items = [item.trees[0] for item in unpaired.items], []
    for place, (item, own) in enumerate(zip(unpaired.items, trees, strict=True)):
        others = (trees[(place + step) % len(trees)] for step in range(1, len(trees)))
        unlike = (tree for tree in others if tree.prompt_ids != own.prompt_ids)
        other = next(unlike, trees[(place + 1) % len(trees)])
        both = (own.response_ids[0], other.response_ids[0])
        items.append(replace(item, trees=(TokenTree(own.prompt_id, own.prompt_ids, both),)))
    return replace(
        unpaired, items=tuple(items), fingerprint=digest([unpaired.fingerprint, "mismatched"])
    )


def _with_responses(tree: TokenTree, *places: int) -> TokenTree:
    chosen = tuple(tree.response_ids[place] for place in places)
    return TokenTree(tree.prompt_id, tree.prompt_ids, chosen)


def load_for(loss: LossMix) -> Callable[..., LoadedSet]:
    """The loader of what a loss takes.

    Args:
        loss: Says what it takes.

    Returns:
        `load_pairs`, `load_candidates`, `load_unpaired` or `load_conversations`; all of
        them read pairs.
    """
    if "responses" in loss.data:
        return load_conversations
    if "pairs" in loss.data:
        return load_pairs
    return load_unpaired if "unpaired" in loss.data else load_candidates


def _taken_by(loss: LossMix, items: ItemSet) -> ItemSet:
    """Pairs that are encoded already, as what a loss takes."""
    if items.kind == "pairs" and "responses" in loss.data:
        return chosen_only(items)
    if items.kind == "pairs" and "pairs" not in loss.data and "unpaired" in loss.data:
        return split_pairs(items)
    return items


_OF_PAIRS: Mapping[Any, Wanted] = {
    load_unpaired: "unpaired",
    load_conversations: "conversations",
}
"""Loaders that read pairs as something else, and what they are told to read."""


def _holds_pairs(source: Any, wanted: Wanted, how: Mapping[str, Any]) -> bool:
    names = ("format", "columns", "labels", "split")
    options = ReadOptions(**{name: how[name] for name in names if name in how})
    return open_reading(source, wanted, options).format.kind == "pairs"
