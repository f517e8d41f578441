"""A run that the tests of this folder read: two iterations, with dynamics."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from prefstage.aligning import align
from tests.aligning.tiny_world import make_world, settings


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny world; tests only read it."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(scope="session")
def aligned(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An alignment by off-policy, then on-policy data; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "aligned"
    recipe = settings(world, schedule=["off", "on"])
    recipe["train"] = {**recipe["train"], "dynamics": {"every": 1, "distance": False}}
    align(recipe, out=out)
    return out


@pytest.fixture(scope="session")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An alignment that records no dynamics and evaluates nothing; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    align(settings(world, schedule=["off"], evaluate=None, iterations=1), out=out)
    return out


@pytest.fixture(scope="session")
def browser() -> Any:
    """A real browser, driven from here."""
    driver = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
