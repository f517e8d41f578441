"""Options made from the settings models: names, values, defaults, help and completion."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

import typer
from typer.core import TyperCommand

from prefstage.cli.manners import mannered, say
from prefstage.core import InputError, code_rules, parse_json

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from prefstage.core import Config, Outcome

_METAVARS: dict[Any, str | None] = {
    **{str: "TEXT", list[str]: "TEXT", Path: "PATH"},
    **{int: "NUMBER", float: "NUMBER", bool: None},
}
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Command:
    """A command: the function behind it, and where its options come from.

    Attributes:
        run: Called with the settings and `out`; or, if there is a `recipe`, with that file,
            the `overrides` of its settings, `out`, the `flags` and the `words`. Its docstring is
            the help.
        settings: "package.module:Model", whose fields become options; imported on first use.
        argument: The field that is typed without its name.
        recipe: Help of the recipe, for commands that read one instead of settings.
        out: Help of `--out`; None: there is none.
        out_default: Path without `--out`; None: nothing is written then.
        out_required: Whether `--out` is required.
        flags: Switches that are no settings: help by name.
        words: Likewise with a text.
        former: Settings by the names that they had once, which are still understood.
        talks: Whether `run` prints as it goes on, unless its `quiet` is set.
    """

    run: "Callable[..., Outcome | None]"
    settings: str = "core:Config"
    argument: str = ""
    recipe: str = ""
    out: str = ""
    out_default: Path | None = None
    out_required: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    former: Mapping[str, str] = field(default_factory=dict)
    talks: bool = False

    @property
    def name(self) -> str:
        """What is typed."""
        return self.run.__name__

    @property
    def help(self) -> str:
        """What it does."""
        return inspect.cleandoc(self.run.__doc__ or "")

    @property
    def model(self) -> "type[Config]":
        """The settings model; its package is imported now."""
        return cast("type[Config]", resolve_name(f"prefstage.{self.settings}"))


@dataclass(frozen=True)
class Setting:
    """A setting of a model, or of a model inside it, as an option.

    Attributes:
        key: Dotted names from the outermost model inwards.
        name: The last of them, or a former name.
        info: The field.
        hidden: Whether help does not show it: a former name.
    """

    key: str
    name: str
    info: "FieldInfo"
    hidden: bool = False

    # As it is typed.
    @property
    def _flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    # What it may be besides None: the members of a union, or the annotation itself.
    @property
    def _kinds(self) -> list[Any]:
        return [kind for kind in _members(self.info.annotation) if kind is not type(None)]

    # Whether its value is written NAME=VALUE, as often as there are names.
    @property
    def _is_mapping(self) -> bool:
        return any(get_origin(kind) in (dict, Mapping) for kind in self._kinds)

    @property
    def value_type(self) -> Any:
        """What the shell's text becomes: the settings model makes the rest of it."""
        if any(get_origin(kind) in (list, tuple, dict, Mapping) for kind in self._kinds):
            return list[str]
        return next((kind for kind in (bool, int, float, Path) if kind in self._kinds), str)

    @property
    def help(self) -> str:
        """Description and default."""
        text = self.info.description or ""
        default = None if self.info.is_required() else self.info.default
        if isinstance(default, bool) or default in (None, "", (), {}) or "[" in text:
            return text
        return f"{text.removesuffix('.')} [{default}]."

    def value(self, typed: Any) -> Any:
        """What was typed, for the model; None if nothing was."""
        if self._is_mapping and typed:
            return named_values(self._flag, typed)
        return None if typed == [] else typed

    @property
    def option(self) -> Any:
        """As Typer reads it."""
        # Named values are completed by the shell but checked by the model alone, so that a wrong
        # one gives the same line here, in YAML and in Python.
        choices = [
            str(value)
            for kind in self._kinds
            if get_origin(kind) is Literal
            for value in get_args(kind)
        ]
        switches = bool in self._kinds and self.info.default is not False
        return typer.Option(
            self._flag + (f"/--no-{self.name.replace('_', '-')}" if switches else ""),
            help=self.help,
            hidden=self.hidden,
            metavar="|".join(choices)
            or ("NAME=VALUE" if self._is_mapping else _METAVARS[self.value_type]),
            autocompletion=(lambda: choices) if choices else None,
        )


def settings_of(command: Command) -> list[Setting]:
    """The settings that become options, those of inner models by their last name.

    Args:
        command: The command.

    Returns:
        The settings; where an outer and an inner one share their name, the outer one. Former
        names stand last.
    """
    model, made = command.model, dict[str, Setting]()
    # Outer models first, so that an inner setting never takes the name of an outer one.
    for setting in sorted(_walk(model, ()), key=lambda setting: setting.key.count(".")):
        if setting.name not in command.former:
            made.setdefault(setting.name, setting)
    return [
        *made.values(),
        *(Setting(now, old, model.model_fields[now], True) for old, now in command.former.items()),
    ]


