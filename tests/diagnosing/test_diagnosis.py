import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.data import ResponseEncoder, load_pairs
from prefstage.data.records import Candidates, Pair, prompt_id_of
from prefstage.diagnosing import (
    flip_threshold,
    idealized_ranking_accuracy,
    largest_flippable,
    reference_log_ratio,
)
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.diagnosis import diagnose
from prefstage.diagnosing.figures import data_figures, diversity_of, preference_consistency
from prefstage.diagnosing.numbers import cohens_kappa, describe_sorted
from prefstage.diagnosing.scoring import ScoredBy
from prefstage.diagnosing.tables import as_text, ranking_table
from prefstage.judging import Judge
from prefstage.judging.base import TIE, Comparison, Judgment
from prefstage.scoring import Scorer
from tests.scoring.tiny_models import tiny_model
from tests.tiny_models import tiny_tokenizer


def pair(name: str, chosen: str, rejected: str, **known: float) -> Pair:
    prompt = ({"role": "user", "content": name},)
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Pair(prompt_id_of(prompt), prompt, *sides, **known)


PAIRS = [
    pair("What is Paris?", "A city in France.", "No idea."),
    pair("What is Paris?", "A city in France.", "A fruit, of course, and a good one."),
    pair("Tell a story", "Once upon a time there was a fox.", "No.", agreement=0.75),
    pair("Hello", "Hi there", "Go away", agreement=0.5),
    pair("1 2 3", "4 5 6", "banana", agreement=0.6),
]


class PrefersLonger(Judge):
    name = fingerprint = "prefers longer"

    def compare(self, comparisons: list[Comparison]) -> list[Judgment]:
        return [
            TIE if len(c.a) == len(c.b) else Judgment(0.9 if len(c.a) > len(c.b) else 0.1)
            for c in comparisons
        ]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=512)


@pytest.fixture
def scored_by(model):
    return ScoredBy("tiny", Scorer(model), ResponseEncoder(tiny_tokenizer("chatml")))


def by_hand(model, encoder, one: Pair) -> list[tuple[float, int]]:
    """Log-probs of both sides by a plain forward pass of transformers."""
    found = []
    for side in (one.chosen, one.rejected):
        tree = encoder.encode(one.prompt, [side[0]["content"]])
        (ids,) = tree.response_ids
        whole = torch.tensor([[*tree.prompt_ids, *ids]])
        with torch.no_grad():
            logits = model(whole).logits[0].log_softmax(-1)
        start = len(tree.prompt_ids)
        total = sum(float(logits[start + t - 1, token]) for t, token in enumerate(ids))
        found.append((total, len(ids)))
    return found


def test_every_ranking_figure_equals_a_plain_forward_pass(model, scored_by):
    diagnosis = diagnose(PAIRS, policy=scored_by)
    hand = [by_hand(model, scored_by.encoder, each) for each in PAIRS]
    labelled = [n for n, each in enumerate(PAIRS) if each.agreement != 0.5]
    rankings = diagnosis.report["rankings"]
    plain = np.mean([hand[n][0][0] >= hand[n][1][0] for n in labelled])
    means = [[total / count for total, count in each] for each in hand]
    assert rankings["accuracy"]["mean"] == pytest.approx(plain)
    normalised = np.mean([means[n][0] >= means[n][1] for n in labelled])
    assert rankings["accuracy_normalised"]["mean"] == pytest.approx(normalised)
    apart = [each[0][0] - each[1][0] for each in hand]
    assert rankings["intra_diversity"]["mean"] == pytest.approx(np.mean(apart), abs=1e-3)
    learn, apart_all = diagnosis.report["learnability"], apart
    apart = [apart_all[n] for n in labelled]
    assert learn["log_ratio"]["mean"] == pytest.approx(-np.mean(apart), abs=1e-3)
    assert learn["wrong"] == sum(each < 0 for each in apart)
    limit = -math.log(math.exp(0.5) - 1) / 0.1
    right = np.mean([-each <= limit for each in apart])
    assert learn["flippable_at_loss"]["share_right"] == pytest.approx(right)
    ideal = rankings["idealized"]["plain"]["by_beta"]["1.0"]
    votes = [n for n, each in enumerate(PAIRS) if each.agreement in (0.75, 0.6)]
    logits = [math.log(PAIRS[n].agreement / (1 - PAIRS[n].agreement)) for n in votes]
    expected = np.mean([apart_all[n] + odds > 0 for n, odds in zip(votes, logits, strict=True)])
    assert ideal == pytest.approx(expected)


