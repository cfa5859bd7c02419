"""Setup 2, hymenoptera: mean squared error of logits (anvelezec/distillation)."""

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.references.claims import Claim, compare, own_teacher
from analysis.references.measured import Measured
from analysis.references.published_tables import POOLED, hymenoptera_records, pooled, published
from analysis.references.reference import Curves, Measurements, Reference
from analysis.tables import MISSING, Rows

OURS = {"epoch_loss": "loss", "epoch_acc": "accuracy", "epoch_acc_teacher": "teacher_accuracy", "diff_t_s": "diff_t_s"}
LAST_BATCH = "diff_t_s_published"
ZOOMED_EPOCHS = 15
FROM_RECORDS = (0.0, 1.0)
AXES = {"val/loss": "validation loss", "val/accuracy": "validation accuracy, %", "val/diff_t_s": "mean |t - s|, logits"}


def tables(rows: Measurements) -> dict[str, Rows]:
    """Return means and deviations pooled over all epochs, and means and intervals over the runs."""
    tables = {"reported": published("hymenoptera_mse"), "from the records": pooled(hymenoptera_records()).reset_index()}
    reported = [
        {"": source, "encoder frozen": "yes", "alpha": f"{row['alpha']:g}"}
        | {name: _plus_minus(row[f"{name}_mean"], row[f"{name}_std"]) for name in POOLED}
        | {"runs x epochs": "4 x 25"}
        for source, table in tables.items()
        for row in table.to_dict("records")
        if source == "reported" or row["alpha"] in FROM_RECORDS
    ]
    measured = [row for row in rows if row.method == "logit_mse"]
    return {"pooled": [*reported, *map(_pooled, measured)], "over_runs": [_over_runs(row) for row in rows]}


def claims(rows: Measurements) -> list[Claim]:
    """Return the conclusions about the frozen student, in the reported metric and on our test images.

    Logits alone (alpha 0) or by half are better than labels alone (alpha 1); the student is better than its teacher.
    """
    own = {float(row["alpha"]): row for row in published("hymenoptera_mse").to_dict("records")}
    labels = _at(rows, "encoder", 1.0)
    found = []
    for alpha in (0.0, 0.5):
        ours = _at(rows, "encoder", alpha)
        gain = own[alpha]["epoch_acc_mean"] - own[1.0]["epoch_acc_mean"]
        text = f"alpha {alpha:g} is more accurate than alpha 1 (labels alone)"
        found.append(compare(f"{text}: {POOLED_ACCURACY}", gain, ours, labels, metric="mean/accuracy"))
        found.append(compare(f"{text}: on the test images", None, ours, labels, higher=True))
    ours = _at(rows, "encoder", 0.5)
    above = own[0.5]["epoch_acc_mean"] - own[0.5]["epoch_acc_teacher_mean"]
    text = f"The student at alpha 0.5 beats its teacher: {POOLED_ACCURACY}"
    teacher = own_teacher(rows, ours)
    if teacher is not None:  # its reported accuracy is that of the trained network
        known = dict(teacher.values) | {"mean/accuracy": teacher.values.get("val/accuracy", {})}
        teacher = replace(teacher, values=known)
    return [*found, compare(text, above, ours, teacher, metric="mean/accuracy")]


POOLED_ACCURACY = "validation accuracy, mean over all epochs"


def curves(rows: Measurements) -> list[Curves]:
    """Return the three reported curves with a band per alpha: one picture per kind of student."""
    found = []
    for freeze, kind in (("encoder", "frozen"), ("encoder_but_norm", "frozen_but_norm"), ("none", "unfrozen")):
        own = [row for row in _published(rows) if row.freeze == freeze]
        several = len({row.teacher_freeze for row in own}) > 1
        shown = {f"alpha {_alpha(row):g}{f', teacher {row.teacher_freeze}' if several else ''}": row for row in own}
        if shown:
            longest = max((len(run) for row in own for run in row.epochs.values()), default=0)
            found.append(
                Curves(
                    file=f"alphas_{kind}.png",
                    kind=kind.replace("_", " "),
                    trial_ids={label: list(row.trial_ids.values()) for label, row in sorted(shown.items())},
                    metrics=AXES,
                    zoomed_epochs=ZOOMED_EPOCHS if longest > ZOOMED_EPOCHS else None,
                )
            )
    return found


def _published(rows: Measurements) -> list[Measured]:
    """Return the rows at the published points, which have the reported alphas."""
    return [row for row in rows if row.method == "logit_mse" and row.role == "published"]


def _at(rows: Measurements, freeze: str, alpha: float) -> Measured | None:
    return next((row for row in _published(rows) if row.freeze == freeze and _alpha(row) == alpha), None)


def _alpha(row: Measured) -> float:
    """Return alpha, the weight of cross-entropy."""
    return float(row.weights[0]) if row.weights else float("nan")


def _pooled(row: Measured) -> dict[str, Any]:
    frame = pd.DataFrame([each for run in row.epochs.values() for each in run])
    columns = {name: f"val/{metric}" for name, metric in OURS.items()}
    cells: dict[str, Any] = {"": row.key, "encoder frozen": _frozen(row), "alpha": f"{_alpha(row):.4g}"}
    for name, column in columns.items():
        cells[name] = _plus_minus(frame[column].mean(), frame[column].std(ddof=1)) if column in frame else MISSING
    if f"val/{LAST_BATCH}" in frame:
        last = frame[f"val/{LAST_BATCH}"]
        cells["diff_t_s"] += f" (last batch {_plus_minus(last.mean(), last.std(ddof=1))})"
    lengths = sorted({len(run) for run in row.epochs.values()})
    return cells | {"runs x epochs": f"{row.n} x {' or '.join(map(str, lengths))}"}


def _plus_minus(mean: float, deviation: float) -> str:
    return f"{mean:.6f} ± {deviation:.6f}"


def _over_runs(row: Measured) -> dict[str, Any]:
    return {
        "": row.key,
        "network": row.student,
        "encoder frozen": _frozen(row),
        "alpha": f"{_alpha(row):.4g}" if row.method == "logit_mse" else MISSING,
        "val accuracy, best epoch, %": row.cell("val/accuracy"),
        "val accuracy, last epoch, %": row.cell("last/accuracy"),
        "test accuracy, %": row.cell("test/accuracy"),
        "n": str(row.n),
    }


def _frozen(row: Measured) -> str:
    return {"none": "no", "encoder": "yes"}.get(row.freeze, row.freeze)


HYMENOPTERA = Reference(
    name="hymenoptera",
    title="Setup 2, hymenoptera: anvelezec/distillation",
    networks={"student": {"resnet18"}, "teacher": {"resnet50"}},
    setting={
        "data.resolution": 224, "data.limit_per_class": None, "epochs": 25, "batch_size": 32,
        "student.weights": "imagenet", "optimizer.name": "sgd", "lr_schedule.name": "step",
    },
    tables=tables,
    claims=claims,
    curves=curves,
)  # fmt: skip
