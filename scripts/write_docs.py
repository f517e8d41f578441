"""Write the pages of `docs/` that are made from the code; a test holds them to it.

    python scripts/write_docs.py            # write
    python scripts/write_docs.py --check    # tell whether they are current

`docs/commands.md` comes from the commands' options, `docs/reference/` from what the packages
export, `docs/bad-input.md` from the tests' tables of bad input, each case tried here, the table
of `docs/losses.md` from the registry. Whoever changes one of them runs this and commits the
result.
"""

import argparse
import importlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

# Bad names are looked for on the Hub, whose requests are tried again for most of a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from typer.testing import CliRunner

import prefstage
from prefstage.cli.main import COMMANDS, app
from prefstage.cli.manners import EXIT_USER_ERROR
from prefstage.cli.options import make_command
from prefstage.core.errors import PrefstageError
from prefstage.losses import LOSSES, Loss

DOCS = Path(__file__).resolve().parent.parent / "docs"
TESTS = DOCS.parent / "tests"

PACKAGES = (
    *("losses", "data", "scoring", "serving", "sampling", "judging"),
    *("measuring", "diagnosing", "building", "training"),
    *("evaluating", "aligning", "reporting", "sandbox"),
)

# These are on every command, and are told once.
SHARED_ROWS = ("| `--config`", "| `--set`", "| `--json`")

MANNERS = """\
# Commands

Made from the code by `scripts/write_docs.py`; `prefstage COMMAND --help` says the same.

All commands behave alike:

- A short summary for people on standard output; with `--json`, JSON alone, for machines.
- Progress on a terminal, none in a pipe.
- Exit code 0 on success; 2 on a user's error, told in [one line](bad-input.md): what was seen,
  what was expected, what to do; 130 on Ctrl-C or SIGTERM, with everything so far kept.
- A stopped command, however it was stopped, goes on when it is given again. Nothing that was
  sampled or judged and stored is bought twice.

- Settings come from `--config FILE`, a YAML file (for `train`, `build`, `align` and `experiment`
  the recipe), are overridden by the options, and these by `--set KEY=VALUE`, whose dotted keys
  reach inner settings. A setting has one name in options, in YAML and in Python, but for dashes.

In help texts, `[2]` is the default. `-h` shows the help, the shell completes commands, options
and named values (`prefstage --install-completion`), and `python -m prefstage` is `prefstage`.
"""

# Memory and room of one machine, sizes of files, hashes.
MACHINE = re.compile(
    r"[\d,.]+(?= MB)|(?<=set token_budget=)\d+|(?<=at most about )[\d,]+|"
    r"(?<=bytes instead of )[\d,]+|(?<=')[0-9a-f]{16,32}(?=')"
)

GOOD_PAIR = {"prompt": "Why?", "chosen": "Good.", "rejected": "Bad."}

LOSSES_BEGIN = "<!-- losses: made from the registry by scripts/write_docs.py -->"
LOSSES_END = "<!-- end of losses -->"

BAD_INPUT = """\
# When the input is wrong

Every error that is the user's to mend is one line that says what was seen, what was expected,
and what to do; a command then ends with exit code 2, and no file that was there is changed.
Below are {total} malformed commands, configurations, datasets and trainings and the line that
each gives.
`scripts/write_docs.py` makes this page from the tables of the tests by trying every case.

A bad row of a dataset need not stop a command: `--on-bad-row quarantine` puts such rows into a
file of their own, counts them, and goes on. See [Data](data.md).
"""


def pages() -> dict[Path, str]:
    """Every generated page: its file and its text."""
    made = {
        DOCS / "commands.md": commands_page(),
        DOCS / "bad-input.md": bad_input_page(),
        DOCS / "losses.md": losses_page(),
    }
    for package in PACKAGES:
        made[DOCS / "reference" / f"{package}.md"] = package_page(package)
    return made


def commands_page() -> str:
    """One section a command: what it does, and a table of its options."""
    sections = [MANNERS]
    for name, command in COMMANDS.items():
        rows = [option_row(option) for option in make_command(command).params if not option.hidden]
        shown = [row for row in rows if not row.startswith(SHARED_ROWS)]
        table = "\n".join(["| option | value | meaning |", "|---|---|---|", *shown])
        in_python = f"In Python: `prefstage.{name}`.\n\n" if name in prefstage.__all__ else ""
        text = f"{paragraphs(command.help)}\n\n{in_python}{table}"
        sections.append(f"## prefstage {name}\n\n{text}")
    return "\n\n".join(section.strip() for section in sections) + "\n"


