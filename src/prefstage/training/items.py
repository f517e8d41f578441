"""Training items: what one item of an optimiser's batch is, as token trees."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefstage.core.hashing import digest
from prefstage.data.sets import PairSet
from prefstage.data.tokenising import ResponseEncoder, TokenTree

ItemKind = Literal["pairs", "groups", "unpaired", "responses"]


@dataclass(frozen=True)
class TrainingItem:
    """One item of the optimiser's batch.

    Attributes:
        index: Row in its set.
        trees: Its prompts and responses as tokens. Pairs: one tree with (chosen, rejected).
        scores: Each response's score, where known.
        preference: P(chosen > rejected) by the judge, where known.
        annotator: Who labelled it, where known.
        desirable: Whether the response is wanted (unpaired data).
    """

    index: int
    trees: tuple[TokenTree, ...]
    scores: tuple[float, ...] | None = None
    preference: float | None = None
    annotator: str | None = None
    desirable: bool | None = None


@dataclass(frozen=True)
class ItemSet:
    """The items of one dataset.

    Attributes:
        kind: What an item is.
        items: The items, in the order of the dataset.
        counts: What encoding did.
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


def encode_items(dataset: PairSet, encoder: ResponseEncoder) -> ItemSet:
    """Encode a dataset's rows as token trees.

    Args:
        dataset: The rows.
        encoder: Turns text into tokens.

    Returns:
        The items.
    """
    items = []
    for index, pair in enumerate(dataset):
        responses = [side[0] for side in (pair.chosen, pair.rejected)]
        tree = encoder.encode(pair.prompt, responses)
        known = pair.score_chosen is not None and pair.score_rejected is not None
        scores = (pair.score_chosen, pair.score_rejected) if known else None
        items.append(TrainingItem(index, (tree,), scores=scores, preference=pair.agreement))
    fingerprint = digest([dataset.fingerprint, encoder.fingerprint])
    return ItemSet("pairs", tuple(items), asdict(encoder.counts), fingerprint)
