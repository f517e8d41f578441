"""The house style, held by tests: sizes, docstrings, and what source files may contain.

A function's length is counted without its docstring: the docstring is the contract, and its
length must not be saved on; the limit is on code that must be read at once.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("prefstage/*/__init__.py"))

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# What may be longer, and why: "path::function" or "path".
EXCEPTIONS: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE / "prefstage").as_posix()


def functions_of(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def code_lines(function: Function) -> int:
    """Lines of a function without its docstring and decorators."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def too_long(path: Path) -> list[str]:
    found = []
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_FILE_LINES:
        found.append((name_of(path), lines))
    lengths = [(f"{name_of(path)}::{each.name}", code_lines(each)) for each in functions_of(path)]
    found += [(name, length) for name, length in lengths if length > MAX_FUNCTION_LINES]
    return [f"{name}: {lines} lines" for name, lines in found if name not in EXCEPTIONS]


def test_files_and_functions_are_short() -> None:
    assert [fault for path in FILES for fault in too_long(path)] == []


def test_exceptions_are_needed_and_have_a_reason() -> None:
    names = {name_of(path) for path in FILES}
    names |= {f"{name_of(path)}::{one.name}" for path in FILES for one in functions_of(path)}
    assert [name for name, why in EXCEPTIONS.items() if name not in names or len(why) < 20] == []


def test_the_counter_counts() -> None:
    tree = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n')
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    assert code_lines(function) == 3


# --- Docstrings ---------------------------------------------------------------------------


def definitions_in(path: Path) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions and classes of a module, and public methods of its public classes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


def exported_by(package: str) -> set[str]:
    """The names that a package hands to others."""
    return set(getattr(importlib.import_module(f"prefstage.{package}"), "__all__", ()))


def decorators_of(node: Function) -> set[str]:
    return {ast.unparse(each).split("(")[0].split(".")[-1] for each in node.decorator_list}


def arguments_of(node: Function) -> list[str]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [each.arg for each in given if each.arg not in ("self", "cls")]


def returns_something(node: Function) -> bool:
    return node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")


# Decorators under which a summary is enough: a property is a noun, an overload and an
# override repeat another signature, and a command's options carry their own help texts.
TOLD_ELSEWHERE = {"property", "cached_property", "overload", "override", "partial", "callback"}


def section_faults(node: Function) -> list[str]:
    """Sections that a docstring lacks; one line says it all about one argument or none."""
    text = ast.get_docstring(node) or ""
    sections = set(re.findall(r"^(Args|Returns|Yields|Raises):$", text, re.MULTILINE))
    if "\n" not in text and len(arguments_of(node)) <= 1 and not raises_of(node):
        return []
    lacking = []
    if arguments_of(node) and "Args" not in sections:
        lacking.append("Args")
    if returns_something(node) and not sections & {"Returns", "Yields"}:
        lacking.append("Returns")
    if raises_of(node) and "Raises" not in sections:
        lacking.append("Raises")
    return lacking


def raises_of(node: Function) -> bool:
    """Whether the function's own body raises an error on purpose."""
    own = [each for statement in node.body for each in ast.walk(statement)]
    raised = [each.exc for each in own if isinstance(each, ast.Raise) and each.exc is not None]
    return any("Error" in ast.unparse(each) for each in raised)


def documented_faults(path: Path, *, exported: set[str] | None) -> list[str]:
    """What a module's docstrings lack; `exported` limits who must have all sections."""
    faults = []
    for name, node in definitions_in(path):
        place = f"{name_of(path)}::{name}"
        told_elsewhere = isinstance(node, Function) and decorators_of(node) & TOLD_ELSEWHERE
        if not told_elsewhere and not ast.get_docstring(node):
            faults.append(f"{place}: no docstring")
        if exported is not None and name.split(".")[0] not in exported:
            continue
        if isinstance(node, Function) and not told_elsewhere:
            faults += [f"{place}: no {section}" for section in section_faults(node)]
    return faults


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_tell_what_callers_need(package: str) -> None:
    """All public things have one; what a package exports has every section that applies."""
    exported = exported_by(package) or None
    files = [path for path in FILES if path.is_relative_to(SOURCE / "prefstage" / package)]
    assert [f for path in files for f in documented_faults(path, exported=exported)] == []


# --- What no source file may contain -------------------------------------------------------

FORBIDDEN = {
    r"\b(TODO|FIXME|XXX|HACK)\b": "unfinished work",
    r"\bNotImplementedError\b": "a stub",
    r"(?<![\w.])/(work|tmp|home|root|mnt)/": "a path of one machine",
    r"# type: ignore(?!\[)": "a type error ignored without its code",
    r"# noqa(?!: [A-Z])": "a lint rule ignored without its code",
    r"# (noqa: [A-Z0-9, ]+|type: ignore\[[\w-]+\])\s*$": "an exception without its reason",
    r"from __future__ import annotations": "annotations as text, which jaxtyping cannot check",
}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_source_holds_none_of_this(pattern: str) -> None:
    found = [
        f"{name_of(path)}:{number}: {FORBIDDEN[pattern]}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == []


def test_no_file_does_anything_when_imported() -> None:
    """Top-level statements define; the only calls are to a few that build definitions."""
    faults = []
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and not is_text(node) and not registers(node):
                faults.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.For | ast.While | ast.With | ast.Try):
                faults.append(f"{name_of(path)}:{node.lineno}: a {type(node).__name__}")
    assert faults == []


def is_text(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str | type(...))


def registers(node: ast.Expr) -> bool:
    """What starts the program (`__main__.py`)."""
    return ast.unparse(node).startswith("main()")


def test_every_test_module_has_a_name_of_its_own() -> None:
    """Pytest imports a test module by its bare name: two of one name stop the whole run."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
