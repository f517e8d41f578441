"""What was bought, kept for the whole run: every sampled answer and every judgment once."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from prefstage.aligning.chain import Policy
from prefstage.aligning.recipe import Recipe
from prefstage.aligning.steps import FOLDER, locked
from prefstage.core.errors import RunFolderError
from prefstage.core.hashing import digest
from prefstage.core.progress import progress
from prefstage.judging.base import Judge
from prefstage.judging.store import JudgmentStore
from prefstage.judging.stored import stored
from prefstage.sampling.base import Sample, Sampler, SampleRequest, SamplingConfig
from prefstage.sampling.loading import load_sampler
from prefstage.sampling.store import CandidateStore, collect

JUDGMENTS, SAMPLES, SERVER_LOG = "judgments.sqlite", "samples", "server.log"


class KeptSampler:
    """A sampler beside a store: what it answered before is not asked again.

    Args:
        sampler: Who answers.
        store: Where its answers are kept.
        name: What the policy is called in this run.
    """

    def __init__(self, sampler: Sampler, store: CandidateStore, name: str) -> None:
        self._sampler = sampler
        self._store = store
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
            for sample in collect(self._sampler, requests, self._store):
                tick()
                yield sample


class Kept:
    """The stores of a run folder, and what they hold.

    Args:
        folder: The run folder.
        judge: Who judges.
    """

    def __init__(self, folder: Path, judge: Judge) -> None:
        self._folder = folder / SAMPLES
        self._judgments = JudgmentStore(folder / JUDGMENTS)
        self.judge = stored(judge, self._judgments)
        self._counts = self._count_samples()

    def close(self) -> None:
        """Close the store of judgments."""
        self._judgments.close()

    def counts(self) -> dict[str, int]:
        """Judgments and sampled answers on disk, and the answers' tokens.

        Returns:
            Counts by name.
        """
        judged = self._judgments
        kinds = {"judgments": judged.count("rewards") + judged.count("judgments")}
        return {**kinds, "judge_replies": judged.count("replies"), **self._counts}

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
            options = replace(options, log_file=self._folder.with_name(SERVER_LOG))
        with ExitStack() as stack:
            loaded = load_sampler(spec, config, options=options)
            if isinstance(loaded, AbstractContextManager):
                stack.enter_context(loaded)
            name = loaded.fingerprint
            if spec != policy.spec:  # a command names a folder, not the weights in it
                name = digest([name, policy.key])
            store = stack.enter_context(CandidateStore(self._folder / f"{name}.jsonl"))
            known = len(store)
            try:
                yield KeptSampler(loaded, store, policy.name)
            finally:
                for sample in list(store)[known:]:
                    self._add(sample)

    def _count_samples(self) -> dict[str, int]:
        self._counts = {"answers": 0, "prompt_tokens": 0, "response_tokens": 0}
        for file in sorted(self._folder.glob("*.jsonl")):
            with CandidateStore(file) as store:
                for sample in store:
                    self._add(sample)
        return self._counts

    def _add(self, sample: Sample) -> None:
        self._counts["answers"] += 1
        self._counts["prompt_tokens"] += sample.prompt_tokens
        self._counts["response_tokens"] += sample.response_tokens


@contextmanager
def opened(out: Path, judge: Judge, *, store: Path | None = None) -> Iterator[Kept]:
    """Keep a run folder to one process, with its stores, while the block runs.

    Args:
        out: The run folder.
        judge: Who judges.
        store: A folder that several runs share; `out` gets relative links to what is in it.

    Yields:
        The stores.

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
    for name in (FOLDER, SAMPLES):
        (store / name).mkdir(parents=True, exist_ok=True)
    for name in (FOLDER, SAMPLES, JUDGMENTS):
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
