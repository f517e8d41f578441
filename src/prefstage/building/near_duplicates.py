"""Pairs that stand twice: exactly, or nearly (MinHash with locality-sensitive hashing)."""

import hashlib
import re
import sqlite3
import uuid
from typing import Any

from prefstage.building.built import Built
from prefstage.building.filters import NearDuplicateFilter, texts_of
from prefstage.core.errors import MissingDependencyError
from prefstage.data.storage import scratch_folder

_WORDS = re.compile(r"\w+")


class ExactDuplicates:
    """Finds pairs whose prompt and both responses stood before in the same part.

    What stood before waits in a temporary database, so that memory does not grow.
    """

    def __init__(self) -> None:
        self._seen = sqlite3.connect(scratch_folder() / f"{uuid.uuid4().hex}.sqlite")
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("PRAGMA synchronous = OFF")
        self._seen.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def __call__(self, built: Built) -> str | None:
        """Why the pair goes, or None.

        Args:
            built: The pair; it is remembered.

        Returns:
            The reason.
        """
        pair = built.pair
        text = "\0".join([built.part, pair.prompt_id, *texts_of(built)[1:]])
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        added = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount
        return None if added else "exact duplicate"


class NearDuplicates:
    """Finds pairs whose words are nearly those of one that was kept before.

    Args:
        settings: Similarity, shingles and hash functions.

    Raises:
        MissingDependencyError: If datasketch is not installed.

    Source:
        Broder 1997, "On the resemblance and containment of documents"; the library
        datasketch.
    """

    def __init__(self, settings: NearDuplicateFilter) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise MissingDependencyError.of(
                saw="no package datasketch, which finds near duplicates",
                expected="it installed",
                cure="pip install 'prefstage[build]'",
            ) from None
        self._settings = settings
        self._new_hash: Any = MinHash
        self._indices: dict[str, Any] = {}
        self._new_index: Any = MinHashLSH
        self._number = 0

    def __call__(self, built: Built) -> str | None:
        """Why the pair goes, or None.

        Args:
            built: The pair; it is remembered if it stays.

        Returns:
            The reason.
        """
        signature = self._signature(self._text(built))
        if built.part not in self._indices:
            self._indices[built.part] = self._new_index(
                threshold=self._settings.threshold, num_perm=self._settings.permutations
            )
        index = self._indices[built.part]
        if index.query(signature):
            return "near duplicate"
        self._number += 1
        index.insert(str(self._number), signature)
        return None

    def _text(self, built: Built) -> str:
        prompt, chosen, rejected = texts_of(built)
        kinds = {"prompt": prompt, "chosen": chosen, "pair": f"{prompt}\n{chosen}\n{rejected}"}
        return kinds[self._settings.text]

    def _signature(self, text: str) -> Any:
        words, size = _WORDS.findall(text.lower()), self._settings.shingle_words
        count = max(1, len(words) - size + 1)
        shingles = {" ".join(words[start : start + size]).encode() for start in range(count)}
        signature = self._new_hash(num_perm=self._settings.permutations)
        signature.update_batch(list(shingles))
        return signature
