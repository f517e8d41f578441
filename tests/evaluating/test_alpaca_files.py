"""AlpacaEval's files: read as they are, written as they are read."""

import gzip
import json
import math
from pathlib import Path

import datasets
import pytest

from prefstage.core.errors import DataError, InputError
from prefstage.evaluating import (
    leaderboard_row,
    length_controlled_win_rate,
    load_answers,
    read_annotations,
    read_leaderboard,
    read_prompt_numbers,
    win_rate,
    write_annotations,
    write_leaderboard,
    write_model_outputs,
)
from tests.evaluating.judges import WordJudge, answers


def row(**change: object) -> dict[str, object]:
    whole = {
        "instruction": "q",
        "output_1": "one",
        "generator_1": "base",
        "output_2": "two",
        "generator_2": "model",
        "annotator": "judge",
        "preference": 1.25,
    }
    return whole | change


def written(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_preferences_are_read_as_alpaca_eval_means_them(tmp_path: Path) -> None:
    coded = [1, 2, 1.5, 0, 0.0, None, 1.25]
    rows = [row(instruction=str(k), preference=p) for k, p in enumerate(coded)]
    found = read_annotations(written(tmp_path / "annotations.json", rows))
    assert [each.preference for each in found[:5]] == [0, 1, 0.5, 0.5, 0.5]
    assert math.isnan(found[5].preference)
    assert found[6].preference == 0.25
    write_annotations(tmp_path / "again.json", found)
    again = read_annotations(tmp_path / "again.json")
    assert repr(again) == repr(found)
    raw = json.loads((tmp_path / "again.json").read_text())
    assert [each["preference"] for each in raw[:6]] == [1, 2, 1.5, 1.5, 1.5, None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(preference=2.5)], "preference 2.5"),
        ([row(preference="x")], "preference 'x'"),
        ([row(), row()], "rows 0 and 1 have the same instruction"),
        ([row(output_2=None)], "lacks text"),
        ({"a": 1}, "a dict where a list is due"),
        ([], "no row"),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, rows: object, message: str) -> None:
    with pytest.raises((DataError, InputError), match=message):
        read_annotations(written(tmp_path / "a.json", rows))


def test_model_outputs_go_there_and_back(tmp_path: Path) -> None:
    made = answers("my-model", ["α", "", "c"])
    write_model_outputs(tmp_path / "model_outputs.json", made, dataset="alpaca_eval")
    assert load_answers(tmp_path / "model_outputs.json") == made
    raw = json.loads((tmp_path / "model_outputs.json").read_text())
    assert raw[0] == {
        "dataset": "alpaca_eval",
        "instruction": "question 0",
        "output": "α",
        "generator": "my-model",
    }


def test_duplicates_and_several_writers_are_said(tmp_path: Path) -> None:
    one = {"instruction": "q", "output": "a", "generator": "x"}
    repeated = load_answers(written(tmp_path / "r.json", [one, one]))
    assert (len(repeated), repeated.repeated) == (1, 1)
    with pytest.raises(DataError, match="two different answers"):
        load_answers(written(tmp_path / "d.json", [one, one | {"output": "b"}]))
    both = written(tmp_path / "w.json", [one, one | {"generator": "y", "output": "b"}])
    with pytest.raises(DataError, match="one writer"):
        load_answers(both)
    assert load_answers(f"{both}#y").by_prompt.popitem()[1].text == "b"
    with pytest.raises(DataError, match="no answers of 'z'"):
        load_answers(f"{both}#z")
    with pytest.raises(DataError, match="no file or folder"):
        load_answers(tmp_path / "none.json")


def test_answers_come_from_a_url_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
    rows = [{"prompt": f"question {k}", "responses": [f"answer {k}"]} for k in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_answers(f"file://{tmp_path}/rows.jsonl")
    assert [each.text for each in found.by_prompt.values()] == ["answer 0", "answer 1", "answer 2"]


def test_lines_of_several_models_are_answers_too_and_may_be_empty(tmp_path: Path) -> None:
    """As candidates, empty responses are refused; as answers, they may well lose."""
    lines = [
        {"index": k, "instruction": f"question {k}", "model": model, "output": text}
        for model, texts in (("a", ["x", ""]), ("b", ["", "y"]))
        for k, text in enumerate(texts)
    ]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    found = load_answers(f"{path}#a")
    assert found == answers("a", ["x", ""])
    with pytest.raises(DataError, match="one writer"):
        load_answers(path)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(lines[0]) + "\n" + json.dumps(lines[1] | {"output": None}))
    with pytest.raises(DataError, match="row 1 without text"):
        load_answers(broken)


def test_candidates_files_are_answers_too(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    line = {
        "prompt": [{"role": "user", "content": "question 0"}],
        "responses": ["good", "bad"],
        "sources": ["a", "b"],
    }
    path.write_text(json.dumps(line) + "\n")
    found = load_answers(f"{path}#b")
    assert found.name == "b"
    assert found.by_prompt.keys() == answers("b", ["bad"]).by_prompt.keys()
    with pytest.raises(DataError, match="one writer"):
        load_answers(path)


def test_a_win_rate_is_written_and_read_as_annotations(tmp_path: Path) -> None:
    found = win_rate(
        answers("m", ["good", "no", "odd"]), answers("b", ["bad", "good", "x"]), judge=WordJudge()
    )
    write_annotations(tmp_path / "annotations.json", found.verdicts)
    rows = {each.instruction: each for each in read_annotations(tmp_path / "annotations.json")}
    assert rows["question 0"].preference == pytest.approx(0.9)
    assert (rows["question 1"].generator_1, rows["question 1"].output_2) == ("b", "no")
    assert math.isnan(rows["question 2"].preference)


def test_prompts_are_numbered_by_a_file_in_the_official_order(tmp_path: Path) -> None:
    path = written(tmp_path / "alpaca_eval.json", [{"instruction": "a"}, {"instruction": "b"}])
    assert read_prompt_numbers(path) == {"a": 0, "b": 1}
    with pytest.raises(DataError, match="repeats 1"):
        read_prompt_numbers(written(path, [{"instruction": "a"}] * 2))
    with pytest.raises(DataError, match="order"):
        read_prompt_numbers(written(path, [{"prompt": "a"}]))


def test_the_leaderboard_goes_there_and_back(tmp_path: Path) -> None:
    preferences = [0.2, 0.9, 0.5, math.nan, 0.1, 0.7]
    lengths = [10, 20, 30, 40, 55, 60]
    controlled = length_controlled_win_rate(preferences, lengths, [20] * 6)
    line = leaderboard_row(preferences, lengths, controlled=controlled)
    assert (line["n_wins"], line["n_wins_base"], line["n_draws"], line["n_total"]) == (2, 2, 1, 5)
    assert line["avg_length"] == 35
    worse = line | {"length_controlled_winrate": 1.0}
    write_leaderboard(tmp_path / "leaderboard.csv", {"worse": worse, "m": line})
    found = read_leaderboard(tmp_path / "leaderboard.csv")
    assert list(found) == ["m", "worse"]
    assert found["m"] == line
    (tmp_path / "bad.csv").write_text(",win_rate\na,1\na,2\n")
    with pytest.raises(DataError, match="each model once"):
        read_leaderboard(tmp_path / "bad.csv")
