import gzip
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.judging import load_judge
from prefstage.judging.loading import TableJudge
from tests.judging.tiny_judges import comparison


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(model: str, output: str, preference: float, prompt: str = "q") -> dict[str, Any]:
    return {"instruction": prompt, "output": output, "model": model, "preference": preference}


def labelled(a: str, b: str, label: int, prompt: str = "q") -> dict[str, Any]:
    return {"prompt": prompt, "response 1": a, "response 2": b, "label": label}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def probability(judge: Any, prompt: str, a: str, b: str) -> float:
    (judgment,) = judge.compare([comparison(prompt, a, b)])
    return float(judgment.probability)


def test_recorded_labels_and_ties_are_looked_up_in_either_order(tmp_path: Path) -> None:
    rows = [labelled("a", "b", 0), labelled("a", "c", 1), labelled("b", "c", 2)]
    judge = load_judge(f"table:{write(tmp_path / 't.jsonl', rows)}")
    assert probability(judge, "q", "a", "b") == 1.0
    assert probability(judge, "q", "b", "a") == 0.0
    assert probability(judge, "q", "a", "c") == 0.0
    assert probability(judge, "q", "c", "b") == 0.5
    assert probability(judge, "q", "c", "c") == 0.5


def test_several_records_of_one_pair_are_averaged(tmp_path: Path) -> None:
    rows = [labelled("a", "b", 0), labelled("a", "b", 0), labelled("b", "a", 0)]
    judge = load_judge(f"table:{write(tmp_path / 't.jsonl', rows)}")
    assert probability(judge, "q", "a", "b") == pytest.approx(2 / 3)


def test_votes_are_shares(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response_a": "a", "response_b": "b", "votes_a": 1, "votes_b": 3}]
    judge = load_judge(f"table:{write(tmp_path / 't.jsonl', rows)}")
    assert probability(judge, "q", "a", "b") == pytest.approx(0.25)


def test_a_shared_baseline_becomes_pairwise_by_bradley_terry(tmp_path: Path) -> None:
    rows = [answer("m1", "a", 0.8), answer("m2", "b", 0.3), answer("m3", "c", 0.0)]
    judge = load_judge(f"table:{write(tmp_path / 't.jsonl', rows)}")
    expected = 1 / (1 + math.exp(logit(0.3) - logit(0.8)))
    assert probability(judge, "q", "a", "b") == pytest.approx(expected)
    assert probability(judge, "q", "b", "a") == pytest.approx(1 - expected)
    # exact 0 is clipped, and stays below everything
    assert probability(judge, "q", "c", "b") == pytest.approx(1e-8 / (1e-8 + 3 / 7), rel=1e-6)
    blunt = load_judge(f"table:{tmp_path / 't.jsonl'}?clip=0.25")
    assert probability(blunt, "q", "a", "b") == pytest.approx(
        1 / (1 + math.exp(logit(0.3) - logit(0.75)))
    )


def test_rewards_are_differences_without_a_logit(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [answer("m1", "a", 7.0), answer("m2", "b", 5.0)])
    with pytest.raises(DataError, match=r"2 of 2 scores outside \[0, 1\].*scores=reward"):
        load_judge(f"table:{path}")
    judge = load_judge(f"table:{path}?scores=reward")
    assert probability(judge, "q", "a", "b") == pytest.approx(1 / (1 + math.exp(-2)))


def test_a_common_opponent_links_responses_that_never_met(tmp_path: Path) -> None:
    annotations = [
        {
            "instruction": "q",
            "output_1": "baseline",
            "generator_1": "base",
            "output_2": output,
            "generator_2": model,
            "annotator": "someone",
            "preference": 1 + preference,
        }
        for model, output, preference in (("m1", "a", 0.8), ("m2", "b", 0.3))
    ]
    one = write(tmp_path / "m1.jsonl", annotations[:1])
    two = write(tmp_path / "m2.jsonl", annotations[1:])
    judge = load_judge(f"table:{one},{two}")
    assert probability(judge, "q", "a", "baseline") == pytest.approx(0.8)
    assert probability(judge, "q", "baseline", "b") == pytest.approx(0.7)
    assert probability(judge, "q", "a", "b") == pytest.approx(
        1 / (1 + math.exp(logit(0.3) - logit(0.8)))
    )


def test_a_missing_comparison_is_an_error_with_counts_or_undecided(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [labelled("a", "b", 0)])
    wanted = [comparison("q", "a", "b"), comparison("q", "a", "z"), comparison("other", "a", "b")]
    with pytest.raises(DataError, match=r"2 of 3 comparisons are not in .*prompt 'q', responses"):
        load_judge(f"table:{path}").compare(wanted)
    judge = load_judge(f"table:{path}?missing=undecided")
    assert isinstance(judge, TableJudge)
    assert [j.status for j in judge.compare(wanted)] == ["decided", "undecided", "undecided"]
    assert judge.counts == {"looked_up": 1, "undecided": 2, "rows_skipped": 0}


def test_unusable_rows_are_counted(tmp_path: Path) -> None:
    rows = [answer("m1", "a", 0.8), answer("m2", "", 0.3), answer("m3", "c", float("nan"))]
    judge = load_judge(f"table:{write(tmp_path / 't.jsonl', rows)}")
    assert isinstance(judge, TableJudge)
    assert judge.counts["rows_skipped"] == 2


def test_a_table_without_judgments_is_refused(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a", "model": "m"}]
    with pytest.raises(DataError, match="holds no judgment"):
        load_judge(f"table:{write(tmp_path / 't.jsonl', rows)}")
    with pytest.raises(DataError, match="nowhere"):
        load_judge(f"table:{tmp_path / 'nowhere.jsonl'}")


def test_the_fingerprint_follows_content_and_reading(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", [answer("m1", "a", 0.8), answer("m2", "b", 0.3)])
    two = write(tmp_path / "2.jsonl", [answer("m1", "a", 0.8), answer("m2", "b", 0.31)])
    prints = [
        load_judge(f"table:{spec}").fingerprint
        for spec in (one, f"{one}?missing=undecided", two, f"{one}?clip=0.1")
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_recorded_judgments_of_ten_real_models(shared: Path) -> None:
    file = shared / "data" / "alpacaeval_small.jsonl.gz"
    judge = load_judge(f"table:{file}")
    with gzip.open(file, "rt") as stream:
        rows = [json.loads(line) for line in stream][:200]
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["output"].strip():
            by_prompt.setdefault(row["instruction"], []).append(row)
    pairs = [(p, a, b) for p, each in by_prompt.items() for a in each for b in each if a is not b]
    found = judge.compare([comparison(p, a["output"], b["output"]) for p, a, b in pairs])
    assert len(found) > 1500
    for (_, a, b), judgment in zip(pairs, found, strict=True):
        if a["output"].strip() == b["output"].strip():
            assert judgment.probability == 0.5
        elif a["preference"] != b["preference"]:
            assert (judgment.probability > 0.5) == (a["preference"] > b["preference"])
