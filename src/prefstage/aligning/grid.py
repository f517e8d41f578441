"""What an experiment is told: a recipe, the axes that it is varied along, and its tables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefstage.aligning.recipe import Recipe, load_recipe
from prefstage.core.config import Config, load_config

BUILT_IN = (
    "win_rate",
    "length_controlled_win_rate",
    "avg_length",
    "boundary_score",
    "pairs",
    "avg_chosen",
    "avg_gap",
)
"""Figures of a policy that every alignment has; besides metrics, and ``training.NAME``."""
TRAINING = "training."

_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")


class TableSettings(Config):
    """One table of results; means are over all axes that it does not name."""

    kind: Literal["stages", "results", "contrasts"] = Field(
        description="Full combination with Δ and BS; a row each; or pairs of rows compared."
    )
    title: str = Field(default="", description="Its caption.")
    by: list[str] = Field(default=[], description="Axes: a block for each of their values.")
    rows: list[str] = Field(default=[], description="Axes: a row for each of their values.")
    columns: list[str] = Field(min_length=1, description="Figures; gains are of the first.")
    parts: dict[str, list[list[str]]] = Field(
        default={}, description="Of contrasts: pairs of rows under each heading."
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind == "stages") == bool(self.rows):
            raise ValueError(
                f"rows is {self.rows} in a table of {self.kind}; expected none in stages, whose "
                "rows are the iterations, and axes elsewhere; change it"
            )
        if (self.kind == "contrasts") != bool(self.parts):
            raise ValueError(
                f"parts has {len(self.parts)} headings in a table of {self.kind}; expected pairs "
                "of rows in contrasts alone; change it"
            )
        return self


class Grid(Config):
    """An experiment: every combination of the axes' values, each an alignment."""

    recipe: dict[str, Any] = Field(description="As for prefstage align; what all cells share.")
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(
        min_length=1,
        description="Values of the setting of that name, or names of values and their settings.",
    )
    metrics: dict[str, str] = Field(
        default={}, description="Names of figures and python:module:function(prompt, response)."
    )
    tables: dict[str, TableSettings] = Field(default={}, description="By name of file.")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {axis} is empty; expected values; add some, or remove it")
            labels = [label for label, _ in _values(axis, values)]
            if len({*map(_safe, labels)}) < len(labels):
                raise ValueError(f"axis {axis} has a value twice; expected different ones; rename")
        figures = (*BUILT_IN, *self.metrics)
        for name, table in self.tables.items():
            for axis in (*table.by, *table.rows):
                if axis not in self.axes:
                    raise ValueError(
                        f"tables.{name} names axis {axis!r}; expected one of "
                        f"{', '.join(self.axes)}; change it"
                    )
            for column in table.columns:
                if column not in figures and not column.startswith(TRAINING):
                    raise ValueError(
                        f"tables.{name} has column {column!r}; expected one of "
                        f"{', '.join(figures)} or {TRAINING}NAME; change it"
                    )
        return self

    @property
    def cells(self) -> "tuple[Cell, ...]":
        """Every combination, the last axis fastest.

        Raises:
            ConfigError: If one is no recipe.
        """
        axes = [[(axis, *value) for value in _values(axis, v)] for axis, v in self.axes.items()]
        return tuple(self._cell(chosen) for chosen in product(*axes))

    def _cell(self, chosen: tuple[tuple[str, str, Mapping[str, Any]], ...]) -> "Cell":
        overrides: dict[str, Any] = {}
        for _, _, settings in chosen:
            overrides |= settings
        values = {axis: label for axis, label, _ in chosen}
        name = ",".join(f"{_safe(axis)}={_safe(label)}" for axis, label in values.items())
        return Cell(name, values, load_recipe(self.recipe, overrides))


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        name: Of its folder.
        values: The label of each axis's value.
        recipe: What it does.
    """

    name: str
    values: Mapping[str, str]
    recipe: Recipe


def load_grid(source: Grid | Mapping[str, Any] | Path | str) -> Grid:
    """Read and check an experiment; every cell's recipe is checked too.

    Args:
        source: A grid, its settings, or its YAML file.

    Returns:
        The grid.

    Raises:
        ConfigError: One line that names what is wrong.
    """
    if isinstance(source, Grid):
        return source
    given = Path(source) if isinstance(source, str) else source
    grid = load_config(Grid, given)
    _ = grid.cells
    return grid


def _values(
    axis: str, values: list[Any] | dict[str, dict[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Label and settings of each value of an axis."""
    if isinstance(values, Mapping):
        return [(label, settings) for label, settings in values.items()]
    return [(_label(value), {axis: value}) for value in values]


def _label(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-")
