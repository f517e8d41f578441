"""What was bought, kept for the whole run: every sampled answer and every judgment once."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from prefstage.aligning.chain import Policy
from prefstage.aligning.recipe import Recipe
from prefstage.aligning.steps import FOLDER, locked
from prefstage.core.errors import RunFolderError
from prefstage.core.hashing import digest
from prefstage.core.ledger import LEDGER, Ledger
from prefstage.core.progress import progress
from prefstage.judging.base import Judge
from prefstage.judging.judged import stored
from prefstage.sampling.base import (
    Sample,
    Sampler,
    SampleRequest,
    SamplingConfig,
    collect,
    load_sampler,
)

SERVER_LOG = "server.log"


class KeptSampler(Sampler):
    """A sampler with a ledger: what it answered before is not asked again.

    Args:
        sampler: Who answers.
        ledger: Where its answers are kept.
        key: Under which they are kept.
        name: What the policy is called in this run.
    """

    def __init__(self, sampler: Sampler, ledger: Ledger, key: str, name: str) -> None:
        self._sampler = sampler
        self._ledger, self._key = ledger, key
        self.name = name
        self.fingerprint = sampler.fingerprint

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        """Answer every request once; new answers are on disk as they arrive.

        Args:
            requests: What is wanted.

        Yields:
            The answers: first those that are known.
        """
        with progress(f"answers of {self.name}", len(requests)) as tick:
            for sample in collect(self._sampler, requests, self._ledger, key=self._key):
                tick()
                yield sample


class Kept:
    """The ledger of a run folder, and what it holds.

    Args:
        folder: The run folder.
        judge: Who judges.
    """

    def __init__(self, folder: Path, judge: Judge) -> None:
        self._folder = folder
        self._ledger = Ledger.in_folder(folder)
        self.judge = stored(judge, self._ledger)

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def counts(self) -> dict[str, int]:
        """Judgments and sampled answers on disk, and the answers' tokens.

        Returns:
            Counts by name.
        """
        ledger = self._ledger
        return {
            "judgments": ledger.count("rewards") + ledger.count("judgments"),
            "judge_replies": ledger.count("replies"),
            "answers": ledger.count("samples"),
            "prompt_tokens": ledger.total("prompt_tokens"),
            "response_tokens": ledger.total("response_tokens"),
        }

    @contextmanager
    def sampler(
        self, policy: Policy, recipe: Recipe, config: SamplingConfig
    ) -> Iterator[KeptSampler]:
        """Load who answers, or start its server, beside the store of their answers.

        Args:
            policy: Who answers.
            recipe: How policies are loaded or served.
            config: How to sample.

        Yields:
            The sampler.
        """
        spec, options = recipe.sampled_from(policy.spec), recipe.load_options
        if spec.startswith("serve:"):
            options = replace(options, log_file=self._folder / SERVER_LOG)
        with load_sampler(spec, config, options=options) as loaded:
            key = loaded.fingerprint
            if spec != policy.spec:  # a command names a folder, not the weights in it
                key = digest([key, policy.key])
            yield KeptSampler(loaded, self._ledger, key, policy.name)


@contextmanager
def opened(out: Path, judge: Judge, *, store: Path | None = None) -> Iterator[Kept]:
    """Keep a run folder to one process, with its ledger, while the block runs.

    Args:
        out: The run folder.
        judge: Who judges.
        store: A folder that several runs share; `out` gets relative links to what is in it.

    Yields:
        What is kept.

    Raises:
        RunFolderError: If another process works in either, or the run has stores of its own.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        if store is not None:
            _link(out, store.absolute())
            stack.enter_context(locked(store))
        yield stack.enter_context(closing(Kept(out, judge)))


def _link(out: Path, store: Path) -> None:
    (store / FOLDER).mkdir(parents=True, exist_ok=True)
    for name in (FOLDER, LEDGER):
        link = out / name
        if link.is_symlink() and link.resolve() == (store / name).resolve():
            continue
        if link.is_symlink() or link.exists():
            raise RunFolderError.of(
                saw=f"{link} is there, and not of {store}",
                expected="a run folder that shares this store from its beginning",
                cure="name another folder with --out",
            )
        link.symlink_to(os.path.relpath(store / name, out))
