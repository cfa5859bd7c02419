"""Setup 6, MNIST: the first experiments of Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 3."""

from collections.abc import Iterator
from dataclasses import replace

from analysis.references.claims import Claim, alone, compare, pick
from analysis.references.measured import Measured
from analysis.references.published_tables import published
from analysis.references.reference import Measurements, Reference
from analysis.statistics import Estimate, clopper_pearson, mean_estimate
from analysis.tables import MISSING, Rows, estimate_percent

TEST_IMAGES = 10_000
NETWORKS = {"student": {"mlp"}, "teacher": {"mlp"}}
TEACHER, ALONE, DISTILLED, WITHOUT_3, WITHOUT_3_BIASED = (
    errors / TEST_IMAGES for errors in published("mnist_hinton")["errors_of_10000"]
)
"""The reported error rates, in the order of the table."""
RECOGNISED = (1010 - 133) / 1010
"""Of the 1,010 test images of a 3, the distilled student that never saw one takes 133 for another digit."""


def tables(rows: Measurements) -> dict[str, Rows]:
    """Return the reported rows, then the measured ones: errors of 10,000 test images, mean over the seeds."""
    reported = [
        {
            "": f"reported: {row['network']}",
            "trained": row["trained"],
            "temperature": MISSING,
            "errors of 10,000": _one_run(row["errors_of_10000"] / TEST_IMAGES, TEST_IMAGES),
            "n": "1",
        }
        for row in published("mnist_hinton").to_dict("records")
    ]
    return {"results": [*reported, *map(_measured, rows)]}


def claims(rows: Measurements) -> list[Claim]:
    """Return the claims: soft targets help, by at least half of what is reported; a 3 is known without having seen one.

    Each is of the rows of sweeps that have, or have not, images of every class to train on.
    """
    everything = [row for row in rows if not row.unseen]
    ours = pick(everything, NETWORKS, method="kd")
    better = compare("Soft targets lower the student's errors", ALONE - DISTILLED, ours, alone(everything, ours))
    half = (ALONE - DISTILLED) / 2
    text = f"They do so by at least half of the reported {_errors(2 * half)} errors: gain minus {_errors(half)} errors"
    return [better, replace(better, text=text, published=half, ours=_lowered(better.ours, half)), *_of_unseen(rows)]


def _of_unseen(rows: Measurements) -> Iterator[Claim]:
    ours = pick([row for row in rows if row.unseen], NETWORKS, method="kd")
    text = "A student that never saw a 3 recognises most of them: their share minus one half"
    if ours is None:
        yield Claim(text, RECOGNISED - 0.5, True)
    else:
        share = _lowered(ours.estimate("test/unseen"), 0.5)
        yield Claim(text, RECOGNISED - 0.5, True, f"{ours.label}, images of unseen classes", share)
    raised = next((row for row in rows if ours and row.role == "biased" and row.trial_ids == ours.trial_ids), None)
    yield compare("A raised bias of class 3 lowers its errors", WITHOUT_3 - WITHOUT_3_BIASED, raised, ours)


def _lowered(estimate: Estimate | None, by: float) -> Estimate | None:
    return None if estimate is None else replace(estimate, mean=estimate.mean - by)


def _measured(row: Measured) -> dict[str, str]:
    trained, temperature = (
        "hard labels" if row.method == "none" else row.method,
        row.recipe["method"].get("temperature"),
    )
    without = ", ".join(row.recipe["data"].get("exclude_classes") or ())
    cells = {
        "": row.key,
        "trained": f"{trained}, without {without}" if row.unseen else trained,
        "temperature": MISSING if temperature is None else f"{temperature:.3g}",
        "errors of 10,000": _error_cell(row),
        "n": str(row.n),
    }
    if not row.unseen:
        return cells
    bias = row.estimate("bias")
    recognised = estimate_percent(row.estimate("test/unseen"))
    return {**cells, "unseen classes recognised, %": recognised, "bias": "0" if bias is None else f"{bias.mean:+.2f}"}


def _error_cell(row: Measured) -> str:
    rates = [1 - accuracy for accuracy in row.values.get("test/accuracy", {}).values()]
    if len(rates) == 1:
        return _one_run(rates[0], row.images["test"])
    found = mean_estimate(rates)
    if found is None:
        return MISSING
    half_width = "" if found.half_width is None else f" ± {found.half_width * TEST_IMAGES:.1f}"
    return f"{found.mean * TEST_IMAGES:.1f}{half_width}"


def _one_run(rate: float, images: int) -> str:
    """Return the errors of one run with their binomial 95 % interval: `74 [58 to 93]`."""
    interval = clopper_pearson(round(rate * images), images)
    assert interval is not None, images
    return f"{_errors(rate)} [{_errors(interval.low)} to {_errors(interval.high)}]"


def _errors(rate: float) -> str:
    return f"{rate * TEST_IMAGES:.0f}"


MNIST_HINTON = Reference(
    name="mnist_hinton",
    title="Setup 6, MNIST: Hinton, Vinyals, Dean 2015, section 3",
    networks=NETWORKS,
    setting={"data.resolution": 28, "data.limit_per_class": None, "student.hidden": [800, 800]},
    tables=tables,
    claims=claims,
)
