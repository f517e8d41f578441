"""From what a user writes to a judge; a Python function as judge."""

import hashlib
import importlib
import inspect
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import parse_qsl

from pydantic import Field

from prefstage.core import Config, InputError, adapter_config, check_config, digest
from prefstage.data.records import Prompt
from prefstage.judging.base import TIE, Comparison, Judge, Judgment, flipped, turned

# (a, b, prompt) → P(a ≻ b | prompt) in [0, 1].
PreferenceFunction = Callable[[str, str, Prompt], float]


class FunctionOptions(Config):
    """How a Python function is asked."""

    symmetric: bool = Field(
        default=False,
        description="The function promises f(a, b) = 1 - f(b, a): ask in one order only.",
    )


class CallableJudge(Judge):
    """Asks a Python function, in both orders: P = ½·(f(a, b) + 1 - f(b, a)).

    Counts how often the function was called ("calls").
    """

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
        function_name = getattr(function, "__qualname__", type(function).__name__)
        self.name = name or f"{function.__module__}:{function_name}"
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
        source = ""
        with suppress(OSError, TypeError):
            source = inspect.getsource(self._function)
        named = {"name": self.name, "source": hashlib.sha256(source.encode()).hexdigest()}
        return digest({**named, "symmetric": self._options.symmetric})

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        """Judge one comparison after the other; equal texts are a tie without a call.

        Raises:
            InputError: If the function gives something else than a number in [0, 1].
        """
        for position, comparison in enumerate(comparisons):
            yield position, self._judge(comparison)

    def _judge(self, pair: Comparison) -> Judgment:
        if pair.a == pair.b:
            return TIE
        if not self._options.symmetric:
            return Judgment(0.5 * (self._ask(pair) + 1.0 - self._ask(turned(pair))))
        # One fixed order, so that compare(b, a) makes the very same call: what a function
        # promises of both orders holds only up to rounding.
        return Judgment(self._ask(pair)) if pair.a < pair.b else flipped(self._judge(turned(pair)))

    def _ask(self, pair: Comparison) -> float:
        self._counts["calls"] += 1
        answer = self._function(pair.a, pair.b, pair.prompt)
        with suppress(TypeError, ValueError):
            probability = float(answer)
            if 0.0 <= probability <= 1.0:
                return probability
        raise InputError.of(
            saw=f"{self.name} returned {answer!r}",
            expected="P(a ≻ b), a number in [0, 1]",
            cure="return a probability; turn a reward difference into one by 1/(1+exp(-d))",
        )


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
    InputError.unless(
        separator and module_name and attribute,
        saw=f"{what} 'python:{path}'",
        expected=expected,
        cure=f"write for example python:my_{what}s:{example}",
    )
    if (here := str(Path.cwd())) not in sys.path:  # console scripts leave it out
        sys.path.append(here)
    with InputError.instead_of(
        *(ImportError, AttributeError),
        saw=f"{what} 'python:{path}': {{error}}",
        expected=expected,
        cure="check the names; the module is looked for in this folder and on PYTHONPATH",
    ):
        function: Callable[..., Any] = attrgetter(attribute)(importlib.import_module(module_name))
    InputError.unless(
        callable(function),
        saw=f"{what} 'python:{path}' is a {type(function).__name__}",
        expected=f"a function {takes}",
        cure="name a function",
    )
    return function


FORMS = (
    "reward:PATH, pairrm:PATH, openai:MODEL@URL, table:FILE, python:module:function, "
    "or the folder or Hub id of a reward model or PairRM checkpoint"
)
_CHOOSE = "choose one of these forms"


