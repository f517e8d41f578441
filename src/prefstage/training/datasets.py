"""What users hand to the trainer as data, made into item sets."""

from collections.abc import Mapping
from typing import Any

from prefstage.core.errors import InputError
from prefstage.data import CandidateSet, PairSet, ResponseEncoder
from prefstage.losses import LossMix
from prefstage.training.items import ItemSet, encode_items


def item_set_of(source: Any, encoder: ResponseEncoder, loss: LossMix) -> ItemSet:
    """Encode a dataset as what a loss takes.

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
    if items.kind not in loss.data:
        raise InputError.of(
            saw=f"{items.kind} as data for a loss on {' or '.join(sorted(loss.data))}",
            expected="data of that kind",
            cure="choose another loss, or load the data as what the loss takes",
        )
    return items


def item_sets_of(
    source: Any, encoder: ResponseEncoder, loss: LossMix
) -> ItemSet | dict[str, ItemSet] | None:
    """As `item_set_of`, for one set, several by name, or none."""
    if source is None:
        return None
    if isinstance(source, Mapping):
        return {name: item_set_of(each, encoder, loss) for name, each in source.items()}
    return item_set_of(source, encoder, loss)


def _loaded(source: Any, loss: LossMix) -> Any:
    if isinstance(source, PairSet | CandidateSet):
        return source
    from prefstage.data import load_candidates, load_pairs

    return load_pairs(source) if "pairs" in loss.data else load_candidates(source)
