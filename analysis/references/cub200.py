"""Setup 4, CUB-200-2011: SoftTarget, MGD, SP and AT (z1069614715/pytorch-classifier)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from analysis.references.claims import Claim, alone, compare, is_substituted, own_teacher, pick
from analysis.references.measured import Measured
from analysis.references.published_tables import one_run, published, published_row
from analysis.references.reference import Measurements, Reference, yes_or_no
from analysis.tables import MISSING, missing, percent, sampled

IMAGES = {"val": 1_781, "test": 2_323, "test_tta": 2_323}
METHODS = {"none": "none", "kd": "SoftTarget", "mgd": "MGD", "at": "AT", "sp": "SP"}
NETWORKS = {
    "student": {"mobilenetv2", "resnet50", "ghostnet"},
    "teacher": {"mobilenetv2", "resnet50", "ghostnet", "efficientnet_v2_s"},
}
SELF = "self_distillation"
STRONGEST = "efficientnet_v2_s"
COLUMNS = {
    "val accuracy, %": ("val/accuracy", "val_accuracy"),
    "val MPA, %": ("val/mpa", "val_mpa"),
    "test accuracy, %": ("test/accuracy", "test_accuracy"),
    "test MPA, %": ("test/mpa", "test_mpa"),
    "test accuracy (TTA), %": ("test_tta/accuracy", "test_accuracy_tta"),
    "test MPA (TTA), %": ("test_tta/mpa", "test_mpa_tta"),
}
"""Metric and reported column by the head of a column of the table."""


def tables(rows: Measurements) -> dict[str, Any]:
    """Return the reported blocks that hold a method which was measured here, then the measured rows."""
    return {"results": [*map(_reported_cells, _reported_rows(rows)), *map(_measured, rows)], "images": IMAGES}


def claims(rows: Measurements) -> list[Claim]:
    """Return each method against the student alone, and the conclusions in the text of the reference."""
    plain = [row for row in rows if row.role == "baseline" or not (row.ema or row.r_drop)]
    return [*_each_method(plain), *_stronger_teacher(plain), *_over_teacher(plain), *_self(plain), *_averaged(rows)]


def _each_method(rows: Measurements) -> Iterator[Claim]:
    """Yield the reported comparisons, each with its teacher, and one with a substitute if there is one."""
    measured = dict.fromkeys(row.method for row in rows if row.method in METHODS and row.teacher and not _is_self(row))
    table = published("cub200")
    plain = table[~(table["ema"] | table["rdrop"]) & (table["block"] != SELF) & table["teacher"].notna()]
    for row in plain.to_dict("records"):
        method = next(name for name, reported in METHODS.items() if reported == row["method"])
        if method in measured:
            ours = None
            if not is_substituted(rows, NETWORKS, "teacher"):
                networks = {"student": row["student"], "teacher": row["teacher"]}
                ours = pick(rows, NETWORKS, method=method, freeze="none", **networks)
            gain = row["test_accuracy"] - _alone(row["block"], row["student"])["test_accuracy"]
            does = "raises" if gain > 0 else "does not raise"
            text = f"{row['method']} from {row['teacher']} {does} the student's accuracy"
            yield compare(text, gain, ours, alone(rows, ours))
    if is_substituted(rows, NETWORKS, "teacher"):
        for method in measured:
            ours = pick(rows, NETWORKS, method=method, student="mobilenetv2", freeze="none")
            if ours is not None:
                text = f"{METHODS[method]} from {ours.teacher} (a substitute) raises the student's accuracy"
                yield compare(text, None, ours, alone(rows, ours), higher=True)


def _stronger_teacher(rows: Measurements) -> Iterator[Claim]:
    """Yield the student of the strongest teacher against the best student of a weaker one, if it is stronger here."""
    for method, better in (("kd", "ghostnet"), ("mgd", "resnet50")):
        if not any(row.method == method for row in rows):
            continue
        own = {row.teacher: row for row in reversed(rows) if row.role == "published" and row.method == method}
        pair = [own.get(STRONGEST), own.get(better)]
        gap = _distilled(METHODS[method], STRONGEST) - _distilled(METHODS[method], better)
        text = f"A stronger teacher does not give a better student: {METHODS[method]} from {STRONGEST} or {better}"
        claim = compare(text, gap, *pair)
        first, second = ((taught := own_teacher(rows, row)) and taught.estimate("test/accuracy") for row in pair)
        if claim.ours is not None and not (first and second and first.mean > second.mean):
            claim = replace(claim, ours=None, compared=f"{STRONGEST} is not the stronger teacher here")
        yield claim


def _over_teacher(rows: Measurements) -> Iterator[Claim]:
    if not any(row.method == "mgd" for row in rows):
        return
    stand_in = is_substituted(rows, NETWORKS, "teacher")
    ours = pick(rows, NETWORKS, method="mgd", student="mobilenetv2", teacher="resnet50", freeze="none")
    for split in ("val", "test"):
        column, block = f"{split}_accuracy", "resnet50_to_mobilenetv2"
        student = published_row("cub200", block=block, method="MGD")[column]
        teacher = published_row("cub200", block=block, student="resnet50")[column]
        text = f"MGD's student beats its teacher resnet50 on {split}"
        if stand_in and ours is not None:
            yield Claim(text, student - teacher, True)
            text = f"MGD's student beats its teacher {ours.teacher} (a substitute) on {split}"
        gain = None if stand_in else student - teacher
        yield compare(text, gain, ours, own_teacher(rows, ours), metric=f"{split}/accuracy", higher=True)


def _self(rows: Measurements) -> Iterator[Claim]:
    """Yield self-distillation: reported gains on val and test, with TTA for one network of three."""
    if not any(_is_self(row) for row in rows):
        return
    for model in ("mobilenetv2", "resnet50", "ghostnet"):
        ours = next(
            (r for r in rows if r.role == "published" and r.method == "at" and r.teacher == r.student == model), None
        )
        taught = published_row("cub200", block=SELF, student=model, method="AT")
        for metric, column in (pair for pair in COLUMNS.values() if pair[0].endswith("/accuracy")):
            gain = taught[column] - _alone(SELF, model)[column]
            name = metric.partition("/")[0].replace("_tta", " with TTA")
            does = "raises" if gain > 0 else "does not raise"
            text = f"Self-distillation of {model} (AT) {does} its accuracy on {name}"
            yield compare(text, gain, ours, alone(rows, ours), metric=metric)


def _averaged(rows: Measurements) -> Iterator[Claim]:
    """Yield EMA on and off at the same published point; the reference's R-Drop has no effect on its distillation."""
    if not any(row.ema for row in rows):
        return
    plain = [row for row in rows if row.role == "published" and row.method == "mgd" and not row.r_drop]
    with_ema = next((row for row in plain if row.ema), None)
    like = [row for row in plain if not row.ema and with_ema and row.teacher == with_ema.teacher]
    gain = _distilled("MGD", STRONGEST, ema=True) - _distilled("MGD", STRONGEST)
    yield compare("EMA raises the accuracy of MGD's student", gain, with_ema, like[0] if like else None)


