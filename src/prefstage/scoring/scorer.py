"""`Scorer`: log-probs of many responses, without gradient, in as few tokens as can be."""

import ctypes
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch

from prefstage.core.errors import InputError, ModelError
from prefstage.core.progress import progress
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import BACKENDS, Backend, choose_backend
from prefstage.scoring.budget import automatic_budget
from prefstage.scoring.checks import check_fits
from prefstage.scoring.engine import (
    Gathered,
    TreeLogProbs,
    check_statistics,
    plan_passes,
    score_pass,
)
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.padded import Batch
from prefstage.scoring.rows import Leaf, Row, check_trees, leaves_of
from prefstage.scoring.self_check import LayoutSetting, choose_layout

_log = logging.getLogger(__name__)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


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
        ModelError: If the model is no causal LM, or the layout asked for is not exact.
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
        self.backend_reason = why if backend == "auto" else "asked for"
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
        automatic = token_budget == "auto"
        self.token_budget = automatic_budget(self._parts) if automatic else int(token_budget)
        if self._parts.device.type == "cpu":
            _keep_freed_memory()

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
        from prefstage.scoring.loading import load_model

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
            One result a tree, in the order given, on the CPU.

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
                for one in self._plan(leaves):
                    try:
                        scored = score_pass(
                            self._parts, one, backend=self.backend, statistics=gathered.names
                        )
                    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                        self._halve_budget(error, one)
                        break
                    gathered.add(one.slots, scored.cpu())
                    tick(len(one.slots))
                leaves = [leaf for leaf in leaves if not gathered.has(leaf)]
        return gathered.trees()

    def _plan(self, leaves: Sequence[Leaf]) -> Sequence[Row | Batch]:
        layout = self.layout_choice.layout
        return plan_passes(self._parts, leaves, layout=layout, token_budget=self.token_budget)

    def _halve_budget(self, error: Exception, one: Row | Batch) -> None:
        if not is_out_of_memory(error):
            raise error
        tokens = one.input_ids.numel()
        if len(one.slots) == 1:
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


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that memory ran out (torch's CPU allocator has no type)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Without dropout while the block runs: a log-prob is a property of the weights."""
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


def _keep_freed_memory() -> None:
    """Teach glibc to keep freed activations instead of giving their pages back.

    Without it every layer faults its pages in anew, which takes up to a tenth of the time
    (mallopt(3): blocks up to 32 MiB come from the heap, and its free end stays, up to 2 GiB).
    Elsewhere than on glibc, or where the environment tunes malloc, this does nothing.
    """
    tuned = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & {*os.environ}
    if platform.libc_ver()[0] != "glibc" or tuned:
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


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
