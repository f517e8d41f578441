"""The documentation that is made from the code is current."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from prefstage.core.config import load_config
from prefstage.measuring import MeasureSettings

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


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs" / "bad-input").glob("*.md")))
def test_pages_of_bad_input_are_short_enough_to_read(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").split()) < 2500


def test_the_navigation_names_every_page_and_no_other() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    docs = REPOSITORY / "docs"
    named = re.findall(r"[\w/-]+\.md$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


def test_every_option_and_command_stands_in_the_commands_page() -> None:
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    for word in ("## prefstage measure", "`--all-prompts`", "`--json`", "path, required"):
        assert word in text


def test_the_example_configuration_is_valid() -> None:
    settings = load_config(MeasureSettings, REPOSITORY / "examples" / "measure.yaml")
    assert settings.sampling.top_k == 50


def test_the_papers_are_cited() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    urls = {each["url"] for each in cited["references"]}
    for number in ("2508.10530", "2508.18312", "2405.19534", "2505.12435"):
        assert f"https://arxiv.org/abs/{number}" in urls


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/index.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    targets = [each for each in re.findall(r"\]\(([^)#]+)", text) if "://" not in each]
    assert targets
    assert [
        target for target in targets if not ((REPOSITORY / page).parent / target).exists()
    ] == []
