"""Built pairs are known by their content: equal builds hash equal, so training can go on."""

from pathlib import Path

from prefstage.building import build_pairs
from prefstage.data import load_pairs
from tests.data.dataset_rows import GOOD, write_rows


def test_two_equal_builds_hash_as_the_saved_pairs_do(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": f"Why {n}?", "score_chosen": n} for n in range(5)]
    source = str(write_rows(tmp_path / "a.jsonl", rows))
    recipe = {"pairs": source, "method": "keep", "splits": {"eval": 0.4}}
    first, second = (build_pairs(recipe, out=tmp_path / name) for name in ("one", "two"))
    for part, splits in first.parts.items():
        for name, pairs in splits.items():
            assert second.parts[part][name].fingerprint == pairs.fingerprint
            if len(pairs):
                saved = load_pairs(tmp_path / "one" / part / f"{name}.parquet")
                assert saved.fingerprint == pairs.fingerprint