def test_every_different_response_goes_through_the_model_once(scored_by, monkeypatch):
    from prefstage.scoring import scorer as module

    passed, original = [], module.score_pass

    def counting(parts, one, **settings):
        result = original(parts, one, **settings)
        passed.append(len(result.log_probs))
        return result

    monkeypatch.setattr(module, "score_pass", counting)
    report = diagnose(PAIRS, policy=scored_by, judge=PrefersLonger()).report["rankings"]
    encoder = scored_by.encoder
    unique = {
        (each.prompt_id, side[0]["content"])
        for each in PAIRS
        for side in (each.chosen, each.rejected)
    }
    prompts = {each.prompt_id: each.prompt for each in PAIRS}
    tokens = sum(len(encoder.encode(prompts[p], [text]).response_ids[0]) for p, text in unique)
    assert len(unique) == 9
    assert sum(passed) == report["tokens_scored"] == report["tokens_unique"] == tokens


def test_after_training_rewards_are_against_the_reference(scored_by):
    other = ScoredBy(
        "start", Scorer(tiny_model("llama", seed=5, vocab_size=512)), scored_by.encoder
    )
    diagnosis = diagnose(PAIRS, policy=scored_by, reference=other)
    now, before = diagnosis.policy_log_probs, diagnosis.reference_log_probs
    a, b = now.chosen - before.chosen, now.rejected - before.rejected
    kept = [n for n, each in enumerate(PAIRS) if each.agreement != 0.5]
    assert diagnosis.report["rankings"]["reward_accuracy"]["mean"] == np.mean(a[kept] > b[kept])
    ratio = np.mean((before.rejected - before.chosen)[kept])
    assert diagnosis.report["learnability"]["log_ratio"]["mean"] == pytest.approx(ratio)


def test_judge_figures_by_hand():
    report = diagnose(PAIRS, judge=PrefersLonger(), second_judge=PrefersLonger()).report
    longer = [len(p.chosen[0]["content"]) - len(p.rejected[0]["content"]) for p in PAIRS]
    right = [1.0 if each > 0 else 0.0 for n, each in enumerate(longer) if n != 3]
    assert report["judge"]["agreement"]["agreement"] == np.mean(right)
    assert report["data"]["longer_wins"] == np.mean(right)
    assert (
        report["consistency"] == {"prefers longer and prefers longer": 1.0} or report["consistency"]
    )
    assert report["judge"]["position_bias"] is None
    assert report["rankings"] is None


def test_kappa_by_hand():
    labels = np.array([1, 1, 1, 1, 0.5, 0.5])
    says = np.array([1, 1, 1, 0, 0.5, 1])
    expected = (2 / 3) * (5 / 6) / 2 + (1 / 3) * (1 / 6)
    assert cohens_kappa(labels, says) == pytest.approx((4 / 6 - expected) / (1 - expected))
    assert cohens_kappa(np.ones(4), np.array([1, 0, 1, 0])) == pytest.approx(0.0)
    assert cohens_kappa(np.ones(3), np.ones(3)) == 1.0
    assert cohens_kappa(np.zeros(0), np.zeros(0)) is None


def test_consistency_is_xnor():
    first, second = np.array([0.9, 0.9, 0.1, 0.1]), np.array([0.6, 0.4, 0.4, 0.6])
    assert preference_consistency(first, second) == 0.5


def test_warnings_name_figure_and_remedy(scored_by):
    long = [pair(f"q{n}", "a much longer answer", "short") for n in range(10)]
    own = [
        Candidates(p.prompt_id, p.prompt, ("x" * 99, "y" * 99), ("me",) * 2, (None,) * 2)
        for p in long
    ]
    diagnosis = diagnose(long, judge=PrefersLonger(), on_policy=own)
    told = {each["what"].split(":")[0]: each for each in diagnosis.warnings}
    assert "The labels are largely explained by length" in told
    worse = told["The chosen responses are worse than the policy's own answers"]
    assert "length not controlled for: 90.0%" in worse["figure"]
    assert "prefstage build" in worse["remedy"]
    own = diagnosis.report["own_answers"]
    assert (own["prompts"], own["win_rate"], own["wins_over_both"]) == (10, pytest.approx(0.9), 1.0)
    assert own["longer_wins"] == 1.0
    hard = DiagnosisConfig(easy_below=-2, flip_below=1e-9, hard_above=2e-9, target_loss=1e-9)
    swapped = [
        replace(each, chosen=each.rejected, rejected=each.chosen) if ratio <= 0 else each
        for each, ratio in zip(long, _ratios(long, scored_by), strict=True)
    ]
    reversed_ = diagnose(swapped, policy=scored_by, config=hard)
    assert any("Most pairs are hard" in each["what"] for each in reversed_.warnings)