def _is_self(row: Measured) -> bool:
    return row.teacher is not None and row.teacher == row.student


def _distilled(method: str, teacher: str, *, ema: bool = False) -> float:
    return float(published_row("cub200", method=method, teacher=teacher, ema=ema, rdrop=False)["test_accuracy"])


def _alone(block: str, student: str) -> dict[Any, Any]:
    return published_row("cub200", block=block, student=student, teacher=None)


def _reported_rows(rows: Measurements) -> list[dict[str, Any]]:
    """Return the reported rows of the methods and teachers that are here, with the networks alone of the same blocks.

    If the teacher is a substitute, all teachers are shown; without a reported row, the networks alone of a block.
    """
    table = published("cub200")
    any_teacher = is_substituted(rows, NETWORKS, "teacher")
    here = [(METHODS.get(row.method, row.method), row.teacher, _is_self(row)) for row in rows if row.teacher]

    def is_here(reported: Mapping[Any, Any]) -> bool:
        itself = reported["block"] == SELF
        return any(
            method == reported["method"] and own == itself and (any_teacher or teacher == reported["teacher"])
            for method, teacher, own in here
        )

    reported = list(table.to_dict("records"))
    wanted = [row for row in reported if not missing(row["teacher"]) and is_here(row)]
    blocks = {row["block"] for row in wanted} or {reported[0]["block"]}
    return [row for row in reported if row["block"] in blocks and (missing(row["teacher"]) or row in wanted)]  # type: ignore[misc]


def _reported_cells(row: dict[str, Any]) -> dict[str, Any]:
    cells = {
        "": f"reported: {row['block']}",
        "AMP": yes_or_no(row["amp"]),
        "teacher": row["teacher"],
        "student": row["student"],
        "method": row["method"],
        "kd_ratio": sampled(row["kd_ratio"]),
        "EMA": yes_or_no(row["ema"]),
        "R-Drop": yes_or_no(row["rdrop"]),
    }
    for title, (metric, column) in COLUMNS.items():
        split, _, name = metric.partition("/")
        cells[title] = one_run(row[column], IMAGES[split]) if name == "accuracy" else percent(row[column])
    return cells | {"n": "1"}


def _measured(row: Measured) -> dict[str, Any]:
    ratio = row.kd_ratio
    cells = {
        "": f"{row.key}{'' if row.freeze == 'none' else f' ({row.freeze} frozen)'}",
        "AMP": yes_or_no(row.recipe.get("precision", "fp32") in ("fp16", "bf16")),
        "teacher": row.teacher,
        "student": row.student,
        "method": METHODS.get(row.method, row.method),
        "kd_ratio": MISSING if missing(ratio) else sampled(ratio),
        "EMA": yes_or_no(row.ema),
        "R-Drop": yes_or_no(row.r_drop),
    }
    return cells | {title: row.cell(metric) for title, (metric, _) in COLUMNS.items()} | {"n": str(row.n)}


CUB200 = Reference(
    name="cub200",
    title="Setup 4, CUB-200-2011: z1069614715/pytorch-classifier",
    networks=NETWORKS,
    setting={
        "data.resolution": 224, "classes": 200, "data.limit_per_class": None, "epochs": 150, "batch_size": 64,
        "precision": "fp16", "student.weights": "imagenet", "optimizer.name": "adamw", "lr_schedule.name": "cosine",
        "lr_schedule.warmup_epochs": 7, "label_smoothing": 0.1,
    },
    tables=tables,
    claims=claims,
)  # fmt: skip
