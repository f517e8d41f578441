"""The candidate store: sampled answers on disk, each the moment it arrives."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any, Self

from prefstage.core.errors import InputError
from prefstage.data.records import Candidates, Generation
from prefstage.sampling.base import (
    BuyingSampler,
    DescribedSampler,
    Sample,
    Sampler,
    SampleRequest,
)

_KIND = "prefstage samples"
_VERSION = 2  # 2: with thoughts and tokens


class CandidateStore:
    """Answers of one sampler in an append-only JSONL file; each is kept from its arrival on.

    The first line names the sampler by its fingerprint; every further line is one `Sample`.
    A line is on disk (fsync) before `append` returns, so a kill at any moment loses nothing
    that was appended; a last line that a kill tore is cut off when the store is opened. One
    process at a time may have a store open.

    Args:
        path: The file; made, with its folder, if missing.

    Raises:
        InputError: If the file is something else, is damaged, or another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: dict[str, Any] | None = None
        self._samples: dict[tuple[str, int], Sample] = {}
        self._lock = Lock()
        self._stream = _open(path)
        try:
            self._read()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        """The open store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the store."""
        self.close()

    def close(self) -> None:
        """Let other processes open it."""
        self._stream.close()

    def __len__(self) -> int:
        """Number of answers."""
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        """The answers in the order of their arrival."""
        return iter(list(self._samples.values()))

    @property
    def date(self) -> date:
        """The day of the first answers, which later ones' chat templates read as today too."""
        header = self._header if self._samples else None
        return date.today() if header is None else date.fromisoformat(str(header["date"]))

    def get(self, prompt_id: str, index: int) -> Sample | None:
        """Look an answer up.

        Args:
            prompt_id: As in the request.
            index: As in the request.

        Returns:
            The answer, or None if there is none yet.
        """
        return self._samples.get((prompt_id, index))

    def claim(self, sampler: Sampler) -> None:
        """Make this the store of a sampler, or check that it is.

        Args:
            sampler: Who answers.

        Raises:
            InputError: If it holds another sampler's answers; what differs is named.
        """
        settings = dict(sampler.settings) if isinstance(sampler, DescribedSampler) else {}
        if self._header is not None and not self._samples:  # claimed, but nothing ever arrived
            self._stream.truncate(0)
            self._header = None
        if self._header is None:
            self._header = {
                "kind": _KIND,
                "version": _VERSION,
                "date": self.date.isoformat(),
                "sampler": sampler.name,
                "fingerprint": sampler.fingerprint,
                "settings": settings,
            }
            self._write(self._header)
        elif self._header["fingerprint"] != sampler.fingerprint:
            raise InputError.of(
                saw=f"{self.path} holds {len(self)} answers of {self._header['sampler']!r}"
                + _differences(self._header["settings"], settings),
                expected="a new store, or the same sampler, settings and seed",
                cure="name another file, or repeat the first run's settings to go on with it",
            )

    def append(self, sample: Sample) -> None:
        """Keep an answer; when this returns it survives a kill. Safe on any thread.

        Args:
            sample: The answer. If its request has one already, that one stands.
        """
        with self._lock:
            key = (sample.prompt_id, sample.index)
            if key not in self._samples:
                self._write(asdict(sample))
                self._samples[key] = sample

    def _write(self, value: Mapping[str, Any]) -> None:
        self._stream.write((json.dumps(value, ensure_ascii=False) + "\n").encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self) -> None:
        data = self._stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if data and not _is_ours(lines[0] if lines else data, complete=bool(lines)):
            raise InputError.of(
                saw=f"{self.path}: not a candidate store",
                expected="a candidate store of prefstage, or a path where one can be made",
                cure="name another file",
            )
        self._header = json.loads(lines[0]) if lines else None
        self._check_version()
        for number, line in enumerate(lines[1:], start=2):
            try:
                sample = _sample_of(json.loads(line))
            except (ValueError, TypeError, KeyError):
                raise InputError.of(
                    saw=f"{self.path}, line {number}: not an answer",
                    expected="one answer a line, as prefstage wrote it",
                    cure="delete the line, or restore the file",
                ) from None
            self._samples[sample.prompt_id, sample.index] = sample
        self._stream.truncate(len(whole))

    def _check_version(self) -> None:
        version = _VERSION if self._header is None else self._header.get("version")
        if version != _VERSION:
            raise InputError.of(
                saw=f"{self.path}, a candidate store of version {version}, whose answers "
                + ("lack thoughts and tokens" if version == 1 else "this version does not know"),
                expected=f"version {_VERSION}",
                cure="delete it (or name another file) and run again: the answers are sampled anew",
            )


