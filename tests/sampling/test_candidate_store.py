import json

import pytest

from prefstage.core.errors import InputError
from prefstage.sampling import (
    CandidateStore,
    Sample,
    SamplingConfig,
    TransformersSampler,
    collect,
    requests_for,
    to_candidates,
)
from prefstage.sampling.base import cut_thoughts


class Scribe:
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
    path = tmp_path / "deep" / "store.jsonl"
    requests = requests_for(prompts, responses=2)
    with CandidateStore(path) as store:
        first = list(collect(Scribe(), requests[:7], store))
    scribe = Scribe()
    with CandidateStore(path) as store:
        assert len(store) == 7
        second = list(collect(scribe, requests, store))
        assert list(store) == second
    assert second[:7] == first
    assert scribe.asked == [(r.prompt_id, r.index) for r in requests[7:]]
    with CandidateStore(path) as store:
        assert list(collect(scribe, requests, store)) == second
    assert len(scribe.asked) == len(requests) - 7


def test_each_answer_is_on_disk_before_it_is_yielded(tmp_path, prompts):
    path = tmp_path / "store.jsonl"
    with CandidateStore(path) as store:
        stream = collect(Scribe(), requests_for(prompts, responses=1), store)
        for number, sample in enumerate(stream, start=1):
            lines = path.read_text().splitlines()
            assert len(lines) == 1 + number
            assert json.loads(lines[-1])["prompt_id"] == sample.prompt_id


def test_a_request_named_twice_is_asked_once(tmp_path, prompts):
    scribe = Scribe()
    with CandidateStore(tmp_path / "store.jsonl") as store:
        list(collect(scribe, requests_for(prompts, responses=1) * 2, store))
    assert len(scribe.asked) == len(prompts)


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path, prompts, cut):
    path = tmp_path / "store.jsonl"
    requests = requests_for(prompts, responses=1)
    with CandidateStore(path) as store:
        list(collect(Scribe(), requests[:3], store))
    path.write_bytes(path.read_bytes()[:-cut])
    scribe = Scribe()
    with CandidateStore(path) as store:
        assert len(store) == 2
        assert len(list(collect(scribe, requests, store))) == len(requests)
    assert scribe.asked[0] == (requests[2].prompt_id, 0)
    with CandidateStore(path) as store:
        assert len(store) == len(requests)


@pytest.mark.parametrize("kept", [0, 1, 12, 60])
def test_a_torn_header_is_written_again(tmp_path, prompts, kept):
    path = tmp_path / "store.jsonl"
    with CandidateStore(path) as store:
        store.claim(Scribe())
    path.write_bytes(path.read_bytes()[:kept])
    with CandidateStore(path) as store:
        list(collect(Scribe(), requests_for(prompts[:1], responses=1), store))
    with CandidateStore(path) as store:
        assert len(store) == 1


def test_a_store_without_answers_may_be_claimed_by_another_sampler(tmp_path, prompts):
    path = tmp_path / "store.jsonl"
    for fingerprint in ("f", "g"):  # the first sampler failed before any answer came
        with CandidateStore(path) as store:
            store.claim(Scribe(fingerprint))
    with CandidateStore(path) as store:
        list(collect(Scribe("g"), requests_for(prompts[:1], responses=1), store))
    assert len(path.read_text().splitlines()) == 2
    assert json.loads(path.read_text().splitlines()[0])["fingerprint"] == "g"


def test_another_samplers_store_is_refused_and_the_difference_named(tmp_path, prompts):
    path = tmp_path / "store.jsonl"
    with CandidateStore(path) as store:
        list(collect(Scribe(), requests_for(prompts, responses=1), store))
    before = path.read_bytes()
    other = Scribe("g", {"seed": 1})
    with (
        CandidateStore(path) as store,
        pytest.raises(InputError, match=r"holds 12 answers of 'scribe' .*seed=0, now 1"),
    ):
        list(collect(other, requests_for(prompts, responses=1), store))
    assert other.asked == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": "x"}\n{"prompt": "y"}', b"some text without a line end", b"\xff\xfe", b"[1]\n"],
)
def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a candidate store"):
        CandidateStore(path)
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(tmp_path, prompts):
    path = tmp_path / "store.jsonl"
    with CandidateStore(path) as store:
        list(collect(Scribe(), requests_for(prompts, responses=1), store))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"broken\n', *lines[2:]]))
    with pytest.raises(InputError, match=r"store\.jsonl, line 3: not an answer"):
        CandidateStore(path)


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "store.jsonl"
    with CandidateStore(path), pytest.raises(InputError, match="open in another process"):
        CandidateStore(path)
    with CandidateStore(path) as store:
        assert len(store) == 0


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="candidate store"):
        CandidateStore(tmp_path)


def test_resuming_in_process_gives_what_one_run_gives(policy, tokenizer, prompts, tmp_path):
    config = SamplingConfig(temperature=1.0, max_new_tokens=12)
    requests = requests_for(prompts, responses=2)

    def run(path, *counts):
        for count in counts:
            sampler = TransformersSampler(policy, tokenizer, config)
            with CandidateStore(path) as store:
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


def test_a_store_of_an_older_version_is_refused_by_name(tmp_path, prompts):
    path = tmp_path / "store.jsonl"
    with CandidateStore(path) as store:
        list(collect(Scribe(), requests_for(prompts, responses=1)[:1], store))
    lines = path.read_text().splitlines()
    old = json.loads(lines[1])
    for name in ("thought", "thought_cut", "token_ids", "tokenizer"):
        del old[name]
    header = json.loads(lines[0]) | {"version": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, old)))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"version 1, whose answers lack thoughts.*run again"):
        CandidateStore(path)
    path.write_text(json.dumps(header | {"version": 99}) + "\n")
    with pytest.raises(InputError, match="version 99"):
        CandidateStore(path)
    path.write_bytes(before)
    assert path.read_bytes() == before


def test_thoughts_and_tokens_come_back_from_disk(tmp_path, prompts):
    name = prompts[0].prompt_id
    whole = Sample(name, 0, "yes", "stop", 3, 4, "hm\nö", token_ids=(1, 2, 3), tokenizer="t")
    cut = Sample(name, 1, "", "length", 3, 4, "hm", True, (1, 2), "t")
    with CandidateStore(tmp_path / "store.jsonl") as store:
        store.claim(Scribe())
        store.append(whole)
        store.append(cut)
    with CandidateStore(tmp_path / "store.jsonl") as store:
        assert list(store) == [whole, cut]
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


def test_cut_thoughts_are_said_by_cause():
    whole = Sample("p", 0, "yes", "stop", 3, 4, "hm")
    cut = Sample("p", 1, "", "length", 3, 4, "hm", thought_cut=True)
    ended = Sample("p", 2, "", "stop", 3, 4, "hm", thought_cut=True)
    assert cut_thoughts([whole]) == []
    assert cut_thoughts([whole, cut, cut, cut, ended], max_new_tokens=7) == [
        "3 answers cut in the thought at max_new_tokens=7: raise it, or switch thinking off",
        "1 answer ended in the thought by the policy itself: nothing was answered",
    ]
