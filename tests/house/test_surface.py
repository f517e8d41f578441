"""The public surface, pinned: whoever changes it changes this test, and the changelog."""

import ast
import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

import prefstage
from prefstage.cli.main import COMMANDS as MADE, app

NAMES = [
    "LOSSES",
    "PreferenceArguments",
    "PreferenceTrainer",
    "Scorer",
    "Stage",
    "advise",
    "align",
    "build",
    "build_pairs",
    "diagnose",
    "doctor",
    "evaluate",
    "experiment",
    "judge",
    "length_controlled_win_rate",
    "load_candidates",
    "load_judge",
    "load_pairs",
    "load_sampler",
    "measure",
    "measure_stage",
    "report",
    "run_experiment",
    "sample",
    "train",
    "win_rate",
    "write_report",
]
COMMANDS = [
    "advise",
    "align",
    "build",
    "demo",
    "diagnose",
    "doctor",
    "evaluate",
    "experiment",
    "judge",
    "measure",
    "report",
    "sample",
    "theory",
    "train",
]

SOURCE = Path(prefstage.__file__).parent
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


def modules_loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_public_names_are_pinned_and_there() -> None:
    assert list(prefstage.__all__) == NAMES
    assert dir(prefstage) == NAMES
    for name in NAMES:
        assert getattr(prefstage, name).__doc__ or name == "LOSSES"  # a mapping has none


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode_pairs'"):
        prefstage.lode_pairs  # noqa: B018 - reading the attribute is the test


def test_commands_are_pinned() -> None:
    assert sorted(MADE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_shared_options(command: str) -> None:
    long, short = (CliRunner().invoke(app, [command, option]) for option in ("--help", "-h"))
    assert long.exit_code == 0
    assert long.stdout == short.stdout
    for option in ("--json", "--config", "--set"):
        assert option in long.stdout


def test_every_package_says_what_it_holds_and_exports_what_it_names() -> None:
    for name in PACKAGES:
        package = importlib.import_module(f"prefstage.{name}")
        assert package.__doc__
        for public in getattr(package, "__all__", ()):
            assert hasattr(package, public), f"prefstage.{name}.{public}"


HEAVY = {"torch", "transformers", "datasets", "pyarrow", "pandas", "numpy", "scipy"}


HELP = (
    "from typer.testing import CliRunner\n"
    "from prefstage.cli.main import app\n"
    "assert CliRunner().invoke(app, [{command!r}, '-h']).exit_code == 0"
)


@pytest.mark.parametrize(
    "statement",
    [
        "import prefstage",
        "import prefstage.cli.main",
        *(HELP.format(command=each) for each in ("measure", "diagnose", "evaluate", "doctor")),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    assert modules_loaded_by(statement) & HEAVY == set()


def test_importing_does_not_touch_the_environment() -> None:
    statement = (
        "import os, signal, warnings, logging\n"
        "def state():\n"
        "    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]\n"
        "    return [dict(os.environ), handlers, list(logging.root.handlers), os.getcwd()]\n"
        "before = state()\n"
        "import prefstage.cli.main, prefstage.core.config\n"
        "assert state() == before"
    )
    modules_loaded_by(statement)


def imports_of_prefstage(file: Path) -> list[tuple[str, str]]:
    """Module and name of what a file imports from the package."""
    return [
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prefstage"
        for alias in node.names
    ]


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "scripts"])
def test_what_scripts_import_is_there(folder: str) -> None:
    files = sorted((SOURCE.parents[1] / folder).rglob("*.py"))
    assert files
    lacking = [
        f"{file.name}: {module}.{name}"
        for file in files
        for module, name in imports_of_prefstage(file)
        if find_spec(module) is None
        or not (
            hasattr(importlib.import_module(module), name)
            or find_spec(f"{module}.{name}") is not None
        )
    ]
    assert lacking == []
