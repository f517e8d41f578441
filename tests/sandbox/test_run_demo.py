import json
from dataclasses import replace
from statistics import mean

import pytest

from prefstage.core.errors import RunFolderError
from prefstage.core.files import read_json_lines
from prefstage.data import load_pairs
from prefstage.judging import Comparison, load_judge
from prefstage.measuring import MeasureConfig, measure_stage
from prefstage.sandbox import CHATTY, GUESSER, World, true_preference, true_reward
from prefstage.sandbox.demo import (
    AUTO,
    FIXED,
    JUDGE,
    SAMPLING,
    DemoConfig,
    IterationDone,
    PolicyTrained,
    PoolMade,
    ScheduleDone,
    reward_of,
    run_demo,
    true_boundary,
    true_judge,
)

SMALL = DemoConfig(pairs=40, held_out=20, demonstrations=200, sft_steps=30, epochs=1)
WRITERS = (CHATTY, GUESSER)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def report(tmp_path_factory, told):
    folder = tmp_path_factory.mktemp("sandbox") / "demo"
    return run_demo(folder, config=SMALL, writers=WRITERS, tell=told.append)


def test_the_parts_are_told_in_order(report, told):
    kinds = [PoolMade, PolicyTrained, IterationDone, IterationDone]
    assert [type(part) for part in told] == [*kinds, *[ScheduleDone] * 5]
    assert told[0] == report.pool
    assert list(report.pool.rewards) == ["chatty", "guesser"]
    assert [each.schedule for each in report.schedules] == [AUTO, *FIXED]


def test_each_iteration_trains_on_what_its_stage_asks_for(report):
    for done in report.iterations:
        assert done.data == ("off" if done.stage.algorithm_1 == "injection" else "on")
    auto = report.schedules[0]
    assert auto.data == tuple(done.data for done in report.iterations)
    assert auto.rewards == (
        report.iterations[0].before,
        *(done.after for done in report.iterations),
    )


def test_the_fixed_schedules_do_as_they_are_told_and_share_what_is_equal(report):
    by_data = {each.data: each for each in report.schedules[1:]}
    assert {",".join(data) for data in by_data} == {*FIXED}
    auto = report.schedules[0]
    assert by_data[auto.data].rewards == auto.rewards
    trained = list((report.folder / "store" / "steps").glob("train-*"))
    assert len(trained) == 2 + 4


def test_the_reward_is_that_of_the_answers_on_file(report):
    auto = report.schedules[0]
    result = json.loads((auto.folder / "align.json").read_text())
    file = auto.folder / "steps" / result["iterations"][1]["steps"]["answer"] / "answers.jsonl"
    rows = list(read_json_lines(file))
    assert len(rows) == SMALL.held_out
    found = mean(true_reward(tuple(row["prompt"]), row["text"]) for row in rows)
    assert auto.rewards[-1] == reward_of(file) == found


def test_the_truth_is_the_fixed_size_measurement_of_the_same_responses(report):
    """Two ways that share no code: true rewards, and measuring by judge over all prompts."""
    from prefstage.sampling import TransformersSampler

    config = SAMPLING.model_copy(update={"responses": 2, "seed": SMALL.seed})
    stage = measure_stage(
        load_pairs(str(report.pool.path)),
        judge=load_judge(JUDGE),
        sampler=TransformersSampler.load(str(report.policy.folder), config, device="cpu"),
        config=MeasureConfig(all_prompts=True),
    )
    truth = report.iterations[0].truth
    assert stage.boundary_score == pytest.approx(truth.boundary_score)


def test_everything_lies_in_the_folder(report):
    assert len(load_pairs(str(report.pool.path))) == SMALL.pairs
    saved = json.loads((report.folder / "demo.json").read_text())
    assert saved == json.loads(json.dumps(report.as_dict()))
    assert not [path for path in report.folder.iterdir() if path.name.startswith(".")]


def test_the_same_demo_again_uses_what_is_there(report):
    told = []
    before = {path: path.stat().st_mtime_ns for path in report.folder.rglob("*.safetensors")}
    again = run_demo(report.folder, config=SMALL, writers=WRITERS, tell=told.append)
    assert told[1].reused
    assert again == replace(report, policy=again.policy)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_demo_does_not_fit_into_the_folder(report):
    with pytest.raises(RunFolderError, match="different: seed"):
        run_demo(report.folder, config=SMALL.model_copy(update={"seed": 1}), writers=WRITERS)


@pytest.mark.parametrize(
    ("stages", "crossing"),
    [
        (("injection", "fine-tuning"), "crossed"),
        (("injection", "injection"), "not crossed"),
        (("injection", "undecided"), "not crossed"),
        (("undecided", "fine-tuning"), "not crossed"),
        (("fine-tuning", "injection"), "beyond from the start"),
    ],
)
def test_crossing_is_told_as_it_is(report, stages, crossing):
    iterations = tuple(
        replace(done, stage=replace(done.stage, stage=stage))
        for done, stage in zip(report.iterations, stages, strict=True)
    )
    assert replace(report, iterations=iterations).crossing == crossing


def test_the_true_boundary_by_hand():
    pairs = list(World(0).pairs(2))
    copies = [[each.chosen[0]["content"], each.rejected[0]["content"]] for each in pairs]
    # Copies of the pairs win, draw and lose alike.
    assert true_boundary(pairs, copies).boundary_score == 0.5
    scores = [score for each in pairs for score in (each.score_chosen, each.score_rejected)]
    assert true_boundary(pairs, copies).reward == pytest.approx(mean(scores))
    nothing = true_boundary(pairs, [[""] for _ in pairs])
    assert (nothing.boundary_score, nothing.stage) == (0, "injection")


def test_the_true_judge_is_the_one_that_the_command_line_loads():
    (row,) = World(0).candidates(1)
    a, b = row.responses
    comparison = Comparison(row.prompt_id, row.prompt, a, b)
    expected = pytest.approx(true_preference(a, b, row.prompt))
    for judge in (true_judge(), load_judge(JUDGE)):
        assert judge.name == JUDGE
        assert judge.compare([comparison])[0].probability == expected
