"""The day that a chat template reads as today: that on which a run began."""

from pathlib import Path
from typing import TypeVar

from prefstage.core.errors import ModelError
from prefstage.core.runs import run_date
from prefstage.data.chat_settings import ChatSettings
from prefstage.data.tokenizer_files import load_tokenizer

_Settings = TypeVar("_Settings", bound=ChatSettings)


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
        tokenizer = load_tokenizer(name_or_path)
    except ModelError:
        return False
    return "strftime_now" in str(tokenizer.chat_template)


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
