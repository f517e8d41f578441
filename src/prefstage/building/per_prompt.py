"""Per-prompt stage: each prompt takes the side that its own comparisons favour."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.core.errors import InputError
from prefstage.measuring.boundary import HALF

Side = Literal["on", "off"]


@dataclass
class PromptTally:
    """What a prompt's comparisons said so far.

    Attributes:
        on: Votes for on-policy responses; a tie counts half.
        off: Votes for off-policy responses; likewise.
    """

    on: float
    off: float

    @property
    def clearness(self) -> float:
        """How far the votes are from even: ``|on - off| / √(on + off + 1)``."""
        return abs(self.on - self.off) / math.sqrt(self.on + self.off + 1)

    @property
    def favours(self) -> Side | None:
        """The side with more votes; None if they are even."""
        if self.on == self.off:
            return None
        return "on" if self.on > self.off else "off"


@dataclass(frozen=True)
class Measured:
    """What a measurement found, prompt by prompt and overall.

    Attributes:
        tallies: The votes of each prompt that was used, by id.
        overall: The side that the whole measurement favours.
        stage: Its stage's name.
    """

    tallies: Mapping[str, PromptTally]
    overall: Side
    stage: str


def read_measurement(folder: Path) -> Measured:
    """Read what `prefstage measure --out FOLDER` left.

    Args:
        folder: The run folder.

    Returns:
        Votes a prompt, and the overall side: off in the injection stage, on in the
        fine-tuning stage; where that is undecided, the side of Algorithm 1's rule (off only
        if it has more votes).

    Raises:
        InputError: If the folder holds no finished measurement.
    """
    import pyarrow.parquet as pq

    try:
        stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        rows = pq.read_table(folder / "prompts.parquet").to_pylist()
    except (OSError, ValueError):
        raise InputError.of(
            saw=f"measurement {folder} without stage.json and prompts.parquet",
            expected="the run folder of a finished measurement",
            cure="run `prefstage measure ... --out FOLDER` first, and name that folder",
        ) from None
    tallies = {
        row["prompt_id"]: PromptTally(
            row["votes_on"] + HALF * (row["ties"] + row["undecided"]),
            row["votes_off"] + HALF * (row["ties"] + row["undecided"]),
        )
        for row in rows
    }
    sides: dict[str, Side] = {"injection": "off", "fine-tuning": "on"}
    by_rule: Side = "off" if stage["votes_off"] > stage["votes_on"] else "on"
    return Measured(tallies, sides.get(stage["stage"], by_rule), stage["stage"])


def per_prompt_pairs(
    on_policy: Iterable[Group],
    off_policy: Iterable[Group],
    measured: Measured,
    *,
    account: Account,
) -> Iterator[Group]:
    """Take each prompt's pairs from the side that its own comparisons favour.

    A prompt whose votes are even, or that was not measured, follows the overall stage. Where
    the side to take has no pair, the other side's is taken, and counted.

    Args:
        on_policy: Pairs of the policy's own responses.
        off_policy: Pairs of the dataset, relabelled by the same judge.
        measured: As of `read_measurement`.
        account: Counts which side each prompt took, and why.

    Yields:
        The pairs of each prompt: first those that have on-policy pairs, then the others.
    """
    own = _by_prompt(on_policy)
    theirs = _by_prompt(off_policy)
    for prompt_id in dict.fromkeys((*own, *theirs)):
        account.prompts += 1
        tally = measured.tallies.get(prompt_id)
        decided = tally.favours if tally is not None else None
        side: Side = decided or measured.overall
        why = "own votes" if decided else ("even votes" if tally else "not measured")
        sources: dict[Side, dict[str, Group]] = {"on": own, "off": theirs}
        if prompt_id not in sources[side]:
            side = "off" if side == "on" else "on"
            why = "other side lacks a pair"
        account.add(f"{side}_policy: {why}")
        group = sources[side][prompt_id]
        account.pairs += len(group)
        yield [
            replace(each, method=f"per-prompt, {side}-policy", part="per-prompt") for each in group
        ]


def _by_prompt(groups: Iterable[Group]) -> dict[str, Group]:
    found: dict[str, list[Built]] = {}
    for group in groups:
        for built in group:
            found.setdefault(built.pair.prompt_id, []).append(built)
    return found
