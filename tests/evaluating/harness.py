"""What `run_benchmarks` settles before it calls the harness, for a direct call."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path


@contextmanager
def splitter_and_languages(folder: Path) -> Iterator[None]:
    """A sentence splitter, for which nltk would wait, and langdetect's draws.

    Args:
        folder: Where the splitter's files go.
    """
    factory = import_module("langdetect").DetectorFactory
    before, factory.seed = factory.seed, 0
    nltk = import_module("nltk")
    untrained = folder / "nltk" / "tokenizers" / "punkt_tab" / "english"
    untrained.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (untrained / name).touch()
    nltk.data.path.append(str(folder / "nltk"))
    yield
    nltk.data.path.remove(str(folder / "nltk"))
    factory.seed = before
