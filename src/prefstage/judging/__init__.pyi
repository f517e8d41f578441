# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .base import Comparison as Comparison, Judge as Judge, Judgment as Judgment
from .judged import (
    JudgeConfig as JudgeConfig,
    Judged as Judged,
    JudgeSettings as JudgeSettings,
    judge as judge,
    stored as stored,
)
from .loading import as_judge as as_judge, load_judge as load_judge
