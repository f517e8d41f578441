"""A page says what its runs hold, and what they do not."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import prefstage
from prefstage.cli.main import app
from prefstage.core.errors import InputError
from tests.reporting.reading_pages import Read, read_page

EVERYTHING = ["overview", "decision", "iterations", "evaluation", "training", "dynamics"]
EVERYTHING += ["diversity", "pairs", "costs", "explorer", "configuration"]


@pytest.fixture(scope="module")
def path(aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an alignment that recorded everything."""
    return prefstage.write_report(aligned, out=tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def page(path: Path) -> Read:
    return read_page(path)


def test_everything_that_a_run_holds_is_shown(page: Read, aligned: Path) -> None:
    assert page.sections() == EVERYTHING
    result = json.loads((aligned / "align.json").read_text())
    for row in result["iterations"]:
        stage, rates = row["stage"], row["evaluation"]
        assert f"{stage['boundary_score']:.3f}" in page.text
        assert f"[{stage['interval'][0]:.3f}, {stage['interval'][1]:.3f}]" in page.text
        assert f"{rates['win_rate']:.1f} % [{rates['interval'][0]:.1f}" in page.text
    assert f"{result['costs']['judgments']:,} judgments" in page.text


def test_the_interval_ends_where_the_measurement_did(page: Read, aligned: Path) -> None:
    result = json.loads((aligned / "align.json").read_text())
    values = page.charts()["interval"]["data"][0]["values"]
    for row in result["iterations"]:
        last = [each for each in values if each["series"] == f"iteration {row['iteration']}"][-1]
        assert last["prompts"] == row["stage"]["prompts_used"]
        assert [last["low"], last["high"]] == pytest.approx(row["stage"]["interval"], abs=1e-6)


def test_the_explorer_holds_every_pair_once(page: Read, aligned: Path) -> None:
    table, texts = page.pairs()
    result = json.loads((aligned / "align.json").read_text())
    judged = sum(row["evaluation"]["prompts"] for row in result["iterations"])
    assert table["pairs"] == sum(row["pairs"] for row in result["iterations"]) + judged
    assert len(texts) == len(set(texts)) == table["texts"]
    groups = {table["names"][each] for each in table["columns"]["group"] if each >= 0}
    assert groups <= {
        f"{a}->{b}" for a in ("correct", "incorrect") for b in ("correct", "incorrect")
    }
    assert groups
    followed = [k for k, each in enumerate(table["columns"]["group"]) if each >= 0]
    assert all(table["columns"]["ratio"][k] is not None for k in followed)


def test_each_chart_has_words_and_a_table(page: Read) -> None:
    charts = [each for each in page.of("div") if "data-chart" in each]
    assert {each["data-chart"] for each in charts} == set(page.charts())
    assert all(len(str(each["aria-label"])) > 30 for each in charts)
    assert len(page.of("details")) == len(charts) + 1  # and the configuration


def test_a_page_runs_only_its_own_scripts_and_loads_nothing(page: Read, path: Path) -> None:
    policy = next(
        str(each["content"])
        for each in page.of("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "eval" not in policy
    assert not re.search(r"script-src[^;]*unsafe-inline", policy)
    run = [attributes for attributes, _ in page.scripts if "type" not in attributes]
    assert policy.count("'sha256-") == len(run)
    links = [each.get(name) for _, each in page.tags for name in ("src", "href") if name in each]
    assert all(str(link).startswith(("#", "data:,")) for link in links)
    assert path.stat().st_size < 5_000_000


def test_what_is_lacking_is_said_and_no_chart_is_empty(plain: Path, tmp_path: Path) -> None:
    page = read_page(prefstage.write_report(plain, out=tmp_path / "plain.html"))
    assert "dynamics" not in page.sections()
    assert "evaluation" not in page.sections()
    assert "flip dynamics, loss against the reference log-ratio" in page.text
    assert "win rates and lengths (set `evaluate` in the recipe)" in page.text


def test_several_runs_are_compared(aligned: Path, plain: Path, tmp_path: Path) -> None:
    page = read_page(prefstage.write_report([aligned, plain], out=tmp_path / "two.html"))
    table, _ = page.pairs()
    assert {table["names"][each] for each in table["columns"]["run"]} == {"aligned", "plain"}
    values = page.charts()["interval"]["data"][0]["values"]
    assert {each["series"].split(":")[0] for each in values} == {"aligned", "plain"}


def test_runs_of_one_name_are_told_apart(plain: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(plain, tmp_path / each / "run")) for each in ("a", "b")]
    page = read_page(prefstage.write_report(copies, out=tmp_path / "two.html"))
    assert "a/run" in page.text
    assert "b/run" in page.text


def test_the_same_runs_make_the_same_page(aligned: Path, path: Path, tmp_path: Path) -> None:
    again = prefstage.write_report(aligned, out=tmp_path / "again.html")
    assert again.read_bytes() == path.read_bytes()


def test_the_command_writes_the_page_and_the_figures(aligned: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "r.html", tmp_path / "figures"
    words = ["report", str(aligned), "--out", str(out), "--figures", str(figures), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["bytes"] == out.stat().st_size
    for name in told["charts"]:
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (figures / f"{name}.svg").read_text()[:300]


@pytest.mark.parametrize("given", ["nothing", "empty", "begun", "torn", "damaged"])
def test_what_is_no_run_is_refused(given: str, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if given != "nothing":
        folder.mkdir()
    if given == "begun":
        shutil.copy(plain / "manifest.json", folder)
    if given == "torn":
        (folder / "result.json").write_text('{"command": "align", "parts": [')
    if given == "damaged":
        shutil.copy(plain / "result.json", folder)
        (folder / "align.json").write_text('{"iterations": [')
    expected = {
        "nothing": "no folder or file",
        "empty": "holds no results",
        "begun": "its align has not ended",
        "torn": "is not as it was written",
        "damaged": "align.json, or a file that it names, is not as it was written",
    }
    with pytest.raises(InputError, match=expected[given]):
        prefstage.write_report(folder, out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
