"""Write the pages of `docs/` that are made from the code; a test holds them to it.

    python scripts/write_docs.py            # write
    python scripts/write_docs.py --check    # tell whether they are current

`docs/commands.md` comes from the commands' options, `docs/reference/` from what the packages
export, `docs/bad-input.md` and `docs/bad-input/` from the tests' tables of bad input, each case
tried here, the table of `docs/losses.md` from the registry. Whoever changes one of them runs this
and commits the result.
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
    *("evaluating", "advising", "aligning", "reporting", "sandbox"),
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

Every error that the user can fix is one line that says what was seen, what was expected, and what
to do. A command then ends with exit code 2, and no file that existed before is changed. In Python
the same line is the text of a [`PrefstageError`][prefstage.core.errors.PrefstageError].

```console
$ prefstage measure --config measure.yaml --confidence 95
{example}
```

A bad row of a dataset need not stop a command: `--on-bad-row quarantine` puts such rows into a
file of their own, counts them, and goes on. See [Data](data.md).

{total} mistakes and the line that each gives, by where they are made:

| mistakes in | cases | for example |
|---|---|---|
{areas}

`scripts/write_docs.py` makes these pages from the tables of the tests by trying every case.
"""

# The pages of bad input: file, what the mistakes are in, and the commands whose cases it holds.
AREAS = {
    "measure": ("`prefstage measure`", ("measure", "mesure")),
    "sample": ("`prefstage sample`", ("sample",)),
    "judge": ("`prefstage judge`", ("judge",)),
    "evaluate": ("`prefstage evaluate`", ("evaluate",)),
    "align": ("`prefstage align` and `experiment`", ("align", "experiment")),
    "doctor": ("`prefstage doctor` and `demo`", ("doctor", "demo")),
    "train": ("training recipes and `prefstage train`", ("train",)),
    "training": ("training arguments, models and checkpoints", ()),
    "rows": ("rows of a dataset", ()),
    "files": ("data files and how they are read", ()),
}

# What the line about one bad row says around it: told once, at the head of the page.
ROW_FRAME = re.compile(
    r"rows\.jsonl: 1 bad of \d rows?: rows\.jsonl (?P<row>.*); expected every row to be whole; "
    r"mend them, or set on_bad_row='quarantine' with a quarantine_file\."
)
ROW_NOTE = """\
The line about a bad row is `FILE: 1 bad of 2 rows: FILE`, then what the table says, then
`; expected every row to be whole; mend them, or set on_bad_row='quarantine' with a
quarantine_file.` Of several bad rows it names the first three.
"""


def pages() -> dict[Path, str]:
    """Every generated page: its file and its text."""
    made = {
        DOCS / "commands.md": commands_page(),
        DOCS / "losses.md": losses_page(),
        **bad_input_pages(),
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


def bad_input_pages() -> dict[Path, str]:
    """Every case of the tests' tables of bad input with the line that it gives, a page an area."""
    sys.path[:0] = [str(TESTS.parent), str(TESTS / "data")]
    cases = bad_commands()
    cases["rows"], cases["files"] = bad_data()
    recipes, cases["training"] = bad_trainings()
    cases["train"] += recipes
    made = {
        DOCS / "bad-input" / f"{area}.md": bad_input_page(area, rows)
        for area, rows in cases.items()
    }
    areas = [
        f"| [{title}](bad-input/{area}.md) | {len(cases[area])} | {cases[area][0][0]} |"
        for area, (title, _) in AREAS.items()
    ]
    example = next(line for name, _, line in cases["measure"] if name == "per cent for a share")
    made[DOCS / "bad-input.md"] = BAD_INPUT.format(
        example=f"prefstage: error: {example}",
        total=sum(map(len, cases.values())),
        areas="\n".join(areas),
    )
    return made


def bad_input_page(area: str, cases: list[tuple[str, str, str]]) -> str:
    """The cases of one area: what is wrong, what was typed (empty in Python), and the line."""
    parts = [f"# Mistakes in {AREAS[area][0]}\n"]
    if area == "rows":
        parts.append(ROW_NOTE)
        cases = [(name, typed, ROW_FRAME.sub(r"\g<row>", line)) for name, typed, line in cases]
    typed_cases = [case for case in cases if case[1]]
    if typed_cases:
        parts.append("In what is typed, `…` stands for other options, which are right.\n")
        parts.append("| what is wrong | typed after `prefstage` | the line |\n|---|---|---|")
        parts += [f"| {name} | {code(typed)} | {code(line)} |" for name, typed, line in typed_cases]
        parts.append("")
    if len(typed_cases) < len(cases):
        parts.append("| what is wrong | the line |\n|---|---|")
        parts += [f"| {name} | {code(line)} |" for name, typed, line in cases if not typed]
    return "\n".join(parts).strip() + "\n"


def bad_commands() -> dict[str, list[tuple[str, str, str]]]:
    """What is wrong, what is typed and the line, by area."""
    from tests.cli import bad_commands as tables

    heads = sorted(
        (getattr(tables, name) for name in ("ON", "OFF", "SAMPLE", "SERVER", "JUDGE", "EVALUATE")),
        key=len,
        reverse=True,
    )
    areas = {command: area for area, (_, commands) in AREAS.items() for command in commands}
    cases: dict[str, list[tuple[str, str, str]]] = {area: [] for area in AREAS}
    with inside_scratch_folder() as folder:
        for name, typed, _ in tables.COMMANDS:
            command = typed.split()[0]
            head = next((head for head in heads if typed.startswith(f"{head} ")), "")
            shown = f"{command} …{typed.removeprefix(head)}" if head else typed
            cases[areas[command]].append((name, shown, refusal_of(typed, folder)))
    return cases


def bad_data() -> Iterator[list[tuple[str, str, str]]]:
    """The cases of rows, then those of files and of arguments."""
    from tests.data.test_bad_data import BAD_CANDIDATES, BAD_ROWS
    from tests.data.test_bad_files import BAD_ARGUMENTS, BAD_FILES

    rows = [
        *((name, "pairs", "rows.jsonl", json_lines(rows), {}) for name, rows, _ in BAD_ROWS),
        *((name, "lists", "rows.jsonl", json_lines(rows), {}) for name, rows, _ in BAD_CANDIDATES),
    ]
    files = [
        *((name, "pairs", file, data, {}) for name, file, data, _ in BAD_FILES),
        *(
            (name, "pairs", "rows.jsonl", json_lines([GOOD_PAIR]), arguments)
            for name, arguments, _ in BAD_ARGUMENTS
        ),
    ]
    for cases in (rows, files):
        yield [(name, "", data_error_of(*rest)) for name, *rest in cases]


def bad_trainings() -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """The cases of recipes, and those of trainers."""
    from tests.training.bad_recipes import CASES as RECIPES
    from tests.training.bad_training import CASES

    recipes = {name for name, *_ in RECIPES}
    lines = [(name, "", training_error_of(case)) for name, case, _ in CASES]
    return (
        [case for case in lines if case[0] in recipes],
        [case for case in lines if case[0] not in recipes],
    )


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
    # Some commands name a file with its folder, which is another one at every run.
    line = result.stderr.replace(f"{folder}{os.sep}", "")
    return line.strip().removeprefix("prefstage: error: ")


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
