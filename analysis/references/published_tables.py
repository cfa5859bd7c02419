"""The reported results of the references, as copied into `analysis/published`; every row is one run."""

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.statistics import clopper_pearson
from analysis.tables import missing, percent_interval

FOLDER = Path(__file__).parent.parent / "published"
POOLED = ("epoch_loss", "epoch_acc", "epoch_acc_teacher", "diff_t_s")
"""The metrics that the hymenoptera reference averages; its records call the first three `..._l`."""


@cache
def published(name: str) -> pd.DataFrame:
    """Return a table by the name of its file, in its own units; a missing cell is NaN."""
    return pd.read_csv(FOLDER / f"{name}.csv")


def published_row(name: str, **wanted: Any) -> dict[Any, Any]:
    """Return the first row of a table with these values; None stands for a missing cell."""
    for row in published(name).to_dict("records"):
        if all(missing(row[key]) if value is None else row[key] == value for key, value in wanted.items()):
            return row
    raise LookupError(f"{name}: no row with {wanted}")


def one_run(accuracy: float, images: int) -> str:
    """Return `73.48 [71.64 to 75.27]`: the accuracy of one run, a fraction, with its binomial 95 % interval."""
    interval = clopper_pearson(round(accuracy * images), images)
    assert interval is not None, images
    return percent_interval(accuracy, interval)


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample standard deviation (n - 1) over all epochs of all runs of each alpha.

    Columns <name>_mean and <name>_std, indexed by alpha. This deviation measures the learning curve, not the runs.
    """
    by_alpha = rows.groupby("alpha")[list(POOLED)].agg(["mean", "std"])
    by_alpha.columns = by_alpha.columns.map("_".join)
    return by_alpha


def hymenoptera_records() -> pd.DataFrame:
    """Return the reference's records of each epoch: alpha, run, epoch and POOLED."""
    return published("hymenoptera_runs").rename(columns={f"{name}_l": name for name in POOLED})
