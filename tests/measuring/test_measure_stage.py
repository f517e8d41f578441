import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prefstage.core.errors import InputError, RunFolderError, ServiceError
from prefstage.data import CandidateSet, PairSet, load_candidates
from prefstage.data.records import Generation, Pair
from prefstage.measuring import MeasureConfig, Stage, measure_stage
from prefstage.measuring.boundary import chunk_sizes, prompt_order
from prefstage.measuring.stage import notes_of, on_policy_candidates, summarise
from prefstage.sampling.base import Sample, SampleRequest
from tests.measuring.measuring_worlds import (
    LargerIsBetter,
    LargerIsBetterPointwise,
    NumberSampler,
    answers,
    candidates,
)


@pytest.mark.parametrize(("skill", "stage"), [(-1.0, "injection"), (1.0, "fine-tuning")])
def test_a_clear_case_is_decided_early_and_the_fixed_size_way_agrees(
    skill: float, stage: str
) -> None:
    off, on = answers(400, skill=0.0), answers(400, skill=skill, seed=1)
    early = measure_stage(off, judge=LargerIsBetter(), on_policy=on)
    whole = measure_stage(
        off, judge=LargerIsBetter(), on_policy=on, config=MeasureConfig(all_prompts=True)
    )
    assert early.stage == whole.stage == whole.algorithm_1 == stage
    assert early.stopped == "decided"
    assert early.prompts_used <= 60
    assert early.interval[0] <= whole.boundary_score <= early.interval[1]
    assert whole.prompts_used == whole.prompts_available == 400
    assert whole.interval == (whole.boundary_score, whole.boundary_score)
    low, high = whole.interval_new_prompts
    assert low < whole.boundary_score < high
    assert (early.method, whole.method) == ("sequential", "fixed-size")


def test_equal_writers_stay_undecided_until_the_budget_is_spent() -> None:
    off, on = answers(400, skill=0.0), answers(400, skill=0.0, seed=1)
    config = MeasureConfig(max_prompts=60)
    stage = measure_stage(off, judge=LargerIsBetter(), on_policy=on, config=config)
    assert (stage.stage, stage.stopped, stage.prompts_used) == ("undecided", "prompt budget", 60)
    assert stage.interval[0] < 0.5 < stage.interval[1]
    assert "more prompts" in stage.recommendation


def test_an_even_score_of_all_prompts_asks_for_no_more_of_them() -> None:
    off = [candidates(0, ["1"]), candidates(1, ["5"])]
    stage = measure_stage(
        off, judge=LargerIsBetter(), on_policy=[candidates(i, ["3"]) for i in range(2)]
    )
    assert (stage.stage, stage.stopped) == ("undecided", "all prompts used")
    assert stage.boundary_score == 0.5
    assert "more prompts" not in stage.recommendation
    assert "prefstage advise" in stage.recommendation


def test_a_set_that_is_used_up_decides_by_its_exact_mean() -> None:
    off = [candidates(0, ["1"]), candidates(1, ["5"]), candidates(2, ["1"])]
    on = [candidates(i, ["3"]) for i in range(3)]
    stage = measure_stage(off, judge=LargerIsBetter(), on_policy=on)
    assert (stage.stage, stage.stopped) == ("fine-tuning", "all prompts used")
    assert stage.interval == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert stage.interval_new_prompts[0] < 0.5


def test_few_prompts_do_not_decide_about_new_ones() -> None:
    off = [candidates(i, ["1"]) for i in range(3)]
    on = [candidates(i, ["3"]) for i in range(3)]
    config = MeasureConfig(new_prompts=True)
    stage = measure_stage(off, judge=LargerIsBetter(), on_policy=on, config=config)
    assert (stage.stage, stage.stopped) == ("undecided", "all prompts used")
    assert stage.population == "new prompts"
    assert stage.interval == stage.interval_new_prompts


def test_the_judgment_budget_counts_comparisons() -> None:
    off, on = answers(50, skill=0.0), answers(50, skill=0.0, seed=1)
    config = MeasureConfig(max_judgments=43)
    stage = measure_stage(off, judge=LargerIsBetter(), on_policy=on, config=config)
    assert (stage.stopped, stage.judgments, stage.prompts_used) == ("judgment budget", 40, 10)
    with pytest.raises(InputError, match="at least one prompt"):
        measure_stage(
            off,
            judge=LargerIsBetter(),
            on_policy=on,
            config=MeasureConfig(max_judgments=3),
        )


