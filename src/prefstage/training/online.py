"""Chosen-fixed online training: rejected responses sampled afresh from the current policy."""

import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from accelerate.utils import gather_object
from pydantic import BaseModel
from typing_extensions import override

from prefstage.core import InputError, ModelError, digest, seed_for, write_json
from prefstage.data.tokenising import TokenTree
from prefstage.sampling.decoding import Row, generate_rows
from prefstage.sampling.transformers_sampler import DEFAULT_BATCH_TOKENS, plan_batches
from prefstage.scoring import Scorer
from prefstage.training.batches import Flat, StepItems, StepSampler
from prefstage.training.compat import unwrapped_forward
from prefstage.training.dynamics.distance import StartWeights
from prefstage.training.items import ItemSet, TrainingItem
from prefstage.training.policy import ADAPTER_OFF, START, undisturbed
from prefstage.training.recipe import OnlineSettings
from prefstage.training.trainer import PreferenceTrainer

_log = logging.getLogger(__name__)

# Counted: fresh responses taken, those of them without an end, samples without an answer (empty,
# or cut in the thought) or with the chosen answer itself, and pairs that kept their own rejected
# response after all attempts.
OUTCOMES = ("fresh", "cut", "empty", "identical", "kept")


class FreshResponse(NamedTuple):
    """A sampled rejected response, as tokens.

    Attributes:
        ids: Its tokens, end-of-turn included unless it was cut.
        reference: Reference log-prob of each, nats; empty if no reference is needed.
    """

    ids: tuple[int, ...]
    reference: tuple[float, ...] = ()


