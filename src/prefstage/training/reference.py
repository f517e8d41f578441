"""Reference log-probs: computed before training, by all processes, without a second model."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefstage.core.errors import ConfigError
from prefstage.data.tokenising import TokenTree
from prefstage.scoring import ReferenceCache, Scorer
from prefstage.training.batches import Flat, StepItems
from prefstage.training.items import ItemSet

_log = logging.getLogger(__name__)

START, ADAPTER_OFF, NONE = "start", "adapter-off", "none"


class References:
    """Reference log-probs of item sets.

    Args:
        reference: As in `PreferenceArguments`.
        needed: Whether the loss compares with a reference.
        folder: Where log-probs are kept between runs.
        accelerator: accelerate's, which knows the processes.

    Raises:
        ConfigError: If the loss needs a reference and there is none, or the other way round.
    """

    def __init__(self, reference: str, *, needed: bool, folder: Path, accelerator: Any) -> None:
        self.reference = reference
        self.needed = needed
        self._folder = folder
        self._accelerator = accelerator
        self._known: dict[str, list[Flat]] = {}
        if needed and reference == NONE:
            raise ConfigError.of(
                saw="reference='none' with a loss that compares with a reference",
                expected="reference='start', 'adapter-off' or a model",
                cure="set one of them, or choose a loss without reference, such as simpo",
            )
        if not needed and reference not in (START, NONE):
            raise ConfigError.of(
                saw=f"reference={reference!r} with a loss that uses no reference",
                expected="reference='none'",
                cure="remove the setting, or choose another loss",
            )

    def compute(self, sets: Sequence[ItemSet], scorer: Scorer, *, adapter_is_new: bool) -> None:
        """Make sure that the log-probs of item sets are known.

        Args:
            sets: The item sets.
            scorer: Of the policy as it is now.
            adapter_is_new: Whether the policy's adapter changes nothing yet; then the
                start is the model beneath, whose log-probs other runs can use too.
        """
        missing = [items for items in sets if items.fingerprint not in self._known]
        if not self.needed or not missing:
            return
        off = self.reference == ADAPTER_OFF or (self.reference == START and adapter_is_new)
        with self.scorer(scorer) as chosen:
            cache = ReferenceCache(self._folder, chosen, with_adapter=not off)
            for items in missing:
                self._known[items.fingerprint] = self._score(items, cache)
        _log.info(
            "reference log-probs (%s): %d responses from disk, %d computed",
            self.reference,
            cache.reused,
            cache.computed,
        )

    def of(self, item_set: ItemSet, positions: Sequence[int]) -> Flat | None:
        """Reference log-probs of some items of a set.

        Args:
            item_set: The set.
            positions: Which of its items.

        Returns:
            Of every response token of the items in turn; None if no reference is needed.

        Raises:
            ConfigError: If they were not computed before training.
        """
        if not self.needed:
            return None
        known = self._known.get(item_set.fingerprint)
        if known is None:
            raise ConfigError.of(
                saw="a dataset that was not there when training began",
                expected="reference log-probs from before the policy changed",
                cure="pass all evaluation sets to PreferenceTrainer",
            )
        return torch.cat([known[position] for position in positions])

    def _score(self, item_set: ItemSet, cache: ReferenceCache) -> list[Flat]:
        whole = StepItems(item_set.kind, item_set.items)
        accelerator = self._accelerator
        share = _share(whole.trees, accelerator.num_processes, accelerator.process_index)
        flat = torch.zeros(whole.tokens)
        scored = cache.score([whole.trees[tree] for tree in share])
        for tree, result in zip(share, scored, strict=True):
            for span, tokens in zip(whole.tree_spans[tree], result.per_token, strict=True):
                flat[span] = tokens
        # A sum gathers: every token stands at zero on all processes but one.
        together = accelerator.reduce(flat.to(accelerator.device), "sum").cpu()
        return [together[whole.span_of(position)] for position in range(len(item_set))]

    @contextmanager
    def scorer(self, policy: Scorer) -> Iterator[Scorer]:
        """The scorer of the reference, on the process's device while it is used.

        Args:
            policy: Of the policy.

        Yields:
            The policy's, or that of another model, which is freed afterwards.
        """
        device = self._accelerator.device
        if self.reference not in (START, ADAPTER_OFF):
            yield Scorer.load(self.reference, device_map=str(device))
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return
        model = policy.model
        before = next(model.parameters()).device
        if before == device:
            yield policy
            return
        # Under FSDP and DeepSpeed the model waits on the CPU until training shards it.
        model.to(device)
        try:
            yield Scorer(model)
        finally:
            model.to(before)


# A process's run of trees in the order of prompts, of about equal tokens.
def _share(trees: Sequence[TokenTree], processes: int, index: int) -> list[int]:
    # Runs, not every n-th tree: equal prompts stay together, and are computed once.
    order = sorted(range(len(trees)), key=lambda tree: trees[tree].prompt_ids)
    sizes = [len(trees[t].prompt_ids) + sum(map(len, trees[t].response_ids)) for t in order]
    total, done, share = sum(sizes), 0, []
    for tree, size in zip(order, sizes, strict=True):
        if (done + size / 2) * processes // max(total, 1) == index:
            share.append(tree)
        done += size
    return share
