"""A Python function as judge."""

import hashlib
import importlib
import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from prefstage.core.config import Config
from prefstage.core.errors import InputError
from prefstage.core.hashing import digest
from prefstage.data.records import Prompt
from prefstage.judging.base import TIE, Comparison, Judge, Judgment

PreferenceFunction = Callable[[str, str, Prompt], float]
"""(a, b, prompt) → P(a ≻ b | prompt) in [0, 1]."""


class FunctionOptions(Config):
    """How a Python function is asked."""

    symmetric: bool = Field(
        default=False,
        description="The function promises f(a, b) = 1 - f(b, a): ask in one order only.",
    )


class CallableJudge(Judge):
    """Asks a Python function, in both orders: P = ½·(f(a, b) + 1 - f(b, a))."""

    def __init__(
        self,
        function: PreferenceFunction,
        *,
        options: FunctionOptions | None = None,
        name: str | None = None,
    ) -> None:
        """Wrap a function.

        Args:
            function: ``function(a, b, prompt)`` gives P(a ≻ b | prompt) in [0, 1]; `a` and
                `b` are texts, `prompt` the messages before them.
            options: Whether one order is enough.
            name: Short name for people; module and function if None.
        """
        self._function = function
        self._options = options or FunctionOptions()
        self.name = name or f"{function.__module__}:{_qualname(function)}"
        self._counts: Counter[str] = Counter(calls=0)

    @classmethod
    def load(cls, path: str, *, options: FunctionOptions | None = None) -> Self:
        """Import ``module:function``.

        Raises:
            InputError: If the path has another form, or there is no such function.
        """
        function = import_function(
            path, what="judge", takes="(a, b, prompt) -> P(a ≻ b)", example="shorter_is_better"
        )
        return cls(function, options=options, name=f"python:{path}")

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when first read
        """Hash of the function's name and, where it can be read, its source text.

        What the function calls or reads is not seen; a function that changed only there
        keeps its fingerprint.
        """
        try:
            source = inspect.getsource(self._function)
        except (OSError, TypeError):
            source = ""
        named = {"name": self.name, "source": hashlib.sha256(source.encode()).hexdigest()}
        return digest({**named, "symmetric": self._options.symmetric})

    @property
    def counts(self) -> Mapping[str, int]:
        """How often the function was called."""
        return dict(self._counts)

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        """Judge one comparison after the other; equal texts are a tie without a call.

        Raises:
            InputError: If the function gives something else than a number in [0, 1].
        """
        for position, comparison in enumerate(comparisons):
            yield position, self._judge(comparison)

    def _judge(self, comparison: Comparison) -> Judgment:
        a, b, prompt = comparison.a, comparison.b, comparison.prompt
        if a == b:
            return TIE
        if not self._options.symmetric:
            return Judgment(0.5 * (self._ask(a, b, prompt) + 1.0 - self._ask(b, a, prompt)))
        if a < b:  # one fixed order, so that compare(b, a) sees the very same call
            return Judgment(self._ask(a, b, prompt))
        return Judgment(1.0 - self._ask(b, a, prompt))

    def _ask(self, first: str, second: str, prompt: Prompt) -> float:
        self._counts["calls"] += 1
        answer = self._function(first, second, prompt)
        try:
            probability = float(answer)
        except (TypeError, ValueError):
            probability = math.nan
        if not 0.0 <= probability <= 1.0:
            raise InputError.of(
                saw=f"{self.name} returned {answer!r}",
                expected="P(a ≻ b), a number in [0, 1]",
                cure="return a probability; turn a reward difference into one by 1/(1+exp(-d))",
            )
        return probability


def _qualname(function: PreferenceFunction) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def import_function(path: str, *, what: str, takes: str, example: str) -> Callable[..., Any]:
    """Import ``module:function``, from the current folder or PYTHONPATH.

    Args:
        path: The function's place.
        what: What it is for, in errors.
        takes: Its arguments and result, in errors.
        example: A name, in errors.

    Returns:
        The function.

    Raises:
        InputError: If the path has another form, or there is no such function.
    """
    module_name, separator, attribute = path.partition(":")
    expected = "python:module:function, importable from here"
    if not (separator and module_name and attribute):
        raise InputError.of(
            saw=f"{what} 'python:{path}'",
            expected=expected,
            cure=f"write for example python:my_{what}s:{example}",
        )
    if (here := str(Path.cwd())) not in sys.path:  # console scripts leave it out
        sys.path.append(here)
    try:
        function = importlib.import_module(module_name)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise InputError.of(
            saw=f"{what} 'python:{path}': {error}",
            expected=expected,
            cure="check the names; the module is looked for in this folder and on PYTHONPATH",
        ) from error
    if not callable(function):
        raise InputError.of(
            saw=f"{what} 'python:{path}' is a {type(function).__name__}",
            expected=f"a function {takes}",
            cure="name a function",
        )
    found: Callable[..., Any] = function
    return found
