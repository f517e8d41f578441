"""The papers' recipes: each can be read, and docs/papers.md names each and every numbered item."""

import re
from pathlib import Path
from typing import Any

import pytest

from prefstage.aligning import load_grid
from prefstage.building import read_recipe
from prefstage.core.foreign import read_yaml
from prefstage.training.recipe import check_recipe, load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "examples" / "papers").glob("*.yaml"))
PAGE = REPOSITORY / "docs" / "papers.md"

# Figures, tables, theorems and so on of the papers, as they number them.
NUMBERED = {
    "TwoStage": (
        *(f"Figure {n}" for n in range(1, 4)),
        *(f"Table {n}" for n in range(1, 11)),
        *("Algorithm 1", "Theorem 5.1", "Theorem 5.2", "Definition 5.3", "Theorem 5.4"),
        *("Definition 5.5", "Eq. 14", "Eq. 25", "App. B.5"),
    ),
    "DataDPO": (
        "Figure 1",
        *(f"Table {n}" for n in range(1, 8)),
        *("Algorithm 1", "Theorem 4.1", "Proposition 4.2", "Theorem 4.3", "Proposition 4.4"),
        *("Theorem 4.5", "App. B.5"),
    ),
    "Rankings": (
        *(f"Figure {n}" for n in range(1, 13)),
        *(f"Table {n}" for n in range(1, 10)),
        *("Proposition 2.6", "Theorem 3.1", "Corollary 3.3", "Theorem 4.1", "Proposition A.7"),
        *("Definition 2.3", "Definition A.8", "Definition C.1", "Eq. 4"),
    ),
    "SGDPO": (
        *(f"Table {n}" for n in range(1, 5)),
        *(f"Figure {n}" for n in range(1, 4)),
        *(f"Theorem {n}" for n in range(1, 4)),
        *("App. C", "App. E"),
    ),
}


# The settings without half precision, which transformers allows on a GPU alone.
def on_a_cpu(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: on_a_cpu(value) for key, value in settings.items() if key != "bf16"}
    return settings


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_can_be_read(file: Path) -> None:
    settings = on_a_cpu(read_yaml(file))
    if "axes" in settings:
        assert load_grid(settings).cells
    elif "method" in settings:
        assert read_recipe(settings)
    else:
        check_recipe(load_recipe(settings))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_says_its_command_and_stands_on_the_page(file: Path) -> None:
    head = "".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert re.search(rf"prefstage (train|experiment|build) examples/papers/{file.name}", head)
    assert f"papers/{file.name}" in PAGE.read_text()
    for example in re.findall(r"examples/[\w/]+\.yaml", head + PAGE.read_text()):
        assert (REPOSITORY / example).is_file(), example


@pytest.mark.parametrize("paper", NUMBERED)
def test_every_numbered_item_is_on_the_page(paper: str) -> None:
    section = PAGE.read_text().split(f"## {paper}")[1].split("\n## ")[0]
    entries = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    named = {part.strip() for entry in entries for part in _spread(entry)}
    assert [item for item in NUMBERED[paper] if item not in named] == []


# "Tables 1, 3" and "Figures 5 to 7" as their items.
def _spread(entry: str) -> list[str]:
    items = []
    for part in re.split(r";", entry):
        kind, _, numbers = part.strip().partition(" ")
        singular = {"Tables": "Table", "Figures": "Figure", "Theorems": "Theorem"}.get(kind)
        if singular is None:
            items.append(part)
            continue
        for number in re.split(r", | and ", numbers):
            first, _, last = number.partition(" to ")
            spread = range(int(first), int(last) + 1) if last else [number]
            items += [f"{singular} {n}" for n in spread]
    return items
