"""The door for bytes that others wrote: every way in which they are unreadable is one error.

Python's readers fail in many ways over hostile text: a number of thousands of digits, brackets
nested a thousand deep, YAML aliases that stand for a billion values, a pipe that never ends. What
has come through this door is small enough to be walked, compared, printed and stored.
"""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from prefstage.core.errors import DataError, ModelError, PrefstageError
from prefstage.core.secrets import redacted, remember_secrets

NESTING = 100  # levels; Python's own walkers take three frames a level, of the thousand there are
_DIGITS = 255  # more do not fit into a float, whatever the base
_YAML_BYTES = 1 << 20
_MOST_LAYERS = 10_000  # more would be made, one by one, before any weight is read
_JSON_BYTES = 1 << 30
_YAML_VALUES = 20_000  # the reader is written in Python: some seconds
_INT_TAG, _BOOL_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:bool"


def whole_number(text: str) -> int:
    """A whole number of JSON, for its readers to call as `parse_int`.

    Args:
        text: Its digits.

    Returns:
        The number, which a float can hold as well.

    Raises:
        ValueError: If it has more than 255 digits.
    """
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def check_shape(value: Any, *, values: int | None = None) -> None:
    """Check that a value can be walked by functions that call themselves.

    Args:
        value: Of lists and objects; they may share parts, or hold themselves.
        values: How many it may hold, what is shared counted as often as it is met; None for any.

    Raises:
        ValueError: If it is nested deeper than 100 levels, or holds more values.
    """
    inner, count = [value], 0
    for _ in range(NESTING + 1):
        level = [item for item in inner if isinstance(item, dict | list | tuple | set)]
        if not level:
            return
        inner = [
            part for item in level for part in (item.values() if isinstance(item, dict) else item)
        ]
        count += len(inner)
        if values is not None and count > values:
            raise ValueError(f"more than {values:,} values, its aliases written out")
    raise ValueError(f"values nested deeper than {NESTING} levels")


def parse_json(
    text: str | bytes, *, unique: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> Any:
    """Values of JSON text.

    Args:
        text: The text; bytes may be UTF-8, 16 or 32.
        unique: Makes an object of its keys and values, and may refuse keys that stand twice.

    Returns:
        The value; NaN and infinities are numbers.

    Raises:
        ValueError: If it is no JSON, is nested deeper than 100 levels, or holds a whole number
            of more than 255 digits.
    """
    try:
        value = json.loads(text, parse_int=whole_number, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"values nested deeper than {NESTING} levels") from None
    opened: Any = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, opened)) > NESTING:  # hardly any row: the walk costs more
        check_shape(value)
    return value


def read_bytes(path: Path, *, limit: int = _JSON_BYTES) -> bytes:
    """All bytes of a file that is small enough.

    Args:
        path: A regular file, or a link to one.
        limit: The most that it may hold [bytes].

    Returns:
        Its bytes.

    Raises:
        OSError: If it cannot be opened.
        DataError: If it is a pipe or a device, which may never end, or larger.
    """
    regular, size = path.is_file(), path.stat().st_size
    DataError.unless(
        (regular or path.is_dir()) and size <= limit,  # opening a folder says what it is
        saw=f"{path}, " + (f"{size:,} bytes" if regular else "a pipe or a device"),
        expected=f"a file of at most {limit:,} bytes",
        cure="save what is meant to a file, and name that",
    )
    return path.read_bytes()


def read_json(
    path: Path,
    kind: type = dict,
    *,
    error: type[PrefstageError] = DataError,
    expected: str = "JSON as prefstage wrote it",
    cure: str = "repeat the command that wrote it, or restore it from a copy",
) -> Any:
    """The value in a JSON file.

    Args:
        path: The file.
        kind: What it must be.
        error: What is raised if it cannot be read.
        expected: What the file should have been, for errors.
        cure: What to do, for errors.

    Returns:
        The value.

    Raises:
        OSError: If the file cannot be opened.
        PrefstageError: If it holds something else, or what `parse_json` refuses.
    """
    with error.instead_of(
        ValueError, saw=f"{path} cannot be read ({{error}})", expected=expected, cure=cure
    ):
        value = parse_json(read_bytes(path))
        if not isinstance(value, kind):
            raise ValueError(  # noqa: TRY004 - of the text, for the error that names the file
                f"a {type(value).__name__} where a {kind.__name__} is due"
            )
        return value


def check_model_files(folder: Path) -> None:
    """Refuse a model's folder that would keep its readers waiting, or busy, for ever.

    Args:
        folder: On this machine; one that is not there has nothing to refuse.

    Raises:
        ModelError: If it holds a pipe or a device, a configuration that cannot be read, or one of
            more than 10,000 layers.
    """
    for file in folder.iterdir() if folder.is_dir() else ():
        ModelError.unless(
            file.is_file() or file.is_dir() or not file.exists(),
            saw=f"{file}, a pipe or a device",
            expected="files of a model",
            cure="remove it, or copy the model again",
        )
    file = folder / "config.json"
    config = (
        read_json(
            file,
            error=ModelError,
            expected="the configuration of a model",
            cure="copy or download it again",
        )
        if file.is_file()
        else {}
    )
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for name, count in chain.from_iterable(part.items() for part in parts):
        ModelError.unless(
            "layers" not in name or not isinstance(count, int) or count <= _MOST_LAYERS,
            saw=f"{file}: {name} {count}",
            expected=f"at most {_MOST_LAYERS}",
            cure="copy or download it again",
        )