def _ratios(pairs, scored_by):
    found = diagnose(pairs, policy=scored_by).policy_log_probs
    return found.rejected - found.chosen


def test_nothing_to_diagnose_and_unused_models_are_refused(scored_by):
    with pytest.raises(InputError, match="no pair"):
        diagnose([])
    with pytest.raises(InputError, match="reference without a policy"):
        diagnose(PAIRS, reference=scored_by)
    with pytest.raises(InputError, match="second judge"):
        diagnose(PAIRS, second_judge=PrefersLonger())


def test_what_is_left_out_is_counted():
    empty = replace(PAIRS[0], rejected=())
    report = diagnose([*PAIRS, empty], config=DiagnosisConfig(max_pairs=6)).report
    assert report["left_out"] == {"pairs without one of their sides": 1}
    report = diagnose(PAIRS, config=DiagnosisConfig(max_pairs=2)).report
    assert report["left_out"] == {"pairs beyond max_pairs": 3}
    assert report["data"]["pairs"] == 2


def test_bare_labels_say_why_there_is_no_idealized_accuracy(scored_by):
    bare = diagnose(PAIRS[:2], policy=scored_by)
    assert "needs votes" in bare.report["rankings"]["idealized"]["missing"]
    assert "needs votes" in bare.tables["Idealized"]


def test_report_is_json_and_tables_hold_every_dataset(scored_by):
    found = [diagnose(PAIRS, name=name, policy=scored_by).as_dict() for name in ("one", "two")]
    json.dumps(found, allow_nan=False)
    table = as_text(ranking_table(found))
    assert table.count("\n") == 3
    assert "| one | tiny | 5 |" in table


def test_the_reference_that_is_wrong_reaches_less_with_larger_beta():
    wrong = [torch.tensor([-9.0, -5.0]), torch.tensor([-1.0, -4.0])]
    alpha = torch.tensor([0.7, 0.9])
    shares = [
        idealized_ranking_accuracy(*wrong, alpha, betas=[beta]).median
        for beta in (0.01, 0.1, 1.0, 9.0)
    ]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1.0, 0.0)
    ratio = reference_log_ratio(*wrong)
    threshold = flip_threshold(ratio, beta=0.1)
    again = [largest_flippable(float(each), beta=0.1) for each in threshold]
    assert again == pytest.approx(ratio.tolist())


def test_scores_and_gaps():
    pairs = [pair(f"p{n}", "a", "b", score_chosen=n + 1.0, score_rejected=0.0) for n in range(4)]
    figures = data_figures(pairs)
    assert figures["scores"]["gap"]["mean"] == 2.5
    assert sum(figures["gap_histogram"]["counts"]) == 4
    assert describe_sorted(np.array([np.nan]))["missing"] == 1
    assert data_figures(PAIRS)["scores"] == {}


def test_diversity_of_equal_and_of_different_answers():
    prompt = ({"role": "user", "content": "q"},)
    same = Candidates("p", prompt, ("a b c d e",) * 2, (None,) * 2, (None,) * 2)
    other = Candidates("p", prompt, ("a b c d e", "v w x y z"), (None,) * 2, (None,) * 2)
    alike, apart = diversity_of([same]), diversity_of([other])
    assert alike["self_bleu"] == pytest.approx(100.0)
    assert (alike["distinct_1"], apart["distinct_1"]) == (0.5, 1.0)
    assert apart["self_bleu"] < 15


@pytest.mark.slow
def test_real_pairs_equal_a_plain_forward_pass(shared, chat_model):
    from prefstage.data import load_tokenizer

    loaded = load_pairs(shared / "data" / "hh_rlhf_harmless_test.jsonl.gz", streaming=True)
    pairs = [each for each, _ in zip(loaded, range(6), strict=False)]
    scorer = Scorer.load(str(chat_model))
    encoder = ResponseEncoder(load_tokenizer(str(chat_model)))
    diagnosis = diagnose(pairs, policy=ScoredBy("chat", scorer, encoder))
    hand = [by_hand(scorer.model, encoder, each) for each in pairs]
    right = np.mean([each[0][0] >= each[1][0] for each in hand])
    assert diagnosis.report["rankings"]["accuracy"]["mean"] == pytest.approx(right)
    scored = diagnosis.policy_log_probs
    assert scored.chosen == pytest.approx([each[0][0] for each in hand], abs=1e-2)
    assert scored.rejected == pytest.approx([each[1][0] for each in hand], abs=1e-2)
