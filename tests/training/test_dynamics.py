import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from prefstage.training.dynamics.callback import DisplacementWarning, DynamicsCallback
from prefstage.training.dynamics.records import SCHEMA, read_dynamics, read_metrics
from tests.training.dynamics_runs import (
    PlainDPO,
    arguments,
    encoder,
    pairs,
    trees,
    weak_policy,
)


def train(folder: Path, *callbacks: DynamicsCallback, **changes: Any) -> PlainDPO:
    resume = changes.pop("resume_from_checkpoint", None)
    trainer = PlainDPO(weak_policy(), arguments(folder, **changes), trees(pairs()))
    for callback in callbacks:
        callback.attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def dynamics(folder: Path, **settings: Any) -> DynamicsCallback:
    given = {
        "train_pairs": pairs(),
        "eval_pairs": pairs(10, split="test"),
        "encoder": encoder(),
        "subsample": 16,
        "displacement_nats": 1e9,
    }
    return DynamicsCallback(folder, **{**given, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PlainDPO]:
    folder = tmp_path_factory.mktemp("run")
    return folder / "dynamics", train(folder, dynamics(folder / "dynamics"))


def test_every_pair_is_recorded_at_start_evaluations_and_end(run: tuple) -> None:
    folder, _ = run
    table = read_dynamics(folder)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert len(rows) == 3 * (15 + 10)  # one of the sixteen is a tie of the raters
    assert sorted({row["step"] for row in rows}) == [0, 4, 8]
    assert {(row["set"], row["pair"]) for row in rows if row["set"] == "eval"} == {
        ("eval", place) for place in range(10)
    }
    chosen = [row["pair"] for row in rows if row["set"] == "train" and row["step"] == 0]
    assert chosen == sorted(set(chosen))
    assert set(chosen) < set(range(40))
    for row in rows:
        assert (
            row["prompt_id"]
            == (pairs() if row["set"] == "train" else pairs(10, split="test"))[
                row["pair"]
            ].prompt_id
        )


def test_the_start_is_its_own_reference(run: tuple) -> None:
    folder, _ = run
    start = read_metrics(folder)[0]
    for prefix in ("dynamics", "eval_dynamics"):
        assert start[f"{prefix}/loss"] == pytest.approx(math.log(2), rel=1e-12)
        assert start[f"{prefix}/rewards/accuracies"] == 0.5
        assert start[f"{prefix}/rewards/margins"] == 0
        assert start[f"{prefix}/flips/correct_to_incorrect/share"] == 0
    assert start["dynamics/weight_distance"] == 0


def test_the_end_is_what_a_fresh_look_at_the_trained_policy_finds(run: tuple) -> None:
    folder, trainer = run
    last = [row for row in read_dynamics(folder).to_pylist() if row["step"] == 8]
    first = [row for row in read_dynamics(folder).to_pylist() if row["step"] == 0]
    sets = {"train": pairs(), "eval": pairs(10, split="test")}
    model, start = trainer.model.eval(), weak_policy()
    for row, before in zip(last, first, strict=True):
        (tree,) = trees([sets[row["set"]][row["pair"]]])
        chosen, rejected = (plain_log_prob(model, tree, side) for side in (0, 1))
        assert row["chosen_log_prob"] == pytest.approx(chosen, abs=1e-3)
        assert row["rejected_log_prob"] == pytest.approx(rejected, abs=1e-3)
        assert row["reference_chosen_log_prob"] == before["chosen_log_prob"]
        assert row["reference_chosen_log_prob"] == pytest.approx(
            plain_log_prob(start, tree, 0), abs=1e-3
        )
        assert (row["chosen_tokens"], row["rejected_tokens"]) == tuple(map(len, tree.response_ids))
        c = before["rejected_log_prob"] - before["chosen_log_prob"]
        gap = row["chosen_log_prob"] - row["rejected_log_prob"]
        assert row["loss"] == pytest.approx(math.log1p(math.exp(-0.1 * (gap + c))), rel=1e-9)
        assert row["threshold"] == pytest.approx(math.log1p(math.exp(-0.1 * c)), rel=1e-9)
        assert row["margin"] == pytest.approx(0.1 * (gap + c))
        assert row["correct"] == (gap >= 0)
        words = {True: "correct", False: "incorrect"}
        assert row["group"] == f"{words[c <= 0]}->{words[gap >= 0]}"


def plain_log_prob(model: Any, tree: Any, side: int) -> float:
    """By the model's own forward pass, without the engine."""
    ids = torch.tensor([tree.prompt_ids + tree.response_ids[side]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(tree.prompt_ids)
    return sum(log_probs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1]))


def test_figures_reach_the_trainers_log_beside_its_own(run: tuple) -> None:
    folder, trainer = run
    history = trainer.state.log_history
    ours = [entry for entry in history if "dynamics/loss" in entry]
    assert [entry["step"] for entry in ours] == [0, 4, 8]
    kept = read_metrics(folder)
    for logged, stored in zip(ours, kept, strict=True):
        assert {name: logged[name] for name in stored} == stored
        assert all(isinstance(value, int | float) for value in logged.values())
    # The step's own loss is still logged, once a step.
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 9))
    shares = [
        value
        for name, value in kept[-1].items()
        if name.startswith("dynamics/flips") and name.endswith("/share")
    ]
    assert sum(shares) == pytest.approx(1)
    norms = [entry["grad_norm"] for entry in history if "grad_norm" in entry][3:7]
    assert kept[-1]["dynamics/grad_norm/mean"] == pytest.approx(sum(norms) / 4)
    assert kept[-1]["dynamics/grad_norm/max"] == max(norms)


