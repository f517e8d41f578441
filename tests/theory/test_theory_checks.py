import json
import math

import pytest
import torch
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.core.errors import InputError
from prefstage.sandbox.theory import (
    CHECKS,
    Setting,
    choose_checks,
    consistency,
    draw_worlds,
    general_policy,
    preference_of,
    run_checks,
)
from prefstage.sandbox.theory.evidence import counterexample, equality, order, rule
from prefstage.sandbox.theory.rankings import CHECKS as RANKINGS
from prefstage.sandbox.theory.stage_calls import (
    expected_score,
    judged,
    measured_score,
    wins_of,
)
from prefstage.sandbox.theory.worlds import dpo_gradient, dpo_optimum, labelled, parted


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("seed", [0, 7])
def test_every_check_is_as_expected(name, seed):
    evidence = CHECKS[name].find(CHECKS[name].draw(1000, seed=seed))
    assert [finding for finding in evidence.findings if not finding.holds] == []
    assert {finding.worlds for finding in evidence.findings} == {1000}
    assert evidence.figure.curves
    for each in evidence.figure.curves:
        assert len(each.x) == len(each.y) > 1
        assert all(map(math.isfinite, each.x + each.y))


def test_findings_fail_when_they_should():
    assert not equality("", torch.tensor([0.0, 2e-10])).holds
    assert not equality("", torch.tensor([0.0, math.nan])).holds
    assert not rule("", torch.tensor([False, True])).holds
    assert not counterexample("", torch.tensor([[False], [False]])).holds
    assert counterexample("", torch.tensor([[False, True], [False, False]])).value == 0.5
    x = torch.tensor([1.0, 2.0, 4.0])
    assert not order("", x, x**2, wanted=3.0, worlds=1).holds
    assert order("", x, 5 * x**2.5, wanted=2.5, worlds=1).value == pytest.approx(2.5)


def test_worlds_are_distributions_and_depend_on_the_seed_alone():
    worlds = draw_worlds(50, seed=3)
    for log_probs in (worlds.log_policy, worlds.log_reference):
        assert torch.allclose(log_probs.exp().sum(-1), torch.ones(50, 2).double())
    assert torch.equal(worlds.reward, draw_worlds(50, seed=3).reward)
    assert not torch.equal(worlds.reward, draw_worlds(50, seed=4).reward)
    assert worlds.beta.min() >= 0.05
    assert worlds.beta.max() <= 2


@pytest.mark.parametrize("model", ["bradley-terry", "noisy", "ties", "intransitive"])
def test_preferences_are_probabilities_of_either_order(model):
    reward = draw_worlds(50, seed=1).reward
    preference = preference_of(reward, model)
    assert torch.allclose(preference + preference.transpose(-1, -2), torch.ones(()).double())
    misfit = general_policy(preference)[1]
    assert bool((misfit < 1e-10).all()) == (model == "bradley-terry")


def test_general_policy_by_hand():
    log_policy, misfit = general_policy(torch.tensor([[0.5, 0.8], [0.2, 0.5]], dtype=torch.float64))
    assert log_policy.exp().tolist() == pytest.approx([0.8, 0.2])
    assert float(misfit) == pytest.approx(0, abs=1e-12)


def test_consistency_counts_a_tie_as_not_preferred():
    first = torch.tensor([[0.5, 0.9], [0.1, 0.5]]).double()
    second = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).double()
    weights = torch.full((2, 2), 0.25).double()
    assert float(consistency(first, second, weights)) == 0.75


def test_newton_ends_where_the_librarys_gradient_vanishes():
    worlds = draw_worlds(200, seed=2).preferring("intransitive")
    drawn = worlds.log_policy.exp()
    joint = labelled(drawn, drawn, worlds.preference)
    assert torch.allclose(joint.sum((-1, -2)), torch.ones(200, 2).double())
    scaled = dpo_optimum(joint)
    assert float(dpo_gradient(scaled / worlds.beta, worlds.beta, joint).abs().max()) < 1e-12


def test_names_choose_checks_and_unknown_ones_are_refused():
    assert [each.name for each in choose_checks([])] == list(CHECKS)
    assert choose_checks(["rankings"]) == [c for c in RANKINGS if c.name.startswith("rankings")]
    assert [each.name for each in choose_checks(["stage-5.4"])] == ["stage-5.4"]
    with pytest.raises(InputError, match=r"the nearest is 'stage-5.4'"):
        choose_checks(["stages-5.4"])


def test_the_chapter_is_written_with_figures(tmp_path):
    run_checks(choose_checks(["sgdpo"]), Setting(100, 0), out=tmp_path)
    written = json.loads((tmp_path / "theory.json").read_text())
    assert written["holds"] is True
    assert [each["name"] for each in written["checks"]] == ["sgdpo-1", "sgdpo-2", "sgdpo-3"]
    for each in written["checks"]:
        assert (tmp_path / each["picture"]).stat().st_size > 1000
    finding = {"claim": "|∂L/∂X1| grows with P2", "kind": "rule", "value": 0}
    finding |= {"wanted": "0 exceptions", "worlds": 100, "holds": True}
    assert finding in written["checks"][1]["findings"]


def test_the_command_tells_people_and_machines(tmp_path):
    arguments = ["theory", "rankings-4", "--worlds", "200"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "0 exceptions" in result.stdout
    assert "1 checks on 200 worlds: all as expected" in result.stdout
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["worlds"] == 200
    out = tmp_path / "t"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "--no-figures"])
    assert sorted(each.name for each in out.iterdir()) == ["theory.json"]
    assert f"wrote {out / 'theory.json'}" in result.stdout


def test_an_unknown_check_is_one_line(tmp_path):
    result = CliRunner().invoke(app, ["theory", "nonsense"])
    assert result.exit_code == 2
    assert result.stderr.startswith("prefstage: error: ")
    assert result.stderr.count("\n") == 1


def test_a_measured_score_is_unbiased_about_what_the_judge_expects():
    worlds = draw_worlds(200, seed=5, responses=8)
    policy, off = parted(worlds.log_reference, worlds.log_reference, 0.5)
    told = judged(wins_of(worlds), accuracy=0.8, bias=0.05)
    generator = torch.Generator().manual_seed(1)
    measured = measured_score(told, policy, off, prompts=200, generator=generator)
    error = measured - expected_score(told, policy, off)
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(200)
    assert float(error.std()) < 0.05
