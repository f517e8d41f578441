from pathlib import Path
from typing import Self

import pytest
import yaml
from pydantic import Field, ValidationError, model_validator

from prefstage.core.config import (
    Config,
    check_config,
    did_you_mean,
    load_config,
    write_config,
)
from prefstage.core.errors import ConfigError


class Sampling(Config):
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = 50


class Source(Config):
    name: str
    weight: float = 1.0


class Run(Config):
    seed: int = 0
    sampling: Sampling = Sampling()
    sources: list[Source] | None = None
    named: dict[str, Source] = Field(default_factory=dict)
    tie_rule: str = "half"

    @model_validator(mode="after")
    def _ties(self) -> Self:
        if self.tie_rule not in ("half", "off"):
            raise ValueError(f"tie_rule={self.tie_rule!r}; expected half or off; choose one")
        return self


def refused(values: dict[str, object], **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, values, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_yaml_and_overrides_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nsampling:\n  top_p: 0.5\n")
    config = load_config(Run, file, {"sampling.top_k": 7, "seed": None})
    assert (config.seed, config.sampling.top_p, config.sampling.top_k) == (3, 0.5, 7)
    assert load_config(Run) == Run()


def test_overrides_do_not_change_the_given_mapping() -> None:
    given = {"sampling": {"top_p": 0.5}}
    load_config(Run, given, {"sampling.top_p": 0.6, "seed": 1})
    assert given == {"sampling": {"top_p": 0.5}}


def test_override_beside_a_wrong_value_does_not_hide_it() -> None:
    with pytest.raises(ConfigError, match="setting 'sampling' is 5"):
        load_config(Run, {"sampling": 5}, {"sampling.top_p": 0.5})


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Run().seed = 1


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"sede": 1}, "did you mean 'seed'?"),
        ({"sampling": {"topp": 1}}, "did you mean 'sampling.top_p'?"),
        ({"sources": [{"name": "a", "wieght": 1}]}, "did you mean 'sources.0.weight'?"),
        ({"named": {"a": {"name": "a", "wieght": 1}}}, "did you mean 'named.a.weight'?"),
        ({"zzzz": 1}, "remove it"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one(values: dict[str, object], meant: str) -> None:
    assert meant in refused(values)


def test_every_fault_is_named_in_one_line() -> None:
    text = refused({"seed": "x\ny", "sampling": {"top_p": 2}, "sources": [{}]})
    assert "setting 'seed' is 'x\\ny'" in text
    assert "setting 'sampling.top_p' is 2" in text
    assert "less than or equal to 1" in text
    assert "setting 'sources.0.name' is missing" in text


def test_own_validators_speak_for_themselves() -> None:
    assert refused({"tie_rule": "both"}) == "tie_rule='both'; expected half or off; choose one"


def test_long_input_is_shortened() -> None:
    assert len(refused({"seed": "x" * 10_000})) < 300


def test_nan_is_refused() -> None:
    assert "finite" in refused({"sampling": {"top_p": float("nan")}})


def test_origin_is_named_first(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sede: 3\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown setting 'sede'"):
        load_config(Run, file)
    with pytest.raises(ConfigError, match=r"^here: unknown"):
        check_config(Run, {"sede": 3}, origin="here")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (b"- 1\n- 2\n", "holds a list"),
        (b"just words", "holds a str"),
        (b"1: 2", "holds a dict"),
        (b"a: 1\nb: [1, 2", "line 2: expected"),
        (b"a: \xff\xfe", "can't decode"),
        (b"seed: 1\nsampling: {top_p: 1, top_p: 0.5}", "line 2: 'top_p' is set twice"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: bytes, seen: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=seen) as caught:
        load_config(Run, file)
    assert "\n" not in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(Run, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(Run, tmp_path)


def test_on_and_off_are_words_and_true_and_false_are_not(tmp_path: Path) -> None:
    class Switches(Config):
        off: str
        on: list[str]
        sure: bool
        unsure: bool

    file = tmp_path / "words.yaml"
    file.write_text("off: off\non: [on, yes, no, y]\nsure: true\nunsure: False\n")
    config = load_config(Switches, file)
    assert (config.off, config.on) == ("off", ["on", "yes", "no", "y"])
    assert (config.sure, config.unsure) == (True, False)
    write_config(config, tmp_path / "again.yaml")
    assert load_config(Switches, tmp_path / "again.yaml") == config


def test_empty_file_means_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert load_config(Run, file) == Run()


def test_written_config_reads_back(tmp_path: Path) -> None:
    config = load_config(Run, {"seed": 4, "sources": [{"name": "ä"}]})
    write_config(config, tmp_path / "made" / "config.yaml")
    assert load_config(Run, tmp_path / "made" / "config.yaml") == config
    assert next(iter(yaml.safe_load((tmp_path / "made" / "config.yaml").read_text()))) == "seed"


def test_did_you_mean() -> None:
    known = ("temperature", "top_p")
    assert did_you_mean("tempature", known, "remove it") == "did you mean 'temperature'?"
    assert did_you_mean("xyz", known, "remove it") == "remove it"
