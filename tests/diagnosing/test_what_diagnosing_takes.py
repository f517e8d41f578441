"""`diagnose` takes what users hold, and answers anything else in one line of three parts."""

from typing import Any

import pytest

from prefstage.core.errors import PrefstageError
from prefstage.data import load_pairs
from prefstage.diagnosing import diagnose

PAIRS = [
    {"prompt": f"question {n}", "chosen": f"a long good answer {n}", "rejected": f"bad {n}"}
    for n in range(6)
]


def longer(a: str, b: str, prompt: object) -> float:
    return 0.9 if len(a) > len(b) else 0.1


def test_rows_and_sets_give_one_report() -> None:
    reports = [
        diagnose(rows, judge=longer).report
        for rows in (PAIRS, load_pairs(PAIRS), list(load_pairs(PAIRS)), iter(load_pairs(PAIRS)))
    ]
    assert all(report["data"] == reports[0]["data"] for report in reports)
    assert reports[0]["judge"]["agreement"]["agreement"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pairs": "no-such-file.jsonl"}, "check the path"),
        ({"pairs": 7}, "a dataset of type int"),
        ({"judge": 7}, "a judge of type int"),
        ({"policy": 7}, "a model as a int"),
        ({"policy": "no/such/model"}, "no/such/model"),
        ({"config": {"bta": 1}}, "did you mean 'beta'"),
        ({"on_policy": 7}, "a dataset of type int"),
    ],
)
def test_anything_else_is_one_clear_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PrefstageError, match=words) as caught:
        diagnose(**({"pairs": PAIRS} | arguments))
    assert "\n" not in str(caught.value)
