from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from prefstage.core.errors import InputError
from prefstage.data import load_candidates
from prefstage.judging.loading import CallableJudge
from prefstage.measuring import (
    MeasureConfig,
    algorithm_1_verdict,
    boundary_score,
    count_votes,
    measure_stage,
)

quick = settings(deadline=None, max_examples=40)
matrices = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: arrays(
        np.float64, shape, elements=st.sampled_from([0.0, 0.2, 0.5, 0.5 + 1e-12, 0.9, 1.0])
    )
)


def test_hard_votes_of_a_2_by_2_prompt() -> None:
    counted = count_votes([[0.9, 0.2], [0.5, 0.6]])
    assert (counted.votes_on, counted.votes_off, counted.ties) == (2, 1, 1)
    assert counted.score == (2 + 0.5) / 4
    assert counted.comparisons == 4


def test_ties_go_to_off_as_in_the_papers_else() -> None:
    counted = count_votes([[0.9, 0.2], [0.5, 0.6]], ties="off")
    assert counted.score == 2 / 4
    assert counted.ties == 1


def test_probabilities_are_averaged() -> None:
    counted = count_votes([[0.9, 0.2], [0.5, 0.6]], votes="probability")
    assert counted.score == pytest.approx(0.55)
    assert (counted.votes_on, counted.votes_off) == (2, 1)


@pytest.mark.parametrize("votes", ["hard", "probability"])
@pytest.mark.parametrize("ties", ["half", "off"])
def test_an_undecided_judgment_counts_half_under_every_rule(votes: str, ties: str) -> None:
    counted = count_votes([[1.0, 0.5]], undecided=[[False, True]], votes=votes, ties=ties)
    assert counted.score == 0.75
    assert (counted.ties, counted.undecided) == (0, 1)


@quick
@given(matrices, st.sampled_from(["hard", "probability"]))
def test_exchanging_the_sides_mirrors_the_score(p: np.ndarray, votes: str) -> None:
    here, there = count_votes(p, votes=votes), count_votes(1 - p.T, votes=votes)
    assert 0.0 <= here.score <= 1.0
    assert here.score == pytest.approx(1 - there.score)
    assert (here.votes_on, here.votes_off) == (there.votes_off, there.votes_on)
    assert here.comparisons == p.size


@pytest.mark.parametrize("matrix", [[], [[]], [0.5], [[1.2]], [[float("nan")]]])
def test_what_is_no_matrix_of_probabilities_is_refused(matrix: list[object]) -> None:
    with pytest.raises(InputError, match=r"m × n matrix"):
        count_votes(matrix)


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_bs_is_the_share_of_votes_when_every_prompt_has_as_many(grid: list[tuple]) -> None:
    rng = np.random.default_rng(len(grid))
    prompts = [count_votes(rng.random((2, 2))) for _ in grid]
    total = boundary_score(prompts)
    assert total.score == pytest.approx(total.votes_on / (total.votes_on + total.votes_off))
    assert total.prompts == len(grid)


def test_ragged_prompts_count_one_each() -> None:
    whole, single = count_votes([[1.0, 1.0], [1.0, 1.0]]), count_votes([[0.0]])
    total = boundary_score([whole, single])
    assert total.score == 0.5
    assert (total.votes_on, total.votes_off) == (4, 1)


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(InputError, match="no prompt"):
        boundary_score([])


@pytest.mark.parametrize(
    ("p", "stage"), [(0.4, "injection"), (0.5, "fine-tuning"), (0.6, "fine-tuning")]
)
def test_the_papers_verdict(p: float, stage: str) -> None:
    assert algorithm_1_verdict(boundary_score([count_votes([[p]])])) == stage


def test_the_papers_verdict_goes_by_votes_where_prompts_have_different_numbers() -> None:
    """Two votes for the policy's responses, three for the others; BS is the mean over prompts."""
    uneven = boundary_score([count_votes([[1.0]]), count_votes([[1.0, 0.0], [0.0, 0.0]])])
    assert (uneven.votes_on, uneven.votes_off, uneven.score) == (2, 3, 0.625)
    assert algorithm_1_verdict(uneven) == "injection"


@pytest.mark.parametrize(("ties", "stage"), [("half", "fine-tuning"), ("off", "injection")])
def test_the_papers_verdict_counts_ties_as_it_is_told(ties: str, stage: str) -> None:
    votes = [count_votes([[1.0, 0.5]]), count_votes([[0.5, 0.5]])]
    assert algorithm_1_verdict(boundary_score(votes), ties=ties) == stage


def test_the_papers_verdict_of_files_with_uneven_prompts() -> None:
    rewards = {"a1": 5.0, "z1": 0.0, "b1": 2.0, "b2": -1.0, "y1": 1.0, "y2": 3.0}
    cases = Path(__file__).parents[1] / "data" / "cases"

    def prefers(a: str, b: str, prompt: object) -> float:
        return float(rewards[a] > rewards[b])

    stage = measure_stage(
        load_candidates(cases / "uneven_off.jsonl"),
        on_policy=load_candidates(cases / "uneven_on.jsonl"),
        policy_name="P",
        judge=CallableJudge(prefers),
        config=MeasureConfig(all_prompts=True),
    )
    assert (stage.votes_on, stage.votes_off) == (2, 3)
    assert stage.algorithm_1 == "injection"
