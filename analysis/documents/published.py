"""The published tables, as copied into `analysis/published`; every row is one run."""

from functools import cache
from pathlib import Path

import pandas as pd

from analysis.statistics import clopper_pearson
from analysis.tables import percent

FOLDER = Path(__file__).parent.parent / "published"
POOLED = ("epoch_loss", "epoch_acc", "epoch_acc_teacher", "diff_t_s")
"""What the hymenoptera document averages; its records call the first three `..._l`."""


INTERVALS = "In square brackets the binomial 95 % interval of one run; ± the half-width of the t interval over n seeds."
"""What stands below a document's table."""


@cache
def published(name: str) -> pd.DataFrame:
    """A table by the name of its file, units as printed. A missing cell is NaN."""
    return pd.read_csv(FOLDER / f"{name}.csv")


def one_run(accuracy: float, images: int) -> str:
    """73.48 [71.64 to 75.27]: a run's accuracy, a fraction, with the binomial 95 % interval of so many test images."""
    interval = clopper_pearson(round(accuracy * images), images)
    assert interval is not None, images
    return f"{percent(accuracy)} [{percent(interval.low)} to {percent(interval.high)}]"


def pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation (n - 1) over all epochs of all runs of each alpha: columns <name>_mean and
    <name>_std, indexed by alpha. It is the learning curve that this deviation measures, not the runs."""
    by_alpha = rows.groupby("alpha")[list(POOLED)].agg(["mean", "std"])
    by_alpha.columns = by_alpha.columns.map("_".join)
    return by_alpha


def hymenoptera_records() -> pd.DataFrame:
    """The document's own records: alpha, run, epoch and POOLED."""
    return published("hymenoptera_runs").rename(columns={f"{name}_l": name for name in POOLED})
