"""Length-controlled win rate: our numbers and times beside those of `alpaca-eval`.

    python benchmarks/evaluating.py SHARED_DATA_FOLDER

needs a Python environment that has `alpaca-eval` (0.6.6) and this package (or its `src` on
PYTHONPATH). `alpaca-eval` is fed offline: its download function is pointed at a file with the
tables of this package.
"""

import argparse
import csv
import gzip
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prefstage.evaluating.length_controlled import length_controlled_win_rate
from prefstage.evaluating.length_tables import N_PROMPTS, length_tables

REPEATS = 5


def rows_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The rows of each model, as columns."""
    with gzip.open(folder / "length_controlled" / "model_rows.csv.gz", "rt") as stream:
        rows = list(csv.DictReader(stream))
    names = ("row", "instruction", "preference", "len_model", "len_baseline")
    return {
        model: {
            name: np.array([float(row[name]) for row in rows if row["model"] == model])
            for name in names
        }
        for model in dict.fromkeys(row["model"] for row in rows)
    }


def best_time_s(action: Callable[[], Any]) -> tuple[float, Any]:
    """The median time of some repeats, and the last result."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - started)
    return statistics.median(times), result


def gamed_file(folder: Path) -> str:
    """Our tables in the layout of the official file."""
    import pandas as pd

    tables = length_tables()
    frame = pd.DataFrame(
        {
            "model": ["verbose"] * N_PROMPTS + ["concise"] * N_PROMPTS,
            "index": tables.gamed_index,
            "preference": tables.gamed_preference,
            "std_delta_len": np.arctanh(tables.gamed_t),
            "instruction_difficulty": tables.difficulty[tables.gamed_index],
            "not_gamed_baseline": False,
        }
    )
    path = folder / "df_gamed.csv"
    frame.to_csv(path, index=False, float_format="%.17g")
    return str(path)


def annotations_of(rows: dict[str, np.ndarray]) -> Any:
    """Rows as the data frame that `alpaca-eval` reads: texts of the right lengths."""
    import pandas as pd

    return pd.DataFrame(
        {
            "preference": rows["preference"] + 1,
            "output_1": ["x" * int(n) for n in rows["len_baseline"]],
            "output_2": ["x" * int(n) for n in rows["len_model"]],
            "generator_1": "baseline",
            "generator_2": "model",
            "annotator": "judge",
        }
    )


def main() -> None:
    """Print one line a model, and the ratio of the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the shared data folder")
    arguments = parser.parse_args()
    with (arguments.folder / "length_controlled" / "published.csv").open() as stream:
        published = {row["model"]: row for row in csv.DictReader(stream)}

    from alpaca_eval.metrics import glm_winrate

    warnings.simplefilter("ignore")
    length_tables()
    with tempfile.TemporaryDirectory() as temporary:
        file = gamed_file(Path(temporary))
        glm_winrate.hf_hub_download = lambda **_: file
        print(
            "model | published | alpaca-eval | ours | alpaca-eval ms | ours ms | ours at fixed C ms"
        )
        for model, rows in rows_of(arguments.folder).items():
            frame = annotations_of(rows)
            theirs_s, theirs = best_time_s(
                lambda frame=frame: glm_winrate.get_length_controlled_winrate(
                    frame.copy(), save_weights_dir=None, is_warn_extreme_changes=False
                )
            )
            ours_s, ours = best_time_s(lambda rows=rows: length_controlled_win_rate(**rows))
            fixed_s, _ = best_time_s(
                lambda rows=rows, c=ours.C: length_controlled_win_rate(**rows, C=c)
            )
            print(
                f"{model} | {float(published[model]['length_controlled_winrate']):.4f} | "
                f"{theirs['length_controlled_winrate']:.4f} | "
                f"{ours.length_controlled_win_rate:.4f} | "
                f"{theirs_s * 1e3:.1f} | {ours_s * 1e3:.1f} | {fixed_s * 1e3:.2f}"
            )


if __name__ == "__main__":
    main()
