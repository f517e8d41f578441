"""Data that want to be more than text: nothing of it is executed, and nothing breaks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import prefstage
from prefstage.data import load_pairs
from tests.reporting.reading_pages import read_page

HOSTILE = [
    "<script>document.documentElement.dataset.pwned = 1</script>",
    "</script><script>document.documentElement.dataset.pwned = 1</script>",
    "<!--<script>",
    '<img src=x onerror="document.documentElement.dataset.pwned = 1">',
    '"><svg onload=document.documentElement.dataset.pwned=1>',
    "[x](javascript:document.documentElement.dataset.pwned=1)",
    '<a href="javascript:document.documentElement.dataset.pwned=1">x</a>',
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "a\u2028b\u2029c",
    "\u202egnirts\u202c \u2066x",
    "nul \x00 bell \x07",
    "x" * 1_000_000,
    "lines\n" * 1000,
    "emoji 👩‍👩‍👧 and İstanbul",
]
LONE = "lone \ud800 surrogate"


@pytest.fixture(scope="module")
def hostile(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose pairs, names, notes and configuration are hostile."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("hostile") / "<b>run&"))
    rows = [{"prompt": text, "chosen": text + " yes", "rejected": text + " no"} for text in HOSTILE]
    source = folder / "pairs.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    result = json.loads((folder / "align.json").read_text())
    build = folder / "steps" / result["iterations"][0]["steps"]["build"]
    load_pairs(source).save(build / "pairs.parquet")
    result["iterations"][0]["reason"] = LONE
    result["iterations"][0]["stage"]["policy"] = HOSTILE[3]
    result["iterations"][0]["training"]["notes"] = [*HOSTILE[:11], LONE]
    (folder / "align.json").write_text(json.dumps(result))
    summary = json.loads((folder / "result.json").read_text())
    summary["facts"]["judge"] = HOSTILE[1]
    (folder / "result.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("\n".join(HOSTILE[:8]))
    return prefstage.write_report(folder, out=folder / "report.html", title=HOSTILE[1])


def test_hostile_text_stays_text(hostile: Path) -> None:
    page = read_page(hostile)
    kinds = {each.get("type") for each, _ in page.scripts}
    assert kinds == {None, "application/json", "text/plain"}
    assert not page.of("img")
    assert not page.of("svg")
    assert not [name for _, each in page.tags for name in each if name.startswith("on")]
    assert not [each for each in page.of("a") if not str(each["href"]).startswith("#")]
    assert "{{ 7 * 7 }}" in page.text
    assert "lone \ufffd surrogate" in page.text
    _, texts = page.pairs()
    assert set(HOSTILE) <= set(texts)
    assert f"{HOSTILE[11]} yes" in texts


def opened(browser: Any, path: Path, *, script: str = "") -> tuple[Any, list[str]]:
    """A page when all is there, and what the console and the network had to say."""
    page, told = browser.new_page(), list[str]()
    page.add_init_script(script)
    page.on("console", lambda line: told.append(line.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
    page.on("request", lambda each: told.append(each.url) if each.url[:4] == "http" else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-explorer=whole][data-charts=drawn]", timeout=60_000)
    return page, told


@pytest.mark.slow
def test_a_browser_executes_nothing_of_it(hostile: Path, browser: Any) -> None:
    page, told = opened(browser, hostile)
    for _ in range(len(HOSTILE)):
        page.press("#rows", "ArrowDown")
    for button in page.query_selector_all("#pair button"):
        button.click()
    page.fill("#search", "<script>")
    assert page.text_content("#found") == "3 of 14 pairs."
    page.fill("#search", "i\u0307stanbul")
    assert page.text_content("#found") == "1 of 14 pairs."
    page.fill("#search", "gnirts")
    assert "U+202E" in page.text_content("#pair")
    assert page.get_attribute("html", "data-pwned") is None
    assert told == []


@pytest.mark.slow
def test_a_browser_sorts_filters_and_moves(aligned: Path, browser: Any, tmp_path: Path) -> None:
    path = prefstage.write_report(aligned, out=tmp_path / "report.html")
    table, _ = read_page(path).pairs()
    page, told = opened(browser, path)
    gaps = [each for each in table["columns"]["gap"] if each is not None]
    page.click("button[data-sort=gap]")
    assert float(page.text_content("#row-0 .number")) == pytest.approx(max(gaps), rel=0.01)
    page.click("button[data-sort=gap]")
    assert float(page.text_content("#row-0 .number")) == pytest.approx(min(gaps), rel=0.01)
    page.fill("#gap-low", str(max(gaps)))
    page.dispatch_event("#gap-low", "change")
    expected = sum(each >= max(gaps) for each in gaps)
    assert page.text_content("#found").startswith(f"{expected} of {table['pairs']}")
    page.click("button[type=reset]")
    page.wait_for_selector(f"#found:has-text('{table['pairs']} pairs.')")
    page.press("#rows", "End")
    assert page.get_attribute(f"#row-{table['pairs'] - 1}", "aria-selected") == "true"
    assert told == []


SORT_AT_ONCE = """
new MutationObserver((changes, observer) => {
  if (document.documentElement.dataset.explorer !== "open") return;
  observer.disconnect();
  document.querySelector("button[data-sort=prompt]").click();
  document.documentElement.dataset.told = document.getElementById("found").textContent;
}).observe(document, { attributeFilter: ["data-explorer"], subtree: true });
"""


@pytest.mark.slow
def test_a_list_sorted_by_prompt_before_all_is_unpacked_ends_sorted(
    aligned: Path, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefstage.reporting.runs._BLOCK_CHARACTERS", 100)
    path = prefstage.write_report(aligned, out=tmp_path / "report.html")
    table, texts = read_page(path).pairs()
    page, told = opened(browser, path, script=SORT_AT_ONCE)
    assert "still being unpacked" in page.get_attribute("html", "data-told")
    prompts = page.eval_on_selector_all(
        ".row", "rows => rows.map((r) => r.children[1].textContent)"
    )
    expected = sorted(texts[place] for place in table["columns"]["prompt"])
    assert len(set(expected)) > 1
    assert prompts == expected[: len(prompts)]
    assert page.get_attribute("#row-0", "aria-selected") == "true"
    assert "unpacked" not in page.text_content("#found")
    assert told == []


@pytest.mark.slow
def test_paper_holds_the_first_pairs_and_says_what_it_leaves_out(
    hostile: Path, aligned: Path, browser: Any, tmp_path: Path
) -> None:
    path = prefstage.write_report(aligned, out=tmp_path / "report.html")
    page, told = opened(browser, path)
    count = read_page(path).pairs()[0]["pairs"]
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert len(page.query_selector_all("#printed article")) == 10
    said = page.text_content("#printed > .found")
    assert said.startswith(f"10 of {count} pairs")
    assert f"{count - 10} are not printed" in said
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.query_selector("#printed article") is None
    assert told == []
    page, _ = opened(browser, hostile)
    page.fill("#search", "x" * 100)  # in a prompt of a million letters
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert "1 of 1 pairs that were searched for" in page.text_content("#printed > .found")
    assert len(page.text_content("#printed")) < 10_000
    assert "999,000 more characters are not printed." in page.text_content("#printed")
    assert page.get_attribute("html", "data-pwned") is None
