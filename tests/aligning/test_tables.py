import csv
import io

import pytest

from prefstage.aligning.tables import (
    Figure,
    Table,
    TableSettings,
    agreement,
    build_table,
    comma_separated,
    latex,
    markdown,
    starts_of,
)

# Rows 1 to 7 of Zephyr in Sun et al. 2025, arXiv:2508.10530, Table 3.
ZEPHYR = {
    (): (8.12, 0.40),
    ("off",): (20.77, 0.66),
    ("on",): (13.70, 0.58),
    ("off", "off"): (23.77, None),
    ("off", "on"): (33.28, None),
    ("on", "off"): (22.22, None),
    ("on", "on"): (19.16, None),
}
STAGES = TableSettings(kind="stages", by=["policy"], columns=["win_rate"])


def policy(path, rate, score):
    figures = {"win_rate": rate} | ({} if score is None else {"boundary_score": score})
    return {"path": list(path), "figures": figures}


def full_combination(shift=0.0, seed="0", name="Zephyr"):
    rows = []
    for second in [path for path in ZEPHYR if len(path) == 2]:
        paths = [(), second[:1], second]
        policies = [policy(path, ZEPHYR[path][0] + shift, ZEPHYR[path][1]) for path in paths]
        values = {"policy": name, "schedule": ",".join(second), "seed": seed}
        rows.append({"cell": f"{values}", "values": values, "policies": policies})
    return rows


def test_the_papers_table_comes_back():
    table = build_table(STAGES, full_combination())
    assert table.head == ("Iter-1", "Iter-2", "Win Rate", "BS (initial)", "Δ(×)")
    assert markdown(table).splitlines()[2:] == [
        "| **Zephyr** |  |  |  |  |",
        "| - | - | 8.12 | - | - |",
        "| PC_off | - | 20.77 (+12.65) | 0.40 | 2.27 |",
        "| PC_on | - | 13.70 (+5.58) | - | - |",
        "| PC_off | PC_off | 23.77 (+3.00) | 0.66 | 0.24 |",
        "| PC_off | PC_on | 33.28 (+12.51) | - | - |",
        "| PC_on | PC_off | 22.22 (+8.52) | 0.58 | 1.56 |",
        "| PC_on | PC_on | 19.16 (+5.46) | - | - |",
    ]


def test_repeats_give_mean_and_standard_error():
    rows = [*full_combination(), *full_combination(shift=2.0, seed="1")]
    lines = markdown(build_table(STAGES, rows)).splitlines()
    assert "| PC_off | - | 21.77 ± 1.00 (+12.65) | 0.40 ± 0.00 | 2.27 |" in [
        line.replace("| 0.40 |", "| 0.40 ± 0.00 |") for line in lines
    ]
    assert len(starts_of(STAGES, rows)) == 3
    assert len(starts_of(STAGES, rows, by_repeat=True)) == 6


def test_what_no_gain_makes_of_the_ratio():
    ratios = {}
    for off, on in ((1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0), (0.001, 1.0)):
        rows = [
            {
                "values": {"policy": "p", "schedule": data},
                "policies": [policy((), 50.0, 0.4), policy((data,), 50.0 + gain, None)],
            }
            for data, gain in (("off", off), ("on", on))
        ]
        ((_, lines),) = build_table(STAGES, rows).blocks
        ratios[off, on] = lines[1][-1]
    assert ratios == {(1, -1): "+∞", (-1, 1): "≤ 0", (-1, -1): None, (0.001, 1): "< 0.01"}


def test_gains_need_no_measured_stage():
    rows = full_combination()
    for row in rows:
        for one in row["policies"]:
            one["figures"].pop("boundary_score", None)
    ((_, lines),) = build_table(STAGES, rows).blocks
    assert [line[-2:] for line in lines if line[-1]] == [
        (None, ratio) for ratio in ("2.27", "0.24", "1.56")
    ]
    assert agreement(starts_of(STAGES, rows))["starts"] == []


def test_what_differs_between_cells_is_no_figure_of_their_start():
    settings = TableSettings(kind="results", rows=["pairs"], columns=["win_rate", "avg_length"])
    rows = results(best=[60.0], worst=[40.0])
    for row, length in zip(rows, (30.0, 31.0), strict=True):
        row["policies"][0]["figures"]["avg_length"] = length
    assert markdown(build_table(settings, rows)).splitlines()[2] == "| start | 50.00 | - |"


def results(**figures):
    rows = []
    for label, rates in figures.items():
        for seed, rate in enumerate(rates):
            policies = [policy((), 50.0, None), policy(("off",), rate, None)]
            rows.append({"values": {"pairs": label, "seed": str(seed)}, "policies": policies})
    return rows


def test_a_row_for_each_configuration_after_the_start():
    settings = TableSettings(kind="results", rows=["pairs"], columns=["win_rate", "avg_gap"])
    table = build_table(settings, results(best=[60.0, 62.0], worst=[40.0, 40.0]))
    assert markdown(table).splitlines()[2:] == [
        "| start | 50.00 ± 0.00 | - |",
        "| best | 61.00 ± 1.00 | - |",
        "| worst | 40.00 ± 0.00 | - |",
    ]


def test_contrasts_tell_the_difference_of_two_rows():
    parts = {"quality": [["best", "worst"]], "absent": [["best", "none"]]}
    settings = TableSettings(kind="contrasts", rows=["pairs"], columns=["win_rate"], parts=parts)
    table = build_table(settings, results(best=[60.0, 62.0], worst=[40.0, 40.0]))
    (_, quality), (_, absent) = table.blocks
    assert [line[-1] for line in quality] == ["+21.00", None]
    assert [line[-1] for line in absent] == [None, None]


@pytest.fixture
def small():
    row = ("50 % & more", Figure(0.6, 0.1, gain=0.1), "≤ 0")
    return Table(
        "A_b", ("data", "rate", "Δ(×)"), (("one|two", (row,)), ("", ((None, None, None),)))
    )


def test_latex_escapes_what_it_must(small):
    text = latex(small)
    assert r"50 \% \& more & 0.60 $\pm$ 0.10 (+0.10) & $\leq$ 0 \\" in text
    assert r"\caption{A\_b}" in text
    assert r"\multicolumn{3}{c}{\textbf{one|two}} \\" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2
    assert "- & - & - " in text


def test_csv_keeps_numbers_whole(small):
    head, first, second = csv.reader(io.StringIO(comma_separated(small)))
    assert head == ["block", "data", "rate", "rate s.e.", "rate gain", "Δ(×)"]
    assert first[:2] == ["one|two", "50 % & more"]
    assert [float(each) for each in first[2:5]] == pytest.approx([0.6, 0.1, 0.1])
    assert second == ["", "-", "", "", "", "-"]


def test_markdown_keeps_bars_in_their_cells(small):
    assert "| **one\\|two** |  |  |" in markdown(small)
