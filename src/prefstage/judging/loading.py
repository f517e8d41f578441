"""From what a user writes to a judge; judges without a model: a Python function, a table."""

import hashlib
import importlib
import inspect
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast
from urllib.parse import parse_qsl

from pydantic import Field

from prefstage.core import (
    Config,
    DataError,
    InputError,
    adapter_config,
    check_code_may_run,
    check_config,
    digest,
    read_json,
    reason_of,
    scratch_folder,
)
from prefstage.data.records import Pair, Prompt, prompt_id_of
from prefstage.judging.base import (
    TIE,
    UNDECIDED,
    Comparison,
    Judge,
    Judgment,
    content_of,
    flipped,
    sigmoid,
    turned,
)

_Key = TypeVar("_Key")
_Records = dict[str, dict[_Key, list[float]]]

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
        self.name = name or ":".join(
            (function.__module__, getattr(function, "__qualname__", type(function).__name__))
        )
        self._counts: Counter[str] = Counter(calls=0)

    @classmethod
    def load(cls, path: str, *, options: FunctionOptions | None = None) -> Self:
        """Import ``module:function``.

        Raises:
            InputError: If the path has another form, or there is no such function.
        """
        return cls(
            import_function(
                path, what="judge", takes="(a, b, prompt) -> P(a ≻ b)", example="shorter_is_better"
            ),
            options=options,
            name=f"python:{path}",
        )

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when first read
        """Hash of the function's name and, where it can be read, its source text.

        What the function calls or reads is not seen; a function that changed only there
        keeps its fingerprint.
        """
        source = ""
        with suppress(OSError, TypeError):
            source = inspect.getsource(self._function)
        return digest(
            {
                "name": self.name,
                "source": hashlib.sha256(source.encode()).hexdigest(),
                "symmetric": self._options.symmetric,
            }
        )

    def stream(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        """Judge one comparison after the other; equal texts are a tie without a call.

        Raises:
            InputError: If the function gives something else than a number in [0, 1].
        """
        return enumerate(map(self._judge, comparisons))

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
    check_code_may_run(f"{what} python:{path}")
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


class TableOptions(Config):
    """How a table's numbers are read, and what happens to comparisons it lacks."""

    scores: Literal["baseline", "reward"] = Field(
        default="baseline",
        description="A response's score is P(response ≻ common baseline), or a reward.",
    )
    missing: Literal["error", "undecided"] = Field(
        default="error", description="What becomes of a comparison the table lacks."
    )
    clip: float = Field(
        default=1e-8, gt=0, lt=0.5, description="Probabilities are kept in [clip, 1 - clip]."
    )


class TableJudge(Judge):
    """Looks P(a ≻ b | x) up among recorded judgments.

    In order: the records of this very pair (averaged); the difference of both responses'
    recorded scores; and preferences of both over a response that both were compared with.
    With p_a = P(a ≻ baseline) and p_b likewise, P(a ≻ b) = σ(logit p_a - logit p_b): exact
    if preferences follow a Bradley-Terry model, whose rewards are the logits; otherwise an
    approximation. Counts comparisons "looked_up", "undecided" for lack of a record, rows not usable
    ("rows_skipped").
    """

    def __init__(self, path: str, *, options: TableOptions | None = None) -> None:
        """Read a table from one or several files.

        Args:
            path: Anything that `load_pairs` or `load_candidates` reads; several are
                separated by commas.
            options: How scores are read, and what a missing comparison means.

        Raises:
            DataError: If a file cannot be read as pairs or as scored responses, scores read as
                probabilities are none, or the table is empty.
        """
        self.name = f"table:{path}"
        self._options = options or TableOptions()
        self._counts: Counter[str] = Counter(looked_up=0, undecided=0, rows_skipped=0)
        # By prompt and unordered pair of texts (sorted): P(first ≻ second) as each record says it.
        self._pairs: _Records[tuple[str, str]] = defaultdict(lambda: defaultdict(list))
        # By prompt and text: the scores recorded for the response.
        self._scores: _Records[str] = defaultdict(lambda: defaultdict(list))
        fingerprints = [
            self._read(part) for part in ([path] if Path(path).exists() else path.split(","))
        ]
        scores = [s for texts in self._scores.values() for scores in texts.values() for s in scores]
        DataError.unless(
            scores or self._pairs,
            saw=f"{self.name} holds no judgment ({self._counts['rows_skipped']} rows unusable)",
            expected="pairs with a preference, or responses with a score",
            cure="check the file's columns",
        )
        outside = [score for score in scores if not 0.0 <= score <= 1.0]
        if outside and self._options.scores == "baseline":
            raise DataError.of(
                saw=f"{self.name}: {len(outside)} of {len(scores)} scores outside [0, 1],"
                f" such as {outside[0]}",
                expected="scores that are P(response ≻ common baseline)",
                cure="write ?scores=reward if they are rewards, P(a ≻ b) = σ(r_a - r_b)",
            )
        self.fingerprint = digest(
            {"tables": fingerprints, **self._options.model_dump(exclude={"missing"})}
        )

    # Read one file as pairs, or else as scored responses; unusable rows are counted.
    def _read(self, path: str) -> str:
        from prefstage.data import load_candidates, load_pairs

        with scratch_folder() as folder:
            how: Any = {
                "on_bad_row": "quarantine",
                "quarantine_file": folder / "unusable.jsonl",
            }
            try:
                rows: Any = load_pairs(path, **how)
            except DataError:
                rows = load_candidates(path, **how)
        for row in rows:
            if isinstance(row, Pair):
                first, second = (content_of(m[-1]).strip() for m in (row.chosen, row.rejected))
                # Without an agreement the label counts as certain.
                share = 1.0 if row.agreement is None else row.agreement
                if second < first:
                    first, second, share = second, first, 1.0 - share
                self._pairs[row.prompt_id][first, second].append(share)
            else:
                scored = [
                    both
                    for both in zip(row.responses, row.scores, strict=True)
                    if both[1] is not None
                ]
                self._counts["rows_skipped"] += len(row.responses) - len(scored)
                for response, score in scored:
                    self._scores[row.prompt_id][response.strip()].append(score)
        self._counts["rows_skipped"] += rows.report.quarantined
        return str(rows.fingerprint)

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Look each comparison up.

        Raises:
            DataError: If some are not in the table and `missing` is "error".
        """
        shares = [self._find(comparison) for comparison in comparisons]
        missing = [c for c, p in zip(comparisons, shares, strict=True) if p is None]
        if missing and self._options.missing == "error":
            first = missing[0]
            prompt = content_of(first.prompt[-1]) if first.prompt else ""
            raise DataError.of(
                saw=f"{len(missing)} of {len(comparisons)} comparisons are not in {self.name}; the"
                f" first: prompt {prompt[:60]!r}, responses {first.a[:40]!r} and {first.b[:40]!r}",
                expected="a record for every comparison",
                cure="add the records, or count missing ones as undecided with ?missing=undecided",
            )
        self._counts["looked_up"] += len(comparisons) - len(missing)
        self._counts["undecided"] += len(missing)
        return [UNDECIDED if p is None else Judgment(p) for p in shares]

    def _find(self, comparison: Comparison) -> float | None:
        a, b = comparison.a.strip(), comparison.b.strip()
        if a == b:
            return TIE.probability
        prompt = prompt_id_of(comparison.prompt)
        pairs, scores = self._pairs.get(prompt, {}), self._scores.get(prompt, {})
        direct = _preference(pairs, a, b)
        if direct is not None:
            return direct
        # fsum is exact, so that a mean does not depend on the order of records or of a set.
        if a in scores and b in scores:
            means = [math.fsum(scores[text]) / len(scores[text]) for text in (a, b)]
            as_reward = float if self._options.scores == "reward" else self._logit
            return sigmoid(as_reward(means[0]) - as_reward(means[1]))
        # Over the responses both were compared with, in logits.
        others = {text for key in pairs for text in key} - {a, b}
        over = [[_preference(pairs, text, other) for text in (a, b)] for other in others]
        differences = [
            self._logit(over_a) - self._logit(over_b)
            for over_a, over_b in over
            if over_a is not None and over_b is not None
        ]
        return sigmoid(math.fsum(differences) / len(differences)) if differences else None

    def _logit(self, probability: float) -> float:
        kept = min(max(probability, self._options.clip), 1.0 - self._options.clip)
        return math.log(kept) - math.log1p(-kept)


# Mean P(a ≻ b) of the records of this very pair.
def _preference(pairs: Mapping[tuple[str, str], Sequence[float]], a: str, b: str) -> float | None:
    shares = pairs.get((min(a, b), max(a, b)))
    mean = math.fsum(shares) / len(shares) if shares else None
    return mean if mean is None or a < b else 1.0 - mean


# --- From a specification to a judge --------------------------------------------------------------

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
    if callable(spec):
        return CallableJudge(spec)
    InputError.unless(
        isinstance(spec, str | Path),
        saw=f"a judge of type {type(spec).__name__}",
        expected=f"{FORMS}; a function (a, b, prompt) -> P(a ≻ b); or a prefstage.judging.Judge",
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
    options = check_config(
        getattr(module, settings), dict(parse_qsl(query, keep_blank_values=True))
    )
    judge_class = getattr(module, judge)
    return cast(Judge, getattr(judge_class, "load", judge_class)(target, options=options))


load_judge = as_judge
"""The name for users: `load_judge("reward:PATH")`."""


# Tell a PairRM checkpoint from a reward model by its config.json, or an adapter's.
def _kind_of_checkpoint(path: str) -> str:
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
        config = read_json(Path(cached_file(path, "config.json")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError.of(
            saw=f"judge {path!r}: {reason_of(error)}", expected=FORMS, cure=_CHOOSE
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
    "table": ("loading", "TableJudge", "TableOptions"),
    "python": ("loading", "CallableJudge", "FunctionOptions"),
}