def collect(
    sampler: Sampler, requests: Sequence[SampleRequest], store: CandidateStore
) -> Iterator[Sample]:
    """Answer requests, asking the sampler only for what the store does not hold.

    Args:
        sampler: Who answers; its answers depend on its fingerprint and the request alone.
        requests: What is wanted.
        store: Claimed for the sampler; every new answer is in it before it is yielded, and
            those of a server even before anything else is done with them.

    Yields:
        The answer to each request: those in the store first, then new ones as they come.

    Raises:
        InputError: If the store holds another sampler's answers.
    """
    store.claim(sampler)
    known = [store.get(request.prompt_id, request.index) for request in requests]
    yield from (sample for sample in known if sample is not None)
    pairs = zip(requests, known, strict=True)
    missing = {(r.prompt_id, r.index): r for r, sample in pairs if sample is None}
    if isinstance(sampler, BuyingSampler):
        yield from sampler.sample_into(list(missing.values()), store.append)
        return
    for sample in sampler.sample(list(missing.values())):
        store.append(sample)
        yield sample


def to_candidates(
    prompts: Sequence[Candidates], samples: Iterator[Sample] | Sequence[Sample], *, source: str
) -> list[Candidates]:
    """Put samples beside their prompts.

    Args:
        prompts: Each prompt once; only id and messages are used.
        samples: Answers, at most one per (prompt, index), in any order.
        source: Who wrote them.

    Returns:
        The prompts that have answers, in order, with their answers by index, and how each was
        generated; no scores.
    """
    answers: dict[str, dict[int, Sample]] = {}
    for sample in samples:
        answers.setdefault(sample.prompt_id, {})[sample.index] = sample
    made = []
    for prompt in prompts:
        by_index = sorted(answers.get(prompt.prompt_id, {}).items())
        if by_index:
            made.append(_candidates(prompt, [sample for _, sample in by_index], source))
    return made


def _candidates(prompt: Candidates, samples: Sequence[Sample], source: str) -> Candidates:
    generations: tuple[Generation | None, ...] = tuple(sample.generation for sample in samples)
    return Candidates(
        prompt.prompt_id,
        prompt.prompt,
        responses=tuple(sample.text for sample in samples),
        sources=(source,) * len(samples),
        scores=(None,) * len(samples),
        generations=generations if any(generations) else (),
    )


def _sample_of(line: Any) -> Sample:
    """The answer of a line; TypeError if it is none."""
    return Sample(**{**line, "token_ids": tuple(line["token_ids"])})


def _open(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+b")
    except OSError as error:
        raise InputError.of(
            saw=f"candidate store {path}: {error.strerror}",
            expected="a file that can be written",
            cure="name another file",
        ) from None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise InputError.of(
            saw=f"candidate store {path} is open in another process",
            expected="one run at a time",
            cure="wait for the other run to end, or name another file",
        ) from None
    stream.seek(0)
    return stream


def _is_ours(line: bytes, *, complete: bool) -> bool:
    """Whether a first line is (or, torn, was going to be) the header of a store."""
    start = json.dumps({"kind": _KIND})[:-1].encode()
    if not complete:
        return start.startswith(line[: len(start)])
    try:
        return bool(json.loads(line)["kind"] == _KIND)
    except (ValueError, KeyError, TypeError):
        return False


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    new = json.loads(json.dumps(new))
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    shown = ", ".join(f"{name}={old.get(name)!r}, now {new.get(name)!r}" for name in names)
    return f" with other settings ({shown})" if shown else ""
