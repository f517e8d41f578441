"""What users hand to the trainer as data, made into the items that a loss takes, and checked."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

from prefstage.core import InputError, digest
from prefstage.data import (
    ConversationSet,
    Pair,
    PairSet,
    ResponseEncoder,
    TokenTree,
    UnpairedSet,
    load_candidates,
    load_conversations,
    load_pairs,
    load_unpaired,
    pairs_to_candidates,
)
from prefstage.data.formats import Wanted
from prefstage.data.reading import Reading
from prefstage.data.records import Ties
from prefstage.data.settings import ReadOptions
from prefstage.losses import LossMix
from prefstage.training.density import with_density_ratios
from prefstage.training.items import (
    KINDS,
    ItemKind,
    ItemSet,
    LoadedSet,
    TrainingItem,
    encode_items,
)

# By what a loss takes, the first of it that is here; all of them read pairs. Of those that would
# read pairs as something else, what they are asked to read.
_LOADERS: dict[ItemKind, tuple[Callable[..., LoadedSet], Wanted | None]] = {
    "responses": (load_conversations, "conversations"),
    "pairs": (load_pairs, None),
    "unpaired": (load_unpaired, "unpaired"),
    "groups": (load_candidates, None),
}
# Of sets, in errors.
_NAMES = ("the training set", "the evaluation set", "evaluation set {!r}")
_RECOGNISED_BY = ("format", "columns", "labels", "split")
_NEEDS = {
    "scores": "a score a response",
    "preference": "a preference a pair",
    "gold": "a gold response a pair (column gold, or reference)",
}
_SHOWN_ROWS = 5


# --- Loading -------------------------------------------------------------------------------------


def load_data(source: Any, loss: LossMix, **how: Any) -> LoadedSet:
    """Load data as what a loss takes; pairs stay pairs, whatever it takes.

    Args:
        source: A loaded set, a `datasets.Dataset`, a list of dicts, or a file or Hub id.
        loss: Says what it takes.
        how: Settings of the loader.

    Returns:
        Pairs, candidates, labelled responses or conversations.

    Raises:
        DataError: As the loaders.
    """
    if isinstance(source, LoadedSet):
        return source
    load, wanted = next(loader for kind, loader in _LOADERS.items() if kind in loss.data)
    options = ReadOptions(**{name: how[name] for name in _RECOGNISED_BY if name in how})
    if wanted and Reading(source, wanted, options).format.kind == "pairs":
        load = load_pairs
    return load(source, **how)


def learns_pairs(loss: LossMix) -> bool:
    """Whether pairs are items of a loss as they are, and not responses or groups made of them."""
    return "pairs" in loss.data and "responses" not in loss.data


# Pairs become what the loss takes before they are encoded, so that a loaded set, a file and a
# `datasets.Dataset` of the same pairs give the same items.
def _as_taken(rows: LoadedSet, loss: LossMix, *, ties: Ties = "leave-out") -> LoadedSet:
    if not isinstance(rows, PairSet) or learns_pairs(loss):
        return rows
    if "groups" in loss.data:
        return pairs_to_candidates(rows)
    number = sum(pair.tied for pair in rows)
    dropped = number if ties == "leave-out" else 0
    usable = (pair for pair in rows if not (pair.tied and dropped))
    report = replace(rows.report, notes=list(rows.report.notes), ties=dropped)
    if "responses" in loss.data:
        return ConversationSet.of(map(Pair.demonstration, usable), report=report)
    InputError.unless(
        number <= dropped,
        saw=f"ties: keep, and {number:,} ties among the pairs for a loss on labelled responses",
        expected="pairs of which one response is desirable and the other is not",
        cure="leave ties out (ties: leave-out), or choose a loss on pairs",
    )
    return UnpairedSet.of((row for pair in usable for row in pair.unpaired()), report=report)


# --- Items ---------------------------------------------------------------------------------------


def item_set_of(
    source: Any, encoder: ResponseEncoder, loss: LossMix, *, ties: Ties = "leave-out"
) -> ItemSet:
    """Encode a dataset as what a loss takes.

    Pairs serve losses on unpaired responses too (each pair gives two items), on groups (the
    responses of a prompt together), and demonstrations (the chosen response alone).

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
        items = _encoded_as_taken(source, loss)
    else:
        items = encode_items(
            _as_taken(load_data(source, loss), loss, ties=ties),
            encoder,
            ties=ties,
            by_vote="annotators" in loss.needs | loss.optional,
            gold="gold" in loss.needs,
        )
    _check_kind(items.kind, loss)
    items = _with_needs(items, loss)
    if "density_ratio" in loss.needs:
        items = with_density_ratios(items)
    alone = items.kind == "unpaired" and len(items.items[0].trees[0].response_ids) == 1
    return _with_mismatched(items) if alone and "mismatched" in loss.needs else items


def item_sets_of(
    source: Any, encoder: ResponseEncoder, loss: LossMix, *, ties: Ties = "leave-out"
) -> ItemSet | dict[str, ItemSet] | None:
    """As `item_set_of`, for one set, several by name, or none."""
    if not isinstance(source, Mapping):
        return None if source is None else item_set_of(source, encoder, loss, ties=ties)
    return {name: item_set_of(inner, encoder, loss, ties=ties) for name, inner in source.items()}


def item_sets_in(sources: Iterable[Any]) -> list[ItemSet]:
    """Every item set among sets, mappings of them by name, names and nothing."""
    nested = (source.values() if isinstance(source, Mapping) else [source] for source in sources)
    return [items for values in nested for items in values if isinstance(items, ItemSet)]


# Pairs serve losses on other kinds too; encoding them anew would need texts that are gone.
def _encoded_as_taken(pairs: ItemSet, loss: LossMix) -> ItemSet:
    def trees(item: TrainingItem, side: int) -> tuple[TokenTree, ...]:
        return item.with_responses(item.trees[0].response_ids[side]).trees

    if pairs.kind == "pairs" and "responses" in loss.data:
        return ItemSet(
            "responses",
            tuple(TrainingItem(item.index, trees(item, 0)) for item in pairs.items),
            pairs.counts,
            digest([pairs.fingerprint, "chosen"]),
        )
    if pairs.kind != "pairs" or "pairs" in loss.data or "unpaired" not in loss.data:
        return pairs
    return ItemSet(
        "unpaired",
        tuple(
            TrainingItem(
                2 * position + side,
                trees(item, side),
                scores=item.scores and item.scores[side : side + 1],
                desirable=side == 0,
            )
            for position, item in enumerate(pairs.items)
            for side in (0, 1)
        ),
        pairs.counts,
        digest([pairs.fingerprint, "split"]),
    )


# Every item with a second response: that of the next item with another prompt, or, where all
# prompts are equal, of the next item. The partner depends on the set alone, so that its reference
# log-probs can be computed before training, and neither batch nor order changes it.
def _with_mismatched(unpaired: ItemSet) -> ItemSet:
    trees, items = [item.trees[0] for item in unpaired.items], []
    for position, (item, tree) in enumerate(zip(unpaired.items, trees, strict=True)):
        others = (trees[(position + step) % len(trees)] for step in range(1, len(trees)))
        unlike = (other for other in others if other.prompt_ids != tree.prompt_ids)
        partner = next(unlike, trees[(position + 1) % len(trees)])
        items.append(item.with_responses(tree.response_ids[0], partner.response_ids[0]))
    return replace(
        unpaired, items=tuple(items), fingerprint=digest([unpaired.fingerprint, "mismatched"])
    )


# --- Checks --------------------------------------------------------------------------------------


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
    kind, _ = KINDS[type(rows)]
    if kind != "pairs":
        _check_kind(kind, loss, f"{name}: ")
    if "preference" in loss.needs and isinstance(rows, PairSet):
        without = [row for row, pair in enumerate(rows) if pair.preference is None]
        if len(without) == len(rows):  # where a judge was undecided about some, they are left out
            _check_known("preference", kind, without, len(rows), f"{name}: ")
    if "gold" in loss.needs and isinstance(rows, PairSet):
        without = [row for row, pair in enumerate(rows) if not pair.gold]
        _check_known("gold", kind, without, len(rows), f"{name}: ")
    if "scores" in loss.needs:
        without = [number for number, row in enumerate(rows) if None in _scores(row)]
        _check_known("scores", kind, without, len(rows), f"{name}: ")


def _scores(row: Any) -> tuple[float | None, ...]:
    if isinstance(row, Pair):
        return row.score_chosen, row.score_rejected
    return tuple(row.scores) if len(row.responses) > 1 else ()


