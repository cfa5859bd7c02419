"""Setup 2, hymenoptera: mean squared error of logits (anvelezec/distillation)."""

from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.bands import bands_and_zoom
from analysis.documents.claims import Claim, compare, own_teacher
from analysis.documents.document import Document, Figures, Rows
from analysis.documents.measured import Measured
from analysis.documents.published import POOLED, hymenoptera_records, pooled, published
from analysis.frame import Study
from analysis.tables import MISSING, markdown

OURS = {"epoch_loss": "loss", "epoch_acc": "accuracy", "epoch_acc_teacher": "teacher_accuracy", "diff_t_s": "diff_t_s"}
LAST_BATCH = "diff_t_s_published"
ZOOMED_EPOCHS = 15
RUNS = {"runs x epochs": "4 x 25"}
FROM_RECORDS = (0.0, 1.0)


def table(rows: Rows) -> str:
    """The document's pooled means and deviations, then what it lacks: means and intervals over the runs."""
    taught = [row for row in rows if row.method == "logit_mse"]
    printed = [
        {"": "document", "encoder frozen": "yes", "alpha": f"{row['alpha']:g}"} | _pairs(row) | RUNS
        for row in published("hymenoptera_mse").to_dict("records")
    ]
    own = pooled(hymenoptera_records())
    printed += [
        {"": "document's records", "encoder frozen": "yes", "alpha": f"{alpha:g}"} | _pairs(row.to_dict()) | RUNS
        for alpha, row in own.iterrows()
        if alpha in FROM_RECORDS
    ]
    return (
        "Mean ± sample standard deviation over all epochs of all runs, pooled, as the document has it (fractions, "
        "validation):\n\n"
        f"{markdown(pd.DataFrame([*printed, *map(_pooled, taught)]))}\n"
        "This deviation measures the learning curve, not the runs. `document's records` are computed here from the "
        "document's own records of each epoch; alpha 0.5 cannot be, one of its runs was overwritten. Losses at "
        "different alpha are not comparable. diff_t_s is the mean of |t - s|: the document takes the last shuffled "
        "batch, here the whole validation split stands first.\n\n"
        "Over the runs (mean ± half-width of the 95 % t interval), the test split read once a run:\n\n"
        f"{markdown(pd.DataFrame([_over_runs(row) for row in rows]))}\n"
        "In square brackets the binomial 95 % interval of one run. The document has no test split: its validation "
        "images are the test images here, and a fifth of its training images chooses.\n"
    )


def claims(rows: Rows) -> list[Claim]:
    """What its table shows of the frozen student: matching logits, alone (alpha 0) or by half, ends above the labels
    alone (alpha 1), and the student above its teacher; in its own measure, and on our test images."""
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
    if teacher is not None:  # as the document has it, the teacher's accuracy is its trained network's
        known = dict(teacher.values) | {"mean/accuracy": teacher.values.get("val/accuracy", {})}
        teacher = replace(teacher, values=known)
    return [*found, compare(text, above, ours, teacher, metric="mean/accuracy")]


POOLED_ACCURACY = "validation accuracy, mean over all epochs"


def pictures(study: Study, rows: Rows) -> Figures:
    """The document's three curves, a band per alpha, and the last 15 epochs larger; one picture per kind of student."""
    found: Figures = {}
    for freeze, kind in (("encoder", "frozen"), ("encoder_but_norm", "frozen_but_norm"), ("none", "unfrozen")):
        own = [row for row in _published(rows) if row.freeze == freeze]
        several = len({row.teacher_freeze for row in own}) > 1
        shown = {f"alpha {_alpha(row):g}{f', teacher {row.teacher_freeze}' if several else ''}": row for row in own}
        if shown:
            longest = max(len(run) for row in own for run in row.epochs.values())
            zoomed = f"; below the last {ZOOMED_EPOCHS} epochs" if longest > ZOOMED_EPOCHS else ""
            caption = (
                f"Loss, accuracy and |t - s| on validation by epoch, {kind.replace('_', ' ')} student: mean and 95 % t "
                f"interval of the runs at each alpha, to the end of the shortest run{zoomed}"
            )
            found[f"alphas_{kind}.png"] = (caption, partial(_draw, study, shown))
    return found


def _draw(study: Study, shown: dict[str, Measured]) -> Figure | None:
    metrics = {
        "val/loss": "validation loss",
        "val/accuracy": "validation accuracy, %",
        "val/diff_t_s": "mean |t - s|, logits",
    }
    runs = {label: list(row.trial_ids.values()) for label, row in sorted(shown.items())}
    return bands_and_zoom(study, runs, metrics, ZOOMED_EPOCHS)


def _published(rows: Rows) -> list[Measured]:
    """Rows at the published points, whose alpha is the document's."""
    return [row for row in rows if row.method == "logit_mse" and row.role == "published"]


def _at(rows: Rows, freeze: str, alpha: float) -> Measured | None:
    return next((row for row in _published(rows) if row.freeze == freeze and _alpha(row) == alpha), None)


def _alpha(row: Measured) -> float:
    """The document's alpha weighs cross-entropy."""
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


def _pairs(row: dict[Any, Any]) -> dict[str, str]:
    return {name: _plus_minus(row[f"{name}_mean"], row[f"{name}_std"]) for name in POOLED}


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


HYMENOPTERA = Document(
    title="Setup 2, hymenoptera: anvelezec/distillation",
    networks={"student": {"resnet18"}, "teacher": {"resnet50"}},
    setting={
        "data.resolution": 224,
        "data.limit_per_class": None,
        "epochs": 25,
        "batch_size": 32,
        "student.weights": "imagenet",
        "optimizer.name": "sgd",
        "lr_schedule.name": "step",
    },
    table=table,
    claims=claims,
    pictures=pictures,
)
