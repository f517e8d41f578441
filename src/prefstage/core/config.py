"""Typed configuration: frozen models, YAML in, one-line errors that name the cure."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from prefstage.core.errors import ConfigError
from prefstage.core.files import write_text
from prefstage.core.foreign import parse_yaml, read_yaml
from prefstage.core.secrets import redacted_values, remember_secrets

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # what it is, without reaching into pydantic to run


class _OneLineErrors(ModelMetaclass):
    """Whoever writes `MeasureConfig(seeed=1)` gets the same line as from a YAML file."""

    # In the metaclass, since pydantic makes nested models without calling them: a model within a
    # model still reports its dotted name, and only a call in Python comes by here.
    def __call__(self, *arguments: Any, **values: Any) -> Any:
        try:
            return super().__call__(*arguments, **values)
        except ValidationError as error:
            raise _config_error(self, error, "") from None


class Config(BaseModel, metaclass=_OneLineErrors):
    """Base of every configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_COMPARED = 500

ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(
    schema: type[ConfigT],
    source: Path | str | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Read a configuration from YAML or a mapping, and check it against its schema.

    Args:
        schema: The model to build.
        source: A YAML file, a mapping, or None for the defaults alone.
        overrides: Values that win over `source`; dotted keys reach nested models
            (``{"sampling.top_p": 0.9}``). None values are ignored.

    Returns:
        The frozen, validated configuration.

    Raises:
        ConfigError: If the file is missing or no YAML mapping, a key is unknown (the
            nearest valid one is named), or a value is of the wrong type or range.
    """
    ConfigError.unless(
        isinstance(source, Path | str | Mapping | None),
        saw=f"settings of type {type(source).__name__}",
        expected="the path of a YAML file, or a mapping of settings",
        cure="pass one of these",
    )
    values = dict(source or {}) if isinstance(source, Mapping | None) else _read(Path(source))
    for key, value in (overrides or {}).items():
        if value is not None:
            _set_dotted(values, key.split("."), value)
    return check_config(
        schema, values, origin=str(source) if isinstance(source, Path | str) else ""
    )


def check_config(schema: type[ConfigT], values: Mapping[str, Any], *, origin: str = "") -> ConfigT:
    """Validate a mapping against a schema.

    Args:
        schema: The model to build.
        values: Its settings by name.
        origin: Where they came from (a file), named first in errors.

    Returns:
        The frozen, validated configuration.

    Raises:
        ConfigError: One line that names every unknown key, missing or wrong value.
    """
    remember_secrets(values)
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise _config_error(schema, error, origin) from None


def as_config(schema: type[ConfigT], settings: ConfigT | Mapping[str, Any] | None) -> ConfigT:
    """The configuration that a caller passes: itself, its settings by name, or the defaults.

    Args:
        schema: The model.
        settings: A configuration, a mapping, or None.

    Returns:
        The configuration.

    Raises:
        ConfigError: If it is none of these, or a setting is unknown or wrong.
    """
    if settings is None or isinstance(settings, Mapping):
        return check_config(schema, settings or {})
    ConfigError.unless(
        isinstance(settings, schema),
        saw=f"settings as a {type(settings).__name__}",
        expected=f"a {schema.__name__}, or a mapping of its settings",
        cure=f"pass {schema.__name__}(...), or leave it out for the defaults",
    )
    return settings


def refuse(*faults: tuple[bool, str]) -> None:
    """Raise the first fault that is there; for validators of a configuration.

    Args:
        faults: Whether it is there, and what to say: saw; expected; cure.

    Raises:
        ValueError: Which pydantic takes for a fault of the configuration.
    """
    for is_there, text in faults:
        if is_there:
            raise ValueError(text)


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` texts, dotted keys reaching inner settings, values as in YAML.

    Args:
        texts: Such as ``training.learning_rate=5e-7``.

    Returns:
        Values by dotted key, for `load_config`.

    Raises:
        ConfigError: If one is no ``key=value``.
    """
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            values[key.strip()] = parse_yaml(value)
        except ValueError:
            equals = ""
        ConfigError.unless(
            equals and key.strip() and value.strip(),
            saw=f"--set {text!r}",
            expected="key=value with a value as in YAML",
            cure="write e.g. --set training.learning_rate=5e-7",
        )
    return values


def write_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML, so that a run can be repeated from it.

    Args:
        config: The configuration, defaults included.
        path: The YAML file, made or replaced as a whole; no tokens and passwords stand in it.
    """
    values = redacted_values(config.model_dump(mode="json"))
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def did_you_mean(name: str, known: Iterable[str], otherwise: str, *, prefix: str = "") -> str:
    """The cure of an unknown name.

    Args:
        name: The name as it was given.
        known: The valid names.
        otherwise: What to do if none of these is similar.
        prefix: Stands before the valid name where it is typed, such as "training.".

    Returns:
        A question that names the most similar valid name, or `otherwise`.
    """
    # Nobody types a name of thousands of letters, or meant one of thousands of columns.
    names = [text for text in islice(known, _COMPARED) if len(text) <= _COMPARED]
    close = difflib.get_close_matches(name[:_COMPARED], names, n=1, cutoff=0.5)
    return f"did you mean {prefix + close[0]!r}?" if close else otherwise


def _config_error(schema: Any, error: ValidationError, origin: str) -> ConfigError:
    text = "; ".join(_describe(schema, fault, origin) for fault in error.errors())
    return ConfigError(" ".join(text.split()))


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = read_yaml(path)
        if loaded is None:
            return {}
        if isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded):
            return loaded
        saw, cure = f" holds a {type(loaded).__name__}", "write one setting a line, e.g. seed: 0"
    except OSError as error:
        saw, cure = f": {error.strerror}", "check the path"
    except UnicodeDecodeError as error:
        saw, cure = f": {error}", "save it as UTF-8 text"
    except ValueError as error:
        saw, cure = f": {error}", "mend that line"
    raise ConfigError.of(
        saw=f"config {path}{saw}", expected="a YAML file with settings as key: value", cure=cure
    )


def _set_dotted(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.get(key) or {}
        if not isinstance(inner, Mapping):  # left as it is, for the schema to refuse
            return
        values[key] = dict(inner)
        values = values[key]
    values[keys[-1]] = value


def _describe(schema: type[BaseModel], fault: Any, origin: str) -> str:
    setting = ".".join(str(part) for part in fault["loc"])
    prefix = f"{origin}: " if origin else ""
    if fault["type"] == "extra_forbidden":
        *parents, name = [str(part) for part in fault["loc"]]
        for part in parents:
            if part in schema.model_fields:  # no place in a list
                schema = _model_in(schema.model_fields[part].annotation) or schema
        known = list(schema.model_fields)
        cure = did_you_mean(name, known, "remove it", prefix="".join(f"{p}." for p in parents))
        return f"{prefix}unknown setting {setting!r}; expected one of {', '.join(known)}; {cure}"
    if fault["type"] == "missing":
        return f"{prefix}setting {setting!r} is missing; expected a value; add it"
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not setting:
        return f"{prefix}{reason}"
    return (
        f"{prefix}setting {setting!r} is {reprlib.repr(fault['input'])}; expected {reason}; "
        "change it"
    )


def _model_in(annotation: Any) -> type[BaseModel] | None:
    # The first model inside an annotation such as ``list[Model] | None``.
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)
