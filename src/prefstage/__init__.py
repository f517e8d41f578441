"""prefstage: which preference data does a language model need next?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefstage.aligning import (
        advise as advise,
        align as align,
        run_experiment as run_experiment,
    )
    from prefstage.building import build_pairs as build_pairs
    from prefstage.data import load_candidates as load_candidates, load_pairs as load_pairs
    from prefstage.diagnosing import diagnose as diagnose
    from prefstage.evaluating import (
        evaluate as evaluate,
        length_controlled_win_rate as length_controlled_win_rate,
        win_rate as win_rate,
    )
    from prefstage.judging import judge as judge, load_judge as load_judge
    from prefstage.losses import LOSSES as LOSSES
    from prefstage.measuring import Stage as Stage, measure_stage as measure_stage
    from prefstage.reporting import (
        doctor as doctor,
        make_report as make_report,
        write_report as write_report,
    )
    from prefstage.sampling import load_sampler as load_sampler, sample as sample
    from prefstage.scoring import Scorer as Scorer
    from prefstage.training import (
        PreferenceArguments as PreferenceArguments,
        PreferenceTrainer as PreferenceTrainer,
        train_recipe as train_recipe,
    )

    build, experiment, measure, train = build_pairs, run_experiment, measure_stage, train_recipe
    report = make_report

# Where each public name is defined: its package, and its name there if it differs. Each command
# has a function of its name, which writes the same folder.
_HOMES = {
    "LOSSES": "losses",
    "PreferenceArguments": "training",
    "PreferenceTrainer": "training",
    "Scorer": "scoring",
    "Stage": "measuring",
    "advise": "aligning",
    "align": "aligning",
    "build": "building:build_pairs",
    "build_pairs": "building",
    "diagnose": "diagnosing",
    "doctor": "reporting",
    "evaluate": "evaluating",
    "experiment": "aligning:run_experiment",
    "judge": "judging",
    "length_controlled_win_rate": "evaluating",
    "load_candidates": "data",
    "load_judge": "judging",
    "load_pairs": "data",
    "load_sampler": "sampling",
    "measure": "measuring:measure_stage",
    "measure_stage": "measuring",
    "report": "reporting:make_report",
    "run_experiment": "aligning",
    "sample": "sampling",
    "train": "training:train_recipe",
    "win_rate": "evaluating",
    "write_report": "reporting",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the public names, each imported on first use


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import prefstage` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefstage' has no attribute {name!r}")
    package, _, there = _HOMES[name].partition(":")
    return getattr(import_module(f"prefstage.{package}"), there or name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
