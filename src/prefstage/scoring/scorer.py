"""`Scorer`: log-probs of many responses, without gradient, in as few tokens as can be."""

import logging
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from prefstage.core import (
    CAUSAL_LM,
    InputError,
    ModelError,
    check_numbers,
    load_checkpoint,
    progress,
)
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import BACKENDS, Backend, RowAttention, choose_backend
from prefstage.scoring.compat import replaced
from prefstage.scoring.cpu.fused import find_fused_layers
from prefstage.scoring.engine import Gathered, ModelParts, TreeLogProbs, check_fits, score_pass
from prefstage.scoring.layout import (
    Batch,
    Layout,
    Leaf,
    build_batch,
    build_row,
    leaves_of,
    plan_passes,
)
from prefstage.scoring.memory import ModelShape, free_bytes, is_out_of_memory, scoring_budget

LayoutSetting = Literal["auto", "tree", "flat"]

SHARED_TOKENS, PROMPT_TOKENS, RESPONSE_TOKENS = 5, 4, (4, 1, 6)
"""Of the self-check's batch: shared by its prompts, a prompt's rest, and its responses."""

_TREE_LAYERS = {"full_attention", "sliding_attention"}
_log = logging.getLogger(__name__)


class ScoringWarning(UserWarning):
    """Scoring goes on, more slowly than it should; the message says why."""


