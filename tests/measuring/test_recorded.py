"""Real answers and real recorded judgments: both outcomes, and both ways agree."""

from pathlib import Path

import pytest

from prefstage.data import CandidateSet, keep_sources, load_candidates
from prefstage.judging import Judge, load_judge
from prefstage.measuring import MeasureConfig, measure_stage

WEAK = ("phi-2", "alpaca-7b")
STRONG = ("gpt-3.5-turbo-0301", "OpenHermes-2.5-Mistral-7B")


@pytest.fixture(scope="module")
def answers(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> CandidateSet:
    return load_candidates(
        shared / "data" / "alpacaeval_small.jsonl.gz",
        on_bad_row="quarantine",
        quarantine_file=tmp_path_factory.mktemp("bad") / "rows.jsonl",
    )


@pytest.fixture(scope="module")
def judge(shared: Path) -> Judge:
    return load_judge(f"table:{shared / 'data' / 'alpacaeval_small.jsonl.gz'}")


@pytest.mark.parametrize(
    ("policy", "pair", "stage"),
    [
        ("phi-2", STRONG, "injection"),
        ("vicuna-7b-v1.5", STRONG, "injection"),
        ("vicuna-7b-v1.5", WEAK, "fine-tuning"),
        ("OpenHermes-2.5-Mistral-7B", WEAK, "fine-tuning"),
    ],
)
def test_a_recorded_model_in_the_policys_place(
    answers: CandidateSet, judge: Judge, policy: str, pair: tuple[str, ...], stage: str
) -> None:
    early, whole = (
        measure_stage(
            keep_sources(answers, pair),
            judge=judge,
            on_policy=keep_sources(answers, (policy,)),
            config=MeasureConfig(all_prompts=all_prompts),
        )
        for all_prompts in (False, True)
    )
    assert early.stage == whole.stage == whole.algorithm_1 == stage
    assert early.prompts_used < 150 <= whole.prompts_used
    assert early.interval[0] <= whole.boundary_score <= early.interval[1]
    assert whole.undecided_judgments == 0
