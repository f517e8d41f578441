"""Chosen-fixed online training: who is rejected, from which policy, and what survives a stop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig

from prefstage.core.errors import InputError
from prefstage.data import TokenTree
from prefstage.scoring import Scorer
from prefstage.training import online
from prefstage.training.items import ItemSet, TrainingItem
from prefstage.training.online import FreshBlock, OnlinePreferenceTrainer
from prefstage.training.recipe import OnlineSettings
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import arguments, tiny_pairs, tiny_policy, weights_of

ONLINE = OnlineSettings.model_validate({"interval": 2, "sampling": {"max_new_tokens": 8}})


def online_trainer(folder: Path, *, online: OnlineSettings = ONLINE, **given: Any) -> Any:
    tokenizer = tiny_tokenizer("chatml")
    others = {name: given.pop(name) for name in ("peft_config", "callbacks") if name in given}
    pairs = given.pop("pairs", None)
    return OnlinePreferenceTrainer(
        tiny_policy(tokenizer),
        arguments(folder, **given),
        online=online,
        train_dataset=tiny_pairs(21) if pairs is None else pairs,
        processing_class=tokenizer,
        **others,
    )


def blocks_of(folder: Path) -> list[FreshBlock]:
    return [FreshBlock.load(path) for path in sorted(folder.glob("online/*/responses-*.json"))]


class Watch:
    """Takes down the items of each step and the weights before it."""

    def __init__(self, trainer: Any) -> None:
        self.items: list[Any] = []
        self.weights: list[dict[str, Any]] = []
        train = trainer.runner.train

        def watched(model: Any, items: Any, state: Any) -> Any:
            self.items.append(items)
            self.weights.append(weights_of(trainer.model))
            return train(model, items, state)

        trainer.runner.train = watched


def test_rejected_responses_are_the_present_policys(tmp_path: Path) -> None:
    trainer = online_trainer(tmp_path)
    watch = Watch(trainer)
    trainer.train()
    blocks = blocks_of(tmp_path)
    assert [block.step for block in blocks] == [0, 2, 4]
    places = next(iter(trainer.get_train_dataloader().batch_sampler))
    for place, item in zip(places, watch.items[0].items, strict=True):
        own, (chosen, rejected) = trainer.train_dataset[place], item.trees[0].response_ids
        assert chosen == own.trees[0].response_ids[0]
        assert rejected == blocks[0].responses[place].ids
        assert rejected != own.trees[0].response_ids[1]
    first, later = (
        {place: each.ids for place, each in block.responses.items()} for block in blocks[:2]
    )
    assert first != later
    assert trainer.online_counts()["fresh"] == sum(len(block.responses) for block in blocks)
    assert "online/fresh" in trainer.state.log_history[0]


def test_beams_share_the_tokens_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "DEFAULT_BATCH_TOKENS", 200)
    generate, batches = online.generate_rows, dict[int, list[int]]()

    def watched(model: Any, prompts: Any, rows: Any, *, config: Any, stop_ids: Any) -> Any:
        longest = max(len(prompt) for prompt in prompts) + max(row.max_new_tokens for row in rows)
        batches.setdefault(config.beams, []).append(config.beams * len(rows) * longest)
        return generate(model, prompts, rows, config=config, stop_ids=stop_ids)

    monkeypatch.setattr(online, "generate_rows", watched)
    for beams in (1, 3):
        sampling = {"max_new_tokens": 8, "beams": beams}
        settings = OnlineSettings.model_validate({"interval": 1, "sampling": sampling})
        online_trainer(tmp_path / str(beams), online=settings, max_steps=1).train()
    assert max(batches[1]) <= 200
    assert max(batches[3]) <= 200
    assert len(batches[3]) > len(batches[1])


@pytest.mark.parametrize("lora", [False, True])
def test_fresh_reference_log_probs_are_the_starts(tmp_path: Path, lora: bool) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    trainer = online_trainer(tmp_path, peft_config=config)
    watch = Watch(trainer)
    trainer.train()
    assert not list(tmp_path.glob("online/*/present_weights*"))
    start = Scorer(tiny_policy(tiny_tokenizer("chatml")))
    for items in (watch.items[0], watch.items[4]):
        scored = start.score(items.trees)
        expected = torch.cat([tokens for each in scored for tokens in each.per_token])
        assert torch.allclose(items.reference, expected, atol=1e-5)


def test_sampling_leaves_the_weights_as_they_are(tmp_path: Path) -> None:
    trainer = online_trainer(tmp_path, max_steps=3)
    after = {}
    sample = trainer._sample_block

    def compared(first: int, path: Path) -> None:
        before = weights_of(trainer.model)
        state = torch.get_rng_state()
        sample(first, path)
        after[first] = all(
            torch.equal(value, before[name]) for name, value in weights_of(trainer.model).items()
        ) and torch.equal(state, torch.get_rng_state())

    trainer._sample_block = compared
    trainer.train()
    assert after == {0: True, 2: True}


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole = online_trainer(tmp_path / "whole", max_steps=6)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 1}
    online_trainer(tmp_path / "parts", max_steps=stop, **saving).train()
    texts = {path: path.read_text() for path in (tmp_path / "parts").glob("online/*/resp*")}
    parts = online_trainer(tmp_path / "parts", max_steps=6, **saving)
    parts.train(resume_from_checkpoint=True)
    left, right = weights_of(whole.model), weights_of(parts.model)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert {path: path.read_text() for path in texts} == texts
    assert len(blocks_of(tmp_path / "parts")) == len(blocks_of(tmp_path / "whole"))


def test_empty_and_identical_samples_are_counted_and_the_pair_keeps_its_own(tmp_path: Path) -> None:
    every_step = ONLINE.model_copy(update={"interval": 1})
    trainer = online_trainer(tmp_path, online=every_step, max_steps=1)
    chosen = {n: trainer.train_dataset[n].trees[0].response_ids[0] for n in range(21)}
    end = trainer.encoder.end_of_turn_ids

    def samples(places: Any, first: int, attempt: int) -> Any:
        for place in places:
            if place % 3 == 0:
                yield place, end, True
            elif place % 3 == 1:
                yield place, chosen[place] if attempt == 0 else (7, 8), attempt == 0
            else:
                yield place, (5, 6, *end), True

    trainer._generate = samples
    watch = Watch(trainer)
    trainer.train()
    (block,) = blocks_of(tmp_path)
    places = next(iter(trainer.get_train_dataloader().batch_sampler))
    kinds = [place % 3 for place in places]
    assert block.counts == {
        "fresh": kinds.count(1) + kinds.count(2),
        "cut": kinds.count(1),
        "empty": 2 * kinds.count(0),
        "identical": kinds.count(1),
        "kept": kinds.count(0),
    }
    for place, item in zip(places, watch.items[0].items, strict=True):
        own = trainer.train_dataset[place].trees[0].response_ids[1]
        expected = {0: own, 1: (7, 8), 2: (5, 6, *end)}[place % 3]
        assert item.trees[0].response_ids == (chosen[place], expected)


def test_responses_of_other_settings_are_not_read(tmp_path: Path) -> None:
    online_trainer(tmp_path, max_steps=1).train()
    online_trainer(tmp_path, max_steps=1, seed=4).train()
    assert len(list(tmp_path.glob("online/*/responses-*.json"))) == 2


def test_a_damaged_file_of_responses_is_told(tmp_path: Path) -> None:
    online_trainer(tmp_path, max_steps=1).train()
    (path,) = tmp_path.glob("online/*/responses-*.json")
    path.write_text(json.dumps({"step": 0}))
    with pytest.raises(InputError, match="delete it"):
        online_trainer(tmp_path, max_steps=1).train()


def test_online_training_takes_pairs_alone(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tree = TokenTree("p", (5, 6), ((7, 8),))
    items = ItemSet("responses", (TrainingItem(0, (tree,)),), {}, "x")
    with pytest.raises(InputError, match="pairs, whose chosen responses stay"):
        OnlinePreferenceTrainer(
            tiny_policy(tokenizer),
            arguments(tmp_path, loss="sft"),
            train_dataset=items,
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(("template", "answers"), [("qwen3_5_think", False), ("qwen3", True)])
def test_a_sample_that_was_cut_in_its_thought_is_empty(
    tmp_path: Path, template: str, answers: bool
) -> None:
    tokenizer = tiny_tokenizer("chatml")
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / f"{template}.jinja").read_text(encoding="utf-8")
    trainer = OnlinePreferenceTrainer(
        tiny_policy(tokenizer),
        arguments(tmp_path),
        online=ONLINE.model_copy(update={"attempts": 1}),
        train_dataset=tiny_pairs(21),
        processing_class=tokenizer,
    )
    trainer.train()
    counts = trainer.online_counts()
    assert counts["fresh"] + counts["empty"] + counts["identical"] > 0
    if answers:
        assert counts["fresh"] > 0
    else:  # the prompt opens a thought, which so few random tokens do not close
        assert (counts["fresh"], counts["kept"]) == (0, counts["empty"])


def test_a_moving_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="online training with sync_ref_model"):
        online_trainer(tmp_path, sync_ref_model=True)
