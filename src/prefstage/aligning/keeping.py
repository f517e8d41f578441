"""What was bought, kept for the whole run: every sampled answer and every judgment once."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from prefstage.core.progress import progress
from prefstage.judging.base import Judge
from prefstage.judging.store import JudgmentStore
from prefstage.judging.stored import stored
from prefstage.sampling.base import Sample, Sampler, SampleRequest, SamplingConfig
from prefstage.sampling.loading import LoadOptions, load_sampler
from prefstage.sampling.store import CandidateStore, collect

JUDGMENTS, SAMPLES = "judgments.sqlite", "samples"


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
        self, spec: str, config: SamplingConfig, *, name: str, options: LoadOptions
    ) -> Iterator[KeptSampler]:
        """Load who answers, beside the store of their answers.

        Args:
            spec: As for `load_sampler`.
            config: How to sample.
            name: What it is called.
            options: How to load.

        Yields:
            The sampler.
        """
        with ExitStack() as stack:
            loaded = load_sampler(spec, config, options=options)
            if isinstance(loaded, AbstractContextManager):
                stack.enter_context(loaded)
            file = self._folder / f"{loaded.fingerprint}.jsonl"
            store = stack.enter_context(CandidateStore(file))
            known = len(store)
            try:
                yield KeptSampler(loaded, store, name)
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