def option_row(option: Any) -> str:
    """One row of a table: the option, what it takes, and its help text."""
    is_argument = option.param_type_name == "argument"
    names = [option.name.upper()] if is_argument else [*option.opts, *option.secondary_opts]
    value = "" if getattr(option, "is_flag", False) else (option.metavar or "PATH").lower()
    value += ", required" if option.required else ""
    default = f" [{option.default}]" if isinstance(option.default, Path) else ""
    shown = ", ".join(f"`{name}`" for name in names)
    return f"| {shown} | {cell(value)} | {cell(option.help + default)} |"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def paragraphs(text: str | None) -> str:
    """A docstring as Markdown paragraphs."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def bad_input_page() -> str:
    """Every case of the tests' tables of bad input, with the line that it gives."""
    sys.path[:0] = [str(TESTS.parent), str(TESTS / "data")]
    from tests.cli.bad_commands import COMMANDS as BAD_COMMANDS
    from tests.data.test_bad_data import BAD_CANDIDATES, BAD_ROWS
    from tests.data.test_bad_files import BAD_ARGUMENTS, BAD_FILES
    from tests.training.bad_training import CASES as BAD_TRAININGS

    with inside_scratch_folder() as folder:
        commands = [(name, typed, refusal_of(typed, folder)) for name, typed, _ in BAD_COMMANDS]
    files = [
        *((name, "pairs", "rows.jsonl", json_lines(rows), {}) for name, rows, _ in BAD_ROWS),
        *((name, "lists", "rows.jsonl", json_lines(rows), {}) for name, rows, _ in BAD_CANDIDATES),
        *((name, "pairs", file, data, {}) for name, file, data, _ in BAD_FILES),
        *(
            (name, "pairs", "rows.jsonl", json_lines([GOOD_PAIR]), arguments)
            for name, arguments, _ in BAD_ARGUMENTS
        ),
    ]
    datasets = [(name, data_error_of(*rest)) for name, *rest in files]
    trainings = [(name, training_error_of(case)) for name, case, _ in BAD_TRAININGS]
    parts = [
        BAD_INPUT.format(total=len(commands) + len(datasets) + len(trainings)),
        f"## {len(commands)} commands and configurations\n",
        "| what is wrong | typed after `prefstage` | the line |\n|---|---|---|",
        *(f"| {name} | `{cell(typed)}` | {code(line)} |" for name, typed, line in commands),
        f"\n## {len(datasets)} datasets\n",
        "| what is wrong | the line |\n|---|---|",
        *(f"| {name} | {code(line)} |" for name, line in datasets),
        f"\n## {len(trainings)} trainings\n",
        "| what is wrong | the line |\n|---|---|",
        *(f"| {name} | {code(line)} |" for name, line in trainings),
    ]
    return "\n".join(parts) + "\n"


@contextmanager
def inside_scratch_folder() -> Iterator[Path]:
    """Work in an empty folder, so that lines name files without a path."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def refusal_of(typed: str, folder: Path) -> str:
    """The line that a command ends with."""
    from tests.cli.bad_commands import make_inputs

    for child in folder.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    make_inputs(folder)
    result = CliRunner().invoke(app, shlex.split(typed))
    if result.exit_code != EXIT_USER_ERROR:
        raise SystemExit(f"prefstage {typed} is not refused:\n{result.output}")
    return result.stderr.strip().removeprefix("prefstage: error: ")


def data_error_of(kind: str, file: str, data: bytes, arguments: dict[str, Any]) -> str:
    """The line that a dataset is refused with."""
    from prefstage.data import load_candidates, load_pairs

    load: Any = load_pairs if kind == "pairs" else load_candidates
    with inside_scratch_folder():
        Path(file).write_bytes(data)
        try:
            load(**{"source": file, **arguments})
        except PrefstageError as error:
            return str(error)
    raise SystemExit(f"{file} is not refused: {data!r}, {arguments}")


def training_error_of(case: Callable[[], Any]) -> str:
    """The line that a training is refused or ended with, without what one machine decides."""
    quiet = io.StringIO()
    with inside_scratch_folder(), redirect_stdout(quiet), redirect_stderr(quiet):
        try:
            case()
        except PrefstageError as error:
            return MACHINE.sub("…", str(error))
    raise SystemExit(f"a training is not refused: {case}")


def json_lines(rows: list[Any]) -> bytes:
    """Rows as a JSON-lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def code(text: str) -> str:
    """Text as code in a table's cell, whatever backticks it holds."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {cell(text)} {fence}" if fence == "``" else f"`{cell(text)}`"


def losses_page() -> str:
    """The page of losses, its table made anew from the registry."""
    text = (DOCS / "losses.md").read_text(encoding="utf-8")
    before, rest = text.split(LOSSES_BEGIN)
    rows = [loss_row(loss) for loss in LOSSES.values()]
    head = "| name | loss | defaults | takes; needs | source |\n|---|---|---|---|---|"
    table = "\n".join([head, *rows])
    return f"{before}{LOSSES_BEGIN}\n\n{table}\n\n{LOSSES_END}{rest.split(LOSSES_END)[1]}"


def loss_row(loss: type[Loss]) -> str:
    """One row of the table: name and aliases, summary and formula, defaults, needs, source."""
    aliases = f" ({', '.join(f'`{alias}`' for alias in loss.aliases)})" if loss.aliases else ""
    defaults = ", ".join(
        f"`{name}` {value:g}" if isinstance(value, float) else f"`{name}` {value}"
        for name, value in loss().model_dump().items()
        if value is not None
    )
    marks = {"whole step": loss.whole_batch, "draws": loss.random, "state": bool(loss.initial)}
    needs = [
        *sorted(loss.needs),
        *(f"{each} (may be missing)" for each in sorted(loss.optional)),
        *(f"*{mark}*" for mark, own in marks.items() if own),
    ]
    takes = " or ".join(sorted(loss.data)) + (f"; {', '.join(needs)}" if needs else "")
    source = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", loss.source)
    what = f"{loss.summary}<br>`{cell(loss.formula)}`"
    return f"| `{loss.name}`{aliases} | {what} | {defaults} | {takes} | {source} |"


def package_page(package: str) -> str:
    """A page that shows what a package exports, from its docstrings."""
    module = importlib.import_module(f"prefstage.{package}")
    members = "\n".join(f"::: prefstage.{package}.{name}" for name in module.__all__)
    return f"# prefstage.{package}\n\n{paragraphs(module.__doc__)}\n\n{members}\n"


def outdated() -> list[str]:
    """Names of pages that differ from what the code says now."""
    return [
        path.relative_to(DOCS).as_posix()
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    if parser.parse_args().check:
        names = outdated()
        print(f"outdated: {', '.join(names)}" if names else "all pages are current")
        sys.exit(bool(names))
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
