"""The door through which tokenizers come in, and the day that their templates read as today."""

import json
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer

from prefstage.core import ModelError, PrefstageError, adapters_of, is_path, reason_of, run_date
from prefstage.data.settings import ChatSettings

_Settings = TypeVar("_Settings", bound=ChatSettings)
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(name_or_path: str) -> Any:
    """Load a tokenizer from a folder or the Hub.

    Args:
        name_or_path: A model's folder, or its id on the Hub; or those of an adapter, whose own
            tokenizer comes before its base's.

    Returns:
        The tokenizer, of transformers.

    Raises:
        ModelError: If there is none, or its files are damaged; one line with the reason.
    """
    base, adapters = adapters_of(str(name_or_path))
    # The last adapter that was trained with its tokenizer; a bare one has its base's.
    whole = (
        adapter
        for adapter in reversed(adapters)
        if not Path(adapter).is_dir() or any(Path(adapter, name).is_file() for name in _FILES)
    )
    source = next(whole, base)
    ModelError.unless(
        Path(source).exists() or not is_path(source),
        saw=f"no tokenizer at {source!r} (no such folder)",
        expected="a folder with tokenizer.json or a model id of the Hub",
        cure="check the name, or point to the model's folder",
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokens = tokenizer.vocab_size
    except PrefstageError:
        raise
    except Exception as error:  # what foreign files make the libraries raise is anything
        broken, reason = _broken_file(Path(source)), reason_of(error)
        if "instantiate the backend tokenizer" in reason:
            reason = "no tokenizer files"
        raise ModelError.of(
            saw=f"no tokenizer at {source!r} ({broken or reason})",
            expected="a folder with tokenizer.json or a model id of the Hub",
            cure="check the name, or point to the model's folder"
            if broken is None
            else "copy or download that file again",
        ) from error
    ModelError.unless(
        tokens,
        saw=f"the tokenizer at {source!r} has an empty vocabulary",
        expected="a tokenizer that knows tokens",
        cure="copy or download its files again",
    )
    return tokenizer


def _broken_file(folder: Path) -> str | None:
    # The libraries' errors of a damaged file name neither the file nor the reason.
    for name in _JSON_FILES:
        if (folder / name).is_file():
            try:
                json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                return f"{name} is cut off or damaged: {reason_of(error)}"
    return None


def reads_clock(name_or_path: str) -> bool:
    """Whether a model's chat template writes today's date.

    Args:
        name_or_path: A model's folder or its id on the Hub; of a server it is not known.

    Returns:
        Whether it does; False where there is no tokenizer to look at.
    """
    if name_or_path.startswith(("openai:", "serve:")):
        return False
    try:
        return "strftime_now" in str(load_tokenizer(name_or_path).chat_template)
    except ModelError:
        return False


def with_date(settings: _Settings, policy: str | None, run: Path | None) -> _Settings:
    """Settings that name the day which the policy's chat template reads as today.

    Args:
        settings: With `template_date`.
        policy: Who answers; None for nobody.
        run: The run's folder: one that goes on keeps the day on which it began.

    Returns:
        The settings with the day, if the template reads the clock and none was set.
    """
    if settings.template_date is not None or policy is None or not reads_clock(policy):
        return settings
    return settings.model_copy(update={"template_date": run_date(run)})