def test_the_sampler_is_asked_only_for_what_is_used() -> None:
    sampler = NumberSampler(-2.0)
    stage = measure_stage(answers(300, skill=0.0), judge=LargerIsBetter(), sampler=sampler)
    assert stage.stage == "injection"
    assert sampler.written == 2 * stage.prompts_used
    assert stage.tokens == {"prompt": 10 * sampler.written, "response": 5 * sampler.written}
    assert stage.cut_responses == stage.prompts_used
    assert stage.policy == "writer of -2.0"


def test_a_pointwise_judge_scores_each_response_once() -> None:
    off = answers(30, skill=0.0, responses=3)
    on = answers(30, skill=0.0, responses=4, seed=1)
    judge = LargerIsBetterPointwise()
    config = MeasureConfig(on_responses=4, off_responses=3, all_prompts=True)
    stage = measure_stage(off, judge=judge, on_policy=on, config=config)
    assert stage.judgments == 30 * 12
    assert len(judge.scored) == len(set(judge.scored)) == 30 * 7
    assert stage.judge_counts == {"calls": 30 * 7}
    pairwise = measure_stage(off, judge=LargerIsBetter(), on_policy=on, config=config)
    assert pairwise.boundary_score == stage.boundary_score


def test_only_prompts_of_both_sides_count_and_the_others_are_told() -> None:
    off = [*answers(30, skill=0.0), candidates(90, [])]
    on = [*answers(25, skill=0.0, seed=1), candidates(91, ["1"]), candidates(92, ["1"])]
    config = MeasureConfig(all_prompts=True)
    stage = measure_stage(off, judge=LargerIsBetter(), on_policy=on, config=config)
    assert stage.prompts_available == 25
    assert stage.unmatched_prompts == {"on": 2, "off": 6}


def test_no_common_prompt_is_an_error() -> None:
    with pytest.raises(InputError, match="none in common"):
        measure_stage(
            [candidates(0, ["1"])], judge=LargerIsBetter(), on_policy=[candidates(1, ["1"])]
        )


def test_a_prompt_that_stands_twice_is_an_error() -> None:
    with pytest.raises(InputError, match="each prompt once"):
        measure_stage(
            [candidates(0, ["1"]), candidates(0, ["2"])],
            judge=LargerIsBetter(),
            sampler=NumberSampler(0.0),
        )


@pytest.mark.parametrize("both", [True, False])
def test_exactly_one_source_of_on_policy_responses(both: bool) -> None:
    off = answers(3, skill=0.0)
    given = {"sampler": NumberSampler(0.0), "on_policy": off} if both else {}
    with pytest.raises(InputError, match="one of them"):
        measure_stage(off, judge=LargerIsBetter(), **given)


def test_responses_beyond_n_are_chosen_by_the_seed_and_counted() -> None:
    off, on = answers(40, skill=0.0, responses=5), answers(40, skill=0.0, seed=1)
    found = [
        measure_stage(
            off,
            judge=LargerIsBetter(),
            on_policy=on,
            config=MeasureConfig(all_prompts=True, seed=seed),
        )
        for seed in (0, 0, 1)
    ]
    drawn = [{each.on.prompt_id: each.off.responses for each in one.prompts} for one in found]
    assert drawn[0] == drawn[1] != drawn[2]
    assert found[0].responses_unused == {"on": 0, "off": 40 * 3}


def test_undecided_judgments_count_half_and_are_told() -> None:
    off = [candidates(i, ["0", "?"]) for i in range(20)]
    on = [candidates(i, ["1"]) for i in range(20)]
    stage = measure_stage(off, judge=LargerIsBetter(), on_policy=on)
    assert stage.undecided_judgments == stage.prompts_used
    assert stage.boundary_score == 0.75
    assert (stage.votes_on, stage.votes_off, stage.ties) == (stage.prompts_used, 0, 0)