class Scorer:
    """Computes log π(y|x) of responses with a transformers causal LM.

    At the start the layout is tried on one small batch against the model's own forward
    pass; a model that should take the tree and fails is scored flat, with a warning.

    Args:
        model: A causal LM, bare or with PEFT adapters.
        token_budget: Tokens a forward pass, or "auto" to choose by device and free memory.
        layout: "tree" computes shared prompts once; "flat" computes whole sequences;
            "auto" takes the tree where it is exact.
        backend: "blockwise", "sdpa" or "flex" attention; "auto" chooses by device.

    Raises:
        InputError: If a setting is out of range.
        ModelError: If the model is no causal LM, or the requested layout is not exact.
    """

    def __init__(
        self,
        model: Any,
        *,
        token_budget: int | Literal["auto"] = "auto",
        layout: str = "auto",
        backend: str = "auto",
    ) -> None:
        InputError.unless(
            token_budget == "auto" or (isinstance(token_budget, int) and token_budget >= 1),
            saw=f"token_budget={token_budget!r}",
            expected="a number of tokens, at least 1, or 'auto'",
            cure="use 'auto' unless memory runs out",
        )
        for name, value, known in (
            ("layout", layout, ("auto", "tree", "flat")),
            ("backend", backend, ("auto", *BACKENDS)),
        ):
            InputError.unless(
                value in known,
                saw=f"{name}={value!r}",
                expected=f"one of {', '.join(known)}",
                cure="use 'auto'",
            )
        self.model = model
        self._parts = ModelParts.of(model)
        device = self._parts.device
        self.backend, self.backend_reason = (
            choose_backend(device) if backend == "auto" else (cast("Backend", backend), "requested")
        )
        with _evaluation_mode(model):
            self.layout_choice = choose_layout(
                model, layout=cast("LayoutSetting", layout), backend=self.backend
            )
        if not self.layout_choice.expected:
            warnings.warn(
                f"{type(self._parts.model).__name__} is scored in the slower flat layout: "
                f"{self.layout_choice.reason}.",
                ScoringWarning,
                stacklevel=2,
            )
        if token_budget == "auto":
            shape, free = ModelShape.of(model), free_bytes(device)
            token_budget = scoring_budget(shape, free, on_cpu=device.type == "cpu")
        self.token_budget = int(token_budget)

    @staticmethod
    def load(
        name_or_path: str,
        *,
        dtype: str = "auto",
        device_map: Any = None,
        adapter: str | None = None,
        token_budget: int | Literal["auto"] = "auto",
        layout: str = "auto",
        backend: str = "auto",
    ) -> "Scorer":
        """Load a model and make its scorer.

        Args:
            name_or_path: Folder or Hub id of a causal LM.
            dtype: A torch dtype's name; "auto" takes float32 on a CPU, where half
                precision is slow, and the checkpoint's own elsewhere.
            device_map: As transformers takes it ("auto" spreads over all GPUs); None for
                the GPU if there is one.
            adapter: Folder or Hub id of a PEFT adapter to put on the model.
            token_budget: As for `Scorer`.
            layout: As for `Scorer`.
            backend: As for `Scorer`.

        Returns:
            The scorer.

        Raises:
            ModelError: If the model or the adapter cannot be loaded.
            MissingDependencyError: If an adapter is named and peft is not installed.
        """
        return Scorer(
            load_model(name_or_path, dtype=dtype, device_map=device_map, adapter=adapter),
            token_budget=token_budget,
            layout=layout,
            backend=backend,
        )

    @property
    def layout(self) -> str:
        """The layout in use."""
        return self.layout_choice.layout

    def score(
        self,
        trees: Sequence[TokenTree],
        *,
        statistics: Sequence[str] = (),
        with_adapter: bool = True,
        show_progress: bool | None = None,
    ) -> list[TreeLogProbs]:
        """Score every response of every tree.

        If memory runs out, the token budget is halved, with a log line, and what is left
        is tried again.

        Args:
            trees: Prompts with their responses, as tokens.
            statistics: Of "entropy" and "log_sum_squares", those wanted; they cost time.
            with_adapter: False scores the model beneath its PEFT adapters: the usual
                reference of a policy that is trained by adapters.
            show_progress: None shows a bar on a terminal only.

        Returns:
            One result a tree, in the order of the trees, on the CPU.

        Raises:
            InputError: If a prompt or response is empty, a token or length is beyond the
                model, a statistic is unknown, or there is no adapter to leave out.
            ModelError: If not even a single response fits into memory, or a log-prob is NaN.
        """
        gathered = Gathered(trees, statistics)
        check_fits(trees, self._parts)
        InputError.unless(
            with_adapter or hasattr(self.model, "disable_adapter"),
            saw="with_adapter=False for a model without PEFT adapters",
            expected="a PeftModel",
            cure="leave with_adapter out",
        )
        leaves = leaves_of(trees)
        with (
            _evaluation_mode(self.model),
            nullcontext() if with_adapter else self.model.disable_adapter(),
            torch.no_grad(),
            progress("scoring", len(leaves), enabled=show_progress) as tick,
        ):
            while leaves:
                for planned in plan_passes(
                    self._parts.body.config,
                    leaves,
                    layout=self.layout_choice.layout,
                    token_budget=self.token_budget,
                ):
                    try:
                        scored = score_pass(
                            self._parts, planned, backend=self.backend, statistics=gathered.names
                        )
                    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                        self._halve_budget(error, planned)
                        break
                    # A token that the model forbids has a log-prob of -inf: a number like others.
                    check_numbers(
                        scored.log_probs.detach().clamp_min(torch.finfo(torch.float32).min),
                        self.model,
                        what="log-probs of response tokens",
                    )
                    # Results wait on the CPU, so that a GPU holds one pass at a time.
                    gathered.add(planned.leaves, scored, cpu=True)
                    tick(len(planned.leaves))
                leaves = [leaf for leaf in leaves if not gathered.has(leaf)]
        return gathered.trees()

    def _halve_budget(self, error: Exception, planned: Batch) -> None:
        if not is_out_of_memory(error):
            raise error
        tokens = planned.input_ids.numel()
        if len(planned.leaves) == 1:
            raise ModelError.of(
                saw=f"memory ran out on a single text of {tokens} tokens",
                expected="room for one forward pass",
                cure="shorten prompts or responses, load in bfloat16, or use a larger device",
            ) from error
        self.token_budget = max(1, min(self.token_budget, tokens) // 2)
        _log.warning(
            "memory ran out on %d tokens; token budget is now %d", tokens, self.token_budget
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# Without dropout while the block runs: a log-prob is a property of the weights.
def _evaluation_mode(model: Any) -> AbstractContextManager[None]:
    # Not `model.train(before)`: modules may be in different modes, such as a frozen part.
    return replaced({module: {"training": False} for module in model.modules()})


def load_model(
    name_or_path: str, *, dtype: str = "auto", device_map: Any = None, adapter: str | None = None
) -> Any:
    """Load a causal LM in evaluation mode, with its adapter on if it is an adapter's folder.

    Args:
        name_or_path: Folder or Hub id of a model, or of a PEFT adapter, whose base it names.
        dtype: A torch dtype's name; "auto" takes float32 on a CPU and the checkpoint's dtype
            elsewhere.
        device_map: As transformers takes it; None for the GPU if there is one.
        adapter: Folder or Hub id of a PEFT adapter to put on the model.

    Returns:
        The model.

    Raises:
        InputError: If torch knows no such dtype.
        ModelError: If the model or the adapter cannot be loaded, or a weight of them is missing,
            unexpected, of another shape or not finite.
        MissingDependencyError: If an adapter is named and peft is not installed.
    """
    device = device_map or ("cuda" if torch.cuda.is_available() else "cpu")
    # Half precision has no fast matrix product on most CPUs.
    loaded: Any = getattr(torch, dtype, None)
    if dtype == "auto":
        loaded = torch.float32 if device == "cpu" else "auto"
    elif not isinstance(loaded, torch.dtype):
        raise InputError.of(
            saw=f"dtype={dtype!r}",
            expected="auto, float32, bfloat16 or float16",
            cure="use auto",
        )
    return load_checkpoint(
        str(name_or_path), CAUSAL_LM, dtype=loaded, device_map=device, adapter=adapter
    )


# --- Self-check: which layout a model can take, tried before it is trusted -----------------------


@dataclass(frozen=True)
class LayoutChoice:
    """Which layout a model takes, and why.

    Attributes:
        layout: "tree" or "flat".
        reason: In words.
        difference_nats: Largest difference of a token's log-prob from the model's own
            forward pass on the trial batch; NaN if the tree could not be tried.
        expected: False if a model that should take the tree failed the trial.
    """

    layout: Layout
    reason: str
    difference_nats: float = math.nan
    expected: bool = True


def choose_layout(
    model: Any,
    *,
    layout: LayoutSetting = "auto",
    backend: Backend | None = None,
) -> LayoutChoice:
    """Try a model's layout and its fused layers against its own forward pass on one small batch.

    Args:
        model: A transformers causal LM in evaluation mode, bare or with PEFT adapters.
        layout: "auto" takes the tree where it is exact; the others are tried as requested.
        backend: Implementation of tree attention; None chooses by device.

    Returns:
        The layout to use.

    Raises:
        ModelError: If the layout requested is not exact, or if not even the flat one is.
    """
    parts = ModelParts.of(model)
    find_fused_layers(parts.body)
    row, allowed = build_row(_trial_leaves(parts)), _tolerance(parts)
    with torch.no_grad():
        expected = _plain_log_probs(parts, row.leaves)
        choice = LayoutChoice("flat", "requested")
        if layout != "flat":
            attention = RowAttention(row, backend or choose_backend(parts.device)[0])
            choice = _try_tree(parts, attention, expected)
            if choice.layout == "tree":
                return choice
            ModelError.unless(
                layout == "auto",
                saw=f"layout='tree' for {type(parts.model).__name__}: {choice.reason}",
                expected="a model whose layers mix tokens by attention alone",
                cure="use layout='auto' or layout='flat'",
            )
        difference = _difference(score_pass(parts, build_batch(row.leaves)).log_probs, expected)
    ModelError.unless(
        difference <= allowed,
        saw=f"{type(parts.model).__name__}: log-probs differ by up to {difference:.2g} nats from "
        "those of its own forward pass",
        expected=f"at most {allowed:g}",
        cure="report the architecture; its head does more than a linear map, a scale and a cap",
    )
    return choice


def _try_tree(parts: ModelParts, attention: RowAttention, expected: Tensor) -> LayoutChoice:
    kinds = set(getattr(parts.body.config, "layer_types", None) or ()) - _TREE_LAYERS
    if kinds:
        return LayoutChoice("flat", f"it has layers of type {', '.join(sorted(kinds))}")
    try:
        computed = score_pass(parts, attention.row, attention=attention).log_probs
    except ModelError as error:
        return LayoutChoice("flat", str(error))
    except TypeError as error:  # a model of its own code that takes no further arguments
        return LayoutChoice(
            "flat", f"its layers do not pass on what tree attention needs ({error})"
        )
    unlike = _unlike_config(parts.body.config, attention.windows)
    if unlike is not None:
        return LayoutChoice("flat", unlike)
    difference, allowed = _difference(computed, expected), _tolerance(parts)
    if difference > allowed:
        reason = f"a token's log-prob differs by {difference:.2g} nats (allowed: {allowed:g})"
        return LayoutChoice("flat", reason, difference, expected=False)
    return LayoutChoice(
        "tree", f"equal to its own forward pass within {difference:.1g} nats", difference
    )


# What the layers did otherwise than the configuration says; None if nothing. The trial texts are
# shorter than real windows, so a layer that did not pass its window on would look right.
def _unlike_config(config: Any, windows: Mapping[int, int | None]) -> str | None:
    if len(windows) != config.num_hidden_layers:
        return f"only {len(windows)} of {config.num_hidden_layers} layers use attention"
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    for layer, asked in windows.items():
        if asked != (window if not types or types[layer] == "sliding_attention" else None):
            return f"layer {layer} asks for a window of {asked}, its configuration for {window}"
    return None


def _trial_leaves(parts: ModelParts) -> list[Leaf]:
    vocabulary, rng = len(parts.projection.weight), random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(count))

    shared = ids(SHARED_TOKENS)
    prompts = {shared + ids(PROMPT_TOKENS): [ids(n) for n in RESPONSE_TOKENS] for _ in range(2)}
    return [
        Leaf(tree, number, prompt, response)
        for tree, (prompt, responses) in enumerate(prompts.items())
        for number, response in enumerate(responses)
    ]


# By the whole model's own forward pass, one sequence at a time. [targets].
def _plain_log_probs(parts: ModelParts, leaves: Sequence[Leaf]) -> Tensor:
    log_probs = []
    for leaf in leaves:
        ids = torch.tensor([leaf.prompt_ids + leaf.response_ids], device=parts.device)
        logits = parts.model(input_ids=ids, use_cache=False).logits[0, len(leaf.prompt_ids) - 1 :]
        targets = torch.tensor(leaf.response_ids, device=logits.device)[:, None]
        log_probs.append(logits[:-1].float().log_softmax(-1).gather(-1, targets)[:, 0])
    return torch.cat(log_probs)


def _difference(computed: Tensor, expected: Tensor) -> float:
    return float((computed.to(expected.device) - expected).abs().nan_to_num(torch.inf).max())


# Nats.
def _tolerance(parts: ModelParts) -> float:
    # Half precision rounds logits themselves to a tenth of a nat or so; a GPU's products are
    # rounded to ten bits of mantissa where TF32 is on.
    if parts.projection.weight.dtype in (torch.float16, torch.bfloat16):
        return 0.5
    return 1e-4 if parts.device.type == "cpu" else 1e-2
