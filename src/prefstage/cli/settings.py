"""Settings of the commands that have no settings model in their package."""

from pathlib import Path

from pydantic import Field

from prefstage.core import Config


class ReportSettings(Config):
    """What a page is about."""

    runs: tuple[Path, ...] = Field(
        default=(),
        description="Run folders of align, experiment, train, measure, build, evaluate, diagnose.",
    )
    title: str | None = Field(default=None, description="Its heading [the runs' names].")
    figures: Path | None = Field(
        default=None, description="Folder for every chart as PNG and SVG, for papers."
    )


class TheorySettings(Config):
    """Which statements are checked, and on how many worlds."""

    checks: tuple[str, ...] = Field(
        default=(), description="Checks, or beginnings of their names: `data`, `stage-5.4` [all]."
    )
    worlds: int = Field(default=1000, ge=100, description="Random worlds a check.")
    seed: int = Field(default=0, ge=0, description="Another seed draws other worlds.")
    figures: bool = Field(default=True, description="Draw a figure for each check, with --out.")


class DemoSettings(Config):
    """Which world the demo makes."""

    seed: int = Field(default=0, ge=0, description="Another seed makes another world.")
