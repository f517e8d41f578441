"""The real datasets of the shared folder: every row is a record or an accounted bad row."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from prefstage.core.errors import DataError
from prefstage.data import ResponseEncoder, load_candidates, load_pairs, load_tokenizer

COUNTS = [
    # file, format, rows, bad rows, ties
    ("hh_rlhf_harmless_test.jsonl.gz", "hh-transcript", 2312, 9, 0),
    ("dpo_en_demo_sharegpt.json.gz", "sharegpt", 300, 0, 0),
    ("autoj_pairwise_human.jsonl.gz", "auto-j", 1392, 10, 365),
]


@pytest.mark.parametrize("case", COUNTS, ids=lambda case: case[1])
def test_real_pairs_load(
    shared: Path, tmp_path: Path, case: tuple[str, str, int, int, int]
) -> None:
    name, form, rows, bad, ties = case
    aside = tmp_path / "aside.jsonl"
    pairs = load_pairs(shared / "data" / name, on_bad_row="quarantine", quarantine_file=aside)
    report = pairs.report
    assert (report.format, report.rows_read, report.rows_kept) == (form, rows, rows - bad)
    assert (report.quarantined, report.ties) == (bad, ties)
    assert len(pairs) == rows - bad
    kept = aside.read_text().splitlines() if bad else []
    assert len(kept) == bad
    pairs.save(tmp_path / "pairs.parquet")
    assert load_pairs(tmp_path / "pairs.parquet").fingerprint == pairs.fingerprint


def test_bad_rows_of_real_data_are_an_error_unless_set_aside(shared: Path) -> None:
    with pytest.raises(DataError, match=r"9 bad of 2312 rows: .* row 87, field 'chosen'"):
        load_pairs(shared / "data" / "hh_rlhf_harmless_test.jsonl.gz")


def test_ten_models_answers_are_candidates(shared: Path, tmp_path: Path) -> None:
    file = shared / "data" / "alpacaeval_small.jsonl.gz"
    sets = load_candidates(file, on_bad_row="quarantine", quarantine_file=tmp_path / "q.jsonl")
    assert (sets.report.rows_read, sets.report.quarantined, len(sets)) == (2998, 5, 300)
    models = Counter(source for row in sets for source in row.sources)
    assert len(models) == 10
    assert (models["phi-2"], models["gemma-2b-it"], models["alpaca-7b"]) == (298, 295, 300)
    with gzip.open(file, "rt") as stream:
        first = json.loads(stream.readline())
    assert sets[0].prompt == ({"role": "user", "content": first["instruction"]},)
    assert sets[0].responses[0] == first["output"]
    assert (sets[0].sources[0], sets[0].scores[0]) == (first["model"], first["preference"])


@pytest.mark.slow
def test_real_pairs_become_token_trees(shared: Path, chat_model: Path) -> None:
    tokenizer = load_tokenizer(str(chat_model))
    encoder = ResponseEncoder(tokenizer)
    file = shared / "data" / "dpo_en_demo_sharegpt.json.gz"
    for pair in load_pairs(file):
        texts = [pair.chosen[0]["content"], pair.rejected[0]["content"]]
        tree = encoder.encode(pair.prompt, texts)
        assert [encoder.read(ids).answer for ids in tree.response_ids] == texts
        assert tokenizer.decode(tree.prompt_ids) == encoder.tokenizer.decode(
            encoder.prompt_ids(pair.prompt)
        )
    assert encoder.counts.responses == 600
    assert encoder.counts.borders_moved == 0