def test_one_seed_one_result_whatever_the_order_of_rows() -> None:
    off, on = answers(200, skill=0.0), answers(200, skill=0.4, seed=1)
    run = [
        measure_stage(rows, judge=LargerIsBetter(), on_policy=on, config=MeasureConfig(seed=seed))
        for rows, seed in ((off, 0), (off[::-1], 0), (off, 1))
    ]
    assert run[0] == run[1]
    assert run[0].interval != run[2].interval


def test_the_prompts_scores_do_not_depend_on_the_chunks() -> None:
    off, on = answers(120, skill=0.0), answers(120, skill=0.3, seed=1)
    scores = []
    for first in (1, 8, 50):
        config = MeasureConfig(first_chunk=first)
        found = measure_stage(off, judge=LargerIsBetter(), on_policy=on, config=config)
        scores.append([(each.on.prompt_id, each.votes) for each in found.prompts])
    shared = min(map(len, scores))
    assert scores[0][:shared] == scores[1][:shared] == scores[2][:shared]


def test_pairs_are_two_off_policy_responses() -> None:
    def pair(i: int) -> Pair:
        made = candidates(i, ["2", "1"])
        chosen, rejected = (({"role": "assistant", "content": c},) for c in made.responses)
        return Pair(made.prompt_id, made.prompt, chosen, rejected)

    on = CandidateSet.of(candidates(i, ["1.5"]) for i in range(12))
    pairs = PairSet.of(pair(i) for i in range(12))
    stage = measure_stage(pairs, judge=LargerIsBetter(), on_policy=on)
    assert (stage.boundary_score, stage.votes_on, stage.votes_off) == (0.5, 12, 12)
    assert stage.responses_per_prompt == {"on": 1, "off": 2}
    assert stage.prompts_favouring == {"on": 0, "off": 0, "neither": 12}
    assert stage.stage == "undecided"


