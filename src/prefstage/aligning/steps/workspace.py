"""What the steps of a run share: recipe, judge, data, and the answers and judgments at hand."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from prefstage.aligning.recipe import Recipe, train_settings
from prefstage.core import (
    LEDGER,
    DataError,
    Ledger,
    RunFolderError,
    digest,
    digest_file,
    locked,
    progress,
)
from prefstage.data import CandidateSet, PairSet, load_candidates, load_pairs, load_prompts
from prefstage.data.reading import ASIDE_CURE, Reading
from prefstage.data.settings import ChatSettings
from prefstage.data.storage import text_number
from prefstage.judging import Judge, stored
from prefstage.losses import parse_loss
from prefstage.sampling.base import (
    Sample,
    Sampler,
    SampleRequest,
    SamplingConfig,
    collect,
    load_sampler,
)
from prefstage.training.recipe_run import check_sets

RowsT = TypeVar("RowsT", CandidateSet, PairSet)
_log = logging.getLogger(__name__)
STEPS, SERVER_LOG, QUARANTINE = "steps", "server.log", "quarantine"


@dataclass(frozen=True)
class Policy:
    """A policy of the run.

    Attributes:
        name: What it is called in results: "start", "iteration 1", ...
        spec: Folder or Hub id; "" of one that is planned.
        key: Of the step that trained it, or the fingerprint of its files; None of one that
            depends on a stage which is not measured yet.
    """

    name: str
    spec: str
    key: str | None


class StoredSampler(Sampler):
    """A sampler in front of a ledger: what it answered before is not sampled a second time.

    Args:
        sampler: Who answers.
        ledger: Where its answers are kept.
        key: Under which they are kept.
        name: What the policy is called in this run.
    """

    def __init__(self, sampler: Sampler, ledger: Ledger, key: str, name: str) -> None:
        self._sampler, self._ledger, self._key = sampler, ledger, key
        self.name, self.fingerprint = name, sampler.fingerprint

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


class Workspace:
    """The recipe, the judge, the data, and the stores of a run folder.

    Steps can be named and planned at once; to do them, open the stores with `opened`.

    Args:
        recipe: The recipe.
        judge: Who judges; once the stores are open, nothing is judged twice.
        folder: The run folder; need not exist until `opened`.
        quarantine: Folder of the bad rows that the recipe puts aside; None: in the run folder.
    """

    def __init__(
        self, recipe: Recipe, judge: Judge, folder: Path, *, quarantine: Path | None = None
    ) -> None:
        self.recipe, self.judge = recipe, judge
        self.folder = folder.absolute()
        self._quarantine = quarantine or folder / QUARANTINE
        self._sources = {
            "off_policy": recipe.off_policy,
            "prompts": recipe.prompts,
            "held_out": recipe.evaluate and recipe.evaluate.prompts,
            "measured": recipe.measure and recipe.measure.off_policy,
        }
        self.ledger: Ledger  # answers and judgments, in the block of `opened` alone
        self.fingerprint = cache(fingerprint_of)
        self.rows: range | None = None
        self._loaded: dict[tuple[str, Callable[..., Any]], Any] = {}

    def part(self, rows: range) -> "Workspace":
        """The same workspace with some of its prompts only.

        They are taken in an order drawn from their ids alone, which is the same in all data sets:
        parts of the same numbers have the same prompts as far as the sets have.

        Args:
            rows: Which of the prompts, in that order.

        Returns:
            A workspace of the same run folder, judge, data and stores.
        """
        part = copy(self)
        # What was cached is of all prompts.
        for name in ("off_policy", "off_pairs", "prompts"):
            vars(part).pop(name, None)
        part.rows = rows
        return part

    def with_data(
        self, *, off_policy: str | None = None, prompts: str | None = None
    ) -> "Workspace":
        """The same workspace with other data.

        Args:
            off_policy: In place of the recipe's off-policy data.
            prompts: In place of its prompts; None: those of the off-policy data.

        Returns:
            A workspace of the same run folder, judge and stores.
        """
        other = Workspace(
            self.recipe.model_copy(
                update={"off_policy": off_policy or self.recipe.off_policy, "prompts": prompts}
            ),
            self.judge,
            self.folder,
            quarantine=self._quarantine,
        )
        other.rows = self.rows
        if "ledger" in vars(self):
            other.ledger = self.ledger
        return other

    def policy(self, name: str, spec: str) -> Policy:
        """A policy that no step of this run trains.

        Args:
            name: What it is called in results.
            spec: Folder, Hub id or a server's address.

        Returns:
            The policy, known by its files.
        """
        return Policy(name, spec, self.fingerprint(spec))

    # The data that the recipe names, each read once.

    @cached_property
    def off_policy(self) -> CandidateSet:
        """What training could use, as candidates."""
        return self._read("off_policy", load_candidates)

    @cached_property
    def off_pairs(self) -> PairSet:
        """The same with its labels, where it holds pairs."""
        return self._read("off_policy", load_pairs)

    @cached_property
    def prompts(self) -> CandidateSet:
        """What policies answer for training: prompts, or else the prompts of off_policy."""
        return self._read("prompts" if self.recipe.prompts else "off_policy", load_prompts)

    @cached_property
    def held_out(self) -> CandidateSet:
        """What policies answer to be evaluated."""
        return self._read("held_out", load_prompts)

    @property
    def measured(self) -> CandidateSet:
        """What policies are measured against: held-out data, or else off_policy."""
        return self._read(
            "measured" if self._sources["measured"] else "off_policy", load_candidates
        )

    def _read(self, name: str, load: Callable[..., RowsT]) -> RowsT:
        if (name, load) not in self._loaded:
            with naming_the_recipe():
                rows = load(str(self._sources[name]), **self.bad_row_options(name))
            unused = rows.report.unused_columns
            if unused and load is not load_pairs:
                _log.warning("%s: columns not used: %s", name, ", ".join(unused))
            self._loaded[name, load] = rows
        whole: RowsT = self._loaded[name, load]
        if self.rows is None or name in ("held_out", "measured"):
            return whole
        # In an order by numbers that are drawn from each id alone.
        start, ids = f"{self.recipe.seed}\0part\0", {*whole.dataset["prompt_id"]}
        order = sorted((text_number(f"{start}{prompt_id}"), prompt_id) for prompt_id in ids)
        kept = {prompt_id for _, prompt_id in order[self.rows.start : self.rows.stop]}
        return whole.filter(lambda row: row.prompt_id in kept)

    def bad_row_options(self, name: str) -> dict[str, Any]:
        """How a loader treats bad rows.

        Args:
            name: Of the data: "off_policy", "prompts", "held_out" or "measured".

        Returns:
            Nothing, where bad rows are errors; otherwise the file they go to.
        """
        if self.recipe.on_bad_row == "error":
            return {}
        self._quarantine.mkdir(parents=True, exist_ok=True)
        return {
            "on_bad_row": "quarantine",
            "quarantine_file": str(self._quarantine / f"{name}.jsonl"),
        }

    def put_aside(self) -> dict[str, dict[str, Any]]:
        """Read everything once where bad rows are put aside, and count them.

        Returns:
            By name of the data with bad rows: how many, of how many, and their file, relative
            to the run folder.
        """
        if self.recipe.on_bad_row == "error":
            return {}
        reports = {n: getattr(self, n).report for n, source in self._sources.items() if source}
        return {
            name: {
                "rows": report.quarantined,
                "of": report.rows_read,
                "file": f"{QUARANTINE}/{name}.jsonl",
            }
            for name, report in reports.items()
            if report.quarantined
        }

    def check_training_data(self) -> None:
        """Check the data that trainings name themselves, before anything is sampled or judged.

        What is built has the judge's scores and preferences; the data of `sft`, and evaluation
        sets, come as they are.

        Raises:
            DataError: If one cannot be read.
            InputError: If one lacks what its loss needs.
        """
        for section in ("train", *([] if self.recipe.sft is None else ["sft"])):
            data = "data" if section == "train" else None
            trained = train_settings(self.recipe, policy="policy", data=data)
            sets = {
                **{f"{section}.eval.{name}": rows for name, rows in trained.eval.items()},
                **({} if data else {"sft.data": trained.data}),
            }
            check_sets(sets, parse_loss(trained.loss))

    @cached_property
    def off_policy_kind(self) -> str:
        """Whether the off-policy data are "pairs" or "candidates"."""
        kind = Reading(str(self.recipe.off_policy), "candidates").format.kind
        return "pairs" if kind == "pairs" else "candidates"

    # What steps depend on.

    def data_fingerprint(self, source: str | None = None) -> str:
        """Hash of the data that steps read from a source: of their content, and of the part.

        Args:
            source: File, folder or Hub id; None: where the prompts come from that policies
                answer for training.

        Returns:
            Hex digits.
        """
        whole = self.fingerprint(source or self.recipe.prompts or str(self.recipe.off_policy))
        part = self.rows
        return whole if part is None else digest([whole, part.start, part.stop, self.recipe.seed])

    def sampling_settings(self, config: SamplingConfig, policy: Policy) -> dict[str, Any]:
        """Everything but the prompts that a policy's answers depend on.

        Args:
            config: How it samples.
            policy: Who answers.

        Returns:
            JSON-serialisable settings.
        """
        recipe = self.recipe
        return {
            "sampling": config.model_dump(mode="json"),
            "dtype": recipe.dtype,
            "name": policy.name,
            **ChatSettings(**recipe.encoding).model_dump(mode="json"),
            **({} if recipe.server is None else {"server": recipe.server}),
            **self.bad_row_settings,
        }

    @property
    def bad_row_settings(self) -> dict[str, str]:
        """Of steps that read data: what is made without bad rows is not what all rows make."""
        return {} if self.recipe.on_bad_row == "error" else {"on_bad_row": self.recipe.on_bad_row}

    # Answers and judgments, kept for the whole run: each is bought once.

    @contextmanager
    def opened(self, store: Path | None = None) -> Iterator[None]:
        """Open the stores while the block runs; who fills the folder holds it (`run_folder`).

        Args:
            store: A folder that several runs share; the run folder gets relative links to
                what is in it, and the block keeps it to one process.

        Yields:
            Nothing; the stores close at the end of the block.

        Raises:
            RunFolderError: If another process works in the store, or the run has its own already.
        """
        judge = self.judge
        with ExitStack() as stack:
            if store is not None:
                _link(self.folder, store.absolute())
                stack.enter_context(locked(store))
            self.ledger = stack.enter_context(Ledger(self.folder / LEDGER))
            self.judge = stored(judge, self.ledger)
            yield
        self.judge = judge

    @contextmanager
    def sampler(self, policy: Policy, config: SamplingConfig) -> Iterator[StoredSampler]:
        """Load who answers, or start its server, in front of the store of its answers.

        Args:
            policy: Who answers.
            config: How to sample.

        Yields:
            The sampler.
        """
        spec, options = self.recipe.sampled_from(policy.spec), self.recipe.load_options
        if spec.startswith("serve:"):
            options = options.model_copy(update={"log_file": self.folder / SERVER_LOG})
        with load_sampler(spec, config, options=options) as loaded:
            key = loaded.fingerprint
            # A server is known by its command, which names a folder and not the weights in it;
            # two policies trained into one folder would share answers without the key.
            if spec != policy.spec:
                key = digest([key, policy.key])
            yield StoredSampler(loaded, self.ledger, key, policy.name)

    def counts(self) -> dict[str, int]:
        """Judgments and sampled answers on disk, and the answers' tokens.

        Returns:
            Counts by name.
        """
        return {
            "judgments": self.ledger.count("rewards") + self.ledger.count("judgments"),
            "judge_replies": self.ledger.count("replies"),
            "answers": self.ledger.count("samples"),
            "prompt_tokens": self.ledger.total("prompt_tokens"),
            "response_tokens": self.ledger.total("response_tokens"),
        }


def fingerprint_of(source: str) -> str:
    """Hash of a file's or folder's content; of anything else, its name.

    Args:
        source: File, folder, Hub id or a server's address.

    Returns:
        Hex digits.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(filter(Path.is_file, path.rglob("*")))
        return digest([(file.relative_to(path).as_posix(), digest_file(file)) for file in files])
    return digest_file(path) if path.is_file() else digest(source)


@contextmanager
def naming_the_recipe() -> Iterator[None]:
    """Have the error of bad rows name the recipe's setting, not those of a loader.

    Raises:
        DataError: As raised in the block.
    """
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(ASIDE_CURE, "set on_bad_row: quarantine")) from None


def _link(out: Path, store: Path) -> None:
    (store / STEPS).mkdir(parents=True, exist_ok=True)
    for name in (STEPS, LEDGER):
        link = out / name
        if link.is_symlink() and link.resolve() == (store / name).resolve():
            continue
        RunFolderError.unless(
            not link.is_symlink() and not link.exists(),
            saw=f"{link} is there, and not of {store}",
            expected="a run folder that shares this store from its beginning",
            cure="name another folder with --out",
        )
        # Relative, so that an experiment's folder can be moved as a whole.
        link.symlink_to(os.path.relpath(store / name, out))
