"""The plan of an optimiser step: which process computes which items in which micro-batch."""

import math
from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace
from itertools import pairwise

from prefstage.scoring.rows import common_prefix

MicroBatch = tuple[int, ...]
"""Positions of the items that are computed together."""

Plan = tuple[tuple[MicroBatch, ...], ...]
"""For each process its micro-batches, the same number for all."""


def plan_step(
    sizes: Sequence[int],
    token_budget: int,
    processes: int,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Divide the items of a step into micro-batches under a token budget.

    Every item stands in exactly one micro-batch. All processes get the same number of
    micro-batches, as few as found, of about equal tokens; with fewer items than
    micro-batches some are empty. An item that is larger than the budget stands alone.
    Items whose prompts begin alike are cheaper together, and are put together where that
    pays. The plan depends on the arguments alone, so every process makes the same.

    Args:
        sizes: Tokens of each item when computed alone. [items], >= 1.
        token_budget: Tokens a micro-batch, >= 1.
        processes: Processes that share the step, >= 1.
        prompts: Tokens that each item begins with, where a micro-batch computes equal
            beginnings once; None where it does not. [items].

    Returns:
        Micro-batches of each process.
    """
    if not sizes:
        return tuple(((),) for _ in range(processes))
    costs = _Costs(sizes, prompts)
    small = [item for item, size in enumerate(sizes) if size <= token_budget]
    least = len(sizes) - len(small) + math.ceil(costs.of(small) / token_budget)
    count = max(1, math.ceil(least / processes))
    while True:
        bins = processes * count
        options = [_balanced(sizes, bins), costs.runs(bins)]
        fitting = [each for each in options if costs.fits(each, token_budget)]
        if fitting or bins >= len(sizes):
            best = min(fitting or options[:1], key=lambda each: max(map(costs.of, each)))
            return _dealt(best, costs.of, processes)
        count += 1


class _Costs:
    """Tokens of micro-batches, with common beginnings counted once.

    In the order of prompts, two items share the least that any neighbours between them do.
    """

    def __init__(self, sizes: Sequence[int], prompts: Sequence[Sequence[int]] | None) -> None:
        self._sizes = sizes
        self._shared: list[int] | None = None
        self._order = list(range(len(sizes)))
        if prompts is not None:
            texts = [tuple(prompt) for prompt in prompts]
            self._order.sort(key=lambda item: texts[item])
            ordered = [texts[item] for item in self._order]
            self._shared = [0, *(common_prefix(b, a) for a, b in pairwise(ordered))]
        self._rank = {item: rank for rank, item in enumerate(self._order)}

    def of(self, items: Sequence[int]) -> int:
        """Tokens of one micro-batch."""
        total = sum(self._sizes[item] for item in items)
        if self._shared is None:
            return total
        ranks = sorted(self._rank[item] for item in items)
        return total - sum(min(self._shared[a + 1 : b + 1]) for a, b in pairwise(ranks))

    def fits(self, bins: Sequence[Sequence[int]], budget: int) -> bool:
        """Whether no micro-batch of several items is larger than the budget."""
        return all(len(each) <= 1 or self.of(each) <= budget for each in bins)

    def runs(self, bins: int) -> list[list[int]]:
        """At most `bins` runs in the order of prompts, the largest as small as can be."""
        low, high = 1, sum(self._sizes)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self._cut(middle)) <= bins else (middle + 1, high)
        return self._cut(low)

    def _cut(self, capacity: int) -> list[list[int]]:
        runs, size = list[list[int]](), 0
        for rank, item in enumerate(self._order):
            added = self._sizes[item] - (self._shared[rank] if self._shared else 0)
            if not runs or size + added > capacity:
                runs.append([])
                size, added = 0, self._sizes[item]
            runs[-1].append(item)
            size += added
        return runs


def _balanced(sizes: Sequence[int], bins: int) -> list[list[int]]:
    """Each item, the largest first, into the bin with the fewest tokens so far.

    Source:
        Graham 1969, "Bounds on multiprocessing timing anomalies" (LPT rule).
    """
    found: list[list[int]] = [[] for _ in range(bins)]
    loads = [(0, place) for place in range(bins)]
    heapify(loads)
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, place = loads[0]
        found[place].append(item)
        heapreplace(loads, (load + sizes[item], place))
    return found


def _dealt(
    bins: Sequence[Sequence[int]], cost: Callable[[Sequence[int]], int], processes: int
) -> Plan:
    """Micro-batches for each process: those of like size run at the same time."""
    count = math.ceil(len(bins) / processes)
    ordered = sorted((tuple(sorted(each)) for each in bins), key=lambda each: (-cost(each), each))
    ordered += [()] * (count * processes - len(ordered))
    rounds = [ordered[start : start + processes] for start in range(0, len(ordered), processes)]
    # Every second round in reverse, so that no process always gets the largest.
    turned = [each[::-1] if index % 2 else each for index, each in enumerate(rounds)]
    return tuple(tuple(each[process] for each in turned) for process in range(processes))
