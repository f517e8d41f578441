from dataclasses import replace

import pytest

from prefstage.core.errors import InputError
from prefstage.data import Candidates, CandidateSet, keep_sources
from prefstage.data.records import Generation


def a_set() -> CandidateSet:
    def row(name: str, sources: tuple[str | None, ...]) -> Candidates:
        prompt = ({"role": "user", "content": name},)
        texts = tuple(f"{name} by {source}" for source in sources)
        return Candidates(name, prompt, texts, sources, tuple(map(float, range(len(sources)))))

    return CandidateSet.of([row("p", ("ant", "bee", None)), row("q", ("bee",)), row("r", ("cat",))])


def test_keeps_the_named_writers_and_counts_the_rest() -> None:
    kept = keep_sources(a_set(), ["bee", "ant"])
    assert [row.responses for row in kept] == [("p by ant", "p by bee"), ("q by bee",)]
    assert [row.scores for row in kept] == [(0.0, 1.0), (0.0,)]
    assert kept.report.notes == [
        "kept the 3 responses of ant, bee; left out 2 of other sources, and 1 prompts without "
        "one of theirs"
    ]


def test_leaves_the_report_of_the_whole_set_alone() -> None:
    whole = a_set()
    keep_sources(whole, ["cat"])
    assert whole.report.notes == []
    assert len(whole) == 3


def test_names_the_nearest_source() -> None:
    with pytest.raises(InputError, match=r"'bea', which wrote no response.*some of ant, bee, cat"):
        keep_sources(a_set(), ["bee", "bea"])


def test_how_kept_responses_were_generated_is_kept() -> None:
    how = (Generation("a", (1,), "t"), Generation("b", (2,), "t"), None)
    rows = CandidateSet.of([replace(row, generations=how[: len(row.responses)]) for row in a_set()])
    kept = keep_sources(rows, ["bee"])
    assert [row.generations for row in kept] == [(how[1],), (how[0],)]
