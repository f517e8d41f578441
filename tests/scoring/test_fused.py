"""Fused norms and MLPs against the formulas, and against the layers that they stand in for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

from prefstage.scoring.cpu.fused import find_fused_layers, fused_layers, gated_mlp, rms_norm
from tests.scoring.tiny_models import tiny_model

PLACES, HIDDEN, INNER = 5, 8, 12


def numbers(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(*shape, generator=generator, dtype=torch.float64).to(**options)
    return made.requires_grad_()


def written_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (offset + weight)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True)])
def test_the_norm_is_its_formula_with_the_same_gradient(
    offset: float, learns: tuple[bool, bool]
) -> None:
    x, weight = numbers(2, PLACES, HIDDEN), numbers(HIDDEN, seed=1)
    upstream = numbers(2, PLACES, HIDDEN, seed=2).detach()
    for tensor, learning in zip((x, weight), learns, strict=True):
        tensor.requires_grad_(learning)
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    expected, found = (
        written_norm(x, weight, 0.1, offset),
        rms_norm(x, weight, eps=0.1, offset=offset),
    )
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, wanted, upstream),
        torch.autograd.grad(expected, wanted, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "offset"), [(LlamaRMSNorm, 0.0), (Gemma2RMSNorm, 1.0)])
def test_the_norm_rounds_as_the_layer_does(
    kind: Callable[..., Any], offset: float, dtype: torch.dtype
) -> None:
    layer = kind(HIDDEN, eps=1e-5).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(numbers(HIDDEN, seed=1))
    x = numbers(PLACES, HIDDEN, dtype=dtype)
    found = rms_norm(x, layer.weight, eps=1e-5, offset=offset)
    allowed = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    assert found.dtype == dtype
    torch.testing.assert_close(found, layer(x), rtol=allowed, atol=allowed)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.GELU("tanh"), nn.Sigmoid(), nn.Identity()], ids=repr
)
def test_the_mlp_is_its_formula_with_the_same_gradient(
    activation: nn.Module, with_bias: bool
) -> None:
    shapes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    maps = {
        name: (numbers(*shape, seed=i), numbers(shape[0], seed=9 + i) if with_bias else None)
        for i, (name, shape) in enumerate(shapes.items(), 1)
    }
    x, upstream = numbers(2, PLACES, HIDDEN), numbers(2, PLACES, HIDDEN, seed=7).detach()
    linear = nn.functional.linear
    inner = activation(linear(x, *maps["gate"])) * linear(x, *maps["up"])
    expected = linear(inner, *maps["down"])
    found = gated_mlp(x, **maps, activation=activation)
    torch.testing.assert_close(found, expected)
    wanted = [x, *(each for pair in maps.values() for each in pair if each is not None)]
    for one, other in zip(
        torch.autograd.grad(found, wanted, upstream),
        torch.autograd.grad(expected, wanted, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        # A layer's two norms and MLP; the last norm and the embeddings.
        ("llama", 2 * 3 + 2),
        ("qwen3", 2 * 5 + 2),  # norms of queries and keys too
        ("gemma2", 2 * 5 + 1),  # four norms a layer; its embeddings are scaled
        ("phi3", 2 * 3 + 2),  # one map for gate and up
        ("gpt2", 1),  # embeddings alone
    ],
)
def test_layers_of_a_known_form_are_found_and_replaced_for_a_while(
    architecture: str, count: int
) -> None:
    model = tiny_model(architecture)
    body = model.get_decoder()
    assert find_fused_layers(body) == count
    before = {name for name, module in body.named_modules() if "forward" in vars(module)}
    with fused_layers(body):
        during = {name for name, module in body.named_modules() if "forward" in vars(module)}
        with fused_layers(body):
            pass
        assert during == {n for n, m in body.named_modules() if "forward" in vars(m)}
    after = {name for name, module in body.named_modules() if "forward" in vars(module)}
    assert len(during) == count
    assert before == after == set()


def kept_bytes(run: Callable[[], Any]) -> int:
    """Bytes that a run keeps for its backward pass, weights left out."""
    sizes: dict[int, int] = {}
    tensors = list[Tensor]()

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            tensors.append(tensor)  # or its address would be given away
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def test_fused_layers_keep_less_and_give_the_same() -> None:
    model = tiny_model("llama")
    body, ids = model.get_decoder(), torch.arange(40)[None]
    find_fused_layers(body)

    def fused() -> Tensor:
        with fused_layers(body):
            return body(input_ids=ids).last_hidden_state

    torch.testing.assert_close(fused(), body(input_ids=ids).last_hidden_state)
    assert kept_bytes(fused) < 0.75 * kept_bytes(lambda: body(input_ids=ids))


class DroppingMLP(LlamaMLP):
    """Looks like Llama's, and drops out in training."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class ScaledNorm(LlamaRMSNorm):
    """Looks like Llama's, and is not."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * super().forward(hidden_states)


class LearntActivation(nn.Module):
    """An activation with a weight, whose gradient would be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * nn.functional.silu(x)


@pytest.mark.parametrize("other", ["dropout", "scaled norm", "learnt activation"])
def test_layers_that_do_anything_else_are_left_alone(other: str) -> None:
    model = tiny_model("llama")
    body, config = model.get_decoder(), LlamaConfig(hidden_size=32, intermediate_size=48)
    for layer in body.layers:
        if other == "dropout":
            layer.mlp = DroppingMLP(config).eval()
        elif other == "scaled norm":
            layer.input_layernorm = ScaledNorm(32)
        else:
            layer.mlp.act_fn = LearntActivation()
    assert find_fused_layers(body) == 6  # the other norms, MLPs and embeddings
    assert not any(layer.mlp.training for layer in body.layers)


def test_adapters_and_hooks_of_a_map_still_run() -> None:
    model = tiny_model("llama")
    body, ids, calls = model.get_decoder(), torch.arange(9)[None], list[str]()
    find_fused_layers(body)
    body.layers[0].mlp.down_proj.register_forward_hook(lambda *_: calls.append("hook"))
    wrapped = body.layers[1].mlp.up_proj
    body.layers[1].mlp.up_proj = nn.Sequential(wrapped, nn.Hardtanh(-1e-3, 1e-3))
    expected = body(input_ids=ids).last_hidden_state
    with fused_layers(body):
        torch.testing.assert_close(body(input_ids=ids).last_hidden_state, expected)
    assert calls == ["hook", "hook"]
