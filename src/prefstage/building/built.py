"""Built pairs with where they come from, as datasets by part and split."""

import math
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value

from prefstage.building.recipe import TRAIN
from prefstage.data.records import Pair
from prefstage.data.sets import features_of, to_row
from prefstage.data.storage import (
    build_dataset,
    count_different,
    different,
    hashes_of,
    piece_rows,
    scratch_folder,
    text_number,
)

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
"""Columns that a built pair has besides the canonical ones, and their Arrow types."""


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

    @property
    def split_key(self) -> str:
        """What splits go by: the prompt that it comes from."""
        return self.origin_prompt_id or self.pair.prompt_id


Group = list[Built]
"""Pairs that stand or fall together: those of one prompt."""

Parts = dict[str, dict[str, Dataset]]


def score_gap(pair: Pair) -> float | None:
    """Score of chosen less score of rejected; None without scores."""
    if pair.score_chosen is None or pair.score_rejected is None:
        return None
    return pair.score_chosen - pair.score_rejected


def built_dataset(rows: Iterable[Built]) -> Dataset:
    """Write built pairs to a memory-mapped dataset as they come; memory stays flat.

    Args:
        rows: The pairs, read once.

    Returns:
        The dataset, with the canonical columns and `PROVENANCE`.
    """

    def features(fields: Mapping[str, bool]) -> Features:
        added = {name: Value(kind) for name, kind in PROVENANCE.items()}
        return Features({**features_of(Pair, fields), **added})

    flat = (
        {**to_row(row.pair), **{name: getattr(row, name) for name in PROVENANCE}} for row in rows
    )
    return build_dataset(flat, features)[0]


def parted(dataset: Dataset, shares: Mapping[str, float], *, seed: int) -> Parts:
    """Send every row to its part and its prompt's split, in one pass and flat memory.

    Args:
        dataset: As `built_dataset` wrote it.
        shares: Share of prompts of the splits besides "train", by name.
        seed: Of the splits.

    Returns:
        Memory-mapped datasets by part and split, in the order of the rows; every part has
        every split, empty ones too.
    """
    paths: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        writers: dict[tuple[str, str], Any] = {}
        for batch in dataset.with_format("arrow").iter(batch_size=piece_rows(len(dataset))):
            origins, prompts, parts = (
                batch[name].to_pylist() for name in ("origin_prompt_id", "prompt_id", "part")
            )
            keys = [
                (part, split_of(origin or prompt, shares, seed=seed))
                for part, origin, prompt in zip(parts, origins, prompts, strict=True)
            ]
            for key in product(dict.fromkeys(parts), (TRAIN, *shares)):
                if key not in writers:
                    paths[key] = str(scratch_folder() / f"{uuid.uuid4().hex}.arrow")
                    sink = stack.enter_context(pa.OSFile(paths[key], "wb"))
                    writers[key] = stack.enter_context(pa.ipc.new_stream(sink, batch.schema))
                rows = batch.filter(pa.array([row_key == key for row_key in keys]))
                if len(rows):
                    # One chunk a table: a filtered table has one for every piece of the batch,
                    # and a stream of thousands of tiny chunks reads slowly ever after.
                    writers[key].write_table(rows.combine_chunks())
    made: Parts = {}
    for (part, split), path in paths.items():
        made.setdefault(part, {})[split] = Dataset.from_file(path)
    return made


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
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return TRAIN


def draw_prompts(
    prompt_ids: Iterable[str], *, share: float, seed: int, name: str
) -> tuple[Callable[[str], bool], int, int]:
    """Draw exactly ⌊share·N⌋ of N different prompts, whatever their order, in flat memory.

    Args:
        prompt_ids: The prompts; those that stand twice count once.
        share: In [0, 1].
        seed: Of the draw.
        name: What it is for.

    Returns:
        Whether a prompt is drawn; how many are; and N.
    """
    # Every prompt has a random number of its own. Those up to the count-th smallest are drawn, so
    # that one limit decides and neither the prompts nor a list of the drawn ones stay in memory.
    with hashes_of(f"{seed}\0{name}\0{prompt_id}" for prompt_id in prompt_ids) as numbers:
        total = count_different(numbers)
        # 0.1 * 30 is just below 3 in binary; a share that means a whole number gives that number.
        count = math.floor(share * total + 1e-9)
        limit, left = -1, count
        for piece in different(numbers):
            if left <= 0:
                break
            limit = int(piece[min(left, len(piece)) - 1])
            left -= len(piece)
    return lambda prompt_id: text_number(f"{seed}\0{name}\0{prompt_id}") <= limit, count, total
