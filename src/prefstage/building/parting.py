"""Parts and splits: each into a dataset of its own, in one pass and flat memory."""

import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
from datasets import Dataset

from prefstage.building.splitting import TRAIN, split_of
from prefstage.data.storage import piece_rows, scratch_folder

Parts = dict[str, dict[str, Dataset]]


def parted(dataset: Dataset, shares: Mapping[str, float], *, seed: int) -> Parts:
    """Send each row to its part and its prompt's split.

    Args:
        dataset: As `built_dataset` wrote it.
        shares: Share of prompts of each split besides "train".
        seed: Of the splits.

    Returns:
        Memory-mapped datasets by part and split, in the order of the rows; every part has
        every split, empty ones too.
    """
    found: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        writers: dict[tuple[str, str], Any] = {}
        for batch in dataset.with_format("arrow").iter(batch_size=piece_rows(len(dataset))):
            origins, own, parts = (
                batch[name].to_pylist() for name in ("origin_prompt_id", "prompt_id", "part")
            )
            keys = [
                (part, split_of(origin or prompt, shares, seed=seed))
                for part, origin, prompt in zip(parts, origins, own, strict=True)
            ]
            for part in dict.fromkeys(parts):
                for split in (TRAIN, *shares):
                    key = (part, split)
                    if key not in writers:
                        found[key] = str(scratch_folder() / f"{uuid.uuid4().hex}.arrow")
                        sink = stack.enter_context(pa.OSFile(found[key], "wb"))
                        writers[key] = stack.enter_context(pa.ipc.new_stream(sink, batch.schema))
                    rows = batch.filter(pa.array([each == key for each in keys]))
                    if len(rows):
                        writers[key].write_table(rows.combine_chunks())
    made: Parts = {}
    for (part, split), path in found.items():
        made.setdefault(part, {})[split] = Dataset.from_file(path)
    return made
