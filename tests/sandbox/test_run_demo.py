import json
from statistics import mean

import pytest

from prefstage.aligning import Advised
from prefstage.core import LEDGER, Ledger
from prefstage.core.errors import RunFolderError
from prefstage.core.files import read_json_lines
from prefstage.data import load_pairs
from prefstage.judging import Comparison, load_judge
from prefstage.measuring import MeasureConfig, measure_stage
from prefstage.sandbox import CHATTY, GUESSER, World, true_preference, true_reward
from prefstage.sandbox.demo import (
    CANDIDATES,
    JUDGE,
    SAMPLING,
    AdviceChecked,
    DemoConfig,
    IterationDone,
    PolicyTrained,
    PoolMade,
    rewards_of,
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
    kinds = [PoolMade, PolicyTrained, Advised, Advised, Advised, AdviceChecked]
    assert [type(part) for part in told] == [*kinds, IterationDone, IterationDone]
    assert told[0] == report.pool
    assert list(report.pool.rewards) == ["chatty", "guesser"]
    depths = [advised.result["depth"] for advised in report.checked.advice]
    assert depths == ["stage", "forecast", "pilot"]


def test_the_truth_of_a_candidate_is_what_its_training_gained(report):
    assert list(report.checked.gains) == list(CANDIDATES)
    for name, gains in report.checked.gains.items():
        run = report.folder / "runs" / name.replace(": ", "-")
        result = json.loads((run / "align.json").read_text())
        (row,) = result["iterations"]
        steps = (result["start_answers"], row["steps"]["answer"])
        before, after = (
            list(read_json_lines(run / "steps" / step / "answers.jsonl")) for step in steps
        )
        assert [a["prompt"] for a in before] == [a["prompt"] for a in after]
        assert gains == [
            true_reward(tuple(b["prompt"]), b["text"]) - true_reward(tuple(a["prompt"]), a["text"])
            for a, b in zip(before, after, strict=True)
        ]
        assert report.checked.truth[name].gain == pytest.approx(mean(gains))


def test_advice_is_held_against_the_best(report):
    checked = report.checked
    best = max(checked.gains, key=lambda name: mean(checked.gains[name]))
    assert next(iter(checked.truth)) == best
    for advised in checked.advice:
        behind = checked.behind[advised.result["depth"]]
        gains = [checked.gains[name] for name in (best, advised.choice)]
        assert behind.gain == pytest.approx(mean(gains[0]) - mean(gains[1]))
        assert (behind.gain == behind.error == 0) == (gains[0] == gains[1])


def test_each_iteration_trains_on_what_its_stage_asks_for(report):
    for done in report.iterations:
        injection = done.row["stage"]["algorithm_1"] == "injection"
        assert done.row["data"] == ("off" if injection else "on")
    first, second = report.iterations
    gained = mean(report.checked.gains[first.row["data"]])
    assert first.after - first.before == pytest.approx(gained)
    assert first.after == second.before


def test_nothing_is_trained_or_sampled_twice(report):
    runs = [report.folder / "runs" / name.replace(": ", "-") for name in (*CANDIDATES, "align")]
    trained = {
        row["steps"]["train"]
        for run in runs
        for row in json.loads((run / "align.json").read_text())["iterations"]
    }
    assert len(trained) == len(CANDIDATES) + 1
    ran = [
        line["step"]
        for run in [*runs, report.folder / "runs" / "advise"]
        for line in read_json_lines(run / "steps.jsonl")
        if line["did"] == "ran"
    ]
    assert len(ran) == len({*ran})
    # Policies that answered: pilots do not, and the truth about the boundary asks none anew.
    with Ledger(report.folder / "store" / LEDGER) as ledger:
        assert ledger.count("samplers") == 1 + len(trained)


def test_the_reward_is_that_of_the_answers_on_file(report):
    run = report.folder / "runs" / "align"
    result = json.loads((run / "align.json").read_text())
    file = run / "steps" / result["iterations"][1]["steps"]["answer"] / "answers.jsonl"
    rows = list(read_json_lines(file))
    assert len(rows) == SMALL.held_out
    found = [true_reward(tuple(row["prompt"]), row["text"]) for row in rows]
    assert rewards_of(report.folder, result)[2] == found
    assert report.iterations[-1].after == mean(found)


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
    assert stage.boundary_score == pytest.approx(report.iterations[0].boundary)


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
    found, first = again.as_dict(), report.as_dict()
    for advice in (*found["advice"].values(), *first["advice"].values()):
        del advice["next"]  # what it costs to go on from what is there
    assert found == first
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_demo_does_not_fit_into_the_folder(report):
    with pytest.raises(RunFolderError, match="different: seed"):
        run_demo(report.folder, config=SMALL.model_copy(update={"seed": 1}), writers=WRITERS)


def test_the_true_boundary_by_hand():
    pairs = list(World(0).pairs(2))
    copies = [[each.chosen[0]["content"], each.rejected[0]["content"]] for each in pairs]
    # Copies of the pairs win, draw and lose alike.
    assert true_boundary(pairs, copies) == 0.5
    assert true_boundary(pairs, [[""] for _ in pairs]) == 0


def test_the_true_judge_is_the_one_that_the_command_line_loads():
    (row,) = World(0).candidates(1)
    a, b = row.responses
    comparison = Comparison(row.prompt_id, row.prompt, a, b)
    expected = pytest.approx(true_preference(a, b, row.prompt))
    for judge in (true_judge(), load_judge(JUDGE)):
        assert judge.name == JUDGE
        assert judge.compare([comparison])[0].probability == expected
