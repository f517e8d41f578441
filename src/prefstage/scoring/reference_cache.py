"""Reference log-probs as data: computed once, kept per token, reused by every loss."""

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prefstage.core.errors import DataError
from prefstage.core.files import atomic_path, write_json
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.engine import TreeLogProbs
from prefstage.scoring.model import model_fingerprint, response_key
from prefstage.scoring.scorer import Scorer

TREES_A_FILE = 512
"""Trees scored between two writes: what a kill can cost."""

_SCHEMA = pa.schema([("response", pa.string()), ("log_probs", pa.list_(pa.float32()))])


class ReferenceCache:
    """Per-token log-probs of a fixed model, on disk.

    The key is exactly what a log-prob depends on: the model (configuration and weights)
    and the tokens of prompt and response. Tokenizer, template and truncation act through
    the tokens and through nothing else, so a change of theirs costs only the responses
    whose tokens it changes. Token budget, layout and attention backend are not in the key.

    Several processes may fill one cache, and a killed run loses at most the part in work.

    Args:
        folder: Where caches live; one subfolder a model.
        scorer: Computes what is missing.
        with_adapter: False for the model beneath its PEFT adapters.

    Attributes:
        reused: Responses taken from disk so far.
        computed: Responses computed so far.
    """

    def __init__(self, folder: Path, scorer: Scorer, *, with_adapter: bool = True) -> None:
        self._scorer = scorer
        self._with_adapter = with_adapter
        fingerprint = model_fingerprint(scorer.model, with_adapter=with_adapter)
        self.folder = Path(folder) / fingerprint
        self.reused = self.computed = 0
        self._known: dict[str, Tensor] = {}
        self._read = set[Path]()

    def score(
        self, trees: Sequence[TokenTree], *, show_progress: bool | None = None
    ) -> list[TreeLogProbs]:
        """Log-probs of every response, from disk where they are there.

        Args:
            trees: Prompts with their responses, as tokens.
            show_progress: None shows a bar on a terminal only.

        Returns:
            One result a tree, in the order of the trees.

        Raises:
            InputError: As `Scorer.score` does.
            DataError: If a file of the cache cannot be read.
        """
        self._read_new_files()
        missing = self._missing(trees)
        total = sum(len(tree.response_ids) for tree in trees)
        count = sum(len(tree.response_ids) for tree in missing)
        for part in _parts(missing):
            scored = self._scorer.score(
                part, with_adapter=self._with_adapter, show_progress=show_progress
            )
            self._write(
                {
                    response_key(tree.prompt_ids, ids): tokens
                    for tree, result in zip(part, scored, strict=True)
                    for ids, tokens in zip(tree.response_ids, result.per_token, strict=True)
                }
            )
        self.computed += count
        self.reused += total - count
        return [self._result(tree) for tree in trees]

    # Trees of those responses that are not known, each response once.
    def _missing(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        seen, missing = set(self._known), list[TokenTree]()
        for tree in trees:
            wanted = list[tuple[int, ...]]()
            for ids in tree.response_ids:
                key = response_key(tree.prompt_ids, ids)
                if key not in seen:
                    seen.add(key)
                    wanted.append(ids)
            if wanted:
                missing.append(TokenTree(tree.prompt_id, tree.prompt_ids, tuple(wanted)))
        return missing

    def _result(self, tree: TokenTree) -> TreeLogProbs:
        tokens = tuple(self._known[response_key(tree.prompt_ids, ids)] for ids in tree.response_ids)
        sums = torch.stack([values.sum() for values in tokens]) if tokens else torch.zeros(0)
        return TreeLogProbs(per_token=tokens, sums=sums)

    def _write(self, scored: dict[str, Tensor]) -> None:
        if not (self.folder / "about.json").exists():
            name = str(getattr(self._scorer.model.config, "_name_or_path", ""))
            about = {"model": name, "with_adapter": self._with_adapter, "unit": "nats"}
            write_json(self.folder / "about.json", about)
        columns = [list(scored), [tokens.tolist() for tokens in scored.values()]]
        # A file of a name nobody else takes, written whole or not at all: no lock is needed.
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns, schema=_SCHEMA), temporary)
        self._known |= scored
        self._read.add(path)

    # Read what earlier runs and other processes have written.
    def _read_new_files(self) -> None:
        # Unfinished files begin with a dot.
        for path in sorted(set(self.folder.glob("[!.]*.parquet")) - self._read):
            try:
                table = pq.read_table(path, schema=_SCHEMA)
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError.of(
                    saw=f"{path}: {error}",
                    expected="a file written by the reference cache",
                    cure="delete it; what it held is computed again",
                ) from error
            for key, values in zip(table["response"], table["log_probs"], strict=True):
                array = values.values.to_numpy()
                self._known[key.as_py()] = torch.from_numpy(array.copy())
            self._read.add(path)


def _parts(trees: list[TokenTree]) -> Iterator[list[TokenTree]]:
    # In the order of prompts, so that prompts which begin alike stay together.
    ordered = sorted(trees, key=lambda tree: tree.prompt_ids)
    for start in range(0, len(ordered), TREES_A_FILE):
        yield ordered[start : start + TREES_A_FILE]