def test_the_distance_is_that_of_the_weights(run: tuple) -> None:
    folder, trainer = run
    start = dict(weak_policy().named_parameters())
    squares = [
        (value - start[name]).double().square().sum().item()
        for name, value in trainer.model.named_parameters()
    ]
    found = read_metrics(folder)[-1]["dynamics/weight_distance"]
    assert found == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


def test_training_is_bit_identical_with_and_without(run: tuple, tmp_path: Path) -> None:
    _, watched = run
    alone = train(tmp_path)
    for (name, one), (_, other) in zip(
        alone.model.state_dict().items(), watched.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    own = [
        [entry for entry in each.state.log_history if "loss" in entry or "eval_loss" in entry]
        for each in (alone, watched)
    ]
    timeless = [
        [
            {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
            for entry in entries
        ]
        for entries in own
    ]
    assert timeless[0] == timeless[1]


def test_a_killed_run_has_every_step_once_when_resumed(run: tuple, tmp_path: Path) -> None:
    whole, _ = run
    saving = {"save_strategy": "steps", "save_steps": 3}

    class KilledError(Exception):
        pass

    class Kill(DynamicsCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **event: Any) -> None:
            super().on_step_end(args, state, control, **event)
            if state.global_step == 5:
                raise KilledError

    killed = Kill(
        tmp_path / "dynamics",
        train_pairs=pairs(),
        eval_pairs=pairs(10, split="test"),
        encoder=encoder(),
        subsample=16,
        displacement_nats=1e9,
    )
    with pytest.raises(KilledError):
        train(tmp_path, killed, **saving)
    # Killed at step 5, after the record of step 4; the checkpoint is of step 3.
    assert sorted({row["step"] for row in read_dynamics(tmp_path / "dynamics").to_pylist()}) == [
        0,
        4,
    ]
    train(
        tmp_path,
        dynamics(tmp_path / "dynamics"),
        resume_from_checkpoint=str(tmp_path / "checkpoint-3"),
        **saving,
    )
    assert read_dynamics(tmp_path / "dynamics").equals(read_dynamics(whole))
    # Gradient norms too: they come from the history that the checkpoint keeps.
    assert read_metrics(tmp_path / "dynamics") == read_metrics(whole)


def test_displacement_is_told_once_with_figures(tmp_path: Path) -> None:
    callback = dynamics(tmp_path / "dynamics", displacement_nats=1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, callback, learning_rate=3e-2, max_steps=4, eval_steps=1)
    told = [each for each in caught if each.category is DisplacementWarning]
    assert len(told) == 1
    step = int(str(told[0].message).split("at step ")[1].split(":")[0])
    at = {entry["step"]: entry for entry in read_metrics(tmp_path / "dynamics")}[step]
    name = "eval_dynamics" if "'eval'" in str(told[0].message) else "dynamics"
    assert at[f"{name}/displacement/chosen"] < 0
    assert at[f"{name}/displacement/rejected"] < 0
    assert f"{-at[f'{name}/displacement/chosen']:.2f} nats" in str(told[0].message)


def test_a_resumed_run_warns_as_the_uninterrupted_one_and_of_the_same_step(tmp_path: Path) -> None:
    wild = {"learning_rate": 3e-2, "eval_steps": 1, "save_strategy": "steps", "save_steps": 4}
    messages = list[str]()
    for steps, resume in ((4, None), (6, str(tmp_path / "checkpoint-4"))):
        callback = dynamics(tmp_path / "dynamics", displacement_nats=1e-6)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(tmp_path, callback, max_steps=steps, resume_from_checkpoint=resume, **wild)
        messages += [str(w.message) for w in caught if w.category is DisplacementWarning]
    assert len(messages) == 2
    assert messages[0] == messages[1]
    assert read_metrics(tmp_path / "dynamics")[-1]["step"] == 6
