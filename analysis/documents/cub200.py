"""Setup 4, CUB-200-2011: SoftTarget, MGD, SP and AT (z1069614715/pytorch-classifier)."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.documents.claims import Claim, alone, compare, own_teacher, pick
from analysis.documents.document import Document, Rows
from analysis.documents.measured import Measured
from analysis.documents.published import one_run, published
from analysis.tables import MISSING, markdown, missing, percent, sampled

IMAGES = {"val": 1_781, "test": 2_323, "test_tta": 2_323}
METHODS = {"none": "none", "kd": "SoftTarget", "mgd": "MGD", "at": "AT", "sp": "SP"}
NETWORKS = {
    "student": {"mobilenetv2", "resnet50", "ghostnet"},
    "teacher": {"mobilenetv2", "resnet50", "ghostnet", "efficientnet_v2_s"},
}
SELF = "self_distillation"
COLUMNS = {
    "val accuracy, %": "val/accuracy",
    "val MPA, %": "val/mpa",
    "test accuracy, %": "test/accuracy",
    "test MPA, %": "test/mpa",
    "test accuracy (TTA), %": "test_tta/accuracy",
    "test MPA (TTA), %": "test_tta/mpa",
}


def table(rows: Rows) -> str:
    """The blocks of the document that hold a method which was measured here, then the measured rows."""
    methods = {METHODS.get(row.method, row.method) for row in rows if row.method != "none"}
    kinds = {_is_self(row) for row in rows if row.method != "none"}
    cells = [_printed_cells(row) for row in _printed_rows(methods, kinds)]
    return (
        f"{markdown(pd.DataFrame([*cells, *(_measured(row) for row in rows)]))}\n"
        "MPA: mean of the accuracies of the classes; TTA: mean logits of ten crops. In square brackets the "
        "binomial 95 % interval of one run on so many images (the document: about "
        f"{IMAGES['val']:,} to choose by and {IMAGES['test']:,} to test, so that one run at 78 % carries about 1.7 "
        "points either way); ± the half-width of the t interval over n "
        "seeds. MPA of one run has no interval.\n"
    )


def claims(rows: Rows) -> list[Claim]:
    """Each method against the student alone, and what the document's text makes of its tables."""
    plain = [row for row in rows if not row.ema and not row.r_drop]
    return [*_each_method(plain), *_stronger_teacher(plain), *_over_teacher(plain), *_self(plain), *_averaged(rows)]


def _each_method(rows: Rows) -> Iterator[Claim]:
    measured = {row.method for row in rows if not _is_self(row)}
    table = published("cub200")
    plain = table[~(table["ema"] | table["rdrop"]) & (table["block"] != SELF) & table["teacher"].notna()]
    for row in plain.to_dict("records"):
        method = next(name for name, printed in METHODS.items() if printed == row["method"])
        if method in measured:
            ours = pick(rows, NETWORKS, method=method, student=row["student"], teacher=row["teacher"], freeze="none")
            gain = row["test_accuracy"] - _in_block(row["block"], row["student"])["test_accuracy"]
            does = "raises" if gain > 0 else "does not raise"
            text = f"{row['method']} from {row['teacher']} {does} the student's accuracy"
            yield compare(text, gain, ours, alone(rows, ours))


def _stronger_teacher(rows: Rows) -> Iterator[Claim]:
    """The student of the strongest teacher against the best student of a weaker one."""
    for method, better in (("kd", "ghostnet"), ("mgd", "resnet50")):
        if any(row.method == method for row in rows):
            strongest, weaker = (
                next((r for r in rows if r.role == "published" and (r.method, r.teacher) == (method, teacher)), None)
                for teacher in ("efficientnet_v2_s", better)
            )
            gap = _distilled(METHODS[method], "efficientnet_v2_s") - _distilled(METHODS[method], better)
            text = f"A stronger teacher is not a better student's: {METHODS[method]} from efficientnet_v2_s or {better}"
            yield compare(text, gap, strongest, weaker)


def _over_teacher(rows: Rows) -> Iterator[Claim]:
    if any(row.method == "mgd" for row in rows):
        ours = pick(rows, NETWORKS, method="mgd", student="mobilenetv2", teacher="resnet50", freeze="none")
        for split in ("val", "test"):
            column = f"{split}_accuracy"
            block = published("cub200")[published("cub200")["block"] == "resnet50_to_mobilenetv2"]
            student = float(block[block["method"] == "MGD"][column].iloc[0])
            teacher = float(block[block["student"] == "resnet50"][column].iloc[0])
            text = f"MGD's student beats its teacher resnet50 on {split}"
            yield compare(text, student - teacher, ours, own_teacher(rows, ours), metric=f"{split}/accuracy")


