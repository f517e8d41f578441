import pytest

from prefstage.core import errors
from prefstage.core.errors import ConfigError, InputError, PrefstageError, RunFolderError


def test_message_has_its_three_parts_on_one_line() -> None:
    error = InputError.of(saw="row 3 is\nempty.", expected="a  response.", cure="mend it.")
    assert str(error) == "row 3 is empty; expected a response; mend it."


def test_errors_about_values_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(InputError, ValueError)
    assert issubclass(RunFolderError, ValueError)


@pytest.mark.parametrize(
    "name",
    [name for name in vars(errors) if name.endswith("Error")],
)
def test_every_error_derives_from_the_root(name: str) -> None:
    error_type = getattr(errors, name)
    assert issubclass(error_type, PrefstageError)
    assert isinstance(error_type.of(saw="a", expected="b", cure="c"), error_type)


def test_check_raises_its_error_unless_it_holds() -> None:
    parts = {"saw": "row 3 is empty", "expected": "a response", "cure": "mend it"}
    InputError.unless("a response", **parts)
    with pytest.raises(InputError, match="row 3 is empty; expected a response; mend it"):
        InputError.unless("", **parts)


def test_an_error_stands_in_place_of_another() -> None:
    with (
        pytest.raises(InputError, match="x: no file; expected a; b") as caught,
        InputError.instead_of(OSError, KeyError, saw="x: {error}", expected="a", cure="b"),
    ):
        raise OSError("no file")
    assert isinstance(caught.value.__cause__, OSError)
    with (
        pytest.raises(ZeroDivisionError),
        InputError.instead_of(OSError, saw="x", expected="a", cure="b"),
    ):
        raise ZeroDivisionError
