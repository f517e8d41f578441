"""Reference log-probs as data: computed once, kept per token, reused by every loss."""

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prefstage.core import DataError, atomic_path, digest, write_json
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.engine import ModelParts, TreeLogProbs
from prefstage.scoring.scorer import Scorer

TREES_A_FILE = 512
"""Trees scored between two writes: what a kill can cost."""

_SCHEMA = pa.schema([("response", pa.string()), ("log_probs", pa.list_(pa.float32()))])

# What a configuration says about a model's origin or use, but no log-prob depends on.
_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "dtype",  # the weights' dtypes are hashed with them
    "transformers_version",
    "use_cache",
}
_ELEMENTS_AT_ONCE = 1 << 26


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
        self.folder = Path(folder) / model_fingerprint(scorer.model, with_adapter=with_adapter)
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
        # In the order of prompts, so that prompts which begin alike stay together.
        missing = sorted(self._missing(trees), key=lambda tree: tree.prompt_ids)
        for start in range(0, len(missing), TREES_A_FILE):
            part = missing[start : start + TREES_A_FILE]
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
        count = sum(len(tree.response_ids) for tree in missing)
        self.computed += count
        self.reused += sum(len(tree.response_ids) for tree in trees) - count
        return [
            TreeLogProbs(
                tuple(self._known[response_key(tree.prompt_ids, ids)] for ids in tree.response_ids)
            )
            for tree in trees
        ]

    # Trees of those responses that are not known, each response once.
    def _missing(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        seen, missing = set(self._known), list[TokenTree]()
        for tree in trees:
            by_key = {response_key(tree.prompt_ids, ids): ids for ids in tree.response_ids}
            wanted = tuple(ids for key, ids in by_key.items() if key not in seen)
            seen |= by_key.keys()
            if wanted:
                missing.append(TokenTree(tree.prompt_id, tree.prompt_ids, wanted))
        return missing

    def _write(self, scored: dict[str, Tensor]) -> None:
        if not (self.folder / "about.json").exists():
            name = str(getattr(self._scorer.model.config, "_name_or_path", ""))
            write_json(
                self.folder / "about.json",
                {"model": name, "with_adapter": self._with_adapter, "unit": "nats"},
            )
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
            with DataError.instead_of(
                *(OSError, pa.ArrowInvalid),
                saw=f"{path}: {{error}}",
                expected="a file written by the reference cache",
                cure="delete it; what it held is computed again",
            ):
                table = pq.read_table(path, schema=_SCHEMA)
            for key, values in zip(table["response"], table["log_probs"], strict=True):
                self._known[key.as_py()] = torch.from_numpy(values.values.to_numpy().copy())
            self._read.add(path)


# --- Keys -------------------------------------------------------------------------------------


def model_fingerprint(model: Any, *, with_adapter: bool = True) -> str:
    """Hash of everything in a model that its log-probs depend on.

    The configuration (without names and versions) and every weight, with its dtype. A
    model with adapters switched off has the fingerprint of the bare model, so that both
    share one reference.

    Args:
        model: A causal LM, bare or with PEFT adapters.
        with_adapter: Whether the adapters are on.

    Returns:
        32 hex digits.
    """
    bare = ModelParts.of(model).model
    adapters = getattr(model, "peft_config", {})
    used = {
        name: config.to_dict()
        for name, config in adapters.items()
        if with_adapter and name in model.active_adapters
    }
    config = {k: v for k, v in bare.config.to_dict().items() if k not in _IRRELEVANT}
    hasher = hashlib.sha256()
    for name, tensor in sorted(bare.state_dict().items()):
        pieces = name.split(".")
        of_adapter = any(adapter in pieces for adapter in adapters)
        if of_adapter and not with_adapter:
            continue
        # PEFT moves a map that has an adapter to `.base_layer`: by its name in the bare model.
        known_as = name if of_adapter else ".".join(p for p in pieces if p != "base_layer")
        hasher.update(f"{known_as} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # In parts: the copy that a GPU's or a strided tensor needs stays small.
        for part in torch.split(tensor.detach().reshape(-1), _ELEMENTS_AT_ONCE):
            hasher.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest([str(config), str(sorted(used.items())), hasher.hexdigest()], length=32)


def response_key(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> str:
    """Hash of a prompt and a response as tokens: 32 hex digits."""
    return digest([prompt_ids, response_ids], length=32)
