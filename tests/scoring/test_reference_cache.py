"""The reference cache: what is reused, what is not, and what a kill leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prefstage.core.errors import DataError
from prefstage.data.tokenising import TokenTree
from prefstage.scoring import ReferenceCache, Scorer, model_fingerprint
from tests.scoring.tiny_models import largest_difference, realistic_trees, tiny_model


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(tiny_model("llama"))


def test_second_run_computes_nothing_and_gives_the_same(tmp_path: Path, scorer: Scorer) -> None:
    trees = realistic_trees()
    first = ReferenceCache(tmp_path, scorer)
    expected = first.score(trees)
    second = ReferenceCache(tmp_path, Scorer(tiny_model("llama"), token_budget=77, layout="flat"))
    found = second.score(list(reversed(trees)))[::-1]
    assert largest_difference([t.per_token for t in found], [t.per_token for t in expected]) == 0
    count = sum(len(tree.response_ids) for tree in trees)
    # One tree holds the same response twice: it is computed once and found once.
    assert (first.computed, first.reused) == (count - 1, 1)
    assert (second.computed, second.reused) == (0, count)
    direct = scorer.score(trees)
    for ours, theirs in zip(found, direct, strict=True):
        torch.testing.assert_close(ours.sums, theirs.sums)


def test_only_new_responses_are_computed(tmp_path: Path, scorer: Scorer) -> None:
    tree = realistic_trees()[0]
    ReferenceCache(tmp_path, scorer).score([tree])
    longer = TokenTree(tree.prompt_id, tree.prompt_ids, (*tree.response_ids, (4, 4, 4)))
    cache = ReferenceCache(tmp_path, scorer)
    (found,) = cache.score([longer])
    assert (cache.computed, cache.reused) == (1, 3)
    torch.testing.assert_close(found.sums, scorer.score([longer])[0].sums)


@pytest.mark.parametrize(
    "change",
    [
        lambda: tiny_model("llama", seed=1),
        lambda: tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 9.0}),
        lambda: tiny_model("llama").to(torch.bfloat16),
    ],
)
def test_any_change_of_the_model_is_another_cache(change: Any) -> None:
    assert model_fingerprint(change()) != model_fingerprint(tiny_model("llama"))


def test_attention_and_name_are_not_part_of_the_model(tmp_path: Path) -> None:
    model = tiny_model("llama", attention="sdpa")
    model.save_pretrained(tmp_path)
    loaded = Scorer.load(str(tmp_path)).model
    assert model_fingerprint(loaded) == model_fingerprint(tiny_model("llama"))


def test_change_of_a_prompt_or_response_token_is_noticed(tmp_path: Path, scorer: Scorer) -> None:
    cache = ReferenceCache(tmp_path, scorer)
    cache.score([TokenTree("a", (5, 6), ((7, 8),))])
    cache.score([TokenTree("a", (5, 9), ((7, 8),)), TokenTree("a", (5, 6), ((7, 9),))])
    # The border between prompt and response matters too.
    cache.score([TokenTree("a", (5, 6, 7), ((8,),))])
    assert (cache.computed, cache.reused) == (4, 0)


def test_damaged_file_is_named(tmp_path: Path, scorer: Scorer) -> None:
    cache = ReferenceCache(tmp_path, scorer)
    cache.score(realistic_trees()[2:3])
    (path,) = cache.folder.glob("*.parquet")
    path.write_bytes(b"torn")
    with pytest.raises(DataError, match=f"{path.name}.*delete it"):
        ReferenceCache(tmp_path, scorer).score(realistic_trees())


def test_two_caches_fill_one_folder(tmp_path: Path, scorer: Scorer) -> None:
    one, other = ReferenceCache(tmp_path, scorer), ReferenceCache(tmp_path, scorer)
    trees = realistic_trees()
    one.score(trees[:2])
    other.score(trees)
    assert other.reused == 4 + 1
    one.score(trees)
    assert one.computed == 4


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny_models import realistic_trees, tiny_model
from prefstage.scoring import ReferenceCache, Scorer, reference_cache
reference_cache.TREES_A_FILE = 1
scorer = Scorer(tiny_model("llama"))
real = scorer.score
def slow(trees, **settings):
    time.sleep(0.3)
    return real(trees, **settings)
scorer.score = slow
ReferenceCache(Path({folder!r}), scorer).score(realistic_trees())
"""


def test_kill_keeps_what_was_written_and_the_next_run_goes_on(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], env=dict(os.environ))
    folder = tmp_path / model_fingerprint(scorer.model)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("[!.]*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache = ReferenceCache(tmp_path, scorer)
    trees = realistic_trees()
    found = cache.score(trees)
    assert cache.reused >= 2
    assert cache.computed >= 1
    expected = scorer.score(trees)
    assert largest_difference([t.per_token for t in found], [t.per_token for t in expected]) < 1e-5
