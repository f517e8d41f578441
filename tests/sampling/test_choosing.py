from collections import Counter

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from prefstage.sampling import SamplingConfig
from prefstage.sampling.decoding import choose_tokens

GRID = 4000


def reference(logits, config):
    """The distribution by transformers' own processors, in their order."""
    scores = TemperatureLogitsWarper(config.temperature)(None, logits[None])
    if config.top_k:
        scores = TopKLogitsWarper(config.top_k)(None, scores)
    if config.top_p < 1:
        scores = TopPLogitsWarper(config.top_p)(None, scores)
    return scores[0].softmax(-1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
)
def test_the_distribution_is_that_of_transformers(seed, temperature, top_k, top_p):
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = 3 * torch.randn(30, generator=torch.Generator().manual_seed(seed))
    uniforms = [(point + 0.5) / GRID for point in range(GRID)]
    chosen = Counter(choose_tokens(logits.expand(GRID, -1), uniforms, config))
    for token, probability in enumerate(reference(logits, config).tolist()):
        assert chosen[token] / GRID == pytest.approx(probability, abs=1.5 / GRID)


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert choose_tokens(logits, [0.99, 0.99], SamplingConfig(temperature=0)) == [1, 0]


def test_each_row_depends_on_its_own_logits_and_number_alone():
    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(1))
    uniforms = [0.05 + 0.11 * row for row in range(8)]
    config = SamplingConfig()
    together = choose_tokens(logits, uniforms, config)
    alone = [choose_tokens(logits[r : r + 1], uniforms[r : r + 1], config)[0] for r in range(8)]
    backwards = choose_tokens(logits.flip(0), uniforms[::-1], config)
    assert together == alone == backwards[::-1]
    assert len(set(together)) > 1


def test_rounding_errors_of_logits_do_not_change_the_choice():
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(2000, 300, generator=generator)
    noise = 1e-6 * torch.randn(logits.shape, generator=generator)
    uniforms = torch.rand(2000, generator=generator).tolist()
    config = SamplingConfig()
    assert choose_tokens(logits, uniforms, config) == choose_tokens(
        logits + noise, uniforms, config
    )


def test_near_ties_do_not_exchange_their_tokens():
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0)
    one = torch.tensor([[1.0, 1.0 + 1e-6, -9.0]])
    other = torch.tensor([[1.0 + 1e-6, 1.0, -9.0]])
    for uniform in (0.2, 0.8):
        assert choose_tokens(one, [uniform], config) == choose_tokens(other, [uniform], config)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_are_tokens_with_mass(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for top_k in (0, 3):
        config = SamplingConfig(temperature=1.0, top_k=top_k, top_p=1.0)
        assert choose_tokens(logits, [uniform], config) == [2 if uniform else 1]
