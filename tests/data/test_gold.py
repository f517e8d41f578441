"""A third response of a pair, to imitate: TRL's column `reference`, ours `gold`."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError, InputError
from prefstage.data import PairSet, ResponseEncoder, load_pairs
from prefstage.losses import parse_loss
from prefstage.training.datasets import check_rows, item_set_of
from tests.tiny_models import tiny_tokenizer

ROW = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def gold_of(row: dict[str, Any], **how: Any) -> list[Any]:
    return [message["content"] for message in load_pairs([row], **how)[0].gold]


def test_it_is_read_and_kept(tmp_path: Path) -> None:
    assert gold_of(ROW | {"reference": "It is so."}) == ["It is so."]
    assert gold_of(ROW | {"gold": [{"role": "assistant", "content": "Yes."}]}) == ["Yes."]
    assert gold_of(ROW | {"best": "Best."}, columns={"gold": "best"}) == ["Best."]
    votes = {"prompt": "Why?", "response_a": "A.", "response_b": "B.", "label": "B"}
    assert gold_of(votes | {"gold": "G."}, labels={"B": "second", "A": "first"}) == ["G."]
    some = load_pairs([ROW | {"gold": "Yes."}, ROW | {"prompt": "How?"}])
    for name in ("pairs.parquet", "pairs.jsonl", "pairs"):
        some.save(tmp_path / name)
        again = load_pairs(str(tmp_path / name))
        assert list(again) == list(some)
        assert again.fingerprint == some.fingerprint
    assert some[0].swapped().gold == some[0].gold


def test_data_without_it_are_as_before() -> None:
    plain = load_pairs([ROW])
    assert "gold" not in plain.dataset.column_names
    assert plain[0].gold == ()
    for other in (3, None, ["a", "b"], "", {"id": 4}):  # no response: somebody else's column
        rows = load_pairs([ROW | {"reference": other}])
        assert rows[0].gold == ()
        assert rows.fingerprint == plain.fingerprint


def test_a_gold_response_is_one_turn() -> None:
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(DataError, match="gold"):
        load_pairs([ROW | {"gold": turns}])


def test_tpo_trains_on_it_and_says_where_it_is_missing() -> None:
    encoder, tpo = ResponseEncoder(tiny_tokenizer("chatml")), parse_loss("tpo")
    rows: Any = [ROW | {"gold": "moon ran"}, ROW | {"prompt": "How?", "gold": "the moon"}]
    items = item_set_of(load_pairs(rows), encoder, tpo)
    assert [len(item.trees[0].response_ids) for item in items.items] == [3, 3]
    others = item_set_of(load_pairs(rows), encoder, parse_loss("cpo"))
    assert [len(item.trees[0].response_ids) for item in others.items] == [2, 2]
    assert items.fingerprint != others.fingerprint
    lacking = load_pairs([rows[0], ROW | {"prompt": "Who?"}])
    for check in (
        lambda: check_rows(lacking, tpo, "train"),
        lambda: item_set_of(lacking, encoder, tpo),
    ):
        with pytest.raises(InputError, match=r"1 of 2 pairs without gold \(first: row") as error:
            check()
        assert "columns={'gold': ...}" in str(error.value)
    assert json.dumps(parse_loss("tpo-l").resolved())
    assert isinstance(lacking, PairSet)
