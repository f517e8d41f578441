"""Write the pages of `docs/` that are made from the code; a test holds them to it.

    python scripts/write_docs.py            # write
    python scripts/write_docs.py --check    # tell whether they are current

`docs/commands.md` comes from the commands' options, `docs/reference/` from what the packages
export. Whoever changes either runs this and commits the result.
"""

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

from prefstage.cli.main import app

DOCS = Path(__file__).resolve().parent.parent / "docs"

COMMANDS = ("measure", "sample", "judge", "demo")
PACKAGES = ("data", "serving", "sampling", "judging", "measuring", "sandbox")

KINDS = {str: "text", int: "number", float: "number", Path: "path"}

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

In help texts, `[2]` is the default.
"""


def pages() -> dict[Path, str]:
    """Every generated page: its file and its text."""
    made = {DOCS / "commands.md": commands_page()}
    for package in PACKAGES:
        made[DOCS / "reference" / f"{package}.md"] = package_page(package)
    return made


def commands_page() -> str:
    """One section a command: what it does, and a table of its options."""
    functions = {each.callback.__name__: each.callback for each in app.registered_commands}
    sections = [MANNERS]
    for name in COMMANDS:
        function = functions[name]
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        rows = [option_row(each.name, hints[each.name], each.default) for each in parameters]
        table = "\n".join(["| option | value | meaning |", "|---|---|---|", *rows])
        sections.append(f"## prefstage {name}\n\n{paragraphs(function.__doc__)}\n\n{table}")
    return "\n\n".join(section.strip() for section in sections) + "\n"


def option_row(name: str, hint: Any, default: Any) -> str:
    """One row of a table: the option, what it takes, and its help text."""
    kind, option = get_args(hint)
    named = [option.default, *(option.param_decls or ())]  # Typer keeps the first name there
    names = [each for each in named if isinstance(each, str)] or [f"--{name.replace('_', '-')}"]
    (kind, *_) = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    required = default is inspect.Parameter.empty
    value = "" if kind is bool else f"{KINDS[kind]}{', required' if required else ''}"
    told = not (required or default is None or kind is bool or "[" in option.help)
    meaning = f"{option.help}{f' [{default}]' if told else ''}"
    return f"| {', '.join(f'`{each}`' for each in names)} | {value} | {cell(meaning)} |"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def paragraphs(text: str | None) -> str:
    """A docstring as Markdown paragraphs."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


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
