import json
import math
import subprocess
import sys

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from typer.testing import CliRunner

from prefstage.building.account import Account, Built
from prefstage.building.build import build_pairs
from prefstage.building.filters import filtered
from prefstage.building.recipe import (
    DecontaminationFilter,
    Filters,
    GapFilter,
    LengthFilter,
    NearDuplicateFilter,
)
from prefstage.cli.main import app
from prefstage.core.errors import DataError, InputError, RunFolderError
from prefstage.data import load_pairs
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.diagnosing.numbers import describe_sorted
from tests.building.making import candidates, pair

ENGLISH = "The quick brown fox jumps over the lazy dog while the sun is shining brightly."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, während die Sonne scheint."
LONG = " ".join(f"word{n}" for n in range(60))


@pytest.fixture
def rows(tmp_path):
    draw = np.random.default_rng(0)
    made = [candidates(f"p{n}", list(draw.normal(size=6))) for n in range(60)]
    CandidateSet.of(made).save(tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def kept(pairs, filters, **known):
    account = Account()
    groups = [[Built(each, "m", "m", gap=known.get("gap"))] for each in pairs]
    return [g[0].pair for g in filtered(groups, filters, account=account)], account.skipped


@pytest.mark.parametrize(
    ("filters", "good", "bad", "reason"),
    [
        (Filters(length=LengthFilter(min_response=4)), pair("a", "long", "enough"),
         pair("b", "yes", "enough"), "filter: response too short"),
        (Filters(length=LengthFilter(max_response=9)), pair("a", "short", "short2"),
         pair("b", LONG, "short"), "filter: response too long"),
        (Filters(length=LengthFilter(max_prompt=3)), pair("a"), pair("bbbb"),
         "filter: prompt too long"),
        (Filters(length=LengthFilter(max_ratio=2)), pair("a", "1234", "12"),
         pair("b", "12345", "12"), "filter: responses of too different lengths"),
        (Filters(agreement=0.8), pair("a", agreement=0.8), pair("b", agreement=0.75),
         "filter: raters agree too little"),
        (Filters(agreement=0.8), pair("a", agreement=1.0), pair("b"),
         "filter: agreement unknown (no votes)"),
        (Filters(language=("en",)), pair("a", ENGLISH, "No."), pair("b", ENGLISH, GERMAN),
         "filter: response in another language (de)"),
        (Filters(duplicates=True), pair("a"), pair("a"), "filter: exact duplicate"),
        (Filters(near_duplicates=NearDuplicateFilter()), pair("a", LONG), pair("b", LONG + " x"),
         "filter: near duplicate"),
    ],
)  # fmt: skip
def test_each_filter_leaves_out_and_counts(filters, good, bad, reason):
    left, skipped = kept([good, bad], filters)
    assert left == [good]
    assert skipped == {reason: 1}


def test_gap_filter():
    limits = Filters(gap=GapFilter(minimum=1.0, maximum=2.0))
    for gap, reason in ((0.5, "small"), (3.0, "large"), (None, "unknown (no scores)")):
        left, skipped = kept([pair("a")], limits, gap=gap)
        assert left == []
        assert next(iter(skipped)).endswith(reason)
    assert kept([pair("a")], limits, gap=1.5)[0]


def test_decontamination_finds_prompts_and_responses(tmp_path):
    lines = [{"prompt": LONG}, {"prompt": "What is 2 + 2?"}]
    file = tmp_path / "evaluation.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    part = " ".join(LONG.split()[10:25])
    pairs = [pair(f"Say {part}!"), pair("what is 2 + 2"), pair("x", f"It is {part}"), pair("fine")]
    filters = Filters(decontaminate=DecontaminationFilter(evaluation=(str(file),)))
    left, skipped = kept(pairs, filters)
    assert left == [pairs[3]]
    assert skipped == {
        "filter: prompt shares text with the evaluation set": 2,
        "filter: response shares text with the evaluation set": 1,
    }


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 81, "category": "writing", "turns": [LONG, "Now in verse."]},
        {"question": LONG, "answer": "42"},
        {"key": 1000, "prompt": LONG, "kwargs": [{}]},
        {"prompt": [{"role": "user", "content": LONG}]},
        {"instruction": LONG, "output": ""},
        {
            "chosen": f"\n\nHuman: {LONG}\n\nAssistant: a",
            "rejected": f"\n\nHuman: {LONG}\n\nAssistant: b",
        },
    ],
)
def test_evaluation_sets_are_read_as_they_are_published(tmp_path, row):
    file = tmp_path / "evaluation.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    filters = Filters(decontaminate=DecontaminationFilter(evaluation=(str(file),)))
    left, skipped = kept([pair(LONG), pair("fine")], filters)
    assert left == [pair("fine")]
    assert skipped == {"filter: prompt shares text with the evaluation set": 1}


def test_names_and_code_are_no_other_language():
    names = "* Beninese\n* Burundian\n* Chadian\n* Congolese\n* Dominican\n* Egyptian\n* Eritrean"
    code = "WITH ANIMAL AS (SELECT 1 AS ID, 'PANDA' AS NAME FROM DUAL UNION ALL SELECT 2 AS ID)"
    given = [pair("a", names, code)]
    assert kept(given, Filters(language=("en",))) == (given, {})


