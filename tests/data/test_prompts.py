import json

import pytest

from prefstage.core.errors import DataError
from prefstage.data import load_candidates, load_prompts, prompt_id_of


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_may_hold_a_prompt_and_nothing_else(tmp_path):
    hi = {"prompt": [{"role": "user", "content": "Hi"}]}
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "So?"}
    rows = [hi, {"prompt": [system, user]}, hi]
    prompts = load_prompts(written(tmp_path / "prompts.jsonl", rows))
    assert [row.prompt[-1]["content"] for row in prompts] == ["Hi", "So?"]
    assert [row.responses for row in prompts] == [(), ()]
    assert prompts[0].prompt_id == prompt_id_of([{"role": "user", "content": "Hi"}])
    assert prompts.report.format == "prompts"
    assert "3 rows grouped into 2 prompts" in prompts.report.notes


def test_text_prompts_with_other_columns(tmp_path):
    path = written(tmp_path / "p.jsonl", [{"instruction": "Add.", "input": "1 2", "level": 3}])
    (row,) = load_prompts(path)
    assert row.prompt[0]["content"] == "Add.\n1 2"


def test_pairs_give_the_prompts_that_load_candidates_gives(tmp_path):
    rows = [{"prompt": f"Q{n}", "chosen": "yes", "rejected": "no"} for n in range(3)]
    path = written(tmp_path / "pairs.jsonl", rows)
    assert list(load_prompts(path)) == list(load_candidates(path))


def test_bad_prompts_are_told_by_row(tmp_path):
    path = written(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": "  "}])
    with pytest.raises(DataError, match="row 2, field 'prompt': saw only empty turns"):
        load_prompts(path)
    prompts = load_prompts(path, on_bad_row="quarantine", quarantine_file=tmp_path / "bad.jsonl")
    assert (len(prompts), prompts.report.quarantined) == (1, 1)


def test_no_prompt_at_all_is_an_unknown_format(tmp_path):
    with pytest.raises(DataError, match="fit no known format"):
        load_prompts(written(tmp_path / "p.jsonl", [{"text": "Hi"}]))
