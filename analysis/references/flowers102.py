"""Setup 5, Flowers102: function matching (Keras example; Beyer et al. 2021, arXiv:2106.05237)."""

from typing import Any

from analysis.references.measured import Measured
from analysis.references.published_tables import one_run, published
from analysis.references.reference import Measurements, Reference
from analysis.tables import Rows, count, number
from kdtrain.storage.folder import Row

TEST_IMAGES = 6_149


def tables(rows: Measurements) -> dict[str, Any]:
    """Return the reported rows beside the measured ones, and the log of the first run of the published point.

    Reported: the teacher, 30 epochs from random weights, the pre-trained student after 1,000 and 100,000 epochs.
    """
    reported = [
        {
            "": "reported",
            "teacher": row["teacher"],
            "student": row["student"],
            "epochs": count(row["epochs"]),
            "batch size": count(row["batch_size"]),
            "student parameters": count(row["student_params"]),
            "test top-1, %": one_run(row["test_top1"] / 100, TEST_IMAGES),
            "n": "1",
            "note": row["note"],
        }
        for row in published("flowers102_funmatch").to_dict("records")
    ]
    by_role = {row.role: row for row in reversed(rows)}
    logged = by_role.get("published") or by_role.get("best")
    return {
        "results": [*reported, *map(_measured, rows)],
        "logged": logged.key if logged else None,
        "log": _log(logged) if logged else [],
    }


def _measured(row: Measured) -> dict[str, str | None]:
    weights = row.recipe["student"].get("weights")
    start = "random initial weights" if weights is None else f"{weights} weights"
    return {
        "": row.key,
        "teacher": row.student if row.role == "teacher" else row.teacher,
        "student": None if row.role == "teacher" else row.student,
        "epochs": count(row.recipe["epochs"]),
        "batch size": count(row.recipe["batch_size"]),
        "student parameters": count(row.parameters),
        "test top-1, %": row.cell("test/accuracy"),
        "n": str(row.n),
        "note": "teacher" if row.role == "teacher" else f"{'alone' if row.method == 'none' else row.method}, {start}",
    }


def _log(row: Measured) -> Rows:
    """Return the distillation loss and top-1 of the first run by epoch, as in the log of the reference."""
    shown = _spread(len(row.first_run))
    return [
        {
            "epoch": str(epoch["epoch"]),
            "distillation loss": number(_without_t2(epoch, "train", row.method)),
            "val distillation loss": number(_without_t2(epoch, "val", row.method)),
            "val top-1, %": f"{100 * epoch['val/accuracy']:.2f}",
        }
        for i, epoch in enumerate(row.first_run)
        if i in shown
    ]


def _without_t2(row: Row, split: str, method: str) -> float | None:
    """Return the loss without T^2, as in the reference; methods other than kd have one loss only."""
    return row.get(f"{split}/{method}_without_t2", row.get(f"{split}/{method}"))


def _spread(epochs: int, most: int = 30) -> set[int]:
    """Return the indices of at most `most` evenly spaced epochs, with the last."""
    return set(range(epochs)) if epochs <= most else {round(i * (epochs - 1) / (most - 1)) for i in range(most)}


FLOWERS102 = Reference(
    name="flowers102",
    title="Setup 5, Flowers102: function matching, the Keras example",
    networks={"student": {"resnet50v2", "bit_resnet50x1"}, "teacher": {"bit_resnet101x3"}},
    setting={
        "data.resolution": 128, "data.limit_per_class": None, "epochs": 30, "batch_size": 64,
        "optimizer.name": "adamw", "lr_schedule.name": "cosine_in_steps",
    },
    tables=tables,
)  # fmt: skip