class FreshBlock(BaseModel, frozen=True):
    """The fresh responses of the steps of one interval.

    Attributes:
        step: Optimiser steps done when they were sampled.
        responses: By position in the set; positions that are missing keep their own.
        counts: How many there were of each of `OUTCOMES`.
    """

    step: int
    responses: Mapping[int, FreshResponse]
    counts: Mapping[str, int]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what was written of a block.

        Args:
            path: The file.

        Returns:
            The block, equal to the bit.

        Raises:
            InputError: If the file is not one of ours.
        """
        with InputError.instead_of(
            ValueError,
            saw=f"{path}, which holds no fresh responses ({{error}})",
            expected="a file written by online training",
            cure="delete it; its responses are sampled again",
        ):
            return cls.model_validate_json(path.read_text(encoding="utf-8"))


class OnlinePreferenceTrainer(PreferenceTrainer):
    """A `PreferenceTrainer` whose rejected responses are the current policy's own.

    Every `interval` optimiser steps the pairs of the next `interval` steps get a rejected
    response sampled from the policy as it is then; the chosen responses stay as they are.
    What was sampled is on disk before it is used, under ``online`` in the output folder, so
    that a resumed run trains on the same responses. Each response has random numbers of its
    own, from the seed, the step and the pair.

    A sample without an answer (empty, or cut in its thought), or with the answer of the chosen
    response, teaches nothing: it is counted and sampled again, `attempts` times in all; then
    the pair keeps its rejected response of the data set (counted as well). What is trained on
    is the tokens that the policy generated, its thought included.

    Reference log-probs of fresh responses come from the same model: with its adapter
    switched off, or with the weights of the start, kept on disk, in its place for a moment.

    Args:
        model: As for `PreferenceTrainer`.
        args: As for `PreferenceTrainer`.
        online: Interval and sampling.
        others: As for `PreferenceTrainer`; the training data are pairs.

    Raises:
        InputError: If the training data are no pairs.
        ModelError: If the weights are spread over processes (FSDP, DeepSpeed).

    Source:
        Pan et al. 2025, arXiv:2508.18312, Section 4.2.
    """

    def __init__(
        self, model: Any, args: Any = None, *, online: OnlineSettings | None = None, **others: Any
    ) -> None:
        self.online = online or OnlineSettings()
        self._block: FreshBlock | None = None
        super().__init__(model, args, **others)
        InputError.unless(
            getattr(self.train_dataset, "kind", None) == "pairs",
            saw="online training without pairs",
            expected="pairs, whose chosen responses stay, and a loss on pairs",
            cure="give pairs as train_dataset, or choose a loss on pairs such as sigmoid",
        )
        InputError.unless(
            not self.args.sync_ref_model,
            saw="online training with sync_ref_model",
            expected="a reference that stays, whose log-probs of fresh responses are the start's",
            cure="remove sync_ref_model, or train on the pairs as they are",
        )
        ModelError.unless(
            not (self.is_fsdp_enabled or self.is_deepspeed_enabled),
            saw="online training with weights spread over processes",
            expected="whole weights on every process, which sample",
            cure="use DDP, or LoRA on one device",
        )

    @override
    def run_settings(self) -> dict[str, Any]:
        return super().run_settings() | {"online": self.online.model_dump(mode="json")}

    # As the base class, after keeping the weights of the start where they are needed.
    @override
    def train(self, resume_from_checkpoint: Any = None, *args: Any, **others: Any) -> Any:
        # By the settings of the run, so that responses of other settings are never read.
        self._folder = Path(self.args.output_dir) / "online" / digest(self.run_settings())
        self._start = StartWeights(self._folder / "start_weights")
        if self._swaps and self.args.should_save and not self._start.exist():
            self._start.save(self.model)
        self.accelerator.wait_for_everyone()
        return super().train(resume_from_checkpoint, *args, **others)

    # Whether the reference is the start, whose weights are trained themselves.
    @property
    def _swaps(self) -> bool:
        return (
            self.references.needed and self.references.reference == START and not self.fresh_adapter
        )

    @override
    def step_items(
        self, item_set: ItemSet, positions: Sequence[int], known: list[Flat] | None, *, step: int
    ) -> StepItems:
        items = super().step_items(item_set, positions, known, step=step)
        if step < 0 or item_set is not self.train_dataset:
            return items
        return _with_fresh(items, positions, self._block_of(step).responses)

    # From disk where they are: a resumed run must train on the tokens that were sampled before.
    def _block_of(self, step: int) -> FreshBlock:
        first = step - step % self.online.interval
        if self._block is None or self._block.step != first:
            path = self._folder / f"responses-{first:08d}.json"
            if not path.exists():
                self._sample_block(first, path)
            # Read from disk even by the process that wrote: what is trained on is what a resumed
            # run would read.
            self.accelerator.wait_for_everyone()
            self._block = FreshBlock.load(path)
            _log.info("rejected responses sampled at step %d: %s", first, self._block.counts)
        return self._block

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._block is not None:
            logs |= {f"online/{name}": count for name, count in self._block.counts.items()}
        super().log(logs, start_time)

    def online_counts(self) -> dict[str, int]:
        """Count what was sampled so far in this run; see `OUTCOMES`.

        Returns:
            Counts over all intervals up to the present step.
        """
        past = [
            block.counts
            for block in map(FreshBlock.load, self._folder.glob("responses-*.json"))
            if block.step < self.state.global_step
        ]
        return {name: sum(counts[name] for counts in past) for name in OUTCOMES}

    # --- Sampling -------------------------------------------------------------------------

    def _sample_block(self, first: int, path: Path) -> None:
        sampler = cast("StepSampler", self.get_train_dataloader().batch_sampler)
        # Those beyond the last step too: a run that is prolonged has them sampled in time.
        steps = (sampler.items_of(first + turn) for turn in range(self.online.interval))
        positions = list(dict.fromkeys(chain.from_iterable(steps)))
        share = positions[self.accelerator.process_index :: self.accelerator.num_processes]
        counts = Counter(dict.fromkeys(OUTCOMES, 0))
        with undisturbed(self.model), unwrapped_forward(self.model):
            self.model.eval()
            made = self._with_references(self._sample(share, first, counts))
        counts["kept"] = len(share) - len(made)
        parts = gather_object([(made, counts)])
        if self.args.should_save:
            block = FreshBlock(
                step=first,
                responses=dict(sorted(pair for made, _ in parts for pair in made.items())),
                counts={name: sum(counted[name] for _, counted in parts) for name in OUTCOMES},
            )
            write_json(path, block.model_dump())

    def _tree(self, position: int) -> TokenTree:
        return cast("TokenTree", self.train_dataset[position].trees[0])

    # What teaches nothing is drawn again, with other random numbers, a few times.
    def _sample(
        self, positions: Sequence[int], first: int, counts: Counter[str]
    ) -> dict[int, tuple[int, ...]]:
        fresh = dict[int, tuple[int, ...]]()
        for attempt in range(self.online.attempts):
            for position, ids, stopped in self._generate(
                [position for position in positions if position not in fresh], first, attempt
            ):
                outcome = self._outcome(position, ids)
                counts[outcome] += 1
                if outcome == "fresh":
                    fresh[position] = ids
                    counts["cut"] += not stopped
        return {position: fresh[position] for position in positions if position in fresh}

    def _outcome(self, position: int, ids: tuple[int, ...]) -> str:
        tree = self._tree(position)
        answer = self.encoder.read(
            ids[len(tree.opening_ids) :], [*tree.prompt_ids, *tree.opening_ids]
        ).answer.strip()
        if not answer:
            return "empty"
        chosen = tree.response_ids[0]
        same = ids == chosen or answer == self.encoder.read(chosen, tree.prompt_ids).answer.strip()
        return "identical" if same else "fresh"

    def _generate(
        self, positions: Sequence[int], first: int, attempt: int
    ) -> Iterator[tuple[int, tuple[int, ...], bool]]:
        sampling, trees = self.online.sampling, [self._tree(position) for position in positions]
        prompts = [tree.prompt_ids + tree.opening_ids for tree in trees]
        context = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        longest = min(sampling.max_new_tokens, self.args.max_response_tokens or math.inf)
        rooms = [int(min(longest, max(1, context - len(ids)))) for ids in prompts]
        ends = {self.encoder.end_of_turn_ids[-1], self.encoder.tokenizer.eos_token_id} - {None}
        for batch in plan_batches(
            [len(ids) for ids in prompts],
            new_tokens=max(rooms, default=1),
            token_budget=DEFAULT_BATCH_TOKENS // sampling.beams,
        ):
            # A seed of its own for every response: neither batch nor processes change it.
            rows = [
                Row(
                    prompt=turn,
                    seed=seed_for(
                        *(sampling.seed, "online", self.args.seed, first, positions[row], attempt)
                    ),
                    max_new_tokens=rooms[row],
                )
                for turn, row in enumerate(batch)
            ]
            for made, ids in generate_rows(
                self.model,
                [prompts[row] for row in batch],
                rows,
                config=sampling,
                stop_ids=frozenset(ends),
            ):
                row = batch[made]
                yield positions[row], trees[row].opening_ids + ids, ids[-1] in ends

    # --- The reference --------------------------------------------------------------------

    # Fresh responses by position in the set, with reference log-probs if any are needed.
    def _with_references(self, sampled: Mapping[int, tuple[int, ...]]) -> dict[int, FreshResponse]:
        if not self.references.needed or not sampled:
            return {row: FreshResponse(ids) for row, ids in sampled.items()}
        usual = self.references.scorer(self.runner.scorer, self.accelerator.device)
        with self._at_start() if self._swaps else usual as scorer:
            scored = scorer.score(
                [replace(self._tree(row), response_ids=(ids,)) for row, ids in sampled.items()],
                with_adapter=not (self.references.reference == ADAPTER_OFF or self.fresh_adapter),
                show_progress=False,
            )
        return {
            row: FreshResponse(ids, tuple(tree.per_token[0].tolist()))
            for (row, ids), tree in zip(sampled.items(), scored, strict=True)
        }

    # The start's weights stand in the model meanwhile: a second model would not fit where the
    # first one just does. The present ones wait on disk, to the bit.
    @contextmanager
    def _at_start(self) -> Iterator[Scorer]:
        present = StartWeights(self._folder / f"present_weights_{self.accelerator.process_index}")
        present.save(self.model)
        self._start.load_into(self.model)
        try:
            yield self.runner.scorer
        finally:
            present.load_into(self.model)
            shutil.rmtree(present.folder, ignore_errors=True)


# The pairs of a step as in the data set, with fresh rejected responses where there are any.
def _with_fresh(
    items: StepItems, positions: Sequence[int], fresh: Mapping[int, FreshResponse]
) -> StepItems:
    made, reference = list[TrainingItem](), list[torch.Tensor]()
    for item, position, spans in zip(items.items, positions, items.spans, strict=True):
        response = fresh.get(position)
        known = [] if items.reference is None else [items.reference[span] for span in spans]
        if response is not None:
            # Scores and preferences were of the response that is gone.
            item = replace(  # noqa: PLW2901 - a changed copy
                item.with_responses(item.trees[0].response_ids[0], response.ids),
                scores=None,
                preference=None,
            )
            known = [*known[:1], *(torch.tensor(response.reference).to(k) for k in known[:1])]
        made.append(item)
        reference += known
    return replace(items, items=tuple(made), reference=torch.cat(reference) if reference else None)
