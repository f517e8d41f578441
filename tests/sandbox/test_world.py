import random
from itertools import pairwise
from statistics import mean

import pytest

from prefstage.core.errors import InputError
from prefstage.data import load_pairs
from prefstage.sandbox import EXPERT, WRITERS, World, Writer, grade_response, true_reward
from prefstage.sandbox.world import split_of


def test_writers_stand_in_the_order_of_their_skill():
    instructions = World(3).instructions(600)
    source = random.Random(0)
    skills = [
        mean(grade_response(one, writer.write(one, source)).reward for one in instructions)
        for writer in WRITERS
    ]
    assert skills == sorted(skills, reverse=True)
    assert min(better - worse for better, worse in pairwise(skills)) > 0.02


def test_a_writer_without_mistakes_is_always_right():
    source = random.Random(1)
    flawless = Writer("flawless")
    for one in World(0).instructions(200):
        assert grade_response(one, flawless.write(one, source)).reward == pytest.approx(1)


@pytest.mark.parametrize(
    ("mistake", "part"),
    [
        ("confusion", "correctness"),
        ("slip", "correctness"),
        ("mark", "format"),
        ("manners", "manners"),
        ("chatter", "brevity"),
    ],
)
def test_each_mistake_costs_its_own_part_of_the_grade(mistake, part):
    source = random.Random(2)
    writer = Writer("clumsy", **{mistake: 1.0})
    instructions = [one for one in World(0).instructions(300) if len(one.answer) > 1]
    grades = [grade_response(one, writer.write(one, source)) for one in instructions]
    assert all(getattr(grade, part) < 1 for grade in grades)
    others = {"correctness", "format", "manners", "brevity"} - {part}
    assert all(getattr(grade, other) == 1 for grade in grades for other in others)


def test_equal_seeds_give_equal_worlds_and_other_seeds_other_ones():
    assert World(5).pairs(40).fingerprint == World(5).pairs(40).fingerprint
    assert World(5).pairs(40).fingerprint != World(6).pairs(40).fingerprint
    assert World(5).demonstrations(20) == World(5).demonstrations(20)


def test_fewer_instructions_are_the_beginning_of_more():
    world = World(1)
    assert world.instructions(50) == world.instructions(80)[:50]
    assert list(world.pairs(10)) == list(world.pairs(15))[:10]


def test_the_splits_share_no_instruction():
    world, other = World(0), World(1)
    learnt = {one.text for one in world.instructions(2_000, split="demonstrations")}
    for split in ("pool", "test"):
        assert not learnt & {one.text for one in world.instructions(1_000, split=split)}
        assert not learnt & {one.text for one in other.instructions(1_000, split=split)}
    assert {split_of(one) for one in world.instructions(20)} == {"pool"}


def test_candidates_are_different_and_carry_their_writers_and_true_rewards():
    for row in World(0).candidates(50, responses=4):
        assert len(set(row.responses)) == 4
        assert set(row.sources) <= {writer.name for writer in WRITERS}
        assert row.scores == tuple(true_reward(row.prompt, text) for text in row.responses)


def test_pairs_prefer_the_truly_better_response():
    pairs = list(World(0).pairs(300))
    assert all(pair.score_chosen >= pair.score_rejected for pair in pairs)
    assert all(0.5 <= pair.agreement < 1 for pair in pairs)
    assert {pair.source_chosen for pair in pairs} == {writer.name for writer in WRITERS}
    wins = [pair.source_chosen == "expert" for pair in pairs if "guesser" in pair.source_rejected]
    assert mean(wins) > 0.2


def test_pairs_survive_saving_and_loading(tmp_path):
    pairs = World(0).pairs(30)
    pairs.save(tmp_path / "pool.jsonl")
    assert list(load_pairs(str(tmp_path / "pool.jsonl"))) == list(pairs)


def test_writers_who_never_differ_cannot_fill_a_pool():
    with pytest.raises(InputError, match="add writers that make mistakes"):
        World(0).candidates(20, writers=[Writer("flawless")])


def test_demonstrations_come_from_the_named_writer():
    expert = World(0).demonstrations(200)
    clumsy = World(0).demonstrations(200, writer=Writer("clumsy", confusion=1.0))
    assert mean(true_reward(*row) for row in expert) > 0.95
    assert mean(true_reward(*row) for row in clumsy) < 0.8
    assert expert == World(0).demonstrations(200, writer=EXPERT)
