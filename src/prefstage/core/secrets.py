"""Keys and passwords: read in one place, shown in none; and what may run code of others."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

from prefstage.core.errors import InputError

_SECRETS = set[str]()  # of this process, in every spelling in which they might be written
_SHORTEST = 4
# Variables of others' that hold a token, which their libraries' errors may quote.
_OF_OTHERS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
_IN_URLS = re.compile(r"(?<=://)[^/\s@'\"]+@")
_IN_QUERIES = re.compile(
    r"([?&](?:api[-_]?key|key|(?:access[-_]?)?token|sig(?:nature)?|password|secret)=)[^&#\s'\"]+",
    re.IGNORECASE,
)
# Names whose values are secrets: a bare `token`, and `hub_token`, but no `eos_token` and its like.
_NAME = (
    r"(?:token|(?:\w+[-_])??(?:passw(?:or)?d|secret|(?:api|access|secret|private)[-_]?key"
    r"|(?:hub|hf|auth|access|api|bearer|session|refresh|github|gitlab|wandb)[-_]?token))"
)
_FIELDS = re.compile(_NAME, re.IGNORECASE)
# As recipes, environments and command lines state them.
_STATED = re.compile(
    rf"(?:(?<![\w-]){_NAME}['\"]?\s*[:=]\s*|--{_NAME}[\s=]+)[*&!]?['\"]?([^\s'\",\]}}&]+)",
    re.IGNORECASE,
)
# Of the Hub, OpenAI, GitHub, GitLab, Slack, Google.
_SHAPES = re.compile(
    r"\b(?:(?:hf_|sk-|gh[pousr]_|glpat-|xox[abp]-)[\w-]{20,}|AIza[\w-]{35})", re.ASCII
)
_NO_SECRETS = re.compile(r"null|none|true|false|\*+", re.IGNORECASE)


def remember_secret(secret: str) -> None:
    """Let `redacted` know a secret.

    Args:
        secret: The secret; of less than four letters it is too common a text to be hidden.
    """
    if len(secret) >= _SHORTEST and not _NO_SECRETS.fullmatch(secret):
        _SECRETS.update({secret, quote(secret, safe=""), secret.encode("unicode_escape").decode()})


def remember_secrets(stated: Any) -> None:
    """Let `redacted` know the values of all that is named as a secret, such as ``hub_token``.

    Args:
        stated: Settings, perhaps inside others; or a text that states them, in YAML, as
            ``NAME=VALUE`` or as options, which need not be readable otherwise.
    """
    if isinstance(stated, str):
        for secret in _STATED.findall(stated):
            remember_secret(secret)
    elif isinstance(stated, Mapping):
        for name, inner in stated.items():
            if isinstance(inner, str) and _FIELDS.fullmatch(str(name)):
                remember_secret(inner)
            remember_secrets(inner)
    elif isinstance(stated, list | tuple):
        for inner in stated:
            remember_secrets(inner)


def known_secrets() -> list[str]:
    """The secrets of this process, in every spelling in which they might be written, longest first.

    Returns:
        What was remembered, and what variables of others' hold now.
    """
    values = {value.strip() for name in _OF_OTHERS if (value := os.environ.get(name))}
    return sorted(_SECRETS | {v for v in values if len(v) >= _SHORTEST}, key=len, reverse=True)


def secret_from(variable: str) -> str | None:
    """A key that an environment variable holds.

    Args:
        variable: Its name.

    Returns:
        The key, without white space around it, and from now on `redacted`; None where the variable
        is not set or empty.

    Raises:
        InputError: If it holds what no header can carry; the value is not shown.
    """
    secret = (os.environ.get(variable) or "").strip()
    InputError.unless(
        secret.isascii() and secret.isprintable() and " " not in secret,
        saw=f"the environment variable {variable} with characters that no key has "
        "(spaces, control characters, letters beyond ASCII)",
        expected="an API key and nothing else",
        cure="set it anew, without quotes or line ends",
    )
    remember_secret(secret)
    return secret or None


def redacted(text: str) -> str:
    """A text that may leave the process: secrets, and passwords and keys in URLs, become ``***``.

    Args:
        text: For a person, a log, or a file about a run. Not for data, which stay as they are.

    Returns:
        The text.
    """
    for secret in known_secrets():
        text = text.replace(secret, "***")
    return _IN_QUERIES.sub(r"\1***", _IN_URLS.sub("***@", _SHAPES.sub("***", text)))


def redacted_values(value: Any) -> Any:
    """Settings or facts of a run as they may be written: texts redacted, tokens left out.

    Args:
        value: JSON-serialisable.

    Returns:
        A copy; the values of fields such as ``hub_token`` are ``***``.
    """
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            name: "***" if inner and _FIELDS.fullmatch(str(name)) else redacted_values(inner)
            for name, inner in value.items()
        }
    return [redacted_values(inner) for inner in value] if isinstance(value, list | tuple) else value


# --- Code of others ------------------------------------------------------------------------------

TRUST_CURE = (
    "read that code, and give --trust-remote-code (in Python: prefstage.core.code_rules) if you "
    "trust it"
)
_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)
_CODE: ContextVar[bool] = ContextVar("code", default=True)


@contextmanager
def code_rules(*, trust_remote: bool = False, run: bool = True) -> Iterator[None]:
    """Say what code of others may run while the block does.

    Args:
        trust_remote: Whether the Python files of a model's folder or repository may be run.
        run: Whether what a recipe names may: ``python:`` functions, ``serve:`` commands, `launch`.

    Yields:
        Nothing.
    """
    tokens = _TRUSTED.set(trust_remote), _CODE.set(run)
    try:
        yield
    finally:
        _TRUSTED.reset(tokens[0])
        _CODE.reset(tokens[1])


def trust_remote_code() -> bool:
    """As transformers' loading functions take it: never None, which asks on the terminal."""
    return _TRUSTED.get()


def check_code_may_run(what: str) -> None:
    """Refuse to run code that a recipe or an argument names, where that is forbidden.

    Args:
        what: Such as ``python:my.judges:better``.

    Raises:
        InputError: If it is forbidden.
    """
    InputError.unless(
        _CODE.get(),
        saw=f"{what} with --no-code",
        expected="settings that run no code",
        cure="leave it out, or leave --no-code out if you trust who wrote it",
    )
