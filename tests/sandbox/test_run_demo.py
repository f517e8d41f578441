from statistics import mean

import pytest

from prefstage.core.config import load_config
from prefstage.core.errors import ConfigError, RunFolderError
from prefstage.data import load_candidates
from prefstage.judging import Comparison, load_judge
from prefstage.measuring import MeasureConfig, Stage, measure_stage
from prefstage.sandbox import GUESSER, World, Writer, true_preference
from prefstage.sandbox.demo import run_demo, true_boundary, true_judge
from prefstage.sandbox.demo_report import (
    JUDGE,
    DemoConfig,
    PoliciesTrained,
    PolicyMeasured,
    PoolMade,
)

# Poor writers, so that even a short training beats them.
POOR = Writer("poor", confusion=1.0, slip=1.0, mark=0.6, manners=0.6)
SMALL = DemoConfig(prompts=200, demonstrations=1_500, weak_steps=5, strong_steps=100)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def report(tmp_path_factory, told):
    folder = tmp_path_factory.mktemp("sandbox") / "demo"
    return run_demo(folder, config=SMALL, writers=(GUESSER, POOR), tell=told.append)


def test_the_two_policies_are_in_different_stages_and_the_truth_agrees(report):
    weak, strong = report.policies
    assert (weak.stage.stage, strong.stage.stage) == ("injection", "fine-tuning")
    assert (weak.truth.stage, strong.truth.stage) == ("injection", "fine-tuning")
    assert weak.truth.reward < strong.truth.reward
    for each in report.policies:
        low, high = each.stage.interval
        assert low <= each.truth.boundary_score <= high
        assert each.stage.prompts_used < SMALL.prompts
        assert each.stage.judgments == 4 * each.stage.prompts_used
    assert report.fixed_budget == {"prompts": 200, "judgments": 800}


def test_the_parts_are_told_in_order(report, told):
    assert [type(part) for part in told] == [
        PoolMade,
        PoliciesTrained,
        PolicyMeasured,
        PolicyMeasured,
    ]
    assert told[0] == report.pool
    assert list(report.pool.rewards) == ["guesser", "poor"]


def test_the_truth_is_the_fixed_size_measurement_of_the_same_responses(report):
    """Two ways that share no code: true rewards, and measuring by judge over all prompts."""
    from prefstage.sampling import SamplingConfig, TransformersSampler

    strong = report.policies[1]
    sampler = TransformersSampler.load(
        str(report.training.folders["strong"]), SamplingConfig(max_new_tokens=32), device="cpu"
    )
    stage = measure_stage(
        load_candidates(str(report.pool.path)),
        judge=load_judge(JUDGE),
        sampler=sampler,
        config=MeasureConfig(all_prompts=True),
    )
    assert stage.boundary_score == pytest.approx(strong.truth.boundary_score)


def test_everything_lies_in_the_folder(report):
    for each in report.policies:
        assert Stage.load(each.folder / "stage.json") == each.stage
    rows = load_candidates(str(report.pool.path))
    assert len(rows) == 200
    assert (report.folder / "demo.json").is_file()
    assert not [path for path in report.folder.iterdir() if path.name.startswith(".")]


def test_the_same_demo_again_uses_what_is_there(report):
    told = []
    again = run_demo(report.folder, config=SMALL, writers=(GUESSER, POOR), tell=told.append)
    assert told[1].reused
    for before, after in zip(report.policies, again.policies, strict=True):
        assert after.stage.boundary_score == before.stage.boundary_score
        assert after.stage.judge_counts["calls"] == 0
        assert after.truth == before.truth


def test_another_demo_does_not_fit_into_the_folder(report):
    with pytest.raises(RunFolderError, match="different: seed"):
        run_demo(
            report.folder,
            config=SMALL.model_copy(update={"seed": 1}),
            writers=(GUESSER, POOR),
        )


def test_the_weak_policy_must_come_first():
    with pytest.raises(ConfigError, match="weak_steps=9 is not below strong_steps=9"):
        load_config(DemoConfig, {"weak_steps": 9, "strong_steps": 9})


def test_the_true_boundary_by_hand():
    pool = World(0).candidates(2)
    best = ["" for _ in pool]
    copies = [[row.responses[0], row.responses[1]] for row in pool]
    # Copies of the pool win, draw and lose alike.
    assert true_boundary(pool, copies).boundary_score == 0.5
    assert true_boundary(pool, copies).reward == pytest.approx(
        mean(score for row in pool for score in row.scores)
    )
    assert true_boundary(pool, [[text] for text in best]).boundary_score == 0
    assert true_boundary(pool, [[text] for text in best]).stage == "injection"


def test_the_true_judge_is_the_one_that_the_command_line_loads():
    (row,) = World(0).candidates(1)
    a, b = row.responses
    comparison = Comparison(row.prompt_id, row.prompt, a, b)
    expected = pytest.approx(true_preference(a, b, row.prompt))
    for judge in (true_judge(), load_judge(JUDGE)):
        assert judge.name == JUDGE
        assert judge.compare([comparison])[0].probability == expected
