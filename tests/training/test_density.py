"""The density ratio of prompts: what is common to both labels weighs 1."""

import random
import statistics

from prefstage.data import ResponseEncoder
from prefstage.losses import parse_loss
from prefstage.training.datasets import item_set_of
from prefstage.training.density import density_ratios
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_pairs


def test_ratios_are_those_of_the_two_populations() -> None:
    """Of two subjects one has three desirable responses in four, the other one."""
    rng = random.Random(0)
    prompts, desirable, subject = [], [], []
    for item in range(600):
        subject.append(item % 2)
        desirable.append(rng.random() < (0.75 if subject[-1] else 0.25))
        prompts.append([100 * subject[-1] + rng.randrange(50) for _ in range(12)])
    ratios = density_ratios(prompts, desirable)
    medians = [
        statistics.median(r for r, s in zip(ratios, subject, strict=True) if s == which)
        for which in (0, 1)
    ]
    assert 1 / 3.6 < medians[0] < 1 / 2
    assert 2 < medians[1] < 3.6  # 3, drawn in by the ridge


def test_prompts_of_both_labels_weigh_the_same() -> None:
    """Halves of pairs: the labels say nothing of the prompts."""
    encoder = ResponseEncoder(tiny_tokenizer("chatml"))
    items = item_set_of(tiny_pairs(60), encoder, parse_loss("bco_udm"))
    assert len(items) == 120
    assert all(abs((item.density_ratio or 0) - 1) < 0.05 for item in items.items)
    plain = item_set_of(tiny_pairs(60), encoder, parse_loss("bco_unpaired"))
    assert {item.density_ratio for item in plain.items} == {None}
    assert items.fingerprint != plain.fingerprint


def test_no_contrast_of_labels_weighs_one() -> None:
    assert density_ratios([[1, 2], [3]], [True, True]) == [1.0, 1.0]
    assert density_ratios([[1, 2]] * 4, [True, False] * 2) == [1.0] * 4
