"""Setup 1, CIFAR-10: PyTorch-Lightning KD experiments with CNNs (maximzubkov/cnn-distillation)."""

from analysis.references.claims import Claim, alone, compare, own_teacher, pick
from analysis.references.measured import Measured
from analysis.references.published_tables import one_run, published, published_row
from analysis.references.reference import Measurements, Reference, yes_or_no
from analysis.tables import MISSING, Rows

TEST_IMAGES = 10_000
METHODS = {"none": "cross_entropy"}
"""Methods that the reference names differently."""
SHOWN = {"kd": "KD", "rkd_distance": "RKD distance", "logits_discriminator": "The logits discriminator"}
NETWORKS = {"student": {"resnet18"}, "teacher": {"resnet50"}}
FREEZE = {"frozen": "encoder_but_norm", "unfrozen": "none"}


def tables(rows: Measurements) -> dict[str, Rows]:
    """Return the reported rows of the methods that were measured here, then the measured ones."""
    methods = {METHODS.get(row.method, row.method) for row in rows}
    reported = [
        {
            "": "reported",
            "student": row["student"],
            "teacher": row["teacher"],
            "method": row["method"],
            "pretrained": yes_or_no(row["pretrained"]),
            "freeze encoder": yes_or_no(row["freeze_encoder"]),
            "test accuracy, %": one_run(row["test_accuracy"] / 100, TEST_IMAGES),
            "n": "1",
            "checkpoint": row["checkpoint"],
        }
        for row in published("cifar10_resnet").to_dict("records")
        if row["method"] in methods
    ]
    return {"results": [*reported, *map(_measured, rows)]}


def claims(rows: Measurements) -> list[Claim]:
    """Return the claims.

    Reported: +0.24 and +0.61 points for KD, 0 and +0.78 for RKD-D, -0.84 and -0.19 for the discriminator; students
    above their teachers.
    """
    found = []
    for method in SHOWN:
        if any(row.method == method for row in rows):
            found += [_helps(rows, method, kind) for kind in FREEZE]
            found += [_beats_teacher(rows, method)] if method != "logits_discriminator" else []
    return found


def _helps(rows: Measurements, method: str, kind: str) -> Claim:
    ours = _pair(rows, method, kind)
    gain = _reported(method, kind) - _reported("cross_entropy", kind)
    does = "raises" if gain > 0 else "does not raise"
    text = f"{SHOWN[method]} {does} the accuracy of the {kind} student"
    return compare(text, gain, ours, alone(rows, ours))


def _beats_teacher(rows: Measurements, method: str) -> Claim:
    ours = _pair(rows, method, "unfrozen")
    gain = _reported(method, "unfrozen") - _reported("cross_entropy", "unfrozen", student="resnet50")
    return compare(f"{SHOWN[method]}: the unfrozen student beats its teacher", gain, ours, own_teacher(rows, ours))


def _pair(rows: Measurements, method: str, kind: str) -> Measured | None:
    """Pick a frozen student with a frozen teacher, or an unfrozen one with an unfrozen, as in the reference."""
    wanted = {"student": "resnet18", "teacher": "resnet50", "freeze": FREEZE[kind], "teacher_freeze": FREEZE[kind]}
    return pick(rows, NETWORKS, method=method, **wanted)


def _reported(method: str, kind: str, student: str = "resnet18") -> float:
    row = published_row("cifar10_resnet", method=method, student=student, freeze_encoder=kind == "frozen")
    return float(row["test_accuracy"]) / 100


def _measured(row: Measured) -> dict[str, str | None]:
    return {
        "": row.key,
        "student": row.student,
        "teacher": row.teacher,
        "method": METHODS.get(row.method, row.method),
        "pretrained": yes_or_no(row.recipe["student"].get("weights") is not None),
        "freeze encoder": yes_or_no(row.freeze != "none"),
        "test accuracy, %": row.cell("test/accuracy"),
        "n": str(row.n),
        "checkpoint": next(iter(row.trial_ids.values()), MISSING),
    }


CIFAR10 = Reference(
    name="cifar10",
    title="Setup 1, CIFAR-10: maximzubkov/cnn-distillation",
    networks=NETWORKS,
    setting={
        "data.resolution": 128, "data.limit_per_class": None, "epochs": 15, "batch_size": 32,
        "student.weights": "imagenet", "student.head": "hidden", "optimizer.name": "adam",
        "lr_schedule.name": "exponential", "lr_schedule.factor": (0.7, 0.65),
    },
    tables=tables,
    claims=claims,
)  # fmt: skip
