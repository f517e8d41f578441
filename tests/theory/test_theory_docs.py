"""The figures that docs/theory.md quotes are those that the command finds."""

import re
from pathlib import Path

import pytest

from prefstage.sandbox.theory import CHECKS, Checked, Finding, Setting, run_checks
from prefstage.sandbox.theory.evidence import EXACT

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
WORLDS = 2000
FORMS = {
    "equality": r"residual (\S+)",
    "rule": r"(\d+) exceptions",
    "order": r"order (\S+)",
    "counterexample": r"false in (\d+)% of the worlds",
    "calibration": r"within ([\d.]+) points",
}


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    parts = re.split(r"^#{2,3} (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> list[tuple[str, str]]:
    table = section.split("| claim | found |\n|---|---|\n")[1].split("\n\n", maxsplit=1)[0]
    cells = [re.split(r"(?<!\\)\|", line)[1:3] for line in table.splitlines()]
    return [(claim.strip().replace("\\|", "|"), found.strip()) for claim, found in cells]


def quoted_right(finding: Finding, found: str) -> bool:
    match = re.fullmatch(FORMS[finding.kind], found)
    if match is None:
        return False
    number = float(match[1])
    if finding.kind == "equality":  # rounding differs between processors
        return number <= EXACT and finding.value <= max(30 * number, 1e-15)
    scale = {"counterexample": 100, "calibration": 100}.get(finding.kind, 1)
    step = {"order": 0.01, "calibration": 0.1}.get(finding.kind, 1.0)
    return abs(number - scale * finding.value) <= 0.51 * step


@pytest.fixture(scope="module")
def chapter() -> list[Checked]:
    return run_checks(list(CHECKS.values()), Setting(WORLDS, 0))


def test_every_check_has_a_section_with_its_source(sections: dict[str, str]) -> None:
    assert "prefstage theory --out theory --worlds 2000" in PAGE.read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        told = " ".join(sections[name].split())
        assert f"**Statement.** {check.statement}" in told
        assert f"**Where it holds.** {check.valid}" in told
        assert f"Source: {check.source}." in told


@pytest.mark.slow
def test_every_quoted_figure_is_found_again(
    chapter: list[Checked], sections: dict[str, str]
) -> None:
    wrong = []
    for done in chapter:
        quoted = rows(sections[done.check.name])
        findings = done.evidence.findings
        assert [claim for claim, _ in quoted] == [each.claim for each in findings]
        wrong += [
            (done.check.name, finding.claim, finding.value, found)
            for finding, (_, found) in zip(findings, quoted, strict=True)
            if not quoted_right(finding, found)
        ]
    assert wrong == []


def test_a_figure_that_is_not_found_is_told() -> None:
    finding = Finding("", "counterexample", 0.374, "", 1, holds=True)
    assert quoted_right(finding, "false in 37% of the worlds")
    assert not quoted_right(finding, "false in 38% of the worlds")
    assert not quoted_right(finding, "residual 1e-16")
