"""How often predictions were right: the table that is shipped, and what is read from it."""

import math

import pytest

from prefstage.measuring import TrackRecord, track_record
from prefstage.measuring.track_record import ANY_LOSS, bench_table

RECORD = TrackRecord("sigmoid", 0.5, 0.9, 2.0, 0.8, 100)


def test_the_clearer_the_better() -> None:
    assert RECORD.at(0.0) == 0.5
    assert RECORD.at(math.inf) == 0.9
    assert RECORD.at(2.0) == pytest.approx(0.5 + 0.4 * (1 - math.exp(-1)))
    shares = [RECORD.at(distance / 10) for distance in range(100)]
    assert shares == sorted(shares)


def test_every_record_of_the_table_is_a_share_of_cases() -> None:
    for kind, records in bench_table()["kinds"].items():
        assert ANY_LOSS in records
        for loss in records:
            record = track_record(kind, loss)
            assert record is not None
            assert record.loss == loss
            assert 0.5 <= record.floor <= record.ceiling <= 1.0 or kind == "stage"
            assert record.scale > 0
            assert 0.0 <= record.right <= 1.0
        parts = [record["decisions"] for loss, record in records.items() if loss != ANY_LOSS]
        assert sum(parts) == records[ANY_LOSS]["decisions"]


def test_a_loss_that_was_not_tried_gets_the_mean_of_all() -> None:
    record = track_record("forecast", "orpo")
    assert record == track_record("forecast", ANY_LOSS)
    assert record is not None
    assert record.loss == ANY_LOSS


def test_nothing_is_known_of_other_kinds() -> None:
    assert track_record("pilot 0.9", "sigmoid") is None
