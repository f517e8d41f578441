"""The documentation that is made from the code is current."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def write_docs() -> ModuleType:
    """The script that writes the pages."""
    path = REPOSITORY / "scripts" / "write_docs.py"
    spec = importlib.util.spec_from_file_location("write_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(write_docs: ModuleType) -> None:
    assert write_docs.outdated() == [], "run `python scripts/write_docs.py` and commit the result"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    docs = REPOSITORY / "docs"
    pages = [path.relative_to(docs).as_posix() for path in docs.rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []


def test_every_option_and_command_stands_in_the_commands_page() -> None:
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    for word in ("## prefstage measure", "`--all-prompts`", "`--json`", "text, required"):
        assert word in text
