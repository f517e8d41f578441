"""What a build made: pairs and where they come from; what was left out and why; reversed labels."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

from datasets import Dataset, Features, Value

from prefstage.building.recipe import TRAIN
from prefstage.core import InputError
from prefstage.data.records import Candidates, Pair
from prefstage.data.sets import features_of, to_row
from prefstage.data.storage import build_dataset, text_number
from prefstage.judging.judged import wilson_interval

# Largest share of reversed labels that needs no yes. Above it the judge and the labels measure
# different things, or nearly so. A judge whose agreement lies below one half with its whole 95 %
# interval reverses more than that of what it decides.
REVERSAL_LIMIT = 0.4

SETTING = "accept_reversal"

_EXAMPLES = 3


def reversal_figures(
    kept: int = 0, reversed: int = 0, equal: int = 0, unreadable: int = 0, unlabelled: int = 0
) -> dict[str, Any]:
    """What a judge says of labels, summed up before it replaces them.

    Args:
        kept: Labels that the judge confirms.
        reversed: Labels that it turns round.
        equal: Labelled pairs that it finds equal; they count for nothing.
        unreadable: Labelled pairs without a readable judgment; likewise.
        unlabelled: Pairs that are a tie in the data, which have no label to reverse.

    Returns:
        These counts; "share", reversed labels of those that the judge confirms or turns round,
        None of none; and "interval", its 95 % Wilson interval. JSON-serialisable.
    """
    decided = kept + reversed
    share = reversed / decided if decided else None
    return {
        **{"kept": kept, "reversed": reversed, "equal": equal},
        **{"unreadable": unreadable, "unlabelled": unlabelled, "share": share},
        "interval": list(wilson_interval(share or 0.0, decided)),
    }


@dataclass
class Account:
    """Counts of a build, filled as it goes.

    Attributes:
        prompts: Prompts (or pairs, where pairs go in) that were read.
        pairs: Pairs that were built, before filters.
        skipped: How many were left out, by reason.
        examples: The first prompt ids of every reason.
        figures: Other figures of the method (flips, on-policy share, ...), by name; 0 at first.
        notes: What else a reader should know.
        reversal: As `reversal_figures`, of the labels that a judge replaces; None if none does.
    """

    prompts: int = 0
    pairs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    figures: defaultdict[str, Any] = field(default_factory=partial(defaultdict, int))
    notes: list[str] = field(default_factory=list)
    reversal: dict[str, Any] | None = None

    def skip(self, reason: str, prompt_id: str, count: int = 1) -> None:
        """Count something that is left out.

        Args:
            reason: What it is, in a few words; counted by it.
            prompt_id: Where.
            count: How many.
        """
        if count < 1:
            return
        self.skipped[reason] += count
        seen = self.examples.setdefault(reason, [])
        if len(seen) < _EXAMPLES and prompt_id not in seen:
            seen.append(prompt_id)

    def passes(self, prompt_id: str, faults: Mapping[str, object]) -> bool:
        """Whether something has none of some faults; the first that it has is counted.

        Args:
            prompt_id: Where.
            faults: By reason, whether it is there.

        Returns:
            Whether none is.
        """
        reason = first_of(faults)
        if reason is not None:
            self.skip(reason, prompt_id)
        return reason is None

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "prompts_read": self.prompts,
            "pairs_built": self.pairs,
            "left_out": dict(self.skipped),
            "examples": self.examples,
            "figures": dict(self.figures),
            "notes": self.notes,
            "reversal": self.reversal,
        }


def first_of(faults: Mapping[str, object]) -> str | None:
    """The first reason that holds, of reasons and whether they do; None if none does."""
    return next((reason for reason, holds in faults.items() if holds), None)


def describe_reversal(reversal: Mapping[str, Any]) -> str:
    """Say how often a judge reverses labels.

    Args:
        reversal: As of `reversal_figures`.

    Returns:
        Such as "24 of 40 labels reversed by the judge: 60.0 % (95 % interval 44.6 % to 73.7 %)",
        with what has no part in it.
    """
    decided = reversal["kept"] + reversal["reversed"]
    text = f"{reversal['reversed']} of {decided} labels reversed by the judge"
    if reversal["share"] is not None:
        share, low, high = (100 * value for value in (reversal["share"], *reversal["interval"]))
        text += f": {share:.1f} % (95 % interval {low:.1f} % to {high:.1f} %)"
    others = {
        "found equal": reversal["equal"],
        "without a readable judgment": reversal["unreadable"],
        "without a label (a tie in the data)": reversal["unlabelled"],
    }
    listed = ", ".join(f"{count} {what}" for what, count in others.items() if count)
    return f"{text}; not counted: {listed}" if listed else text


def is_excessive(reversal: Mapping[str, Any]) -> bool:
    """Whether more labels are reversed than go without a yes."""
    return reversal["share"] is not None and reversal["share"] > REVERSAL_LIMIT


def check_reversal(
    reversal: Mapping[str, Any], *, accepted: bool, judge: str, setting: str = SETTING
) -> None:
    """Stop before labels are replaced by a judge that mostly contradicts them.

    Args:
        reversal: As of `reversal_figures`.
        accepted: Whether the recipe says yes to any share.
        judge: Its name.
        setting: Where the recipe says so.

    Raises:
        InputError: If more than `REVERSAL_LIMIT` of the labels are reversed, and nobody said yes.
    """
    InputError.unless(
        accepted or not is_excessive(reversal),
        saw=f"{describe_reversal(reversal)} ({judge})",
        expected=f"at most {100 * REVERSAL_LIMIT:.0f} % before labels are replaced",
        cure=f"ask another judge, or set {setting}: true to go by this one's labels (a run "
        "folder keeps what it judged)",
    )


# --- Pairs and their provenance ------------------------------------------------------------------

# Columns that a built pair has besides the canonical ones, and their Arrow types.
PROVENANCE = {
    "method": "string",
    "part": "string",
    "origin_prompt_id": "string",
    "place_chosen": "int64",
    "place_rejected": "int64",
    "gap": "float64",
    "judge": "string",
    "label_flipped": "bool",
}


@dataclass(frozen=True)
class Built:
    """A pair and its provenance.

    Attributes:
        pair: The pair.
        method: How it was built, such as "best-vs-worst".
        part: Which dataset of the method it belongs to ("LG-HQ"); equal to `method` where
            the method makes one.
        origin_prompt_id: The prompt that this one was made from (by adding a target score);
            None where it is the pair's prompt. Splits keep both together.
        place_chosen: Position of the chosen response among the prompt's candidates, or None.
        place_rejected: Likewise.
        gap: Score of chosen less score of rejected, or None without scores.
        judge: Whose scores or judgments decided, or None for scores of the dataset.
        label_flipped: Whether a judge turned the dataset's label round; None if not asked.
    """

    pair: Pair
    method: str
    part: str
    origin_prompt_id: str | None = None
    place_chosen: int | None = None
    place_rejected: int | None = None
    gap: float | None = None
    judge: str | None = None
    label_flipped: bool | None = None


# Pairs that stand or fall together: those of one prompt.
Group = list[Built]


@dataclass(frozen=True)
class Scored:
    """One response that can be chosen.

    Attributes:
        text: The response.
        score: Its score, finite; higher is better.
        source: Who wrote it, or None.
        position: Its position among the prompt's candidates.
    """

    text: str
    score: float
    source: str | None
    position: int


# Chosen and rejected.
Choice = tuple[Scored, Scored]


def built_of(
    row: Candidates,
    pair: Choice,
    *,
    method: str,
    part: str | None = None,
    judge: str | None = None,
) -> Built:
    """Make the pair of two responses to a prompt.

    Args:
        row: The prompt.
        pair: The better response and the worse one.
        method: How they were chosen.
        part: Dataset of the method; None for its only one.
        judge: Whose scores they have.

    Returns:
        The pair with its provenance.
    """
    chosen, rejected = pair
    return Built(
        Pair(
            prompt_id=row.prompt_id,
            prompt=row.prompt,
            chosen=(row.message(chosen.position),),
            rejected=(row.message(rejected.position),),
            score_chosen=chosen.score,
            score_rejected=rejected.score,
            source_chosen=chosen.source,
            source_rejected=rejected.source,
        ),
        method,
        part or method,
        place_chosen=chosen.position,
        place_rejected=rejected.position,
        gap=chosen.score - rejected.score,
        judge=judge,
    )


def score_gap(pair: Pair) -> float | None:
    """Score of chosen less score of rejected; None without scores."""
    chosen, rejected = pair.score_chosen, pair.score_rejected
    return None if chosen is None or rejected is None else chosen - rejected


def built_dataset(rows: Iterable[Built]) -> Dataset:
    """Write built pairs to a memory-mapped dataset as they come; memory stays flat.

    Args:
        rows: The pairs, read once.

    Returns:
        The dataset, with the canonical columns and `PROVENANCE`.
    """
    kinds = {name: Value(kind) for name, kind in PROVENANCE.items()}
    flat = ({**to_row(row.pair), **{name: getattr(row, name) for name in kinds}} for row in rows)
    return build_dataset(flat, lambda fields: Features({**features_of(Pair, fields), **kinds}))[0]


def parted(
    dataset: Dataset, shares: Mapping[str, float], *, seed: int
) -> dict[str, dict[str, Dataset]]:
    """Send every row to its part and its prompt's split.

    Args:
        dataset: As `built_dataset` wrote it.
        shares: Share of prompts of the splits besides "train", by name.
        seed: Of the splits.

    Returns:
        Datasets by part and split, over the same memory-mapped file, in the order of the rows;
        every part has every split, empty ones too.
    """
    # Eight bytes a row in memory, as views of a file need them; the rows stay where they are.
    rows: dict[str, dict[str, array[int]]] = {}
    columns = (dataset[name] for name in ("part", "origin_prompt_id", "prompt_id"))
    for row, (part, origin, prompt) in enumerate(zip(*columns, strict=True)):
        splits = rows.setdefault(part, {name: array("Q") for name in (TRAIN, *shares)})
        splits[split_of(origin or prompt, shares, seed=seed)].append(row)
    return {
        part: {split: dataset.select(numbers) for split, numbers in splits.items()}
        for part, splits in rows.items()
    }


def split_of(prompt_id: str, shares: Mapping[str, float], *, seed: int = 0) -> str:
    """The split of a prompt; it depends on the prompt and the seed alone.

    So a prompt stays where it is when the dataset grows, and all parts of a build agree.

    Args:
        prompt_id: The prompt.
        shares: Expected share of prompts of the splits besides "train", by name.
        seed: Of the split.

    Returns:
        The split's name.
    """
    position = text_number(f"{seed}\0split\0{prompt_id}") / 2.0**64
    borders = zip(shares, accumulate(shares.values()), strict=True)
    return next((name for name, border in borders if position < border), TRAIN)