def test_an_evaluation_set_without_questions_is_refused(tmp_path):
    file = tmp_path / "evaluation.jsonl"
    file.write_text('{"key": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="key"):
        kept([pair("a")], Filters(decontaminate=DecontaminationFilter(evaluation=(str(file),))))


def test_a_prompt_that_one_part_loses_goes_from_all(rows):
    settings = {"candidates": str(rows), "method": "tiers", "filters": {"gap": {"minimum": 0.2}}}
    made = build_pairs(settings)
    ids = [[each.prompt_id for each in splits["train"]] for splits in made.parts.values()]
    assert len(ids) == 7
    assert all(each == ids[0] for each in ids)
    assert 0 < len(ids[0]) < 60
    assert "filter: gap too small" in made.result["left_out"]


def test_splits_go_by_prompt(rows):
    recipe = {"candidates": str(rows), "method": "all-pairs", "splits": {"test": 0.2, "dev": 0.2}}
    (splits,) = build_pairs(recipe).parts.values()
    ids = {name: {each.prompt_id for each in pairs} for name, pairs in splits.items()}
    assert set(ids) == {"train", "test", "dev"}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 60
    assert 4 <= len(ids["test"]) <= 22
    augmented = build_pairs({**recipe, "augment": {"digits": 3}})
    for name, pairs in augmented.parts["reward-augmented"].items():
        assert set(pairs.dataset["origin_prompt_id"]) <= ids[name]


@pytest.mark.parametrize("splits", [{"test": 0}, {"test": 0.6, "dev": 0.4}, {"train": 0.5}])
def test_splits_that_leave_nothing_are_refused(rows, splits):
    with pytest.raises(InputError, match="shares in"):
        build_pairs({"candidates": str(rows), "method": "all-pairs", "splits": splits})


def test_describe_as_table_5():
    found = describe_sorted(np.array([1.0, 2.0, 3.0, 4.0, math.nan]))
    assert tuple(found[name] for name in ("mean", "min", "q25", "median")) == (2.5, 1.0, 1.75, 2.5)
    assert tuple(found[name] for name in ("q75", "max", "count", "missing")) == (3.25, 4.0, 4, 1)
    assert found["std"] == pytest.approx(math.sqrt(5 / 3))
    assert describe_sorted(np.zeros(0))["mean"] is None
    assert describe_sorted(np.array([2.0]))["std"] is None


def test_the_folder_holds_pairs_card_and_counts(rows, tmp_path):
    out = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"candidates: {rows}\nmethod: best-vs-worst\nlicense: mit\nsplits: {{test: 0.2}}\n",
        encoding="utf-8",
    )
    result = CliRunner().invoke(app, ["build", str(recipe), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((out / "build.json").read_text(encoding="utf-8"))
    train = load_pairs(out / "best-vs-worst" / "train.parquet")
    test = load_pairs(out / "best-vs-worst" / "test.parquet")
    assert told["parts"] == {"best-vs-worst": {"train": len(train), "test": len(test)}}
    assert len(train) + len(test) == 60
    head = yaml.safe_load((out / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["license"] == "mit"
    paths = [each["path"] for each in head["configs"][0]["data_files"]]
    assert all((out / path).exists() for path in paths)
    again = CliRunner().invoke(app, ["build", str(recipe), "--out", str(out)])
    assert again.exit_code == 0
    recipe.write_text(f"candidates: {rows}\nmethod: all-pairs\n", encoding="utf-8")
    other = CliRunner().invoke(app, ["build", str(recipe), "--out", str(out)])
    assert other.exit_code == 2
    assert "holds another run" in other.stderr


def test_the_hub_reads_the_folder_by_its_card(rows, tmp_path):
    build_pairs({"candidates": str(rows), "method": "tiers"}, out=tmp_path / "run")
    loaded = load_dataset(str(tmp_path / "run"), "best-worst", cache_dir=str(tmp_path / "cache"))
    assert len(loaded["train"]) == 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: best-vs-wurst", ["did you mean 'best-vs-worst'"]),
        ("method: {name: all-pairs, kk: 3}", ["unknown setting 'kk'", "did you mean 'k'"]),
        ("method: all-pairs\npears: x", ["unknown setting 'pears'", "did you mean 'pairs'"]),
        ("method: relabel", ["with candidates", "set pairs"]),
        ("method: mixing", ["with candidates", "pairs"]),
        ("method: max-gap", ["'min_gap' is missing"]),
        ("method: all-pairs\npolicy: x", ["with policy", "leave out policy"]),
        ("method: all-pairs\ndtype: float32", ["'dtype'", "no effect"]),
        ("method: all-pairs\nfilters: {length: {}}", ["no limit"]),
        ("method: all-pairs\nsplits: {test: 2}", ["shares in (0, 1)"]),
        ("method: {name: tiers, combinations: [worst/best]}", ["CHOSEN/REJECTED"]),
        ("method: on-policy", ["without judge", "set judge"]),
        ("method: all-pairs\nfilters: {duplikates: true}", ["did you mean 'filters.duplicates'"]),
    ],
)
def test_wrong_recipes_are_one_line(rows, tmp_path, text, words):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"candidates: {rows}\n{text}\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["build", str(recipe)])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_another_run_in_the_folder_is_refused(rows, tmp_path):
    build_pairs({"candidates": str(rows), "method": "all-pairs"}, out=tmp_path / "run")
    with pytest.raises(RunFolderError, match="another run"):
        build_pairs(
            {"candidates": str(rows), "method": "all-pairs", "seed": 1}, out=tmp_path / "run"
        )


def test_train_of_several_parts_is_refused(rows):
    with pytest.raises(InputError, match="7 parts"):
        build_pairs({"candidates": str(rows), "method": "tiers"}).train  # noqa: B018 - the read


def test_pairs_as_they_are_can_be_filtered(tmp_path):
    PairSet.of([pair("a"), pair("a"), pair("b")]).save(tmp_path / "p.parquet")
    recipe = {"pairs": str(tmp_path / "p.parquet"), "method": "keep"}
    assert len(build_pairs({**recipe, "filters": {"duplicates": True}}).train) == 2


def test_recipes_are_read_without_torch():
    script = "import sys, prefstage.building.recipe; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
