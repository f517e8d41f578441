"""What we reach into privately: it is where we look for it, and leaves no trace."""

import copy
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from prefstage import training
from prefstage.scoring.engine import ModelParts, response_log_probs
from prefstage.scoring.layout import leaves_of, plan_passes
from prefstage.training.compat import (
    HookedTrainer,
    ScoringCalls,
    probe_trainer,
    unwrapped_forward,
    use_one_gpu,
    without_paths,
)
from tests.scoring.tiny_models import realistic_trees, tiny_model
from tests.training.preference_runs import arguments


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
    passes = plan_passes(ModelParts.of(model), leaves_of(trees), layout="tree", token_budget=None)
    attributes, calls = dict(vars(model)), ScoringCalls(model)
    with calls.installed(), calls.installed():  # an evaluation inside a training
        (scored,) = model(scoring_passes=passes)
        expected = torch.cat(response_log_probs(model, trees)[0].per_token)
        torch.testing.assert_close(scored.sort().values, expected.sort().values)
        assert torch.equal(model(input_ids=ids).logits, before)
        assert list(inspect.signature(model.forward).parameters) == names
        rewritten = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(rewritten, written)
    assert vars(model) == attributes


@pytest.fixture
def _fresh_state() -> Iterator[None]:
    """accelerate keeps one precision for a process: neither other tests' here, nor this theirs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_fresh_state")
def test_accelerates_mixed_precision_goes_off_and_comes_back(model: torch.nn.Module) -> None:
    calls = ScoringCalls(model)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    with calls.installed():
        accelerator.prepare_model(model)
        wrapped = model.forward
        with unwrapped_forward(model):
            assert model.forward is not wrapped
    assert not {"forward", "_original_forward"} & set(vars(model))
    with calls.installed():
        assert model.forward is wrapped


def test_a_copy_scores_with_its_own_weights(model: torch.nn.Module) -> None:
    with ScoringCalls(model).installed():
        other, ids = copy.deepcopy(model), torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).logits
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert not torch.allclose(other(input_ids=ids).logits, before)


HOOKED = (
    *("_init_training_state", "_get_output_dir", "_save_checkpoint", "_push_from_checkpoint"),
    *("_determine_best_metric", "_load_best_model", "_get_grad_norm", "_track_num_input_tokens"),
    *("_finalize_training", "_get_learning_rate", "_save"),
)


@pytest.mark.parametrize("name", HOOKED)
def test_transformers_still_has_what_is_hooked(name: str) -> None:
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(getattr(HookedTrainer, name)).parameters
    variadic = {"args", "rest"} & set(ours)
    assert variadic or len(theirs) == len(ours)


@pytest.mark.parametrize("name", ["_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"])
def test_the_loops_sums_are_where_they_were(name: str) -> None:
    assert f"self.{name}" in inspect.getsource(Trainer)


def test_arguments_and_optimisers(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    use_one_gpu(args)
    assert args.n_gpu == 1
    state = torch.get_rng_state()
    assert probe_trainer(args).create_optimizer().param_groups
    assert torch.equal(torch.get_rng_state(), state)


REACHES = re.compile(r"(?:accelerator|trainer|args|config|parameter|weight|state)\._[a-z]\w*")


def test_nothing_else_in_the_package_reaches_into_privates() -> None:
    for path in Path(training.__file__).parent.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        reaches = [line for line in lines if REACHES.search(line) and "self._trainer" not in line]
        assert path.name == "compat.py" or reaches == [], path


def test_no_path_of_this_machine_stands_in_settings_however_deep() -> None:
    settings = {"a": "/home/me", "b": {"c": "/x", "d": ["/y", "z", {"e": "/w", "f": 1}]}, "g": 2}
    expected = {"b": {"d": ["z", {"f": 1}]}, "g": 2}
    assert without_paths(settings) == expected