def make_command(command: Command) -> TyperCommand:
    """Make the command that Typer runs.

    Args:
        command: The command.

    Returns:
        It, with an option for each setting.
    """
    settings = settings_of(command)
    parameters = [
        *(
            [_parameter("recipe", Path, typer.Argument(help=command.recipe))]
            if command.recipe
            else []
        ),
        *(
            _parameter(
                setting.name,
                setting.value_type,
                typer.Argument(help=setting.help)
                if setting.name == command.argument
                else setting.option,
            )
            for setting in settings
        ),
        *(_plain(name, bool, text) for name, text in command.flags.items()),
        *(_plain(name, str, text) for name, text in command.words.items()),
        *(
            [
                _plain(
                    "out",
                    Path,
                    command.out,
                    inspect.Parameter.empty if command.out_required else command.out_default,
                )
            ]
            if command.out
            else []
        ),
        _plain("config", Path, "Settings as YAML; options win."),
        _plain("set", list[str], "A setting by its name in YAML, a.b for b inside a; wins."),
        _plain("json", bool, "Print JSON and nothing else."),
        _plain("trust_remote_code", bool, "Run Python files of a model's folder or repository."),
        _plain("no_code", bool, "Refuse settings that run code: python:, serve:, launch."),
    ]

    # One function for all commands: Typer passes by name what the signature below declares.
    def run(**arguments: Any) -> None:
        rules = code_rules(
            trust_remote=bool(arguments.pop("trust_remote_code")),
            run=not arguments.pop("no_code"),
        )
        kept = not command.out or bool(arguments["out"] or arguments.get("store"))
        with mannered(kept=kept), rules:
            outcome = _outcome(command, settings, arguments)
            if outcome is not None:
                say(outcome, as_json=bool(arguments["json"]))

    # Typer reads a function's signature; ours is made from the settings.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # of functions
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    # An app of this command alone: Typer has no other public way from function to command.
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(command.name, help=command.help, context_settings=HELP_OPTIONS)(run)
    made = typer.main.get_command(app)
    assert isinstance(made, TyperCommand)
    return made


def _outcome(
    command: Command, settings: Sequence[Setting], arguments: Mapping[str, Any]
) -> "Outcome | None":
    from prefstage.core import load_config, parse_overrides

    extras = {
        **{name: bool(arguments[name]) for name in command.flags},
        **{name: arguments[name] for name in command.words},
        **({"out": arguments["out"]} if command.out else {}),
        **({"quiet": bool(arguments["json"])} if command.talks else {}),
    }
    overrides = parse_overrides(arguments["set"] or [])
    # A recipe is the settings file of its command, by either name.
    if command.recipe:
        recipe, config = arguments["recipe"], arguments["config"]
        InputError.unless(
            recipe is None or config is None,
            saw=f"two recipes, {recipe} and --config {config}",
            expected="one",
            cure="leave one of them out",
        )
        InputError.unless(
            recipe or config or "resume" in command.flags,
            saw="no recipe",
            expected="a YAML file",
            cure="name it",
        )
        return command.run(recipe or config, overrides, **extras)
    # A former name sets the same key: what was not typed must not hide what was.
    typed = {
        key: value
        for key, value in (
            (setting.key, setting.value(arguments[setting.name])) for setting in settings
        )
        if value is not None
    }
    return command.run(load_config(command.model, arguments["config"], typed | overrides), **extras)


def _walk(model: "type[Config]", keys: tuple[str, ...]) -> Iterator[Setting]:
    from prefstage.core import Config

    # The fields of the class itself first: whose answers, which data; then how.
    names = dict.fromkeys(
        name for base in model.__mro__ if issubclass(base, Config) for name in base.__annotations__
    )
    for name in filter(model.model_fields.__contains__, names):
        info = model.model_fields[name]
        inner = filter(inspect.isclass, _members(info.annotation))
        if models := [kind for kind in inner if issubclass(kind, Config)]:
            yield from _walk(models[0], (*keys, name))
        else:
            yield Setting(".".join((*keys, name)), name, info)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _plain(name: str, kind: Any, text: str, default: Any = None) -> inspect.Parameter:
    return _parameter(
        name,
        kind,
        typer.Option(
            f"--{name.replace('_', '-')}",
            help=text,
            metavar="KEY=VALUE" if kind == list[str] else _METAVARS[kind],
        ),
        default,
    )


def _parameter(name: str, kind: Any, read: Any, default: Any = None) -> inspect.Parameter:
    # None marks what was not arguments, so that a value in YAML is not overridden by a default.
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None, read] if default is None else Annotated[kind, read],
    )


def named_values(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read a mapping as it is typed.

    Args:
        flag: The option, for errors.
        texts: ``NAME=VALUE``, the value JSON where it is and else text; or JSON objects.

    Returns:
        The values by name.

    Raises:
        InputError: If a text is neither.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        # Both forms, since shells make quotes inside a JSON object a nuisance.
        if text.lstrip().startswith("{"):
            with InputError.instead_of(
                ValueError,
                saw=f"{flag} {text} ({{error}})",
                expected="a JSON object",
                cure="fix it",
            ):
                values |= parse_json(text)
            continue
        InputError.unless(
            equals and name.strip(),
            saw=f"{flag} {text}",
            expected="NAME=VALUE, such as enable_thinking=false, or a JSON object",
            cure="write it so",
        )
        try:
            values[name.strip()] = parse_json(value)
        except ValueError:
            values[name.strip()] = value
    return values
