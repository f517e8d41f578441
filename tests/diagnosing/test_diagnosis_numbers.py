"""Every figure of a report equals what plain loops and plain forward passes give."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from prefstage.data import ResponseEncoder, load_pairs, load_tokenizer
from prefstage.data.records import Candidates, Pair, prompt_id_of
from prefstage.diagnosing.diagnosis import diagnose
from prefstage.diagnosing.scoring import ScoredBy, diagnose_orders
from prefstage.judging import Judge, load_judge
from prefstage.judging.base import Comparison, Judgment, judgment_of_rewards
from prefstage.scoring import Scorer
from tests.diagnosing.recomputing import (
    NOT_FIGURES,
    expected_report,
    plain_forward,
    plain_reward,
    same,
)
from tests.scoring.tiny_models import tiny_model
from tests.tiny_models import tiny_tokenizer

JUDGE_TOKENS = {"prompt_tokens": 96, "length": 256}
JUDGE_SETTINGS = "max_length=256&max_prompt_tokens=96"
"""How the small judge's README calls it."""


class Letters(Judge):
    """A pointwise judge: how many different letters a response has, in tenths."""

    name = fingerprint = "letters"

    def score(self, items):
        return [self.reward(*each) for each in items]

    def compare(self, comparisons: list[Comparison]) -> list[Judgment]:
        rewards = [(self.reward(c.prompt, c.a), self.reward(c.prompt, c.b)) for c in comparisons]
        return [judgment_of_rewards(*each) for each in rewards]

    @staticmethod
    def reward(prompt, text: str) -> float:
        return len(set(text.lower())) / 10


def pair(name: str, chosen: str, rejected: str, **known: float) -> Pair:
    prompt = ({"role": "user", "content": name},)
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Pair(prompt_id_of(prompt), prompt, *sides, **known)


PAIRS = [
    pair("What is Paris?", "A city in France.", "No idea.", score_chosen=2.0, score_rejected=1.0),
    pair("What is Paris?", "A city in France.", "A fruit, of course, and a good one."),
    pair("Tell a story", "Once upon a time there was a fox.", "No.", agreement=0.75),
    pair("Hello", "Hi there", "Go away", agreement=0.5),
    pair("1 2 3", "4 5 6", "banana", agreement=0.6, score_chosen=4.0, score_rejected=0.5),
    pair("Why?", "Because.", "Because it is so, and it has been so.", agreement=1.0),
    pair("Who?", "Nobody, I think, but who knows?", "She."),
]


def own_answers(pairs: list[Pair]) -> list[Candidates]:
    prompts = list({p.prompt_id: p.prompt for p in pairs}.items())[:4]
    texts = [(f"Own words {n}.", f"Other own words {n}!") for n in range(4)]
    return [
        Candidates(name, prompt, own, ("me",) * 2, (None,) * 2)
        for (name, prompt), own in zip(prompts, texts, strict=False)
    ]


def figures(report) -> dict:
    found = json.loads(json.dumps(report, allow_nan=False))
    return {name: value for name, value in found.items() if name not in NOT_FIGURES}


@pytest.mark.parametrize("places", [range(7), range(2), (3, 4), (5,)])
def test_every_figure_of_a_tiny_model(places):
    model, encoder = tiny_model("llama", vocab_size=512), ResponseEncoder(tiny_tokenizer("chatml"))
    pairs = [PAIRS[place] for place in places]
    own, judge = own_answers(pairs), Letters()
    policy = ScoredBy("tiny", Scorer(model), encoder)
    report = diagnose(pairs, policy=policy, judge=judge, on_policy=own).report
    expected = expected_report(
        pairs, plain_forward(model, encoder), judge=(judge.name, judge.reward), own=own
    )
    same(figures(report), expected, close=lambda value: pytest.approx(value, rel=1e-4, abs=1e-4))


def test_the_comparison_sees_every_wrong_and_every_missing_figure():
    one = {"a": 1.0, "b": [1, {"c": 0.5}]}
    close = pytest.approx
    same(one, one, close=close)
    for other in ({"a": 1.1, "b": [1, {"c": 0.5}]}, {"a": 1.0}, {"a": 1.0, "b": [1, {"c": 0.6}]}):
        with pytest.raises(AssertionError):
            same(one, other, close=close)