def _self(rows: Rows) -> Iterator[Claim]:
    """On val and test itself as its teacher gains, under TTA it does not."""
    if not any(_is_self(row) for row in rows):
        return
    for model in ("mobilenetv2", "resnet50", "ghostnet"):
        ours = pick(rows, NETWORKS, method="at", student=model, teacher=model, freeze="none")
        block = published("cub200")[published("cub200")["block"] == SELF]
        taught = block[(block["student"] == model) & (block["method"] == "AT")].iloc[0]
        for metric, higher in (("val/accuracy", True), ("test/accuracy", True), ("test_tta/accuracy", False)):
            column = COLUMN_OF[metric]
            gain = float(taught[column]) - float(_in_block(SELF, model)[column])
            name = metric.partition("/")[0].replace("_tta", " with TTA")
            text = f"{model} taught by itself (AT) {'gains' if higher else 'does not gain'} on {name}"
            yield compare(text, gain, ours, alone(rows, ours), metric=metric, higher=higher)


def _averaged(rows: Rows) -> Iterator[Claim]:
    """EMA on and off at the same published point; its R-Drop never reached distillation, so nothing is concluded."""
    if not any(row.ema for row in rows):
        return
    plain = [row for row in rows if row.role == "published" and row.method == "mgd" and not row.r_drop]
    with_ema = next((row for row in plain if row.ema), None)
    like = [row for row in plain if not row.ema and with_ema and row.teacher == with_ema.teacher]
    table = published("cub200")
    mgd = table[(table["method"] == "MGD") & (table["teacher"] == "efficientnet_v2_s") & ~table["rdrop"]]
    gain = float(mgd[mgd["ema"]]["test_accuracy"].iloc[0]) - float(mgd[~mgd["ema"]]["test_accuracy"].iloc[0])
    yield compare("EMA raises the accuracy of MGD's student", gain, with_ema, like[0] if like else None)


COLUMN_OF = {"val/accuracy": "val_accuracy", "test/accuracy": "test_accuracy", "test_tta/accuracy": "test_accuracy_tta"}


def _is_self(row: Measured) -> bool:
    return row.teacher is not None and row.teacher == row.student


def _distilled(method: str, teacher: str) -> float:
    table = published("cub200")
    plain = table[(table["method"] == method) & (table["teacher"] == teacher) & ~(table["ema"] | table["rdrop"])]
    return float(plain["test_accuracy"].iloc[0])


def _in_block(block: str, student: str) -> dict[str, Any]:
    """The row of a network alone in a block."""
    table = published("cub200")
    return dict(table[(table["block"] == block) & table["teacher"].isna() & (table["student"] == student)].iloc[0])


def _printed_rows(methods: set[str], kinds: set[bool]) -> list[dict[str, Any]]:
    """kinds: whether itself is the teacher of what was measured here."""
    table = published("cub200")
    distilled = table[table["method"].isin(methods) & (table["block"] == SELF).isin(kinds)]
    blocks = table[table["block"].isin(set(distilled["block"]))]
    return list(blocks[blocks["teacher"].isna() | blocks["method"].isin(methods)].to_dict("records"))  # type: ignore[arg-type]


def _printed_cells(row: dict[str, Any]) -> dict[str, Any]:
    cells = {
        "": f"document: {row['block']}",
        "AMP": _yes(row["amp"]),
        "teacher": row["teacher"],
        "student": row["student"],
        "method": row["method"],
        "kd_ratio": sampled(row["kd_ratio"]),
        "EMA": _yes(row["ema"]),
        "R-Drop": _yes(row["rdrop"]),
    }
    for title, metric in COLUMNS.items():
        split, _, name = metric.partition("/")
        value = row[f"{split.removesuffix('_tta')}_{name}{'_tta' if split.endswith('_tta') else ''}"]
        cells[title] = one_run(value, IMAGES[split]) if name == "accuracy" else percent(value)
    return cells | {"n": "1"}


def _measured(row: Measured) -> dict[str, Any]:
    ratio = row.kd_ratio
    cells = {
        "": f"{row.key}{'' if row.freeze == 'none' else f' ({row.freeze} frozen)'}",
        "AMP": _yes(row.recipe.get("precision", "fp32") in ("fp16", "bf16")),
        "teacher": row.teacher,
        "student": row.student,
        "method": METHODS.get(row.method, row.method),
        "kd_ratio": MISSING if missing(ratio) else sampled(ratio),
        "EMA": _yes(row.ema),
        "R-Drop": _yes(row.r_drop),
    }
    return cells | {title: row.cell(metric) for title, metric in COLUMNS.items()} | {"n": str(row.n)}


def _yes(value: object) -> str:
    return "yes" if value else "no"


CUB200 = Document(
    title="Setup 4, CUB-200-2011: z1069614715/pytorch-classifier",
    networks=NETWORKS,
    setting={"data.resolution": 224, "classes": 200, "epochs": 150, "batch_size": 64, "precision": "fp16"},
    table=table,
    claims=claims,
)
