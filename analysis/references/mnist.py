"""Setup 3, MNIST: LeNet5 in a Vietnamese tutorial, which reports no results."""

from analysis.references.reference import Measurements, Reference
from analysis.tables import Rows, count

NAMES = {
    "baseline": "student alone",
    "published": "student distilled",
    "best": "student distilled",
    "biased": "student",
}


def tables(rows: Measurements) -> dict[str, Rows]:
    """Return the measured rows: parameters, test accuracy, mean over the seeds."""
    cells = [
        {
            "network": f"{NAMES[row.role]} ({row.key})" if row.role != "teacher" else "teacher",
            "parameters": count(row.parameters),
            "test accuracy, %": row.cell("test/accuracy"),
            "n": str(row.n),
        }
        for row in rows
    ]
    return {"results": cells}


MNIST = Reference(
    name="mnist",
    title="Setup 3, MNIST: LeNet5 teaches a smaller LeNet5",
    networks={"student": {"lenet5_student"}, "teacher": {"lenet5_teacher"}},
    setting={
        "data.resolution": 32, "data.limit_per_class": None, "epochs": 50, "batch_size": 128, "optimizer.name": "sgd",
        "lr_schedule.name": "constant",
    },
    tables=tables,
)  # fmt: skip