FILES = {
    "hh_rlhf_harmless_test.jsonl.gz": 16,
    "autoj_pairwise_human.jsonl.gz": 12,
    "dpo_en_demo_sharegpt.json.gz": 6,
}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_figure_of_real_pairs_model_and_judge(shared, chat_model, file):
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    labels = {0: "first", 1: "second", 2: "tie"} if "autoj" in file else None
    loaded = load_pairs(shared / "data" / file, streaming=True, labels=labels)
    pairs = [each for each in islice(loaded, 4 * FILES[file]) if short(each)][: FILES[file]]
    folder = str(shared / "models" / "small-judge")
    encoder = ResponseEncoder(load_tokenizer(str(chat_model)))
    policy = ScoredBy("chat", Scorer.load(str(chat_model)), encoder)
    own, judge = own_answers(pairs), load_judge(f"reward:{folder}?{JUDGE_SETTINGS}")
    report = diagnose(pairs, policy=policy, judge=judge, on_policy=own).report
    model = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()
    small = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    reward = plain_reward(small, AutoTokenizer.from_pretrained(folder), **JUDGE_TOKENS)
    expected = expected_report(
        pairs, plain_forward(model, encoder), judge=(judge.name, reward), own=own
    )
    same(figures(report), expected, close=lambda value: pytest.approx(value, rel=1e-4, abs=5e-3))


def short(each: Pair) -> bool:
    """Texts that a plain forward pass on a CPU takes a moment for."""
    return sum(len(m["content"]) for m in (*each.prompt, *each.chosen, *each.rejected)) < 3000


# --- Whole orders --------------------------------------------------------------------------

SCORED = [
    ("What is Paris?", ("A city.", "A fruit.", "No idea.", "Go away"), (4.0, 2.0, 1.0, 3.0)),
    ("Hello", ("Hi there", "Go away", "4 5 6"), (1.0, 0.5, 0.5)),
    ("1 2 3", ("4 5 6", "banana"), (1.0, 0.0)),
    ("Why?", ("Because.", "So.", "No."), (1.0, 1.0, 1.0)),
    ("Who?", ("She.", "Nobody", "I"), (None, 2.0, 1.0)),
]


def candidates(name, responses, scores) -> Candidates:
    prompt = ({"role": "user", "content": name},)
    return Candidates(prompt_id_of(prompt), prompt, responses, ("w",) * len(responses), scores)


def test_whole_orders_and_pairs_by_hand():
    model, encoder = tiny_model("llama", vocab_size=512), ResponseEncoder(tiny_tokenizer("chatml"))
    rows = [candidates(*each) for each in SCORED]
    found = diagnose_orders(rows, policy=ScoredBy("tiny", Scorer(model), encoder))
    forward = plain_forward(model, encoder)
    assert found.left_out == {
        "responses without a score": 1,
        "prompts without two different scores": 1,
    }
    assert (found.prompts, found.responses) == (4, {"2": 2, "3": 1, "4": 1})
    for kind in ("log_probs", "normalised"):
        whole, pairs = [], []
        for row in (rows[0], rows[1], rows[2], rows[4]):
            values = []
            for text, score in zip(row.responses, row.scores, strict=True):
                total, tokens = forward(row.prompt, text)
                values.append((score, total if kind == "log_probs" else total / tokens))
            values = [each for each in values if each[0] is not None]
            met = [(v, w) for a, v in values for b, w in values if a > b]
            whole.append(all(first > second for first, second in met))
            pairs += [first >= second for first, second in met]
        assert found.whole_order[kind]["mean"] == pytest.approx(np.mean(whole))
        assert found.pairwise[kind]["mean"] == pytest.approx(np.mean(pairs))
        assert found.pairwise[kind]["pairs"] == len(pairs) == 6 + 2 + 1 + 1
    # 4!, 3!/2! (two are alike), 2!, 2!
    assert found.by_chance == pytest.approx(np.mean([1 / 24, 1 / 3, 1 / 2, 1 / 2]))


def test_a_policy_in_the_order_of_the_scores_is_right_everywhere():
    model, encoder = tiny_model("llama", vocab_size=512), ResponseEncoder(tiny_tokenizer("chatml"))
    policy, forward = ScoredBy("tiny", Scorer(model), encoder), plain_forward(model, encoder)
    rows = [candidates(*each) for each in SCORED[:1]]
    scores = tuple(forward(rows[0].prompt, text)[0] for text in rows[0].responses)
    right = diagnose_orders([replace(rows[0], scores=scores)], policy=policy)
    wrong = diagnose_orders([replace(rows[0], scores=tuple(-s for s in scores))], policy=policy)
    assert right.whole_order["log_probs"]["mean"] == right.pairwise["log_probs"]["mean"] == 1.0
    assert wrong.whole_order["log_probs"]["mean"] == wrong.pairwise["log_probs"]["mean"] == 0.0
