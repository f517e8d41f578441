import sqlite3
from contextlib import closing

import pytest

from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.sampling import (
    Sample,
    Sampler,
    SamplingConfig,
    TransformersSampler,
    collect,
    requests_for,
    to_candidates,
)
from prefstage.sampling.base import shortfalls, stored_sample


class Scribe(Sampler):
    """Answers in no time, and counts how often it was asked."""

    name = "scribe"

    def __init__(self, fingerprint="f", settings=None):
        self.fingerprint = fingerprint
        self.settings = settings or {"seed": 0}
        self.asked = []

    def sample(self, requests):
        for request in requests:
            self.asked.append((request.prompt_id, request.index))
            yield Sample(request.prompt_id, request.index, f"öü\n{request.index}", "stop", 3, 4)


def test_what_is_in_the_store_is_not_asked_again(tmp_path, prompts):
    path = tmp_path / "deep" / "ledger.sqlite"
    requests = requests_for(prompts, responses=2)
    with Ledger(path) as store:
        first = list(collect(Scribe(), requests[:7], store))
    scribe = Scribe()
    with Ledger(path) as store:
        assert store.count("samples") == 7
        second = list(collect(scribe, requests, store))
        assert store.count("samples") == len(requests)
        assert store.total("response_tokens") == 4 * len(requests)
    assert second[:7] == first
    assert scribe.asked == [(r.prompt_id, r.index) for r in requests[7:]]
    with Ledger(path) as store:
        assert list(collect(scribe, requests, store)) == second
    assert len(scribe.asked) == len(requests) - 7


def test_a_request_named_twice_is_asked_once(tmp_path, prompts):
    scribe = Scribe()
    with Ledger(tmp_path / "ledger.sqlite") as store:
        list(collect(scribe, requests_for(prompts, responses=1) * 2, store))
    assert len(scribe.asked) == len(prompts)


def test_each_answer_is_on_disk_before_it_is_yielded(tmp_path, prompts):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as store:
        stream = collect(Scribe(), requests_for(prompts, responses=1), store)
        for number, sample in enumerate(stream, start=1):
            with Ledger(path) as other:
                rows = other.rows("samples")
            assert len(rows) == number
            assert rows[-1][1] == sample.prompt_id


class Fails(Scribe):
    """Fails before any answer comes."""

    def sample(self, requests):
        raise RuntimeError("no memory")


def test_a_store_without_answers_may_be_used_by_another_sampler(tmp_path, prompts):
    requests = requests_for(prompts[:1], responses=1)
    with Ledger(tmp_path / "ledger.sqlite") as store:
        with pytest.raises(RuntimeError, match="no memory"):
            list(collect(Fails("f"), requests, store))
        assert len(list(collect(Scribe("g"), requests, store))) == 1
        assert [fingerprint for fingerprint, *_ in store.samplers()] == ["g"]


def test_samplers_share_a_ledger_under_keys_of_their_own(tmp_path, prompts):
    requests = requests_for(prompts, responses=1)
    with Ledger(tmp_path / "ledger.sqlite") as store:
        for key in ("one", "two", "one"):
            assert len(list(collect(Scribe(), requests, store, key=key))) == len(requests)
        assert store.count("samples") == 2 * len(requests)
        assert stored_sample("two", requests[0], store).text == "öü\n0"
        assert stored_sample("three", requests[0], store) is None


def test_an_answer_that_was_altered_is_named(tmp_path, prompts):
    path, requests = tmp_path / "ledger.sqlite", requests_for(prompts, responses=1)
    with Ledger(path) as store:
        list(collect(Scribe(), requests, store))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE samples SET answer = '{}' WHERE rowid = 3")
    with Ledger(path) as store, pytest.raises(InputError, match="is unreadable"):
        list(collect(Scribe(), requests, store))


def test_another_samplers_store_is_refused_and_the_difference_named(tmp_path, prompts):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as store:
        list(collect(Scribe(), requests_for(prompts, responses=1), store))
    other = Scribe("g", {"seed": 1})
    with (
        Ledger(path) as store,
        pytest.raises(InputError, match=r"holds 12 answers of 'scribe' .*seed=0, now 1"),
    ):
        list(collect(other, requests_for(prompts, responses=1), store))
    assert other.asked == []


def test_resuming_in_process_gives_what_one_run_gives(policy, tokenizer, prompts, tmp_path):
    config = SamplingConfig(temperature=1.0, max_new_tokens=12)
    requests = requests_for(prompts, responses=2)

    def run(path, *counts):
        for count in counts:
            sampler = TransformersSampler(policy, tokenizer, config)
            with Ledger(path) as store:
                samples = list(collect(sampler, requests[:count], store))
        return {(s.prompt_id, s.index): s.text for s in samples}

    assert run(tmp_path / "a", 24) == run(tmp_path / "b", 5, 11, 24)


def test_candidates_are_ordered_by_prompt_and_index(prompts):
    samples = list(Scribe().sample(requests_for(prompts[:3], responses=3)))
    made = to_candidates(prompts, samples[::-1], source="scribe")
    assert [row.prompt_id for row in made] == [prompt.prompt_id for prompt in prompts[:3]]
    assert made[0].responses == ("öü\n0", "öü\n1", "öü\n2")
    assert made[0].sources == ("scribe",) * 3
    assert made[0].scores == (None,) * 3


def test_thoughts_and_tokens_come_back_from_disk(tmp_path, prompts):
    name = prompts[0].prompt_id
    whole = Sample(name, 0, "yes", "stop", 3, 4, "hm\nö", token_ids=(1, 2, 3), tokenizer="t")
    cut = Sample(name, 1, "", "length", 3, 4, "hm", True, (1, 2), "t")

    class Thinker(Scribe):
        def sample(self, requests):
            yield from (whole, cut)

    requests = requests_for(prompts[:1], responses=2)
    with Ledger(tmp_path / "ledger.sqlite") as store:
        list(collect(Thinker(), requests, store))
    with Ledger(tmp_path / "ledger.sqlite") as store:
        assert list(collect(Scribe(), requests, store)) == [whole, cut]
    (row,) = to_candidates(prompts, [cut, whole], source="s")
    assert row.responses == ("yes", "")
    assert row.message(0) == {
        "role": "assistant",
        "content": "yes",
        "reasoning_content": "hm\nö",
        "sampled": {"token_ids": [1, 2, 3], "tokenizer": "t"},
    }


def test_answers_without_thought_or_tokens_are_plain_candidates(prompts):
    sample = Sample(prompts[0].prompt_id, 0, "yes", "stop", 3, 4)
    (row,) = to_candidates(prompts, [sample], source="s")
    assert row.generations == ()
    assert row.messages() == [{"role": "assistant", "content": "yes"}]


def test_shortfalls_are_said_by_cause():
    whole = Sample("p", 0, "yes", "stop", 3, 4, "hm")
    cut = Sample("p", 1, "", "length", 3, 4, "hm", thought_cut=True)
    ended = Sample("p", 2, "", "stop", 3, 4, "hm", thought_cut=True)
    assert shortfalls([whole]) == []
    assert shortfalls([whole, cut, cut, cut, ended], max_new_tokens=7) == [
        "3 answers cut in the thought at max_new_tokens=7: raise it, or switch thinking off",
        "1 answer ended in the thought by the policy itself: nothing was answered",
    ]
