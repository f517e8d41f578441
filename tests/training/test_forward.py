"""A model that scores passes through its own call still does everything else."""

import copy
import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefstage.scoring.engine import plan_passes, response_log_probs
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.rows import leaves_of
from prefstage.training.forward import install_scoring
from tests.scoring.tiny_models import realistic_trees, tiny_model


@pytest.fixture(params=["bare", "adapter"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    bare = tiny_model("llama")
    if request.param == "bare":
        return bare
    return get_peft_model(bare, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))


def test_the_call_scores_passes_and_is_otherwise_the_models_own(model: torch.nn.Module) -> None:
    trees, ids = realistic_trees()[2:3], torch.tensor([[5, 6, 7, 8]])
    before, names = model(input_ids=ids).logits, list(inspect.signature(model.forward).parameters)
    written = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    install_scoring(model)
    install_scoring(model)
    passes = plan_passes(ModelParts.of(model), leaves_of(trees), layout="tree", token_budget=None)
    (found,) = model(scoring_passes=passes, backend=None)
    expected = torch.cat(response_log_probs(model, trees)[0].per_token)
    torch.testing.assert_close(found.sort().values, expected.sort().values)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert list(inspect.signature(model.forward).parameters) == names
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=5, do_sample=False), written)


def test_a_copy_scores_with_its_own_weights(model: torch.nn.Module) -> None:
    install_scoring(model)
    other, ids = copy.deepcopy(model), torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).logits
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not torch.allclose(other(input_ids=ids).logits, before)
