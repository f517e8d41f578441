"""Candidates of several files, each in its own format: one pool of responses a prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefstage import build_pairs, load_candidates, load_pairs
from prefstage.core.errors import DataError, InputError
from prefstage.data import load_prompts
from tests.building.making import CountingRewards, ScriptedPolicy
from tests.data.dataset_rows import write_rows


def rated(prompt: str, *scores: float) -> dict[str, Any]:
    completions = [
        {"response": f"{prompt} {score}", "model": "m", "overall_score": score} for score in scores
    ]
    return {"instruction": prompt, "completions": completions}


def written(prompt: str, text: str) -> dict[str, Any]:
    return {"instruction": prompt, "output": text, "generator": "other"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    first = write_rows(tmp_path / "rated.jsonl", [rated("Why?", 8.0, 2.0), rated("How?", 3.0)])
    second = write_rows(
        tmp_path / "written.jsonl",
        [written("Why?", "So."), written("When?", "Now."), written("Why?", "Thus.")],
    )
    return [str(first), str(second)]


def test_responses_of_several_files_come_together(files: list[str]) -> None:
    pool = load_candidates(files)
    assert {row.prompt[0]["content"]: row.responses for row in pool} == {
        "Why?": ("Why? 8.0", "Why? 2.0", "So.", "Thus."),
        "How?": ("How? 3.0",),
        "When?": ("Now.",),
    }
    assert pool[0].sources == ("m", "m", "other", "other")
    assert pool[0].scores == (8.0, 2.0, None, None)
    assert pool.report.format == "ultrafeedback, model-outputs"
    assert (pool.report.rows_read, pool.report.rows_kept) == (5, 5)
    assert f"{files[0]}: 3 responses to 2 prompts" in pool.report.notes
    assert f"{files[1]}: 3 responses to 2 prompts" in pool.report.notes


def test_a_response_that_two_files_share_is_kept_once_and_counted(tmp_path: Path) -> None:
    rows = [written("Why?", "So.")]
    pool = load_candidates(
        [str(write_rows(tmp_path / name, rows)) for name in ("a.jsonl", "b.jsonl")]
    )
    assert [row.responses for row in pool] == [("So.",)]
    assert "1 repeated responses of a prompt merged" in pool.report.notes


def test_every_file_keeps_its_bad_rows_apart(files: list[str], tmp_path: Path) -> None:
    for name in files:
        with Path(name).open("a") as stream:
            stream.write(json.dumps({"instruction": None}) + "\n")
    with pytest.raises(DataError, match="1 bad of 3 rows"):
        load_candidates(files)
    bad = tmp_path / "bad.jsonl"
    pool = load_candidates(files, on_bad_row="quarantine", quarantine_file=str(bad))
    assert pool.report.quarantined == len(files)
    assert [len(f.read_text().splitlines()) for f in (bad, tmp_path / "bad-2.jsonl")] == [1, 1]
    assert any("bad-2.jsonl" in note for note in pool.report.notes)


def test_pairs_of_several_files_are_refused_with_a_cure(files: list[str]) -> None:
    with pytest.raises(InputError, match=r"a list of names.*one by one"):
        load_pairs(files)  # type: ignore[call-overload] # what a user may try


def test_pairs_are_built_from_the_pool(files: list[str], tmp_path: Path) -> None:
    rewards = CountingRewards(
        {"Why? 8.0": 1.0, "Why? 2.0": 0.0, "So.": 2.0, "Thus.": -1.0, "How? 3.0": 0.0, "Now.": 0.0}
    )
    recipe = tmp_path / "build.yaml"
    recipe.write_text(f"candidates: {json.dumps(files)}\njudge: none:x\nmethod: best-vs-worst\n")
    for source in (recipe, {"candidates": files, "method": "best-vs-worst", "judge": rewards}):
        (pair,) = build_pairs(source, judge=rewards).train
        assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("So.", "Thus.")


def test_labels_of_a_pool_that_the_judge_reverses_are_looked_at(tmp_path: Path) -> None:
    pairs = write_rows(
        tmp_path / "pairs.jsonl",
        [{"prompt": f"{n}?", "chosen": f"{n} good", "rejected": f"{n} bad"} for n in range(20)],
    )
    more = write_rows(tmp_path / "more.jsonl", [written("0?", "0 more")])
    rewards = CountingRewards(
        {f"{n} {text}": score for n in range(20) for text, score in (("good", 0.0), ("bad", 1.0))}
        | {"0 more": 0.5}
    )
    recipe = {"candidates": [str(more), str(pairs)], "method": "best-vs-worst"}
    with pytest.raises(InputError, match="100"):
        build_pairs({**recipe, "judge": rewards})
    assert len(build_pairs({**recipe, "judge": rewards, "accept_reversal": True}).train) == 20


def test_own_answers_need_no_responses_in_the_data(tmp_path: Path) -> None:
    prompts = str(write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"{n}?"} for n in range(3)]))
    assert len(load_prompts([prompts])) == 3
    policy = ScriptedPolicy()

    class ByLength(CountingRewards):
        def score(self, items: Any) -> list[float]:
            return [float(len(text)) + hash(text) % 7 / 10 for _, text in items]

    recipe = {"candidates": prompts, "method": {"name": "on-policy", "answers": 3}}
    built = build_pairs({**recipe, "judge": ByLength({}), "policy": policy})
    assert {pair.prompt[0]["content"] for pair in built.train} <= {"0?", "1?", "2?"}
    assert built.result["figures"]["answers_sampled"] == 9
    with pytest.raises(DataError, match="no known format"):
        build_pairs({"candidates": prompts, "method": "best-vs-worst"})
