"""What an alignment reads from elsewhere: its bad rows stop it, or are put aside and counted."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefstage.aligning.recipe import Recipe, sft_settings, train_settings
from prefstage.core.errors import ConfigError, DataError
from prefstage.data.loading import load_candidates, load_pairs, load_prompts
from prefstage.data.reading import ASIDE_CURE
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.losses import parse_loss
from prefstage.training.recipe_run import check_sets

_log = logging.getLogger(__name__)
FOLDER = "quarantine"
_OWN_CURE = "set on_bad_row: quarantine"


@dataclass(frozen=True)
class Inputs:
    """The data that a recipe names, each read once.

    Attributes:
        recipe: The recipe.
        folder: The run folder; bad rows go to ``quarantine/NAME.jsonl`` in it, if the recipe
            says so.
    """

    recipe: Recipe
    folder: Path

    @cached_property
    def off_policy(self) -> CandidateSet:
        """What training could use, as candidates."""
        with own_cure():
            found: CandidateSet = load_candidates(
                str(self.recipe.off_policy), **self.aside("off_policy")
            )
        return _with_notes("off_policy", found)

    @cached_property
    def off_pairs(self) -> PairSet:
        """The same with its labels, where it holds pairs."""
        with own_cure():
            found: PairSet = load_pairs(str(self.recipe.off_policy), **self.aside("off_policy"))
        return found

    @cached_property
    def prompts(self) -> CandidateSet:
        """What policies answer for training; without prompts of its own, those of off_policy."""
        name = "off_policy" if self.recipe.prompts is None else "prompts"
        with own_cure():
            read = load_prompts(str(getattr(self.recipe, name)), **self.aside(name))
        return _with_notes(name, read)

    @cached_property
    def held_out(self) -> CandidateSet:
        """What policies answer to be evaluated.

        Raises:
            ConfigError: If the recipe has no evaluation.
        """
        if self.recipe.evaluate is None:
            raise ConfigError.of(
                saw="a recipe without evaluate", expected="held-out prompts", cure="set evaluate"
            )
        with own_cure():
            read = load_prompts(self.recipe.evaluate.prompts, **self.aside("held_out"))
        return _with_notes("held_out", read)

    def check(self) -> None:
        """Check the data that trainings name themselves, before anything is sampled or judged.

        What `build` makes has the judge's scores and preferences; the data of `sft`, and
        evaluation sets, come as they are.

        Raises:
            DataError: If one cannot be read.
            InputError: If one lacks what its loss needs.
        """
        trained = train_settings(self.recipe, policy="policy", data="data")
        sets = {f"train.eval.{name}": each for name, each in trained.eval.items()}
        check_sets(sets, parse_loss(trained.loss))
        if self.recipe.sft is not None:
            sft = sft_settings(self.recipe, policy="policy")
            sets = {f"sft.eval.{name}": each for name, each in sft.eval.items()}
            check_sets({"sft.data": sft.data, **sets}, parse_loss(sft.loss))

    def aside(self, name: str) -> dict[str, Any]:
        """What a loader is told of bad rows.

        Args:
            name: Of the data: "off_policy", "prompts" or "held_out".

        Returns:
            Nothing, where bad rows are errors; otherwise the file they go to.
        """
        if self.recipe.on_bad_row == "error":
            return {}
        (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        file = self.folder / FOLDER / f"{name}.jsonl"
        return {"on_bad_row": "quarantine", "quarantine_file": str(file)}

    def put_aside(self) -> dict[str, dict[str, Any]]:
        """Read everything once where bad rows are put aside, and count them.

        Returns:
            By name of the data with bad rows: how many, of how many, and their file, relative
            to the run folder.
        """
        if self.recipe.on_bad_row == "error":
            return {}
        named = {
            "off_policy": self.recipe.off_policy,
            "prompts": self.recipe.prompts,
            "held_out": self.recipe.evaluate,
        }
        reports = {
            name: getattr(self, name).report for name, given in named.items() if given is not None
        }
        return {
            name: {
                "rows": report.quarantined,
                "of": report.rows_read,
                "file": f"{FOLDER}/{name}.jsonl",
            }
            for name, report in reports.items()
            if report.quarantined
        }


def _with_notes(name: str, rows: CandidateSet) -> CandidateSet:
    """Say on the terminal which columns of the data are not used."""
    if rows.report.unused_columns:
        unused = ", ".join(rows.report.unused_columns)
        _log.warning("%s: columns not used: %s", name, unused)
    return rows


@contextmanager
def own_cure() -> Iterator[None]:
    """Have the error of bad rows name the recipe's setting, not those of a loader.

    Raises:
        DataError: As raised in the block.
    """
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(ASIDE_CURE, _OWN_CURE)) from None
