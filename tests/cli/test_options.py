import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import COMMANDS, app
from prefstage.cli.options import settings_of

PAIRS = [
    {"prompt": f"Q{n}?", "chosen": f"a good answer {n}", "rejected": f"bad {n}"} for n in range(9)
]
OWN = [{"prompt": f"Q{n}?", "responses": [f"mine {n}", f"also mine {n}"]} for n in range(9)]
BASE = ("measure", "--judge", "python:tests.cli.test_options:longer")


def longer(a: str, b: str, prompt: str) -> float:
    return float(len(a) > len(b))


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    files = {}
    for name, rows in (("pairs", PAIRS), ("own", OWN)):
        files[name] = str(tmp_path / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def measured(*words: str) -> dict[str, object]:
    ran = CliRunner().invoke(app, [*BASE, *words, "--json"])
    assert ran.exit_code == 0, ran.output
    stage: dict[str, object] = json.loads(ran.stdout)
    return stage


def test_set_wins_over_options_and_options_over_the_file(
    data: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(
        f"off_policy: {data['pairs']}\non_policy: {data['own']}\nmax_prompts: 3\nseed: 1\n"
    )
    words = ("--config", str(config))
    assert measured(*words)["prompts_used"] == 3
    assert measured(*words, "--max-prompts", "4")["prompts_used"] == 4
    assert measured(*words, "--max-prompts", "4", "--set", "max_prompts=2")["prompts_used"] == 2


def test_former_names_are_understood_and_not_shown(data: dict[str, str]) -> None:
    stage = measured("--off", data["pairs"], "--on", data["own"], "--responses", "1")
    assert stage["responses_per_prompt"] == {"on": 1, "off": 2}
    shown = CliRunner().invoke(app, ["measure", "-h"]).stdout
    assert "--off-policy" in shown
    assert "--off " not in shown
    assert "--responses" not in shown.replace("--on-responses", "").replace("--off-responses", "")


def test_every_setting_has_help() -> None:
    lacking = [
        f"{name}: {setting.name}"
        for name, command in COMMANDS.items()
        for setting in settings_of(command)
        if not setting.help
    ]
    assert lacking == []


def completed(words: str, index: int) -> list[str]:
    environment = {"_PREFSTAGE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    ran = CliRunner().invoke(
        app, [], prog_name="prefstage", env={**environment, "COMP_CWORD": str(index)}
    )
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [
        ("prefstage mea", 1, ["measure"]),
        ("prefstage measure --votes ", 3, ["hard", "probability"]),
        ("prefstage measure --votes p", 3, ["probability"]),
        ("prefstage sample --on-bad-row q", 3, ["quarantine"]),
        ("prefstage measure --off-p", 2, ["--off-policy"]),
    ],
)
def test_the_shell_completes_commands_options_and_values(
    words: str, index: int, expected: list[str]
) -> None:
    assert completed(words, index) == expected


def test_python_runs_it_as_a_module() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "prefstage", "--version"],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout.startswith("prefstage ")


def test_two_recipes_are_one_too_many(tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        app, ["train", "a.yaml", "--config", "b.yaml", "--out", str(tmp_path / "run")]
    )
    assert ran.exit_code == 2
    assert "two recipes, a.yaml and --config b.yaml" in ran.stderr