def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    off, on = answers(200, skill=0.0), answers(200, skill=0.25, seed=1)

    class Dying(LargerIsBetter):
        def compare(self, comparisons: list) -> list:
            if len(self.asked) > 60:
                raise KeyboardInterrupt
            return super().compare(comparisons)

    whole_judge, dying, second = LargerIsBetter(), Dying(), LargerIsBetter()
    whole = measure_stage(off, judge=whole_judge, on_policy=on, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        measure_stage(off, judge=dying, on_policy=on, out=tmp_path / "killed")
    resumed = measure_stage(off, judge=second, on_policy=on, out=tmp_path / "killed")
    assert resumed.as_dict() | {"judge_counts": {}} == whole.as_dict() | {"judge_counts": {}}
    assert len(dying.asked) + len(second.asked) == len(whole_judge.asked) == whole.judgments
    assert resumed.judge_counts["reused"] == len(dying.asked)
    assert f"{len(dying.asked)} answers of the judge were at hand from before" in summarise(resumed)
    assert "at hand from before" not in summarise(whole)
    tables = [pq.read_table(tmp_path / name / "prompts.parquet") for name in ("whole", "killed")]
    assert tables[0].equals(tables[1])


def test_a_killed_sampler_is_not_asked_again_for_what_it_wrote(tmp_path: Path) -> None:
    off, judge = answers(200, skill=0.0), LargerIsBetter()
    whole = measure_stage(off, judge=judge, sampler=NumberSampler(0.4), out=tmp_path / "whole")
    first, second = NumberSampler(0.4, dies_after=21), NumberSampler(0.4)
    with pytest.raises(KeyboardInterrupt):
        measure_stage(off, judge=judge, sampler=first, out=tmp_path / "killed")
    resumed = measure_stage(off, judge=judge, sampler=second, out=tmp_path / "killed")
    assert resumed.as_dict() | {"judge_counts": {}} == whole.as_dict() | {"judge_counts": {}}
    assert first.written + second.written == 2 * whole.prompts_used
    kept = load_candidates(tmp_path / "killed" / "candidates.parquet")
    config = MeasureConfig(all_prompts=True)
    again = measure_stage(off, judge=judge, on_policy=kept, config=config)
    assert again.boundary_score == whole.boundary_score
    assert kept[0].sources == ("writer of 0.4", "writer of 0.4")


def test_the_run_folder_holds_the_result_and_every_prompt(tmp_path: Path) -> None:
    off, on = answers(100, skill=0.0), answers(100, skill=1.0, seed=1)
    stage = measure_stage(off, judge=LargerIsBetter(), on_policy=on, out=tmp_path / "run")
    assert Stage.load(tmp_path / "run" / "stage.json") == stage
    rows = pq.read_table(tmp_path / "run" / "prompts.parquet").to_pylist()
    assert [row["order"] for row in rows] == list(range(stage.prompts_used))
    mean = math.fsum(row["score"] for row in rows) / len(rows)
    assert mean == pytest.approx(stage.boundary_score)
    assert sum(row["votes_on"] for row in rows) == stage.votes_on
    assert rows[0]["prompt"].startswith("question ")
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_larger_budget_goes_on_in_the_same_folder_but_another_seed_does_not(
    tmp_path: Path,
) -> None:
    off, on = answers(300, skill=0.0), answers(300, skill=0.1, seed=1)
    judge = LargerIsBetter()

    def run(**settings: object) -> Stage:
        config = MeasureConfig(**settings)
        return measure_stage(off, judge=judge, on_policy=on, config=config, out=tmp_path / "run")

    small = run(max_prompts=20)
    large = run(max_prompts=40)
    assert (small.prompts_used, large.prompts_used) == (20, 40)
    assert len(judge.asked) == large.judgments
    with pytest.raises(RunFolderError, match="another run"):
        run(max_prompts=40, seed=1)


def test_a_sampler_that_leaves_a_gap_is_told() -> None:
    class Lazy(NumberSampler):
        def sample(self, requests: list) -> object:
            return super().sample(requests[1:])

    with pytest.raises(ServiceError, match="left 1 of 16 requests unanswered"):
        measure_stage(answers(20, skill=0.0), judge=LargerIsBetter(), sampler=Lazy(0.0))


def test_watching_shows_how_far_it_is() -> None:
    seen = []
    stage = measure_stage(
        answers(60, skill=0.0),
        judge=LargerIsBetter(),
        sampler=NumberSampler(0.0),
        config=MeasureConfig(max_prompts=16),
        watch=seen.append,
    )
    assert [reading.doing for reading in seen[:2]] == ["sampling 1/16", "sampling 2/16"]
    assert seen[16].doing == "judging"
    assert (seen[-1].doing, seen[-1].prompts_used, seen[-1].prompts_allowed) == ("done", 16, 16)
    assert seen[-1].interval == stage.interval


def test_a_tie_rule_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="no effect"):
        MeasureConfig(ties="off", votes="probability")


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 300, 2000])
def test_chunks_sum_to_the_limit_and_grow_slowly(limit: int) -> None:
    sizes = list(chunk_sizes(limit, first=8))
    assert sum(sizes) == limit
    used = 0
    for size in sizes:
        assert size <= max(8, used // 4)
        used += size


def test_the_order_of_prompts_is_a_fair_shuffle() -> None:
    names = [f"p{i}" for i in range(6)]
    firsts = [prompt_order(names, seed=seed)[0] for seed in range(600)]
    assert sorted(prompt_order(names, seed=0)) == names
    assert all(60 <= firsts.count(name) <= 140 for name in names)


class ThinkingSampler(NumberSampler):
    """Thinks before each number; the first response to each prompt is cut while it does."""

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        for each in super().sample(requests):
            cut = each.index == 0
            yield replace(
                each,
                text="" if cut else each.text,
                thought="hm",
                thought_cut=cut,
                token_ids=(each.index,),
                tokenizer="t",
            )


def test_thoughts_are_kept_from_the_judge_and_cut_ones_counted() -> None:
    judge = LargerIsBetter()
    off = answers(300, skill=0.0)
    found = measure_stage(off, judge=judge, sampler=ThinkingSampler(-2.0))
    assert {each.a for each in judge.asked} == {
        text for each in found.prompts for text in each.on.responses
    }
    assert not any("hm" in text for each in judge.asked for text in (each.a, each.b))
    assert found.cut_thoughts == found.prompts_used
    assert any("ended in their thought" in note for note in notes_of(found))

    rows = on_policy_candidates(found.prompts, "policy")
    assert len(rows) == len(found.prompts)
    for row in rows:  # the empty one is left out
        assert row.generations == (Generation("hm", (1,), "t"),)
        assert row.message(0)["reasoning_content"] == "hm"
