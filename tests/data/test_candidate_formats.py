"""One row of every format of candidates, read as the prompt and responses that it means."""

from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import Candidates, load_candidates, load_pairs
from tests.data.dataset_rows import write_rows

QUESTION = [{"role": "user", "content": "Why?"}]

COMPLETIONS = [
    {
        "model": model,
        "response": text,
        "overall_score": overall,
        "fine-grained_score": fine,
        "annotations": {"helpfulness": {"Rating": "5"}},
    }
    for model, text, overall, fine in (
        ("m1", "A.", 7.5, 4.25),
        ("m2", "B.", None, 3.0),
        ("m3", "A.", 1, 2),
    )
]
CANDIDATES: list[tuple[str, dict[str, Any], list[str], list[Any], list[Any]]] = [
    (
        "ultrafeedback",
        {
            "source": "s",
            "instruction": "Why?",
            "models": ["m1", "m2", "m3"],
            "completions": COMPLETIONS,
        },
        ["A.", "B.", "A."],
        ["m1", "m2", "m3"],
        [7.5, None, 1.0],
    ),
    (
        "ultrafeedback-fine-grained",
        {
            "instruction": "Why?",
            "completions": [
                {key: value for key, value in item.items() if key != "overall_score"}
                for item in COMPLETIONS
            ],
        },
        ["A.", "B.", "A."],
        ["m1", "m2", "m3"],
        [4.25, 3.0, 2.0],
    ),
    (
        "candidates",
        {
            "prompt": QUESTION,
            "responses": ["A.", "B."],
            "sources": ["x", None],
            "scores": [1, None],
        },
        ["A.", "B."],
        ["x", None],
        [1.0, None],
    ),
    (
        "candidates",
        {"prompt": "Why?", "generations": ["A.", "B."], "ratings": [0.5, 0.25]},
        ["A.", "B."],
        [None, None],
        [0.5, 0.25],
    ),
    (
        "model-outputs",
        {"instruction": "Why?", "output": "A.", "generator": "g"},
        ["A."],
        ["g"],
        [None],
    ),
    (
        "model-outputs",
        {"instruction": "Why?", "model": "g", "output": "A.", "preference": 1e-07, "len": 2},
        ["A."],
        ["g"],
        [1e-07],
    ),
]


@pytest.mark.parametrize("case", CANDIDATES, ids=lambda case: case[0])
def test_candidates_are_recognised_and_read(tmp_path: Path, case: tuple[Any, ...]) -> None:
    name, row, responses, sources, scores = case
    sets = load_candidates(write_rows(tmp_path / "rows.jsonl", [row]))
    (candidates,) = sets
    assert sets.report.format == name
    assert candidates == Candidates(
        prompt_id=candidates.prompt_id,
        prompt=tuple(QUESTION),
        responses=tuple(responses),
        sources=tuple(sources),
        scores=tuple(scores),
    )


@pytest.mark.parametrize(("name", "row"), [case[:2] for case in CANDIDATES])
def test_candidates_are_no_pairs(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="load it with load_candidates"):
        load_pairs(write_rows(tmp_path / "rows.jsonl", [row]))


def test_answers_are_grouped_by_prompt_wherever_they_stand(tmp_path: Path) -> None:
    rows = [
        {"instruction": prompt, "output": f"{model} on {prompt}", "generator": model}
        for model in ("m1", "m2")
        for prompt in ("p1", "p2", "p3")
    ]
    sets = load_candidates(write_rows(tmp_path / "rows.jsonl", rows))
    assert [c.prompt[0]["content"] for c in sets] == ["p1", "p2", "p3"]
    assert [c.sources for c in sets] == [("m1", "m2")] * 3
    assert sets[1].responses == ("m1 on p2", "m2 on p2")
    assert "6 rows grouped into 3 prompts" in sets.report.notes


def test_fine_grained_scores_can_be_asked_for(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [CANDIDATES[0][1]])
    assert load_candidates(path, format="ultrafeedback-fine-grained")[0].scores == (4.25, 3.0, 2.0)
