"""No patch survives training, scoring or evaluation, whatever the settings, nor after an error."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefstage.scoring import Scorer, response_log_probs
from prefstage.scoring.cpu.lean import savings
from tests.scoring.tiny_models import CONFIGS, tiny_model, tree_of
from tests.training.preference_runs import preference_trainer, tiny_pairs

TREE = tree_of(range(3, 23), [range(23, 44), range(44, 65)])

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "items beyond the budget": {"token_budget": 20},
    "model's checkpointing": {"activation_checkpointing": True},
    "reentrant checkpointing": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
    },
    "flat": {"layout": "flat"},
    "flat, beyond the budget": {"layout": "flat", "token_budget": 20},
    "two passes": {"loss": "bco", "token_budget": 20},
    "half precision": {"bf16": True},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 1},
}


def state_of(model: Any) -> dict[str, Any]:
    """All that a patch could change: modules, configuration, model files, torch and ourselves."""
    modules = dict(model.named_modules())
    # The trainer gives the outermost module its way in when it is made, for wrappers such as DDP.
    forwards = {name: vars(m).get("forward") for name, m in modules.items() if name}
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    return {
        "forwards": forwards,
        "checkpointing": {n: [vars(m).get(name) for name in names] for n, m in modules.items()},
        "hooks": {n: [*m._forward_hooks, *m._forward_pre_hooks] for n, m in modules.items()},
        "attention": [
            getattr(m, "config", model.config)._attn_implementation for m in model.modules()
        ],
        "files": {
            name: {k: v for k, v in vars(sys.modules[name]).items() if callable(v)}
            for name in sorted({type(m).__module__ for m in model.modules()})
        },
        "classes": {cls: cls.forward for cls in {type(m) for m in model.modules()}},
        "ours": savings(),
        "torch": [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()],
    }


class StopError(Exception):
    """Ends a pass in the middle."""


def failing(model: Any, work: Callable[[], Any]) -> None:
    """Let work end in the middle of the last layer's forward pass."""
    layer = model.get_decoder().layers[-1]

    def fail(*_: Any) -> None:
        raise StopError

    handle = layer.self_attn.register_forward_hook(fail)
    try:
        with pytest.raises(StopError):
            work()
    finally:
        handle.remove()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_training_leaves_no_trace(name: str, fails: bool, tmp_path: Path) -> None:
    settings = {"max_steps": 2, **SETTINGS[name]}
    data = tiny_pairs(5) if "eval_strategy" in settings else None
    trainer = preference_trainer(tmp_path, eval_dataset=data, **settings)
    trainer.compute_references()
    # transformers itself turns checkpointing on as training begins, and leaves it on.
    if settings.get("activation_checkpointing"):
        kwargs = settings.get("activation_checkpointing_kwargs") or {"use_reentrant": False}
        trainer.model.gradient_checkpointing_enable(kwargs)
    before = state_of(trainer.model)
    if fails:
        failing(trainer.model, trainer.train)
    else:
        trainer.train()
        if data is not None:
            trainer.evaluate()
    after = state_of(trainer.model)
    if settings.get("activation_checkpointing"):
        # By transformers: a new function, and a hook on the embeddings, each time.
        before |= {"checkpointing": None, "hooks": None}
        after |= {"checkpointing": None, "hooks": None}
    assert after == before


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("architecture", sorted(CONFIGS.keys() - {"mamba", "gpt2", "gpt-neox"}))
def test_scoring_leaves_no_trace(architecture: str, layout: str, fails: bool) -> None:
    model = tiny_model(architecture)
    scorer = Scorer(model, layout=layout)
    before = state_of(tiny_model(architecture))
    own = state_of(model)
    assert own["attention"] == before["attention"]
    work = lambda: scorer.score([TREE])  # noqa: E731
    failing(model, work) if fails else work()
    assert state_of(model) == own
    assert not any(own["forwards"].values())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_gradients_through_checkpointed_layers_leave_no_trace(layout: str, reentrant: bool) -> None:
    """The layers run again after the call that patched them, and still as they ran before."""
    model = tiny_model("llama").train()
    Scorer(model, layout=layout)
    plain = slopes(model, layout)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    before = state_of(model)
    assert all(torch.equal(a, b) for a, b in zip(slopes(model, layout), plain, strict=True))
    assert state_of(model) == before


def slopes(model: Any, layout: Any) -> list[torch.Tensor]:
    model.zero_grad()
    (scored,) = response_log_probs(model, [TREE], layout=layout)
    (scored.sums * torch.tensor([1.0, -1.0])).sum().backward()
    return [weight.grad.clone() for weight in model.parameters()]
