"""Training items: what one item of an optimiser's batch is, as token trees."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefstage.core.errors import DataError
from prefstage.core.hashing import digest
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

ItemKind = Literal["pairs", "groups", "unpaired", "responses"]
LoadedSet = PairSet | CandidateSet | UnpairedSet | ConversationSet

_FEWEST_OF_A_GROUP = 2


@dataclass(frozen=True)
class TrainingItem:
    """One item of the optimiser's batch.

    Attributes:
        index: Row in its set.
        trees: Its prompts and responses as tokens. Pairs: one tree with (chosen, rejected);
            groups: one with K responses; unpaired: one with one response; responses: one
            tree for each assistant turn that is to be learnt, whose prompt is all before it.
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
        counts: What encoding did: prompts and responses encoded, cut off and so on, as in
            `prefstage.data.tokenising.EncodingCounts`, and rows left out.
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


def encode_items(dataset: LoadedSet, encoder: ResponseEncoder) -> ItemSet:
    """Encode a dataset's rows as token trees.

    Args:
        dataset: Pairs; candidates (groups of scored responses; a prompt with fewer than two
            is left out and counted); labelled responses; or conversations (an item each).
        encoder: Turns text into tokens.

    Returns:
        The items, with what encoding this dataset did.

    Raises:
        DataError: If no row is left.
        ModelError: If the chat template refuses a prompt.
    """
    before = asdict(encoder.counts)
    kind, encode = _ENCODERS[type(dataset)]
    made = (encode(index, row, encoder) for index, row in enumerate(dataset))
    items = tuple(item for item in made if item is not None)
    if not items:
        raise DataError.of(
            saw=f"{dataset.report.source} without any prompt that has two responses",
            expected="groups of at least two responses to a prompt",
            cure="sample more responses, or choose a loss on single responses",
        )
    counts = {name: count - before[name] for name, count in asdict(encoder.counts).items()}
    if len(items) < len(dataset):
        counts["prompts_with_one_response"] = len(dataset) - len(items)
    return ItemSet(kind, items, counts, digest([dataset.fingerprint, encoder.fingerprint]))


def _encode_pair(index: int, pair: Pair, encoder: ResponseEncoder) -> TrainingItem:
    tree = encoder.encode(pair.prompt, [pair.chosen[0], pair.rejected[0]])
    scores = _all_known(pair.score_chosen, pair.score_rejected)
    return TrainingItem(index, (tree,), scores=scores, preference=pair.agreement)


def _encode_group(
    index: int, candidates: Candidates, encoder: ResponseEncoder
) -> TrainingItem | None:
    if len(candidates.responses) < _FEWEST_OF_A_GROUP:
        return None
    tree = encoder.encode(candidates.prompt, candidates.messages())
    return TrainingItem(index, (tree,), scores=_all_known(*candidates.scores))


def _encode_unpaired(index: int, row: Unpaired, encoder: ResponseEncoder) -> TrainingItem:
    tree = encoder.encode(row.prompt, row.completion)
    return TrainingItem(index, (tree,), scores=_all_known(row.score), desirable=row.label)


def _encode_conversation(
    index: int, conversation: Conversation, encoder: ResponseEncoder
) -> TrainingItem:
    trees: list[TokenTree] = []
    turn: Message
    for before, turn in conversation.turns():
        trees.append(encoder.encode(before, [turn]))
    return TrainingItem(index, tuple(trees))


def _all_known(*scores: float | None) -> tuple[float, ...] | None:
    """The scores, or None if one is unknown."""
    known = tuple(score for score in scores if score is not None)
    return known if len(known) == len(scores) else None


_ENCODERS: dict[type, tuple[ItemKind, Callable[[int, Any, ResponseEncoder], Any]]] = {
    PairSet: ("pairs", _encode_pair),
    CandidateSet: ("groups", _encode_group),
    UnpairedSet: ("unpaired", _encode_unpaired),
    ConversationSet: ("responses", _encode_conversation),
}
