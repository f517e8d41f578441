"""What a policy sampled is what is trained on, thoughts included; readers see its answer."""

from functools import partial
from pathlib import Path

import pytest
import torch
import trl
from tiny_models import tiny_llama, tiny_tokenizer
from tokenizers import AddedToken

from prefstage.building.account import Account
from prefstage.building.choosing import all_pairs, pairs_by_choice
from prefstage.building.relabelling import rescored
from prefstage.core.ledger import Ledger
from prefstage.data import PairSet, ResponseEncoder, load_candidates, load_pairs
from prefstage.data.records import SAMPLED, Candidates, prompt_id_of
from prefstage.data.sets import CandidateSet
from prefstage.data.thoughts import read_reply
from prefstage.judging import Judge
from prefstage.sampling import (
    SamplingConfig,
    TransformersSampler,
    collect,
    requests_for,
    to_candidates,
)
from prefstage.training.items import encode_items

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CONFIG = SamplingConfig(responses=60, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=14)
QUESTIONS = ("What is the capital of France?", "Write a short story about a fox.")
PROMPTS = [
    Candidates(prompt_id_of(prompt), prompt, (), (), ())
    for prompt in (({"role": "user", "content": text},) for text in QUESTIONS)
]
THINKING = ("qwen3", "qwen3_5_think")  # begins its thought itself, finds it opened


def tokenizer_of(template):
    """A tokenizer with the marks of thoughts, and one of trl's templates; or a plain one."""
    tokenizer = tiny_tokenizer("chatml", vocabulary=300)
    if template in THINKING:
        marks = ("<think>", "</think>")
        tokenizer.add_tokens([AddedToken(m, special=False, normalized=False) for m in marks])
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return tokenizer


def policy_of(tokenizer):
    """A random policy that likes to think, to stop thinking, and to end its turn."""
    model = tiny_llama(tokenizer)
    bias = torch.zeros(len(tokenizer))
    liked = {"<|im_end|>", "<think>", "</think>"} & tokenizer.get_vocab().keys()
    bias[tokenizer.convert_tokens_to_ids(sorted(liked))] = 3.0
    head = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    head.weight, head.bias = model.lm_head.weight, torch.nn.Parameter(bias)
    model.lm_head = head
    return model


@pytest.fixture(scope="module", params=["plain", *THINKING])
def sampled(request, tmp_path_factory):
    tokenizer = tokenizer_of(request.param)
    sampler = TransformersSampler(policy_of(tokenizer), tokenizer, CONFIG)
    path = tmp_path_factory.mktemp("store") / "ledger.sqlite"
    requests = requests_for(PROMPTS, responses=CONFIG.responses)
    with Ledger(path) as store:
        list(collect(sampler, requests, store))
    with Ledger(path) as store:  # as a run that goes on reads it
        return request.param, sampler, list(collect(sampler, requests, store))


class Recorder(Judge):
    """A judge by length that remembers what it read."""

    name, fingerprint = "length", "length"

    def __init__(self):
        self.read = set()

    def score(self, items):
        self.read |= {text for _, text in items}
        return [float(len(text)) for _, text in items]

    def compare(self, comparisons):
        raise AssertionError("it scores")


def test_each_answer_is_what_follows_the_thought(sampled):
    template, sampler, samples = sampled
    assert len(samples) == len(PROMPTS) * CONFIG.responses
    for sample in samples:
        assert len(sample.token_ids) == sample.response_tokens
        assert sample.tokenizer == sampler.encoder.tokenizer_fingerprint
        text = sampler.encoder.tokenizer.decode(sample.token_ids).split("<|im_end|>")[0]
        reply = read_reply(text, opened=template == "qwen3_5_think")
        added = sampler.encoder.tokenizer.added_tokens_decoder.values()
        special = [token.content for token in added if token.special]
        thought = reply.thought or ""
        for mark in special:  # a policy of random weights writes some anywhere
            thought = thought.replace(mark, "")
        assert sample.thought == (thought.strip() or None)
        assert sample.thought_cut == reply.cut
        if sample.thought_cut:
            assert sample.text == ""
    if template == "plain":
        assert all(sample.thought is None and not sample.thought_cut for sample in samples)
    else:
        kinds = {(s.thought_cut, s.finish_reason, bool(s.text.strip())) for s in samples}
        whole, cut, cut_thought = (False, "stop", 1), (False, "length", 1), (True, "length", 0)
        assert {whole, cut, cut_thought} <= kinds


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_what_was_sampled_is_what_is_trained_on(sampled, tmp_path, ending):
    _, sampler, samples = sampled
    by_answer = {}
    for sample in samples:
        by_answer.setdefault((sample.prompt_id, sample.text), []).append(sample.token_ids)
    spoken = [sample for sample in samples if sample.text.strip()]
    CandidateSet.of(to_candidates(PROMPTS, spoken, source="policy")).save(
        tmp_path / f"candidates.{ending}"
    )
    judge = Recorder()
    rows = rescored(load_candidates(tmp_path / f"candidates.{ending}"), judge)
    groups = pairs_by_choice(rows, partial(all_pairs, k=8), method="all", account=Account())
    PairSet.of(built.pair for group in groups for built in group).save(tmp_path / f"p.{ending}")

    pairs = load_pairs(tmp_path / f"p.{ending}")
    encoder = ResponseEncoder(sampler.encoder.tokenizer)
    items = encode_items(pairs, encoder)

    assert judge.read == {sample.text for sample in spoken}
    assert len(items) == len(pairs) > 10
    for pair, item in zip(pairs, items.items, strict=True):
        tree = item.trees[0]
        assert tree.prompt_ids == encoder.prompt_ids(pair.prompt)
        for side, ids in zip((pair.chosen, pair.rejected), tree.response_ids, strict=True):
            assert ids == tuple(side[0][SAMPLED]["token_ids"])
            assert ids in by_answer[pair.prompt_id, side[0]["content"]]
    assert encoder.counts.sampled == encoder.counts.responses


def test_another_tokenizer_trains_on_the_rendering(sampled):
    template, _, samples = sampled
    other = tokenizer_of(template)
    other.add_tokens(["capital"])
    encoder = ResponseEncoder(other)
    (row, *_) = to_candidates(PROMPTS, [s for s in samples if s.text.strip()], source="policy")
    tree = encoder.encode(row.prompt, row.messages())

    assert encoder.counts.sampled == 0
    for message, ids in zip(row.messages(), tree.response_ids, strict=True):
        shown = {name: value for name, value in message.items() if name != SAMPLED}
        whole = other.apply_chat_template(
            [*row.prompt, shown], tokenize=True, return_dict=False, sanitize_control_tokens=False
        )
        assert [*tree.prompt_ids, *ids] == whole[: len(tree.prompt_ids) + len(ids)]


def test_thinking_switched_off_by_the_template():
    tokenizer = tokenizer_of("qwen3_5_think")
    sampler = TransformersSampler(
        policy_of(tokenizer), tokenizer, CONFIG, template_options={"enable_thinking": False}
    )
    thinking = TransformersSampler(policy_of(tokenizer), tokenizer, CONFIG)
    assert not sampler.encoder.opens_thought
    assert thinking.encoder.opens_thought
    assert sampler.fingerprint != thinking.fingerprint
