"""What users hand to the trainer as data, made into the items that a loss takes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from prefstage.core.errors import InputError
from prefstage.core.hashing import digest
from prefstage.data import (
    CandidateSet,
    ConversationSet,
    PairSet,
    ResponseEncoder,
    UnpairedSet,
    load_candidates,
    load_conversations,
    load_pairs,
    load_unpaired,
)
from prefstage.data.tokenising import TokenTree
from prefstage.losses import LossMix
from prefstage.training.items import ItemSet, LoadedSet, TrainingItem, encode_items


def item_set_of(source: Any, encoder: ResponseEncoder, loss: LossMix) -> ItemSet:
    """Encode a dataset as what a loss takes.

    Pairs serve losses on unpaired responses too (each pair gives two items), and
    demonstrations (the chosen response alone).

    Args:
        source: A loaded set, an item set, a `datasets.Dataset`, or a file or Hub id.
        encoder: Turns text into tokens.
        loss: Says what it takes.

    Returns:
        The items.

    Raises:
        InputError: If the data is of a kind that the loss does not take.
    """
    items = source if isinstance(source, ItemSet) else encode_items(_loaded(source, loss), encoder)
    if items.kind == "pairs" and "responses" in loss.data:
        items = chosen_only(items)
    elif items.kind == "pairs" and "pairs" not in loss.data and "unpaired" in loss.data:
        items = split_pairs(items)
    if items.kind not in loss.data:
        raise InputError.of(
            saw=f"{items.kind} as data for a loss on {' or '.join(sorted(loss.data))}",
            expected="data of that kind",
            cure="choose another loss, or load the data as what the loss takes",
        )
    _check_needs(items, loss)
    alone = items.kind == "unpaired" and len(items.items[0].trees[0].response_ids) == 1
    return with_mismatched(items) if alone and "mismatched" in loss.needs else items


def _check_needs(items: ItemSet, loss: LossMix) -> None:
    """Scores and preferences come from a judge: their lack is told before anything is run."""
    for need, what in (("scores", "a score a response"), ("preference", "a preference a pair")):
        without = [item.index for item in items.items if getattr(item, need) is None]
        if need in loss.needs and without:
            raise InputError.of(
                saw=f"{len(without):,} of {len(items):,} {items.kind} without {need} (first: row "
                f"{without[0]})",
                expected=f"{what}, since the loss uses it",
                cure="judge the data first, map its columns, or choose another loss",
            )


def item_sets_of(
    source: Any, encoder: ResponseEncoder, loss: LossMix
) -> ItemSet | dict[str, ItemSet] | None:
    """As `item_set_of`, for one set, several by name, or none."""
    if source is None:
        return None
    if isinstance(source, Mapping):
        return {name: item_set_of(each, encoder, loss) for name, each in source.items()}
    return item_set_of(source, encoder, loss)


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
            2 * item.index + side,
            (_with_responses(item.trees[0], side),),
            annotator=item.annotator,
            desirable=side == 0,
        )
        for item in pairs.items
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
        `load_pairs`, `load_candidates`, `load_unpaired` or `load_conversations`; the last
        two read pairs as well.
    """
    if "responses" in loss.data:
        return load_conversations
    if "pairs" in loss.data:
        return load_pairs
    return load_unpaired if "unpaired" in loss.data else load_candidates


def _loaded(source: Any, loss: LossMix) -> LoadedSet:
    if isinstance(source, PairSet | CandidateSet | UnpairedSet | ConversationSet):
        return source
    return load_for(loss)(source)
