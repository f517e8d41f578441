"""What an experiment left: its tables, and how the boundary score agrees with what gained more."""

from pathlib import Path
from typing import Any

import yaml

from prefstage.aligning.cells import bad_rows_told, reversals_in_cells
from prefstage.aligning.grid import TableSettings
from prefstage.aligning.paper_tables import build_table
from prefstage.reporting.files import read_if_there, read_json, read_manifest
from prefstage.reporting.results import Run, Tabulated


def read_experiment(folder: Path) -> Run:
    """Read the folder of `prefstage experiment`.

    Args:
        folder: The folder.

    Returns:
        What it holds; its cells are runs of `align` themselves.
    """
    result, config = read_json(folder / "experiment.json"), read_if_there(folder / "config.yaml")
    settings: dict[str, Any] = yaml.safe_load(config) or {}
    tables = tuple(
        Tabulated(
            name,
            build_table(TableSettings(**each), result["cells"]),
            result["agreement"].get(name),
        )
        for name, each in settings["tables"].items()
    )
    axes = [f"{len(values)} x {axis}" for axis, values in settings["axes"].items()]
    bad, replaced = bad_rows_told(result["cells"]), reversals_in_cells(result["cells"])
    facts = {
        "start": str(settings["recipe"].get("policy", "by an axis")),
        "judge": str(settings["recipe"].get("judge", "by an axis")),
        "axes": ", ".join(axes),
        **({"put aside as bad": bad} if bad else {}),
        **({"labels replaced": "; ".join(replaced)} if replaced else {}),
    }
    return Run(
        name=folder.name,
        command="experiment",
        folder=folder,
        facts=facts,
        tables=tables,
        cells=tuple(each["cell"] for each in result["cells"]),
        failed=dict(result["failed"]),
        config=config,
        manifest=read_manifest(folder),
    )
