"""From a file with annotators to the items of a loss that trusts each as far as proved."""

import json
from pathlib import Path

import pytest

from prefstage.data import ResponseEncoder, load_pairs
from prefstage.losses import parse_loss
from prefstage.training.datasets import item_set_of
from tests.tiny_models import tiny_tokenizer

CASES = Path(__file__).parents[1] / "data" / "cases"


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "jsonl.gz", "folder"])
@pytest.mark.parametrize("name", ["annotators.jsonl", "cross_annotations.json"])
def test_every_vote_reaches_the_loss_that_asks_who_voted(
    tmp_path: Path, name: str, ending: str
) -> None:
    rows = [json.loads(line) for line in (CASES / "annotators.jsonl").read_text().splitlines()]
    pairs = load_pairs(CASES / name)
    target = tmp_path / ("saved" if ending == "folder" else f"saved.{ending}")
    pairs.save(target)
    again = load_pairs(target)
    assert list(again) == list(pairs)
    encoder = ResponseEncoder(tiny_tokenizer("chatml"))
    items = item_set_of(again, encoder, parse_loss("re_po"))
    votes = {item.annotator for item in items.items}
    if name == "annotators.jsonl":
        assert len(items) == len(rows)
        assert votes == {row["annotator"] for row in rows}
    else:
        expected = sum(vote.preference != 0.5 for pair in pairs for vote in pair.votes)
        assert len(items) == expected
        assert votes == {vote.annotator for pair in pairs for vote in pair.votes}
    assert items.counts["annotators"] == len(votes)


def test_cross_annotations_are_six_pairs_for_other_losses() -> None:
    encoder = ResponseEncoder(tiny_tokenizer("chatml"))
    pairs = load_pairs(CASES / "cross_annotations.json")
    assert len(pairs) == 6
    items = item_set_of(pairs, encoder, parse_loss("sigmoid"))
    ties = sum(pair.tied for pair in pairs)
    assert ties > 0
    assert len(items) == 6 - ties
    assert items.counts["ties_left_out"] == ties
    kept = item_set_of(pairs, encoder, parse_loss("sigmoid"), ties="keep")
    assert len(kept) == 6
    assert [item.preference for item in kept.items] == [pair.agreement for pair in pairs]
