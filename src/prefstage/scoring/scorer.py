"""`Scorer`: log-probs of many responses, without gradient, in as few tokens as can be."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch

from prefstage.core.errors import InputError, ModelError
from prefstage.core.progress import progress
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import BACKENDS, Backend, choose_backend
from prefstage.scoring.engine import (
    Gathered,
    LayoutSetting,
    TreeLogProbs,
    check_statistics,
    choose_layout,
    score_pass,
)
from prefstage.scoring.layout import Batch, Row, check_trees, leaves_of, plan_passes
from prefstage.scoring.memory import ModelShape, free_bytes, is_out_of_memory, scoring_budget
from prefstage.scoring.model import ModelParts, check_fits, load_model

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
        _check_settings(token_budget, layout, backend)
        self.model = model
        self._parts = ModelParts.of(model)
        chosen, why = choose_backend(self._parts.device)
        self.backend: Backend = chosen if backend == "auto" else cast("Backend", backend)
        self.backend_reason = why if backend == "auto" else "requested"
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
        device = self._parts.device
        if token_budget == "auto":
            shape, free = ModelShape.of(model), free_bytes(device)
            self.token_budget = scoring_budget(shape, free, on_cpu=device.type == "cpu")
        else:
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
        model = load_model(name_or_path, dtype=dtype, device_map=device_map, adapter=adapter)
        return Scorer(model, token_budget=token_budget, layout=layout, backend=backend)

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
            ModelError: If not even a single response fits into memory.
        """
        check_trees(trees)
        check_fits(trees, self._parts)
        gathered = Gathered(trees, check_statistics(statistics))
        leaves = leaves_of(trees)
        adapters = nullcontext() if with_adapter else _without_adapter(self.model)
        bar = progress("scoring", len(leaves), enabled=show_progress)
        with _evaluation_mode(self.model), adapters, torch.no_grad(), bar as tick:
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
                    # Results wait on the CPU, so that a GPU holds one pass at a time.
                    gathered.add(planned.slots, scored, cpu=True)
                    tick(len(planned.slots))
                leaves = [leaf for leaf in leaves if not gathered.has(leaf)]
        return gathered.trees()

    def _halve_budget(self, error: Exception, planned: Row | Batch) -> None:
        if not is_out_of_memory(error):
            raise error
        tokens = planned.input_ids.numel()
        if len(planned.slots) == 1:
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
@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    # Not `model.train(before)`: modules may be in different modes, such as a frozen part.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _without_adapter(model: Any) -> Any:
    if not hasattr(model, "disable_adapter"):
        raise InputError.of(
            saw="with_adapter=False for a model without PEFT adapters",
            expected="a PeftModel",
            cure="leave with_adapter out",
        )
    return model.disable_adapter()


def _check_settings(token_budget: Any, layout: str, backend: str) -> None:
    if token_budget != "auto" and (not isinstance(token_budget, int) or token_budget < 1):
        raise InputError.of(
            saw=f"token_budget={token_budget!r}",
            expected="a number of tokens, at least 1, or 'auto'",
            cure="use 'auto' unless memory runs out",
        )
    for name, value, known in (
        ("layout", layout, ("auto", "tree", "flat")),
        ("backend", backend, ("auto", *BACKENDS)),
    ):
        if value not in known:
            raise InputError.of(
                saw=f"{name}={value!r}", expected=f"one of {', '.join(known)}", cure="use 'auto'"
            )
