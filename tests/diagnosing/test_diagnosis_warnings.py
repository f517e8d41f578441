"""Warnings: each from its figure alone, none from a clean set, remedies that can be followed."""

import copy
import re

import pytest
import yaml

from prefstage.building.recipe import METHODS, Filters
from prefstage.cli.main import COMMANDS
from prefstage.data import ResponseEncoder
from prefstage.data.records import Candidates, Pair, prompt_id_of
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.diagnosis import diagnose
from prefstage.diagnosing.scoring import ScoredBy
from prefstage.diagnosing.tables import warnings_of
from prefstage.judging import Judge
from prefstage.judging.base import Comparison, Judgment
from prefstage.losses import LOSSES, parse_loss
from prefstage.scoring import Scorer
from tests.scoring.tiny_models import tiny_model
from tests.tiny_models import tiny_tokenizer


class SaysGood(Judge):
    """Prefers the response that says good; where both or neither do, the first letter decides."""

    name = fingerprint = "says good"

    def compare(self, comparisons: list[Comparison]) -> list[Judgment]:
        return [
            Judgment(0.9 if ("good" in c.a, c.a) > ("good" in c.b, c.b) else 0.1)
            for c in comparisons
        ]


def pair(number: int, chosen: str, rejected: str, **known: float) -> Pair:
    prompt = ({"role": "user", "content": f"question {number}"},)
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Pair(prompt_id_of(prompt), prompt, *sides, **known)


def clean_pairs() -> list[Pair]:
    """Lengths and labels have nothing to do with each other."""
    long, short = "a good answer, long and broad", "a poor answer, long and broad too"
    texts = [(long, "poor"), ("good", short)]
    return [pair(n, *texts[n % 2]) for n in range(40)]


@pytest.fixture(scope="module")
def clean() -> dict:
    pairs = clean_pairs()
    own = [
        Candidates(p.prompt_id, p.prompt, ("bad", "worse"), ("me",) * 2, (None,) * 2) for p in pairs
    ]
    encoder = ResponseEncoder(tiny_tokenizer("chatml"))
    policy = ScoredBy("tiny", Scorer(tiny_model("llama", vocab_size=512)), encoder)
    config = DiagnosisConfig(target_loss=1e-6, hard_above=1e6)  # a tiny model knows nothing
    return dict(
        diagnose(pairs, policy=policy, judge=SaysGood(), on_policy=own, config=config).report
    )


def test_a_clean_set_has_no_warning(clean):
    assert clean["warnings"] == []
    assert None not in (clean["learnability"], clean["judge"], clean["own_answers"])


def changed(report: dict, path: str, value: object) -> dict:
    found = copy.deepcopy(report)
    *parents, last = path.split(".")
    place = found
    for name in parents:
        place = place[name]
    place[last] = value
    return found


TRIGGERS = {
    "the longer response mostly wins": ("data.longer_wins", 0.66, "66.0%"),
    "the shorter response mostly wins": ("data.longer_wins", 0.34, "66.0%"),
    "the same text on both sides": ("data.identical", 3, "3 of 40"),
    "ties of their raters": ("data.ties", 12, "12 of 40"),
    "Most pairs are hard": (
        "learnability.groups",
        {"easy": 0, "easy to flip": 0, "between": 20, "hard": 20},
        "20 of 40",
    ),
    "leaves most of the wrongly ranked pairs wrong": (
        "learnability.flippable_at_loss.share_of_wrong",
        0.49,
        "49.0%",
    ),
    "hardly agrees with the labels": ("judge.agreement.agreement", 0.54, "54.0%"),
    "prefers the longer response": ("judge.agreement.prefers_longer", 0.76, "76.0%"),
    "the place of a response": ("judge.position_bias", 0.21, "21.0%"),
    "worse than the policy's own answers": (
        "own_answers.length_controlled_interval",
        [0.51, 0.7],
        "51.0%",
    ),
    "judged far below the policy's own answers": ("own_answers.wins_over_both", 0.75, "75.0%"),
}


@pytest.mark.parametrize("what", TRIGGERS)
def test_each_warning_comes_from_its_figure_alone(clean, what):
    path, value, shown = TRIGGERS[what]
    (told,) = warnings_of(changed(clean, path, value))
    assert what in told["what"]
    assert shown in told["figure"]
    check_remedy(told["remedy"])


def check_remedy(text: str) -> None:
    """It names commands, methods, filters and losses that there are."""
    named = re.findall(r"prefstage (\w+)", text)
    assert named
    assert set(named) <= set(COMMANDS)
    for method in re.findall(r"method: ([\w-]+)", text):
        assert method in METHODS
    for filters in re.findall(r"filters: (\{.*?\}+)", text):
        Filters.model_validate(yaml.safe_load(filters))
    for loss in re.findall(r"loss: (\{.*?\}|\w+)", text):
        parse_loss(yaml.safe_load(loss))
    for losses in re.findall(r"\((\w+(?:, \w+)+)\)", text):
        assert set(losses.split(", ")) <= set(LOSSES)


# --- From data to warning ------------------------------------------------------------------


def whats(*arguments, **settings) -> list[str]:
    return [each["what"] for each in diagnose(*arguments, **settings).warnings]


def test_from_pairs_alone():
    longer = [pair(n, "a good answer, long", "poor") for n in range(8)]
    assert any("the longer response mostly wins" in each for each in whats(longer))
    same = [*clean_pairs(), pair(99, "x", "x")]
    assert any("same text on both sides" in each for each in whats(same))
    tied = [*clean_pairs(), *(pair(n, "a", "b", agreement=0.5) for n in range(100, 130))]
    assert any("ties of their raters" in each for each in whats(tied))


def test_from_own_answers():
    pairs = clean_pairs()
    own = [Candidates(p.prompt_id, p.prompt, ("so good",), ("me",), (None,)) for p in pairs]
    told = whats(pairs, judge=SaysGood(), on_policy=own)
    assert any("worse than the policy's own answers" in each for each in told)
    assert any("judged far below the policy's own answers" in each for each in told)


def test_from_a_judge():
    turned = [pair(n, "poor", "good") for n in range(8)]
    assert any("hardly agrees" in each for each in whats(turned, judge=SaysGood()))
