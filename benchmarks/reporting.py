"""How fast a report of many pairs opens and answers, in headless Chromium.

    python benchmarks/reporting.py --out reporting.json

Makes a build of pairs with texts of the usual lengths (a prompt of about 300 characters, responses
of about 400), writes its report, opens it, types searches, and measures until the answer is
painted. Needs Chromium (`--chromium`) and the extra `dev`.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import Page, sync_playwright

from prefstage import write_report
from prefstage.core.runs import write_result

# Time from the input event until the frame after the answer is painted.
SEARCH = """(query) => new Promise((resolve) => {
  const field = document.getElementById("search");
  field.value = query;
  const began = performance.now();
  field.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => setTimeout(() => resolve(
    [performance.now() - began, document.getElementById("found").textContent])));
})"""


def write_build(folder: Path, pairs: int) -> None:
    """Write what `prefstage build` leaves: pairs of made-up words, with scores."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwygpbvk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    often = list(accumulate(1 / (rank + 3) for rank in range(len(words))))  # Zipf's law

    def text(count: int) -> str:
        length = max(3, round(draw.gauss(count, count / 4)))
        return " ".join(draw.choices(words, cum_weights=often, k=length))

    part = folder / "pairs"
    part.mkdir(parents=True)
    gaps = [draw.gauss(1, 1) for _ in range(pairs)]
    table = {
        "prompt_id": [f"{number:016x}" for number in range(pairs)],
        "prompt": [[{"role": "user", "content": text(46)}] for _ in range(pairs)],
        "chosen": [[{"role": "assistant", "content": text(62)}] for _ in range(pairs)],
        "rejected": [[{"role": "assistant", "content": text(62)}] for _ in range(pairs)],
        "gap": gaps,
        "source_chosen": [draw.choice(["policy", "other"]) for _ in range(pairs)],
        "source_rejected": [draw.choice(["policy", "other"]) for _ in range(pairs)],
        "agreement": [draw.choice([0.5, 0.75, 1.0]) for _ in range(pairs)],
    }
    pq.write_table(pa.table(table), part / "train.parquet")
    numbers = dict.fromkeys(("q25", "median", "q75"), 0.0)
    statistics = {"pairs": pairs, "prompts": pairs, "average_chosen": None}
    statistics |= {"average_difference": None, "gap": {**numbers, "missing": 0}}
    result = {"method": "best-vs-worst", "source": "made up", "judge": None, "figures": {}}
    result |= {
        "pairs_built": pairs,
        "left_out": {},
        "notes": [],
        "reversal": None,
        "parts": {"pairs": {"train": pairs}},
    }
    result["statistics"] = {"pairs": statistics}
    (folder / "build.json").write_text(json.dumps(result), encoding="utf-8")
    write_result(folder, "build", headline=f"{pairs:,} pairs of made-up words")


def opened(page: Page, path: Path) -> dict[str, float]:
    """Seconds until the first pairs can be read and filtered, and until all texts are there."""
    began = time.monotonic()
    page.goto(path.as_uri(), wait_until="commit")
    found = {}
    for name, state in (("first_pairs_s", "*"), ("all_texts_s", "whole")):
        wanted = "html[data-explorer]" if state == "*" else f"html[data-explorer={state}]"
        page.wait_for_selector(wanted, timeout=120_000)
        found[name] = time.monotonic() - began
    return found


def searched(page: Page, queries: list[str]) -> dict[str, Any]:
    """Milliseconds of each search, and what it found."""
    found = {}
    for query in queries:
        times, told = [], ""
        for _ in range(5):
            page.evaluate(SEARCH, "")
            took, told = page.evaluate(SEARCH, query)
            times.append(took)
        found[query] = {"median_ms": median(times), "worst_ms": max(times), "found": told}
    return found


def main() -> None:
    """Run the benchmark and tell what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--opens", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run, path = Path(place) / "run", Path(place) / "report.html"
        write_build(run, given.pairs)
        began = time.monotonic()
        write_report(run, out=path)
        result: dict[str, Any] = {"pairs": given.pairs, "written_s": time.monotonic() - began}
        result["megabytes"] = path.stat().st_size / 1e6
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=given.chromium, args=["--no-sandbox"]
            )
            result["chromium"] = browser.version
            times = []
            for _ in range(given.opens):
                page = browser.new_page()
                times.append(opened(page, path))
                if len(times) == given.opens:
                    result["searches"] = searched(page, ["e", "the", "tion", "no such text", "a e"])
                page.close()
            browser.close()
        for name in times[0]:
            result[name] = {
                "median": median(t[name] for t in times),
                "worst": max(t[name] for t in times),
            }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