def parse_yaml(text: str | bytes) -> Any:
    """Values of YAML text: plain ones alone, keys once, booleans only as true and false.

    Args:
        text: The text; bytes are UTF-8 or 16.

    Returns:
        The value.

    Raises:
        ValueError: If it cannot be read: it is no YAML, nested deeper than 100 levels, holds
            itself, or more than 20,000 values once its aliases are written out.
    """
    try:
        value = yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from None
    except RecursionError:
        raise ValueError(f"values nested deeper than {NESTING} levels") from None
    except yaml.YAMLError:
        raise ValueError("text with a control character") from None
    except Exception:  # by the tag: each has its own way to fail, such as !!bool maybe
        raise ValueError("a value that is not what its tag, or its form, says") from None
    check_shape(value, values=_YAML_VALUES)
    return value


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of at most one MiB.

    Args:
        path: The file.

    Returns:
        The value; None of an empty file.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: As `parse_yaml`; a DataError if it is too large, a pipe or a device.
    """
    text = read_bytes(path, limit=_YAML_BYTES).decode("utf-8-sig")
    remember_secrets(text)  # before it is parsed: errors quote what they stumble over
    return parse_yaml(text)


# What moves a terminal's cursor, colours it, rings, or turns the order of letters; halves of
# characters, which it cannot be sent. Line ends and tabs stay.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_UNUSABLE = re.compile("[\0\ud800-\udfff]")


def printable(text: str) -> str:
    """A text for a terminal, in which what others wrote can do nothing but be read.

    Args:
        text: Of data, servers, models or arguments, perhaps.

    Returns:
        The text, `redacted` and `escaped`.
    """
    return escaped(redacted(text))


def escaped(text: str) -> str:
    r"""A text in which nothing acts on whoever shows it, and nothing is lost.

    Args:
        text: Any; of JSON, the same JSON.

    Returns:
        The text with every control character but line ends and tabs written as in JSON, such as
        ``\u001b``.
    """
    return _UNPRINTABLE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


class _EndlessError(BaseException):  # no Exception, which foreign code might catch
    """A bounded block has taken too long."""


@contextmanager
def bounded(
    error: PrefstageError, *, seconds: float = 5.0, memory: int = 1 << 29
) -> Iterator[None]:
    """End a block of foreign code that takes too long, or grows without end.

    Where signals or limits are not to be had (another thread than the first, no POSIX), that
    bound is not kept.

    Args:
        error: What is raised then.
        seconds: How long it may take.
        memory: How much the process may grow meanwhile [bytes].

    Yields:
        Nothing.

    Raises:
        PrefstageError: The error, if it takes longer or more.
    """

    def stop(*_: Any) -> None:
        raise _EndlessError

    try:
        with ExitStack() as stack:
            with suppress(ImportError, OSError, ValueError):
                import resource

                former = resource.getrlimit(resource.RLIMIT_AS)
                pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
                most = pages * resource.getpagesize() + memory
                if former[0] == resource.RLIM_INFINITY or most < former[0]:
                    resource.setrlimit(resource.RLIMIT_AS, (most, former[1]))
                    stack.callback(resource.setrlimit, resource.RLIMIT_AS, former)
            with suppress(ValueError, AttributeError):
                stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, stop))
                left = signal.setitimer(signal.ITIMER_REAL, seconds)
                stack.callback(signal.setitimer, signal.ITIMER_REAL, *left)
            yield
    except (MemoryError, _EndlessError):  # the signal may come as late as it is taken back
        raise error from None


class _PlainLoader(yaml.SafeLoader):
    """YAML whose only booleans are true and false, and whose keys stand once.

    In YAML 1.1 the words on and off are booleans too; here they are sides of a comparison.
    """

    # Of a plain word's first letter, what it may mean besides text.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [meaning for meaning in meanings if meaning[0] != _BOOL_TAG]
        + ([(_BOOL_TAG, re.compile("^(?:[Tt]rue|[Ff]alse)$"))] if first in "tTfF" else [])
        for first, meanings in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    _level = _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As the base class, but neither deeper nor more of them than may be."""
        self._level, self._nodes = self._level + 1, self._nodes + 1
        if self._level > NESTING + 1 or self._nodes > _YAML_VALUES:
            raise yaml.composer.ComposerError(
                *(None, None),
                f"values nested deeper than {NESTING} levels"
                if self._level > NESTING
                else f"more than {_YAML_VALUES:,} values",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]  # no stub has it
            )
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, but a key that stands twice is an error."""
        keys = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                self._check(key.value not in keys, f"{key.value!r} is set twice", key)
                keys.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As the base class, but what is merged (<<) does not grow without bound."""
        super().flatten_mapping(node)
        self._check(len(node.value) <= _YAML_VALUES, "it merges too many keys", node)

    def construct_scalar(self, node: Any) -> Any:
        """As the base class, but no whole number is longer than a float can hold."""
        short = len(node.value) <= _DIGITS or node.tag != _INT_TAG
        self._check(short, f"a number of {len(node.value):,} digits", node)
        self._check(
            not _UNUSABLE.search(str(node.value)), "text with a NUL or half a character", node
        )
        return super().construct_scalar(node)

    def _check(self, holds: bool, problem: str, node: yaml.Node) -> None:
        if not holds:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
