"""Setup 3, MNIST: LeNet5 in a Vietnamese tutorial, which prints no table: this is its first."""

import pandas as pd

from analysis.documents.document import Document, Rows
from analysis.documents.published import INTERVALS
from analysis.tables import count, markdown

NAMES = {
    "baseline": "student alone",
    "published": "student distilled",
    "best": "student distilled",
}


def table(rows: Rows) -> str:
    """Teacher, student alone, student distilled: parameters, test accuracy, mean over the seeds."""
    cells = [
        {
            "network": f"{NAMES[row.role]} ({row.key})" if row.role != "teacher" else "teacher",
            "parameters": count(row.parameters),
            "test accuracy, %": row.cell("test/accuracy"),
            "n": str(row.n),
        }
        for row in rows
    ]
    return (
        f"{markdown(pd.DataFrame(cells))}\n"
        f"The document prints the networks and their training, no result. {INTERVALS}\n"
    )


MNIST = Document(
    title="Setup 3, MNIST: LeNet5 teaches a smaller LeNet5",
    networks={"student": {"lenet5_student"}, "teacher": {"lenet5_teacher"}},
    setting={
        "data.resolution": 32,
        "data.limit_per_class": None,
        "epochs": 50,
        "batch_size": 128,
        "optimizer.name": "sgd",
        "lr_schedule.name": "constant",
    },
    table=table,
)
