import math
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from prefstage.core.errors import DataError, InputError, MissingDependencyError
from prefstage.training.dynamics import figures
from prefstage.training.dynamics.callback import DynamicsCallback
from prefstage.training.dynamics.criterion import Criterion
from prefstage.training.dynamics.figures import draw_dynamics
from prefstage.training.dynamics.records import best_step, read_dynamics, read_metrics
from tests.training.dynamics_runs import PlainDPO, arguments, encoder, pairs, trees, weak_policy

figure_type = pytest.importorskip("matplotlib.figure").Figure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("figures")
    trainer = PlainDPO(weak_policy(), arguments(place, learning_rate=1e-2), trees(pairs()))
    DynamicsCallback(
        place / "dynamics",
        train_pairs=pairs(),
        eval_pairs=pairs(10, split="test"),
        encoder=encoder(),
        displacement_nats=1e9,
    ).attach(trainer)
    trainer.train()
    return place / "dynamics"


def test_four_pictures_in_both_formats(folder: Path) -> None:
    files = draw_dynamics(folder)
    assert [file.name for file in files] == [
        f"{kind}-train.{form}"
        for kind in ("flips", "threshold", "trajectories", "distance")
        for form in ("png", "svg")
    ]
    for file in files:
        start = file.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if file.suffix == ".png" else b"<?xml" in start


def test_other_sets_steps_and_places(folder: Path, tmp_path: Path) -> None:
    files = draw_dynamics(folder, set_name="eval", step=4, out=tmp_path, formats=["svg"])
    assert files[1] == tmp_path / "threshold-eval.svg"
    for wrong in ({"set_name": "test"}, {"step": 5}):
        with pytest.raises(InputError, match="expected one of"):
            draw_dynamics(folder, **wrong)


def test_the_scatter_shows_every_pair_on_its_side_of_the_curve(folder: Path) -> None:
    table = read_dynamics(folder)
    at = pc.and_(pc.equal(table["set"], "train"), pc.equal(table["step"], 8))
    rows = table.filter(at)
    figure = figures._threshold(figure_type, rows, Criterion(0.1), "train")
    for panel in figure.axes:
        right, wrong = (each.get_offsets().data.tolist() for each in panel.collections)
        assert len(right) + len(wrong) == rows.num_rows
        assert all(y <= math.log1p(math.exp(-0.1 * c)) for c, y in right)
        assert all(y > math.log1p(math.exp(-0.1 * c)) for c, y in wrong)
        assert [right, wrong] == [
            [
                [r["reference_log_ratio"], r["loss"]]
                for r in rows.to_pylist()
                if r["correct"] == side
            ]
            for side in (True, False)
        ]


def test_the_lines_are_the_recorded_figures(folder: Path) -> None:
    metrics = read_metrics(folder)
    figure = figures._flips(figure_type, metrics, "train", Criterion(0.1), 4)
    kept = figure.axes[0].lines[0]
    assert kept.get_xdata().tolist() == [0, 4, 8]
    assert kept.get_ydata().tolist() == [
        entry["dynamics/flips/correct_to_correct/share"] for entry in metrics
    ]
    # A group that is empty at the start begins later.
    flipped = figure.axes[1].lines[2].get_xdata().tolist()
    assert flipped == [
        e["step"] for e in metrics if e["dynamics/flips/incorrect_to_correct/share"] > 0
    ]


def test_nothing_recorded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recorded step"):
        draw_dynamics(tmp_path)


def test_without_matplotlib_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"prefstage\[plots\]"):
        draw_dynamics(folder)


def test_the_lowest_held_out_loss_is_marked(folder: Path) -> None:
    metrics = read_metrics(folder)
    losses = {entry["step"]: entry["eval_dynamics/loss"] for entry in metrics}
    best = best_step(metrics, ["train", "eval"])
    assert best == min(losses, key=losses.__getitem__)
    assert best_step(metrics, ["train"]) is None
    for panel in figures._flips(figure_type, metrics, "train", Criterion(0.1), best).axes:
        dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
        assert [line.get_xdata() for line in dashed] == [[best, best]]
    (panel,) = figures._distance(figure_type, metrics, "eval", best).axes
    moved = [entry["dynamics/weight_distance"] for entry in metrics]
    assert panel.lines[0].get_xdata().tolist() == moved
    assert panel.lines[0].get_ydata().tolist() == [
        m["eval_dynamics/rankings/accuracy"] for m in metrics
    ]
    at_best = moved[[entry["step"] for entry in metrics].index(best)]
    assert panel.lines[1].get_xdata() == [at_best, at_best]


def test_the_threshold_picture_is_of_the_lowest_held_out_loss(folder: Path, tmp_path: Path) -> None:
    best = best_step(read_metrics(folder), ["train", "eval"])
    alone = draw_dynamics(folder, out=tmp_path / "alone", formats=["png"])[1]
    named = draw_dynamics(folder, out=tmp_path / "named", formats=["png"], step=best)[1]
    assert alone.read_bytes() == named.read_bytes()
