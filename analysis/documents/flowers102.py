"""Setup 5, Flowers102: function matching (Keras example; Beyer et al. 2021, arXiv:2106.05237)."""

import pandas as pd

from analysis.documents.document import Document, Rows
from analysis.documents.measured import Measured
from analysis.documents.published import INTERVALS, one_run, published
from analysis.tables import MISSING, count, markdown
from kdtrain.storage.folder import Row

TEST_IMAGES = 6_149


def table(rows: Rows) -> str:
    """Published: the teacher, 30 epochs from random weights, the pre-trained student after 1,000 and 100,000."""
    cells = [
        {
            "": "document",
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
    return f"{markdown(pd.DataFrame([*cells, *(_measured(row) for row in rows)]))}\n{INTERVALS}\n{_log(rows)}"


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


def _log(rows: Rows) -> str:
    """Epoch by epoch as the document's own log has it: distillation loss and top-1, training and validation."""
    shown = next((row for row in rows if row.role == "published"), None) or next(
        (row for row in rows if row.role == "best"), None
    )
    if shown is None or not shown.first_run:
        return ""
    kept = _spread(len(shown.first_run))
    lines = [
        {
            "epoch": str(row["epoch"]),
            "distillation loss": _four(_without_t2(row, "train", shown.method)),
            "val distillation loss": _four(_without_t2(row, "val", shown.method)),
            "val top-1, %": f"{100 * row['val/accuracy']:.2f}",
        }
        for i, row in enumerate(shown.first_run)
        if i in kept
    ]
    return f"\nThe log of the first run of {shown.key}:\n\n{markdown(pd.DataFrame(lines))}"


def _without_t2(row: Row, split: str, method: str) -> float | None:
    """The document's loss has no T^2; other methods than kd have one loss only."""
    return row.get(f"{split}/{method}_without_t2", row.get(f"{split}/{method}"))


def _spread(epochs: int, most: int = 30) -> set[int]:
    """At most so many rows, evenly, the last among them."""
    return set(range(epochs)) if epochs <= most else {round(i * (epochs - 1) / (most - 1)) for i in range(most)}


def _four(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


FLOWERS102 = Document(
    title="Setup 5, Flowers102: function matching, as the Keras example has it",
    networks={"student": {"resnet50v2", "bit_resnet50x1"}, "teacher": {"bit_resnet101x3"}},
    setting={
        "data.resolution": 128,
        "data.limit_per_class": None,
        "epochs": 30,
        "batch_size": 64,
        "optimizer.name": "adamw",
        "lr_schedule.name": "cosine_in_steps",
    },
    table=table,
)