def as_judge(spec: str | Path | Judge | PreferenceFunction) -> Judge:
    """Make a judge from its specification, or from a function.

    Options follow a question mark: ``reward:PATH?max_length=256&max_prompt_tokens=96``.

    Args:
        spec: One of

            - ``reward:PATH``: a sequence classifier with one logit (folder or Hub id);
            - ``pairrm:PATH``: a checkpoint in the layout of ``llm-blender/PairRM-hf``;
            - ``openai:MODEL@URL``: a language model behind an OpenAI-compatible server;
            - ``table:FILE``: recorded judgments or votes;
            - ``python:module:function``: a function (a, b, prompt) → P(a ≻ b);
            - a bare folder or Hub id, whose ``config.json`` tells which of the first two;
            - a Python function, or a judge, which is returned as it is.

    Returns:
        The judge.

    Raises:
        InputError: If it is none of these, or has an unknown option.
        ModelError: If the model cannot be loaded.
    """
    if isinstance(spec, Judge):
        return spec
    if not isinstance(spec, str | Path):
        if callable(spec):
            return CallableJudge(spec)
        raise InputError.of(
            saw=f"a judge of type {type(spec).__name__}",
            expected=f"{FORMS}; a function (a, b, prompt) -> P(a ≻ b); or a "
            "prefstage.judging.Judge",
            cure="pass one of these; a class of your own derives from prefstage.judging.Judge",
        )
    target, _, query = str(spec).rpartition("?")
    if "=" not in query:
        target, query = str(spec), ""
    kind, separator, rest = target.partition(":")
    if separator and kind in _JUDGES and rest:
        target = rest
    elif separator and not Path(spec).exists():
        raise InputError.of(saw=f"judge {spec!r}", expected=FORMS, cure=_CHOOSE)
    else:
        kind = _kind_of_checkpoint(target)
    # Imported only now: two of the kinds need torch, and the others should not wait for it.
    file, judge, settings = _JUDGES[kind]
    module = importlib.import_module(f"prefstage.judging.{file}")
    checked = check_config(
        getattr(module, settings), dict(parse_qsl(query, keep_blank_values=True))
    )
    judge_class = getattr(module, judge)
    return cast(Judge, getattr(judge_class, "load", judge_class)(target, options=checked))


load_judge = as_judge
"""The name for users: `load_judge("reward:PATH")`."""


def _kind_of_checkpoint(path: str) -> str:
    """Tell a PairRM checkpoint from a reward model by its config.json, or an adapter's."""
    from transformers.utils import cached_file

    adapter = adapter_config(path)
    if adapter is not None:
        if adapter.get("task_type") == "SEQ_CLS":
            return "reward"
        raise InputError.of(
            saw=f"{path} is an adapter for the task {adapter.get('task_type')}",
            expected="an adapter of a reward model (task SEQ_CLS), a reward model or PairRM",
            cure="name the kind, e.g. reward:PATH, if it is one all the same",
        )
    InputError.unless(
        Path(path, "config.json").exists() or not Path(path).is_dir(),
        saw=f"judge {path!r}, a folder without config.json",
        expected=FORMS,
        cure=_CHOOSE,
    )
    try:
        config = json.loads(Path(cached_file(path, "config.json")).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError.of(
            saw=f"judge {path!r}: {first_line}", expected=FORMS, cure=_CHOOSE
        ) from error
    names = ", ".join(map(str, config.get("architectures") or []))
    if "PairRM" in names or "source_prefix_id" in config:
        return "pairrm"
    if "SequenceClassification" in names:
        return "reward"
    raise InputError.of(
        saw=f"{path} is a checkpoint of {names or 'an unnamed architecture'}",
        expected="a reward model (…ForSequenceClassification) or PairRM",
        cure="name the kind, e.g. reward:PATH; to use a chat model as judge, serve it and "
        "write openai:MODEL@URL",
    )


_JUDGES = {
    "reward": ("reward_model", "RewardModelJudge", "RewardModelOptions"),
    "pairrm": ("pairrm", "PairRMJudge", "PairRMOptions"),
    "openai": ("llm", "LLMJudge", "LLMJudgeOptions"),
    "table": ("table", "TableJudge", "TableOptions"),
    "python": ("loading", "CallableJudge", "FunctionOptions"),
}
