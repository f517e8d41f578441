"""Labels are counted before a judge replaces them, and too many reversals need a yes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.building.account import (
    Account,
    check_reversal,
    describe_reversal,
    reversal_figures,
)
from prefstage.building.build import build_pairs
from prefstage.building.relabelling import relabelled
from prefstage.cli.main import app
from prefstage.core.errors import ConfigError, InputError
from prefstage.data.records import Candidates, Pair, prompt_id_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.judging.base import TIE, UNDECIDED, Judgment
from tests.building.making import CountingRewards, PairwiseJudge, ScriptedPolicy, pair, prompt_of

KEEPS, REVERSES = Judgment(0.9), Judgment(0.1)


def labelled(count: int, **known: Any) -> list[Pair]:
    return [pair(f"p{n}", f"w{n}", f"l{n}", **known) for n in range(count)]


def judge(kept: int, reversed_: int, *others: Judgment) -> PairwiseJudge:
    says = [KEEPS] * kept + [REVERSES] * reversed_ + list(others)
    return PairwiseJudge({f"w{n}": each for n, each in enumerate(says)})


def rewards(kept: int, reversed_: int) -> CountingRewards:
    """As `judge`, but a pointwise judge that counts what it is asked."""
    total = kept + reversed_
    return CountingRewards(
        {f"w{n}": 1.0 if n < kept else -1.0 for n in range(total)}
        | {f"l{n}": 0.0 for n in range(total)}
    )


def relabel(rows: list[Pair], who: Any, **how: Any) -> tuple[list[Any], dict[str, Any] | None]:
    account = Account()
    made = [each for group in relabelled(rows, who, account=account, **how) for each in group]
    return made, account.reversal


@pytest.mark.parametrize(
    ("kept", "turned", "passes"),
    [(61, 39, True), (60, 40, True), (59, 41, False), (100, 0, True), (0, 1, False), (3, 2, True)],
)
def test_more_than_forty_in_a_hundred_need_a_yes(kept: int, turned: int, *, passes: bool) -> None:
    rows = labelled(kept + turned)
    for who in (judge(kept, turned), rewards(kept, turned)):
        made, found = relabel(rows, who, accept_reversal=True)
        assert found == reversal_figures(kept=kept, reversed=turned)
        assert [each.label_flipped for each in made] == [False] * kept + [True] * turned
        if passes:
            assert relabel(rows, who)[0] == made
            continue
        share = 100 * turned / (kept + turned)
        with pytest.raises(InputError, match=rf"{turned} of {kept + turned}.*{share:.1f} %") as why:
            relabel(rows, who)
        assert "accept_reversal: true" in str(why.value)
        assert "at most 40 %" in str(why.value)
        assert "interval" in str(why.value)


def test_ties_and_unreadable_judgments_are_counted_and_decide_nothing() -> None:
    made, found = relabel(labelled(10), judge(4, 2, TIE, TIE, UNDECIDED, TIE))
    assert len(made) == 6
    assert found == reversal_figures(kept=4, reversed=2, equal=3, unreadable=1)
    assert found["share"] == pytest.approx(1 / 3)
    told = describe_reversal(found)
    assert told.startswith(
        "2 of 6 labels reversed by the judge: 33.3 % (95 % interval 9.7 % to 70.0 %)"
    )
    assert told.endswith("not counted: 3 found equal, 1 without a readable judgment")
    # nine in ten of the labels that remain are reversed, though few of all
    with pytest.raises(InputError, match="9 of 10 labels reversed"):
        relabel(labelled(100), judge(1, 9, *[TIE] * 90))


def test_pairs_that_are_a_tie_in_the_data_have_no_label_to_reverse() -> None:
    rows = labelled(3) + [pair(f"t{n}", f"w{n + 3}", agreement=0.5) for n in range(5)]
    made, found = relabel(rows, judge(3, 5))
    assert found == reversal_figures(kept=3, unlabelled=5)
    assert len(made) == 8
    _, nothing = relabel(rows[3:], judge(3, 5))
    assert nothing["share"] is None
    assert nothing["interval"] == [0.0, 1.0]
    assert "0 of 0 labels" in describe_reversal(nothing)


def test_one_shot_pairs_are_judged_and_rewritten_alike() -> None:
    rows = labelled(4)
    assert relabel(iter(rows), judge(3, 1)) == relabel(rows, judge(3, 1))


def test_an_interval_below_one_half_is_above_the_limit_too() -> None:
    """So one limit does for both: no share within it has an agreement below one half."""
    for count in (1, 2, 5, 40, 1000):
        for turned in range(count + 1):
            found = reversal_figures(kept=count - turned, reversed=turned)
            below = found["interval"][0] > 0.5
            if below:
                with pytest.raises(InputError):
                    check_reversal(found, accepted=False, judge="j")


# --- Recipes -------------------------------------------------------------------------------


def recipe(folder: Path, rows: list[Pair], **settings: Any) -> dict[str, Any]:
    PairSet.of(rows).save(folder / "p.parquet")
    return {"pairs": str(folder / "p.parquet"), "judge": "given", "method": "relabel", **settings}


def test_a_build_is_refused_then_confirmed_and_buys_nothing_twice(tmp_path: Path) -> None:
    given, who = recipe(tmp_path, labelled(10)), rewards(2, 8)
    with pytest.raises(InputError, match="8 of 10 labels reversed"):
        build_pairs(given, judge=who, out=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.parquet"))
    assert len(who.asked) == 20
    made = build_pairs({**given, "accept_reversal": True}, judge=who, out=tmp_path / "run")
    assert len(who.asked) == 20
    found = json.loads((tmp_path / "run" / "build.json").read_text())["reversal"]
    assert (found["reversed"], found["kept"], found["share"]) == (8, 2, 0.8)
    assert "8 of 10 labels reversed by the judge: 80.0 %" in made.card
    assert len(made.train) == 10


def test_pairs_read_as_candidates_lose_their_labels_to_the_judge_too(tmp_path: Path) -> None:
    given = recipe(tmp_path, labelled(10), method="best-vs-worst")
    given["candidates"] = given.pop("pairs")
    with pytest.raises(InputError, match="6 of 10 labels reversed"):
        build_pairs(given, judge=rewards(4, 6))
    made = build_pairs({**given, "accept_reversal": True}, judge=rewards(4, 6))
    assert made.result["reversal"]["reversed"] == 6
    assert build_pairs(given, judge=rewards(7, 3)).result["reversal"]["reversed"] == 3
    rows = [
        Candidates(
            prompt_id_of(prompt_of("a")), prompt_of("a"), ("w0", "l0"), (None,) * 2, (None,) * 2
        )
    ]
    CandidateSet.of(rows).save(tmp_path / "c.parquet")
    given["candidates"] = str(tmp_path / "c.parquet")
    assert build_pairs(given, judge=rewards(0, 1)).result["reversal"] is None


def test_per_prompt_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    measured = tmp_path / "measured"
    measured.mkdir()
    (measured / "stage.json").write_text(
        json.dumps({"stage": "undecided", "votes_on": 1, "votes_off": 2})
    )
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"prompt_id": "x", "votes_on": 1, "votes_off": 1, "ties": 0, "undecided": 0}
    pq.write_table(pa.Table.from_pylist([row]), measured / "prompts.parquet")
    own = [
        Candidates(each.prompt_id, each.prompt, ("w0", "l0"), (None,) * 2, (None,) * 2)
        for each in labelled(5)
    ]
    CandidateSet.of(own).save(measured / "candidates.parquet")
    method = {"name": "per-prompt", "measurement": str(measured), "budget": {"tokens": 1000}}
    policy = ScriptedPolicy()
    given = recipe(tmp_path, labelled(5), method=method, policy="given")
    with pytest.raises(InputError, match="5 of 5 labels reversed"):
        build_pairs(given, judge=rewards(0, 5), sampler=policy)
    assert policy.asked == []


@pytest.mark.parametrize("method", ["keep", "best-vs-worst"])
def test_a_yes_that_nothing_reads_is_refused(tmp_path: Path, method: str) -> None:
    given = recipe(tmp_path, labelled(2), method=method, accept_reversal=True)
    given.pop("judge")
    if method != "keep":
        given["candidates"] = given.pop("pairs")
    with pytest.raises(ConfigError, match="'accept_reversal', which has no effect"):
        build_pairs(given)
    assert build_pairs(
        {
            **given,
            "accept_reversal": False,
            "method": "keep",
            "pairs": str(tmp_path / "p.parquet"),
            "candidates": None,
        }
    )


def test_the_command_says_the_figure(tmp_path: Path) -> None:
    rows = [pair(f"p{n}", "long answer", "no") for n in range(4)]
    given = recipe(tmp_path, rows, judge="python:tests.aligning.judges:shorter")
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(given))
    refused = CliRunner().invoke(app, ["build", str(file)])
    assert refused.exit_code == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "4 of 4 labels reversed by the judge: 100.0 %" in line
    file.write_text(yaml.safe_dump({**given, "accept_reversal": True}))
    done = CliRunner().invoke(app, ["build", str(file)])
    assert done.exit_code == 0, done.output
    assert "4 of 4 labels reversed by the judge: 100.0 %" in done.stdout
