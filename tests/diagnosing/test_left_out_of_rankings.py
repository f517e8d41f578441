"""R counts neither ties of the raters nor pairs of the same tokens, in diagnosis and dynamics."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.data import Pair, PairSet, ResponseEncoder, prompt_id_of
from prefstage.diagnosing.diagnosis import diagnose
from prefstage.diagnosing.scoring import ScoredBy, score_pairs
from prefstage.scoring import Scorer
from prefstage.training.dynamics.criterion import Criterion
from prefstage.training.dynamics.pairs import (
    measure_pairs,
    sample_pairs,
    score_pairs as score_sample,
    summarise_pairs,
)
from tests.scoring.tiny_models import tiny_model
from tests.tiny_models import tiny_tokenizer

LIMIT = 6
LONG = "once upon a time the quick fox ran to the tall moon "


def pair(name: str, chosen: str, rejected: str, **known) -> Pair:
    prompt = ({"role": "user", "content": name},)
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Pair(prompt_id_of(prompt), prompt, *sides, **known)


DECIDED = [pair("one", "yes", "no"), pair("two", "fox", LONG, agreement=0.75)]
TIED = pair("three", "moon", "ran", agreement=0.5)
ALIKE = pair("four", LONG + "good", LONG + "bad", agreement=1.0)
PAIRS = [*DECIDED, TIED, ALIKE]


@pytest.fixture(scope="module")
def scored_by() -> ScoredBy:
    encoder = ResponseEncoder(tiny_tokenizer("chatml"), max_response_tokens=LIMIT)
    return ScoredBy("tiny", Scorer(tiny_model("llama", vocab_size=512)), encoder)


def test_diagnosis_leaves_them_out_and_says_so(scored_by: ScoredBy) -> None:
    whole, part = (diagnose(each, policy=scored_by).report for each in (PAIRS, DECIDED))
    for figure in ("accuracy", "accuracy_normalised"):
        assert whole["rankings"][figure] == part["rankings"][figure]
    assert whole["learnability"] == part["learnability"]
    ideal = [report["rankings"]["idealized"] for report in (whole, part)]
    assert [known.pop("ties") for known in ideal] == [1, 0]
    for kind in ("plain", "normalised"):  # ties are counted beside the others, not among them
        assert set(ideal[0][kind].pop("with_ties")) == {"min", "median", "max"}
    assert ideal[0] == ideal[1]
    assert whole["left_out"] == {
        "rankings: same tokens on both sides (truncation)": 1,
        "rankings: ties of the raters": 1,
    }
    assert (
        "same tokens on both sides (truncation): 1"
        in diagnose(PAIRS, policy=scored_by).as_markdown()
    )


def test_ties_have_to_be_ties_among_pairs_of_different_tokens(scored_by: ScoredBy) -> None:
    found = diagnose(PAIRS, policy=scored_by).report["rankings"]["with_ties"]
    alone = diagnose([*DECIDED, TIED], policy=scored_by).report["rankings"]["with_ties"]
    assert found == alone


def test_a_diagnosis_without_any_ranking(scored_by: ScoredBy) -> None:
    report = diagnose([TIED, ALIKE], policy=scored_by).report
    assert (report["rankings"]["accuracy"], report["learnability"]) == (None, None)


def test_the_same_text_on_both_sides_is_no_ranking_either(scored_by: ScoredBy) -> None:
    same = pair("five", "fox", "fox")
    report = diagnose([*DECIDED, same], policy=scored_by).report
    assert report["left_out"] == {"rankings: same tokens on both sides (text)": 1}


def test_dynamics_leave_them_out_and_count_them(scored_by: ScoredBy) -> None:
    how = {"encoder": scored_by.encoder, "subsample": 10, "seed": 0}
    sample = sample_pairs("train", PairSet.of(PAIRS), **how)
    assert [item.index for item in sample.items] == [0, 1]
    assert sample.counts == {"ties_left_out": 1, "same_tokens_by_truncation": 1}
    with pytest.raises(InputError, match=r"no pair left.*1 ties left out.*keep ties"):
        sample_pairs("train", [TIED], **how)


def _summary(sample: Any, scores: Any) -> dict[str, float]:
    criterion = Criterion(0.1)
    measured = measure_pairs(sample, scores, scores, criterion=criterion)
    return summarise_pairs(measured, criterion=criterion)


def test_r_is_the_same_in_diagnosis_and_dynamics_whether_ties_are_kept(
    scored_by: ScoredBy,
) -> None:
    expected = diagnose(PAIRS, policy=scored_by).report["rankings"]
    for ties, followed in (("leave-out", 2), ("keep", 3)):
        how = {"encoder": scored_by.encoder, "subsample": 10, "seed": 0, "ties": ties}
        sample = sample_pairs("train", PairSet.of(PAIRS), **how)
        assert len(sample.items) == followed
        scores = score_sample(scored_by.scorer, sample.trees)
        found = _summary(sample, scores)
        assert found["rankings/accuracy"] == expected["accuracy"]["mean"]
        assert found["rankings/normalised_accuracy"] == expected["accuracy_normalised"]["mean"]
        assert found["rewards/accuracies"] == 0.5


def test_dynamics_of_ties_alone_have_no_accuracy(scored_by: ScoredBy) -> None:
    how = {"encoder": scored_by.encoder, "subsample": 10, "seed": 0, "ties": "keep"}
    sample = sample_pairs("train", [TIED, replace(TIED, agreement=0.5)], **how)
    scores = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-2.0, -1.0]).double()
    found = _summary(sample, scores)
    assert "rankings/accuracy" not in found
    assert "loss" in found


def test_scores_name_the_cause(scored_by: ScoredBy) -> None:
    found = score_pairs(PAIRS, scored_by)
    assert found.same_tokens.tolist() == [False, False, False, True]
    assert found.counts["same_tokens_by_truncation"] == 1
