"""What the speed benchmarks share: the machine's matrix rate and memory, the floor, processes."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Setup:
    """Where model and data are, and what computes."""

    model: str
    shared: str
    device: str
    threads: int


def tell(text: str) -> None:
    """Say on standard error how far the run is."""
    print(text, file=sys.stderr, flush=True)


def floor_flops(model: Any, trees: Sequence[Any]) -> dict[str, float]:
    """Arithmetic that cannot be left out, by part."""
    from prefstage.scoring.layout import build_row, leaves_of

    config = model.config
    row = build_row(leaves_of(trees))
    seen = float((row.position_ids + 1).sum())
    width = config.num_attention_heads * config.head_dim
    body = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    head = config.vocab_size * config.hidden_size
    return {
        "body": 2.0 * body * len(row.input_ids),
        "vocabulary": 2.0 * head * len(row.target_ids),
        "attention": 4.0 * width * config.num_hidden_layers * seen,
        "tokens": len(row.input_ids),
        "targets": len(row.target_ids),
    }


def matrix_rate(model: Any, tokens: int) -> float:
    """Rate of the linear maps of the first layer that torch sustains for a second. FLOP/s."""
    import torch
    from torch import nn

    layer = model.model.layers[0]
    weights = [m.weight for m in layer.modules() if isinstance(m, nn.Linear)]
    inputs = [w.new_empty(tokens, w.shape[1]).normal_() for w in weights]
    flops = sum(2.0 * tokens * w.numel() for w in weights)
    times = list[float]()
    with torch.inference_mode():
        while len(times) < 6 or sum(times) < 1:
            start = time.perf_counter()
            for x, w in zip(inputs, weights, strict=True):
                nn.functional.linear(x, w)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return flops / statistics.median(times)


def memory_now(device: str) -> int:
    """Memory in use; the peak is counted from here on. Bytes."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status_bytes("VmRSS")


def memory_peak(device: str) -> int:
    """Highest memory since `memory_now`. Bytes."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A size from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def touched(model: Any) -> Any:
    """The model with every weight in memory: a checkpoint's pages come when first read."""
    for parameter in model.parameters():
        parameter.data.sum()
    return model


class Process:
    """A fresh process that holds a worker and answers one call after the other."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = get_context("spawn")
        self._end, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, make, arguments), daemon=True)
        self._process.start()
        far.close()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the worker, or the worker itself if it is a value."""
        self._end.send((name, arguments))
        return self._end.recv()

    def close(self) -> None:
        """End the process."""
        self._end.close()
        self._process.join()


def _serve(end: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    made = make(*arguments)
    while True:
        try:
            name, given = end.recv()
        except EOFError:
            return
        end.send(getattr(made, name)(*given) if name else made)


def fresh(make: Callable[..., Any], *arguments: Any, call: str = "", given: Any = ()) -> Any:
    """Make something in a fresh process, call it once, and return the answer of each."""
    process = Process(make, *arguments)
    try:
        answer = process.call(call, *given)
        return (answer, process.call("peak")) if call else answer
    finally:
        process.close()
