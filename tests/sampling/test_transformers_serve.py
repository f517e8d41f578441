"""A real server: `transformers serve` with a tiny model, started and stopped by us."""

from pathlib import Path

import psutil
import pytest

from prefstage.sampling import (
    LoadOptions,
    SamplingConfig,
    TransformersSampler,
    load_sampler,
    requests_for,
)
from prefstage.sampling.server_sampler import ServedSampler
from tests.sampling.conftest import candidates

pytestmark = pytest.mark.slow  # starting the server takes more than ten seconds

CONFIG = SamplingConfig(temperature=1.0, max_new_tokens=12, seed=2)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def model(policy, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def serving(model, config, log_file):
    command = f"serve:transformers serve {model} --host 127.0.0.1 --port {{port}} --device cpu"
    sampler = load_sampler(command, config, options=LoadOptions(log_file=log_file))
    assert isinstance(sampler, ServedSampler)
    return sampler


def test_it_is_started_asked_and_stopped(model, prompts, policy, tokenizer, tmp_path):
    before = set(psutil.Process().children(recursive=True))
    requests = requests_for([candidates("Say a word."), *prompts[:5]], responses=2)
    with serving(model, CONFIG, tmp_path / "server.log") as sampler:
        first = {(s.prompt_id, s.index): s for s in sampler.sample(requests)}
        again = {(s.prompt_id, s.index): s for s in sampler.sample(requests[::-1])}
        sampler.config = GREEDY
        likeliest = {(s.prompt_id, s.index): s for s in sampler.sample(requests)}
    assert set(psutil.Process().children(recursive=True)) == before
    assert len(first) == 12
    assert first == again  # each response has a seed of its own, whatever the order
    assert len({s.text for s in first.values()}) > 8  # and is sampled, not greedy
    assert {s.finish_reason for s in first.values()} <= {"stop", "length"}
    assert "POST /v1/chat/completions" in (tmp_path / "server.log").read_text()
    ours = TransformersSampler(policy, tokenizer, GREEDY)
    assert {(s.prompt_id, s.index): s.text for s in ours.sample(requests)} == {
        key: s.text for key, s in likeliest.items()
    }
    assert sampler.counts["prompt_tokens"] > 0
