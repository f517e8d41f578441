"""What labels say reaches the loss: votes, annotators, ties, preferences; from any source."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from prefstage.core.errors import DataError, InputError
from prefstage.data import (
    Pair,
    PairSet,
    ResponseEncoder,
    load_candidates,
    load_conversations,
    load_pairs,
    load_unpaired,
    prompt_id_of,
)
from prefstage.data.records import Vote
from prefstage.losses import parse_loss
from prefstage.training.batches import Means
from prefstage.training.datasets import item_set_of
from prefstage.training.items import ItemSet, encode_items, left_out
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import preference_trainer, tiny_pairs


@pytest.fixture(scope="module")
def encoder() -> ResponseEncoder:
    return ResponseEncoder(tiny_tokenizer("chatml"))


def pair(name: str, chosen: str = "the moon", rejected: str = "a fox ran", **known) -> Pair:
    prompt = ({"role": "user", "content": name},)
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Pair(prompt_id_of(prompt), prompt, *sides, **known)


def mixed_pairs() -> list[Pair]:
    """Pairs of every kind of label, two of them ties."""
    return [
        pair("one", "a red fox", "time", agreement=1.0, score_chosen=2.0, score_rejected=1.0),
        pair("two", "the moon", "ran", agreement=0.5, score_chosen=1.0, score_rejected=1.0),
        pair("three", "once upon", "no", score_chosen=0.5, score_rejected=-1.0),
        pair("four", "tall", "quick story", agreement=0.5, score_chosen=0.0, score_rejected=3.0),
        pair("five", "story", "the the", agreement=0.75, score_chosen=4.0, score_rejected=2.0),
    ]


# --- Annotators and votes ----------------------------------------------------------------------


def test_every_annotator_has_a_reliability_of_its_own(tmp_path: Path) -> None:
    named = [replace(each, annotator="ab"[n % 2]) for n, each in enumerate(tiny_pairs(16))]
    trainer = preference_trainer(tmp_path, data=PairSet.of(named), loss="re_po", max_steps=2)
    trainer.train()
    assert set(trainer.loss_state["re_po"]["reliability"]) == {"a", "b"}
    assert trainer.train_dataset.counts["annotators"] == 2


def test_reliabilities_do_not_depend_on_micro_batches(tmp_path: Path) -> None:
    named = PairSet.of(
        replace(each, annotator="abc"[n % 3]) for n, each in enumerate(tiny_pairs(16))
    )
    found = []
    for budget in (40, 100_000):
        settings = {"loss": "re_po", "max_steps": 2, "token_budget": budget}
        trainer = preference_trainer(tmp_path / str(budget), data=named, **settings)
        trainer.train()
        found.append(trainer.loss_state["re_po"]["reliability"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_pair_without_annotator_leaves_the_others_theirs(tmp_path: Path) -> None:
    named = [replace(each, annotator="a") for each in tiny_pairs(8)]
    named[3] = replace(named[3], annotator=None)
    trainer = preference_trainer(tmp_path, data=PairSet.of(named), loss="re_po", max_steps=1)
    trainer.train()
    assert set(trainer.loss_state["re_po"]["reliability"]) == {"a", "anonymous"}


VOTES = (Vote("a", 1.0), Vote("b", 0.0), Vote("c", 0.5), Vote("d", 1.0))


def test_each_vote_is_an_item_with_its_annotators_label(encoder: ResponseEncoder) -> None:
    voted = pair("x", score_chosen=1.0, score_rejected=0.0, agreement=0.625, votes=VOTES)
    items = item_set_of(PairSet.of([voted]), encoder, parse_loss("re_po"))
    whole = encode_items(PairSet.of([voted]), encoder).items[0]
    chosen, rejected = whole.trees[0].response_ids
    assert [item.annotator for item in items.items] == ["a", "b", "d"]
    assert [item.trees[0].response_ids for item in items.items] == [
        (chosen, rejected),
        (rejected, chosen),
        (chosen, rejected),
    ]
    assert [item.scores for item in items.items] == [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    assert items.items[1].preference == 1 - 0.625
    assert (items.counts["tie_votes_left_out"], items.counts["annotators"]) == (1, 3)


def test_a_split_vote_is_no_tie_to_a_loss_on_annotators(encoder: ResponseEncoder) -> None:
    split = pair("x", agreement=0.5, votes=(Vote("a", 1.0), Vote("b", 0.0)))
    assert len(item_set_of(PairSet.of([split]), encoder, parse_loss("sigmoid + re_po"))) == 2
    with pytest.raises(DataError, match=r"1 ties left out \(ties: keep.*set ties: keep"):
        item_set_of(PairSet.of([split]), encoder, parse_loss("sigmoid"))


def test_votes_are_one_item_of_their_mean_to_other_losses(encoder: ResponseEncoder) -> None:
    voted = pair("x", agreement=0.625, votes=VOTES)
    items = item_set_of(PairSet.of([voted]), encoder, parse_loss("sppo"))
    assert [item.preference for item in items.items] == [0.625]
    assert "annotators" not in items.counts


# --- Ties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["sigmoid", "re_po", "simpo + sft"])
def test_ties_are_left_out_unless_asked_for(encoder: ResponseEncoder, loss: str) -> None:
    pairs = PairSet.of(mixed_pairs())
    items = item_set_of(pairs, encoder, parse_loss(loss))
    assert [item.index for item in items.items] == [0, 2, 4]
    assert left_out(items.counts) == ["2 ties left out (ties: keep trains on them)"]
    kept = item_set_of(pairs, encoder, parse_loss(loss), ties="keep")
    assert [item.tied for item in kept.items] == [False, True, False, True, False]
    assert left_out(kept.counts) == []
    assert kept.fingerprint != items.fingerprint


def test_the_trainer_takes_the_setting_for_all_its_sets(tmp_path: Path) -> None:
    pairs = PairSet.of(mixed_pairs())
    for ties, number in (("leave-out", 3), ("keep", 5)):
        trainer = preference_trainer(tmp_path, data=pairs, eval_dataset=pairs, ties=ties)
        assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (number, number)
    with pytest.raises(InputError, match=r"ties='drop'; expected one of leave-out, keep"):
        preference_trainer(tmp_path, data=pairs, ties="drop")


def test_a_judges_even_probability_is_no_tie_of_the_raters(encoder: ResponseEncoder) -> None:
    even = pair("x", agreement=1.0, judge_probability=0.5)
    items = item_set_of(PairSet.of([even]), encoder, parse_loss("sppo"))
    assert [(item.preference, item.tied) for item in items.items] == [(0.5, False)]


def test_accuracies_are_over_pairs_that_have_a_right_order(tmp_path: Path) -> None:
    pairs = PairSet.of(mixed_pairs())
    trainer = preference_trainer(tmp_path, data=pairs, ties="keep", max_steps=1)
    trainer.train()
    step, means = trainer.last_step, Means()
    means.add(step.items, step.values)
    counts = {name: number for name, (_, number) in means.totals.items()}
    assert (counts["rewards/margins"], counts["rewards/accuracies"]) == (5, 3)


# --- One way for all sources -------------------------------------------------------------------


def sources(folder: Path) -> list[object]:
    """The same pairs as a loaded set, a JSON-lines file, Parquet, and a `datasets.Dataset`."""
    pairs = PairSet.of(mixed_pairs())
    pairs.save(folder / "pairs.parquet")
    rows = [
        {name: value for name, value in row.items() if name not in ("votes", "prompt_id")}
        for row in pairs.dataset
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = load_pairs(folder / "pairs.jsonl")
    files = [str(folder / name) for name in ("pairs.jsonl", "pairs.parquet")]
    return [pairs, read, *files, Dataset.from_list(rows)]


@pytest.mark.parametrize("loss", ["kto", "sft", "exo_rw", "sigmoid"])
def test_a_set_and_its_file_give_the_same_items(
    encoder: ResponseEncoder, tmp_path: Path, loss: str
) -> None:
    found = [item_set_of(each, encoder, parse_loss(loss)) for each in sources(tmp_path)]
    assert all(each == found[0] for each in found)
    assert len(found[0]) == {"kto": 6, "sft": 3, "exo_rw": 5, "sigmoid": 3}[loss]


def test_what_the_loaders_make_of_pairs_is_what_the_trainer_makes(
    encoder: ResponseEncoder, tmp_path: Path
) -> None:
    pairs, _, file, *_ = sources(tmp_path)
    for loss, load in (("kto", load_unpaired), ("sft", load_conversations)):
        loaded = load(file)
        assert any("2 ties left out" in note for note in loaded.report.notes)
        own = item_set_of(loaded, encoder, parse_loss(loss))
        assert own == item_set_of(pairs, encoder, parse_loss(loss))
        assert own.counts["ties_left_out"] == 2
    groups = item_set_of(load_candidates(file), encoder, parse_loss("infonca"))
    assert groups == item_set_of(pairs, encoder, parse_loss("infonca"))


def test_kto_of_encoded_pairs_is_kto_of_the_pairs(encoder: ResponseEncoder) -> None:
    pairs = PairSet.of(mixed_pairs())
    before = item_set_of(encode_items(pairs, encoder), encoder, parse_loss("kto"))
    assert before.items == item_set_of(pairs, encoder, parse_loss("kto")).items
    assert [item.scores for item in before.items][:2] == [(2.0,), (1.0,)]
    assert [item.desirable for item in before.items] == [True, False] * 3


def test_a_tie_can_be_no_desirable_response(encoder: ResponseEncoder) -> None:
    pairs = PairSet.of(mixed_pairs())
    with pytest.raises(InputError, match="ties: keep, and 2 ties among the pairs"):
        item_set_of(pairs, encoder, parse_loss("kto"), ties="keep")
    assert len(item_set_of(pairs, encoder, parse_loss("sft"), ties="keep")) == 5


# --- Preferences -------------------------------------------------------------------------------


def test_the_judges_probability_comes_before_the_raters_share(encoder: ResponseEncoder) -> None:
    judged = [
        pair("one", agreement=0.75, judge_probability=0.25),
        pair("two", agreement=0.75),
        pair("three", judge_probability=1.0),
    ]
    items = item_set_of(PairSet.of(judged), encoder, parse_loss("sppo"))
    assert [item.preference for item in items.items] == [0.25, 0.75, 1.0]


def test_pairs_without_a_preference_are_counted_and_none_at_all_is_an_error(
    encoder: ResponseEncoder,
) -> None:
    some = PairSet.of([pair("one", judge_probability=0.9), pair("two")])
    items = item_set_of(some, encoder, parse_loss("sppo"))
    assert left_out(items.counts) == ["1 pairs without a preference left out"]
    with pytest.raises(InputError, match=r"1 of 1 pairs without preference.*prefstage judge"):
        item_set_of(PairSet.of([pair("two")]), encoder, parse_loss("sppo"))


# --- The same tokens ---------------------------------------------------------------------------


LONG = "once upon a time the quick fox ran to the tall moon "


def counts_of(items: ItemSet) -> dict[str, int]:
    """The counts of what was cut by side, and of what became the same tokens."""
    wanted = ("same_tokens", "chosen_", "rejected_", "desirable_", "undesirable_")
    return {name: n for name, n in items.counts.items() if name.startswith(wanted)}


def test_what_truncation_makes_alike_is_left_out() -> None:
    encoder = ResponseEncoder(tiny_tokenizer("chatml"), max_response_tokens=6)
    pairs = [
        pair("one", LONG + "good", LONG + "bad"),
        pair("two", LONG, "no"),
        pair("three", "yes", LONG),
        pair("four", "yes", "no"),
    ]
    items = encode_items(PairSet.of(pairs), encoder)
    assert [item.index for item in items.items] == [1, 2, 3]
    assert counts_of(items) == {
        "chosen_truncated": 2,
        "rejected_truncated": 2,
        "same_tokens_by_truncation": 1,
    }
    with pytest.raises(DataError, match=r"1 of the same tokens.*truncation.*max_response_tokens"):
        encode_items(PairSet.of(pairs[:1]), encoder)


def test_a_response_of_exactly_the_limit_is_not_cut(encoder: ResponseEncoder) -> None:
    sides = [({"role": "assistant", "content": text},) for text in ("the moon", LONG)]
    prompt = ({"role": "user", "content": "x"},)
    whole = encoder.encode(prompt, [sides[0][0]]).response_ids[0]
    exact = ResponseEncoder(tiny_tokenizer("chatml"), max_response_tokens=len(whole))
    made = Pair(prompt_id_of(prompt), prompt, *sides)
    turned = Pair(prompt_id_of(prompt), prompt, *sides[::-1])
    assert counts_of(encode_items(PairSet.of([made]), exact)) == {"rejected_truncated": 1}
    assert counts_of(encode_items(PairSet.of([turned]), exact)) == {"chosen_truncated": 1}


def normalising_tokenizer():
    """A tokenizer that reads compatible characters alike, as many do."""
    from tokenizers.normalizers import NFKC

    tokenizer = tiny_tokenizer("chatml")
    tokenizer.backend_tokenizer.normalizer = NFKC()
    return tokenizer


def test_what_template_and_tokenizer_make_alike_is_left_out_by_cause() -> None:
    trimming = ResponseEncoder(tiny_tokenizer("llama3"))
    spaces = PairSet.of([pair("one", "fox", "fox \n"), pair("two", "fox", "moon")])
    assert counts_of(encode_items(spaces, trimming)) == {"same_tokens_by_template": 1}

    unread = pair("one", "fox", "fox")
    unread = replace(unread, rejected=({**unread.rejected[0], "name": "somebody"},))
    fields = PairSet.of([unread, pair("two", "fox", "moon")])
    assert counts_of(encode_items(fields, trimming)) == {"same_tokens_by_template": 1}

    normalising = ResponseEncoder(normalising_tokenizer())
    forms = PairSet.of([pair("one", "ﬁne", "fine"), pair("two", "fox", "moon")])
    assert counts_of(encode_items(forms, normalising)) == {"same_tokens_by_normalisation": 1}


def test_labelled_responses_that_become_the_same_tokens() -> None:
    encoder = ResponseEncoder(tiny_tokenizer("chatml"), max_response_tokens=6)
    pairs = [pair("one", LONG + "good", LONG + "bad"), pair("two", "yes", LONG)]
    items = item_set_of(PairSet.of(pairs), encoder, parse_loss("kto"))
    assert [item.trees[0].prompt_id for item in items.items] == [pairs[1].prompt_id] * 2
    assert counts_of(items) == {
        "desirable_truncated": 1,
        "undesirable_truncated": 2,
        "same_tokens_by_truncation": 2,
    }


def test_raters_who_disagree_about_one_text_are_counted_and_kept(encoder: ResponseEncoder) -> None:
    pairs = [pair("one", "yes", "no"), pair("one", "moon", "yes")]
    items = item_set_of(PairSet.of(pairs), encoder, parse_loss("kto"))
    assert (len(items), items.counts["labelled_both_ways"]) == (4, 2)


def test_repeats_within_a_group_are_counted() -> None:
    encoder = ResponseEncoder(tiny_tokenizer("chatml"), max_response_tokens=6)
    scores = {"score_chosen": 1.0, "score_rejected": 0.0}
    pairs = PairSet.of([pair("one", LONG + "good", LONG + "bad", **scores)])
    items = item_set_of(pairs, encoder, parse_loss("exo_rw"))
    assert items.counts["responses_repeated_in_groups"] == 1
