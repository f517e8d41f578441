"""Scorer: the layout it takes, adapters, memory, and what it refuses."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from prefstage.core.errors import InputError, ModelError
from prefstage.data.tokenising import TokenTree
from prefstage.scoring import Scorer, ScoringWarning, TreeLogProbs, scorer as scorer_module
from tests.scoring.tiny_models import (
    CONFIGS,
    VOCABULARY,
    largest_difference,
    plain_log_probs,
    realistic_trees,
    tiny_model,
)


def assert_equal_to_plain(found: list[TreeLogProbs], model: Any, trees: list[TokenTree]) -> None:
    with torch.no_grad():
        plain = plain_log_probs(model, trees)
    assert largest_difference([tree.per_token for tree in found], plain) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_layout_is_chosen_by_itself(name: str) -> None:
    scorer = Scorer(tiny_model(name))
    assert scorer.layout == ("flat" if name == "mamba" else "tree"), scorer.layout_choice.reason
    assert scorer.layout_choice.reason


def test_scores_come_in_the_order_of_the_trees_and_carry_no_graph() -> None:
    model, trees = tiny_model("llama"), realistic_trees()
    found = Scorer(model, token_budget=200).score(trees)
    assert_equal_to_plain(found, model, trees)
    assert not any(t.requires_grad or t.is_inference() for tree in found for t in tree.per_token)


def test_no_trees_and_trees_without_responses_score_to_nothing() -> None:
    scorer = Scorer(tiny_model("llama"))
    assert scorer.score([]) == []
    (empty,) = scorer.score([TokenTree("x", (5,), ())])
    assert empty.per_token == ()
    assert empty.sums.shape == (0,)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_statistics_stand_beside_the_log_probs(name: str) -> None:
    model, trees = tiny_model(name), realistic_trees()[2:3]
    (found,) = Scorer(model).score(trees, statistics=("entropy", "log_sum_squares"))
    tree = trees[0]
    for response, entropy, squares in zip(
        tree.response_ids, found.entropy, found.log_sum_squares, strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([tree.prompt_ids + response])).logits[0]
        log_probs = logits[len(tree.prompt_ids) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(entropy, -(log_probs.exp() * log_probs).sum(-1))
        torch.testing.assert_close(squares, (2 * log_probs).logsumexp(-1))


def test_scorer_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2", attention="sdpa").train()
    model.lm_head.eval()
    Scorer(model).score(realistic_trees()[2:])
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert model.transformer.h[0].attn.training
    assert not model.lm_head.training


def test_model_that_computes_something_else_falls_back_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, trees = tiny_model("llama", attention="sdpa"), realistic_trees()[2:]
    rotate = model.model.rotary_emb.forward

    def rotate_by_place(states: Any, position_ids: Any) -> Any:
        return rotate(states, torch.arange(states.shape[1])[None])

    monkeypatch.setattr(model.model.rotary_emb, "forward", rotate_by_place)
    with pytest.warns(ScoringWarning, match=r"flat layout: a token's log-prob differs by \d"):
        scorer = Scorer(model)
    assert scorer.layout == "flat"
    assert_equal_to_plain(scorer.score(trees), model, trees)
    with pytest.raises(ModelError, match="use layout='auto' or layout='flat'"):
        Scorer(model, layout="tree")


def test_window_that_a_layer_does_not_pass_on_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mistral", sliding_window=1000)  # longer than the trial texts
    assert Scorer(model).layout == "tree"
    monkeypatch.setattr(model.config, "sliding_window", 999)
    from transformers.models.mistral import modeling_mistral

    forward = modeling_mistral.MistralAttention.forward

    def without_window(self: Any, *args: Any, **kwargs: Any) -> Any:
        before, self.config.sliding_window = self.config.sliding_window, None
        try:
            return forward(self, *args, **kwargs)
        finally:
            self.config.sliding_window = before

    monkeypatch.setattr(modeling_mistral.MistralAttention, "forward", without_window)
    choice = Scorer(model).layout_choice
    assert choice.layout == "flat"
    assert "asks for a window of None, its configuration for 999" in choice.reason


def test_unknown_head_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("granite")
    plain = model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(model, "forward", doubled)
    with pytest.raises(ModelError, match="from those of its own forward pass"):
        Scorer(model)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("gone"), MemoryError()])
def test_memory_shortage_halves_the_budget_and_loses_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, trees = tiny_model("llama"), realistic_trees()
    scorer, real = Scorer(model, token_budget=2000), scorer_module.score_pass

    def limited(parts: Any, one: Any, **settings: Any) -> Any:
        if one.input_ids.numel() > 600:
            raise error
        return real(parts, one, **settings)

    monkeypatch.setattr(scorer_module, "score_pass", limited)
    with caplog.at_level(logging.WARNING):
        found = scorer.score(trees)
    assert scorer.token_budget < 600 * 2
    assert "token budget is now" in caplog.text
    assert_equal_to_plain(found, model, trees)


def test_single_text_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **settings: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 TB")

    scorer = Scorer(tiny_model("llama"))
    monkeypatch.setattr(scorer_module, "score_pass", full)
    with pytest.raises(ModelError, match="single text of 534 tokens"):
        scorer.score(realistic_trees()[1:2])


def test_other_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **settings: Any) -> Any:
        raise RuntimeError("a shape is wrong")

    scorer = Scorer(tiny_model("llama"))
    monkeypatch.setattr(scorer_module, "score_pass", broken)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        scorer.score(realistic_trees())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (TokenTree("a", (), ((1,),)), "a prompt without tokens"),
        (TokenTree("a", (1,), ((1,), ())), "response 1 has no token"),
        (TokenTree("a", (1,), ((VOCABULARY,),)), f"token {VOCABULARY}; expected ids from 0 to 96"),
        (TokenTree("a", (1,), ((1,) * 64,)), "a text of 64 tokens; expected at most 50"),
    ],
)
def test_trees_that_do_not_fit_are_refused(tree: TokenTree, message: str) -> None:
    scorer = Scorer(tiny_model("gpt2", n_positions=50))
    with pytest.raises(InputError, match=message):
        scorer.score([tree])


def test_rotary_models_go_on_beyond_their_positions_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer = Scorer(tiny_model("llama", max_position_embeddings=50))
    scorer.score([TokenTree("a", (1,), ((1,) * 64,))])
    assert "1 texts are longer than the model's 50 positions" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_budget": 0}, "token_budget=0"),
        ({"layout": "treee"}, "layout='treee'; expected one of auto, tree, flat"),
        ({"backend": "flash"}, "backend='flash'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scorer(tiny_model("llama"), **settings)


def test_unknown_statistic_is_refused() -> None:
    with pytest.raises(InputError, match="statistics entropie; expected some of entropy"):
        Scorer(tiny_model("llama")).score([], statistics=("entropie",))


def test_attention_dropout_in_training_is_refused() -> None:
    from prefstage.scoring import response_log_probs

    model = tiny_model("gpt2").train()
    with pytest.raises(ModelError, match="set attention dropout to 0"):
        response_log_probs(model, realistic_trees()[2:])


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="no output embeddings"):
        Scorer(tiny_model("llama").model)


def test_load_reads_a_checkpoint_and_says_what_is_wrong(tmp_path: Path) -> None:
    model, trees = tiny_model("qwen3"), realistic_trees()[2:]
    model.save_pretrained(tmp_path / "model")
    found = Scorer.load(str(tmp_path / "model")).score(trees)
    assert_equal_to_plain(found, model, trees)
    with pytest.raises(ModelError, match=r"no model folder .*nowhere"):
        Scorer.load(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="dtype='float31'"):
        Scorer.load(str(tmp_path / "model"), dtype="float31")
    with pytest.raises(ModelError, match=r"no adapter_config\.json at"):
        Scorer.load(str(tmp_path / "model"), adapter=str(tmp_path / "no-adapter"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_half_precision_stays_near_float32(name: str, dtype: str) -> None:
    model, trees = tiny_model(name).to(getattr(torch, dtype)), realistic_trees()[2:]
    exact = tiny_model(name)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    scorer = Scorer(model)
    assert scorer.layout == "tree"
    found = [tree.per_token for tree in scorer.score(trees)]
    assert all(t.dtype == torch.float32 for tree in found for t in tree)
    with torch.no_grad():
        truth, theirs = plain_log_probs(exact, trees), plain_log_probs(model, trees)
    # No farther from the truth than the model's own forward pass in this precision.
    assert largest_difference(found, truth) < 1.5 * largest_difference(theirs, truth) + 1e-3


def test_gradient_checkpointing_recomputes_the_same_attention() -> None:
    from prefstage.scoring import response_log_probs

    model, trees = tiny_model("llama", attention="sdpa"), realistic_trees()
    parameters = list(model.parameters())

    def gradients() -> tuple[torch.Tensor, ...]:
        loss = torch.cat([t.sums for t in response_log_probs(model, trees)]).sum()
        return torch.autograd.grad(loss, parameters)

    expected = gradients()
    assert model.config._attn_implementation == "sdpa"
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"
    # The model still serves ordinary passes, padded ones too.
    plain = tiny_model("llama", attention="sdpa")
    ids, mask = torch.randint(3, VOCABULARY, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        ours, theirs = model(ids, mask).logits, plain(ids, mask).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-4)


def test_log_probs_that_are_no_numbers_are_refused_with_the_models_name() -> None:
    model = tiny_model("llama")
    model.config.name_or_path = "folder/of-noise"
    scorer = Scorer(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan
    assert scorer.score([TokenTree("x", (6, 7), ((8, 9),))])
    with pytest.raises(ModelError, match="folder/of-noise in float32: 2 of 2 log-probs"):
        scorer.score([TokenTree("x", (5, 7), ((8, 9),))])