def _check_known(
    need: str, kind: str, without: Sequence[int], number: int, where: str = ""
) -> None:
    InputError.unless(
        not without,
        saw=f"{where}{len(without):,} of {number:,} {kind} without {need} (first: row "
        f"{next(iter(without), None)})",
        expected=f"{_NEEDS[need]}, since the loss uses it",
        cure="map the column with columns={'gold': ...}, or choose cpo"
        if need == "gold"
        else "judge the data first (prefstage judge), map its columns, or choose another loss",
    )


def _check_kind(kind: str, loss: LossMix, where: str = "") -> None:
    InputError.unless(
        kind in loss.data,
        saw=f"{where}{kind} as data for a loss on {' or '.join(sorted(loss.data))}",
        expected="data of that kind",
        cure="choose another loss, or load the data as what the loss takes",
    )


# Found here rather than by the loss, which would meet the gap in the middle of an epoch.
def _with_needs(items: ItemSet, loss: LossMix) -> ItemSet:
    for need in sorted(loss.needs & {*_NEEDS}, reverse=True):
        without = [item.index for item in items.items if getattr(item, need) is None]
        # A judge gives no preference where it is undecided: such pairs are left out and counted.
        if without and need == "preference" and len(without) < len(items):
            items = replace(
                items,
                items=tuple(item for item in items.items if item.preference is not None),
                counts=items.counts | {"without_preference_left_out": len(without)},
            )
        else:
            _check_known(need, items.kind, without, len(items))
    return items


def check_sources(train: Any, evaluated: Any) -> None:
    """Check that no data set is empty, before it is read as anything.

    Args:
        train: To train on, as the trainer got it.
        evaluated: To evaluate on: one, several by name, or None.

    Raises:
        InputError: If one has no row.
    """
    for name, source in sets_by_name(train, evaluated, *_NAMES).items():
        InputError.unless(
            not isinstance(source, Sized) or len(source) > 0,
            saw=f"{name} is empty",
            expected="at least one item",
            cure="check the data's file",
        )


def check_item_sets(train: Any, evaluated: Any, *, evaluates: bool = False) -> None:
    """Check that there is a set to evaluate on, and that every item has a token to learn from.

    Args:
        train: The `ItemSet` to train on; None for evaluation alone.
        evaluated: The set to evaluate on, those by name, or None.
        evaluates: Whether the arguments ask for evaluation during training.

    Raises:
        InputError: If a set is missing, a response has no token, or no pair's sides differ.
    """
    InputError.unless(
        not evaluates or evaluated is not None,
        saw="eval_strategy asks for evaluation, and there is no evaluation set",
        expected="something to evaluate on",
        cure="give eval_dataset, or set eval_strategy='no'",
    )
    for name, items in sets_by_name(train, evaluated, *_NAMES).items():
        sides = [[ids for tree in item.trees for ids in tree.response_ids] for item in items.items]
        empty = [
            item.index
            for item, responses in zip(items.items, sides, strict=True)
            if not responses or min(map(len, responses)) == 0
        ]
        InputError.unless(
            not empty,
            saw=f"{name}: {len(empty)} of {len(items)} items have a response without a token "
            f"(rows {', '.join(map(str, empty[:_SHOWN_ROWS]))})",
            expected="responses of at least one token, the end of the turn included",
            cure="leave these rows out, or encode them with ResponseEncoder",
        )
        if items.kind == "pairs" and all(chosen == rejected for chosen, rejected, *_ in sides):
            cut = items.counts.get("responses_truncated", 0)
            raise InputError.of(
                saw=f"{name}: the chosen and the rejected response are the same tokens in every "
                "pair" + (f", {cut:,} responses having lost their end" if cut else ""),
                expected="pairs whose sides differ",
                cure="raise max_response_tokens"
                if cut
                else "check the columns of chosen and rejected",
            )


def sets_by_name(
    train: Any, evaluated: Any, train_name: str, eval_name: str, several: str
) -> dict[str, Any]:
    """Give sets that may be one, several by name or none each a name.

    Args:
        train: To train on, or None.
        evaluated: To evaluate on: one, several by name, or None.
        train_name: Name of the first.
        eval_name: Name of a second that stands alone.
        several: Pattern of the names of several, such as "eval_{}".

    Returns:
        The sets that are there.
    """
    sets = {train_name: train, eval_name: evaluated}
    if isinstance(evaluated, Mapping):
        sets = {train_name: train} | {several.format(name): s for name, s in evaluated.items()}
    return {name: source for name, source in sets.items() if source is not None}
