"""A world that the tests of this folder share."""

from pathlib import Path

import pytest

from tests.aligning.tiny_world import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny world; tests only read it."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder
