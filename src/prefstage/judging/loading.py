"""From what a user writes to a judge."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from prefstage.core.adapters import adapter_config
from prefstage.core.config import check_config
from prefstage.core.errors import InputError
from prefstage.judging.base import Judge
from prefstage.judging.function import CallableJudge, FunctionOptions, PreferenceFunction

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
    if isinstance(spec, Path):
        spec = str(spec)
    if not isinstance(spec, str):
        if not callable(spec):
            raise InputError.of(
                saw=f"a judge of type {type(spec).__name__}",
                expected=f"{FORMS}; a function (a, b, prompt) -> P(a ≻ b); or a prefstage.judging."
                "Judge",
                cure="pass one of these; a class of your own derives from prefstage.judging.Judge",
            )
        return CallableJudge(spec)
    kind, separator, rest = spec.partition(":")
    target, options = _split_options(rest)
    if separator and kind in _LOADERS and target:
        return _LOADERS[kind](target, options)
    if separator and not Path(spec).exists():
        raise InputError.of(saw=f"judge {spec!r}", expected=FORMS, cure=_CHOOSE)
    target, options = _split_options(spec)
    return _LOADERS[_kind_of_checkpoint(target)](target, options)


load_judge = as_judge
"""The name for users: `load_judge("reward:PATH")`."""


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    target, _, query = text.rpartition("?") if "=" in text.rpartition("?")[2] else (text, "", "")
    return target, dict(parse_qsl(query, keep_blank_values=True))


def _kind_of_checkpoint(path: str) -> str:
    """Tell a PairRM checkpoint from a reward model by its config.json, or an adapter's."""
    from transformers.utils import cached_file

    adapter = adapter_config(path)
    if adapter is not None:
        return _kind_of_adapter(path, adapter)
    if Path(path).is_dir() and not Path(path, "config.json").exists():
        raise InputError.of(
            saw=f"judge {path!r}, a folder without config.json", expected=FORMS, cure=_CHOOSE
        )
    try:
        file = cached_file(path, "config.json")
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError.of(
            saw=f"judge {path!r}: {first_line}", expected=FORMS, cure=_CHOOSE
        ) from error
    names = [str(name) for name in config.get("architectures") or []]
    if any("PairRM" in name for name in names) or "source_prefix_id" in config:
        return "pairrm"
    if any("SequenceClassification" in name for name in names):
        return "reward"
    raise InputError.of(
        saw=f"{path} is a checkpoint of {', '.join(names) or 'an unnamed architecture'}",
        expected="a reward model (…ForSequenceClassification) or PairRM",
        cure="name the kind, e.g. reward:PATH; to use a chat model as judge, serve it and "
        "write openai:MODEL@URL",
    )


def _kind_of_adapter(path: str, config: Mapping[str, Any]) -> str:
    task = config.get("task_type")
    if task != "SEQ_CLS":
        raise InputError.of(
            saw=f"{path} is an adapter for the task {task}",
            expected="an adapter of a reward model (task SEQ_CLS), a reward model or PairRM",
            cure="name the kind, e.g. reward:PATH, if it is one all the same",
        )
    return "reward"


def _reward(target: str, options: Mapping[str, Any]) -> Judge:
    from prefstage.judging.reward_model import RewardModelJudge, RewardModelOptions

    return RewardModelJudge.load(target, options=check_config(RewardModelOptions, options))


def _pairrm(target: str, options: Mapping[str, Any]) -> Judge:
    from prefstage.judging.pairrm import PairRMJudge, PairRMOptions

    return PairRMJudge.load(target, options=check_config(PairRMOptions, options))


def _openai(target: str, options: Mapping[str, Any]) -> Judge:
    from prefstage.judging.llm import LLMJudge, LLMJudgeOptions

    return LLMJudge.load(target, options=check_config(LLMJudgeOptions, options))


def _table(target: str, options: Mapping[str, Any]) -> Judge:
    from prefstage.judging.table import TableJudge, TableOptions

    return TableJudge.load(target, options=check_config(TableOptions, options))


def _python(target: str, options: Mapping[str, Any]) -> Judge:
    return CallableJudge.load(target, options=check_config(FunctionOptions, options))


_LOADERS: dict[str, Callable[[str, Mapping[str, Any]], Judge]] = {
    "reward": _reward,
    "pairrm": _pairrm,
    "openai": _openai,
    "table": _table,
    "python": _python,
}
