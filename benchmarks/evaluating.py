"""Length-controlled win rate: our numbers and times beside those of `alpaca-eval`.

    python benchmarks/evaluating.py SHARED_DATA_FOLDER [--made-up 200]

With --made-up, models that nobody has: answers longer or shorter than a real model's, other tastes
for length and difficulty, hard verdicts, draws, verdicts missing, prompts missing, rows in another
order. There `alpaca-eval` is also run with a tolerance of 1e-10 instead of liblinear's 1e-4, which
shows whose rounding a difference is. It

needs a Python environment that has `alpaca-eval` (0.6.6) and this package (or its `src` on
PYTHONPATH). `alpaca-eval` is fed offline: its download function is pointed at a file with the
tables of this package.
"""

import argparse
import csv
import gzip
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit as sigmoid

from prefstage.measuring.length_controlled import length_controlled_win_rate
from prefstage.measuring.rates import N_PROMPTS, length_tables, standardised_length

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


def made_up(rng: np.random.Generator, real: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of a model that nobody has, on the prompts of a real one."""
    rows = {name: column.copy() for name, column in real.items()}
    stretch = np.exp(rng.normal(0, 0.5) + rng.normal(0, rng.uniform(0.05, 0.6), len(rows["row"])))
    rows["len_model"] = np.maximum(1, np.round(rows["len_model"] * stretch))
    t = standardised_length(rows["len_model"], rows["len_baseline"])
    d = length_tables().difficulty[rows["instruction"].astype(int)]
    z = rng.normal(0, 1) * t + rng.uniform(-0.5, 2) * d + rng.normal(-1, 2)
    p = np.clip(sigmoid(z), 1e-6, 1 - 1e-6)
    sure = np.exp(rng.uniform(-2, 3))
    y = np.clip(rng.beta(sure * p, sure * (1 - p)), 0, 1)
    if rng.random() < 0.2:
        y = np.round(y)
    if rng.random() < 0.3:
        y[rng.random(len(y)) < 0.1] = 0.5
    if rng.random() < 0.3:
        y[rng.random(len(y)) < 0.03] = np.nan
    rows["preference"] = y
    kept = np.arange(len(y))
    if rng.random() < 0.3:
        kept = np.sort(rng.choice(kept, len(kept) - int(rng.integers(1, 60)), replace=False))
    if rng.random() < 0.3:
        kept = rng.permutation(kept)
    rows = {name: column[kept] for name, column in rows.items()}
    rows["row"] = np.arange(float(len(kept)))
    return rows


NAMES = {
    "length-controlled": ("length_controlled_winrate", "length_controlled_win_rate"),
    "its error": ("lc_standard_error", "lc_standard_error"),
    "win rate": ("win_rate", "win_rate"),
    "standard error": ("standard_error", "standard_error"),
    "discrete": ("discrete_win_rate", "discrete_win_rate"),
}


def compare_made_up(theirs: Any, models: dict[str, dict[str, np.ndarray]], count: int) -> None:
    """Print how far ours are from theirs over made-up models; differences in points."""
    rng = np.random.default_rng(0)
    real = list(models.values())
    found: dict[str, list[list[float]]] = {"as it is": [], "tolerance 1e-10": []}
    settings = theirs.GLM_INFO["length_controlled_v1"]["kwargs"]
    plain = dict(settings)
    for number in range(count):
        rows = made_up(rng, real[number % len(real)])
        ours = length_controlled_win_rate(**rows, lookup="as-published")
        for how, more in (
            ("as it is", {}),
            ("tolerance 1e-10", {"tol": 1e-10, "max_iter": 10_000}),
        ):
            settings.clear()
            settings.update(plain | more)
            other = theirs.get_length_controlled_winrate(
                annotations_of(rows), save_weights_dir=None, is_warn_extreme_changes=False
            )
            found[how].append([abs(other[a] - getattr(ours, b)) for a, b in NAMES.values()])
    settings.clear()
    settings.update(plain)
    print("alpaca-eval | figure | made-up models | median | 99 % | largest")
    for how, each in found.items():
        for name, column in zip(NAMES, np.array(each).T, strict=True):
            median, most, largest = np.quantile(column, [0.5, 0.99, 1])
            print(f"{how} | {name} | {count} | {median:.2g} | {most:.2g} | {largest:.2g}")


def main() -> None:
    """Print one line a model, and the ratio of the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the shared data folder")
    parser.add_argument("--made-up", type=int, default=0, help="so many made-up models instead")
    arguments = parser.parse_args()
    with (arguments.folder / "length_controlled" / "published.csv").open() as stream:
        published = {row["model"]: row for row in csv.DictReader(stream)}

    from alpaca_eval.metrics import glm_winrate

    warnings.simplefilter("ignore")
    logging.disable()
    length_tables()
    with tempfile.TemporaryDirectory() as temporary:
        file = gamed_file(Path(temporary))
        glm_winrate.hf_hub_download = lambda **_: file
        if arguments.made_up:
            compare_made_up(glm_winrate, rows_of(arguments.folder), arguments.made_up)
            return
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
