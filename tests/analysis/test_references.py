"""The references: reported rows beside measured rows, conclusions and their verdicts. Golden files hold the words."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.bands import bands_and_zoom
from analysis.findings import Pictures
from analysis.frame import Study, read_study
from analysis.references.claims import Claim, verdict
from analysis.references.measured import Measured, difference
from analysis.references.published_tables import hymenoptera_records, pooled, published
from analysis.references.reference import Curves, differences, substitutes
from analysis.references.sections import REFERENCES, all_references, section
from analysis.rendering import render
from analysis.statistics import Estimate, mean_estimate
from analysis.tables import missing

SEEDS = range(5)
METRICS = ("test/accuracy", "val/accuracy", "test_tta/accuracy", "mean/accuracy")
ALPHAS = {0.0: [0.95, 0.96, 0.97, 0.96, 0.95], 0.5: [0.96, 0.95, 0.96, 0.95, 0.96], 1.0: [0.93, 0.94, 0.93, 0.94, 0.93]}


def row(key: str, test: list[float] | float, **facts: Any) -> Measured:
    """Return a measured row; a number is the one run of a teacher."""
    role = key.split()[0]
    tests = [test] if isinstance(test, float) else test
    values = {metric: dict(enumerate(tests)) for metric in METRICS}
    student, freeze = facts.pop("student", "resnet18"), facts.pop("freeze", "none")
    recipe = {
        "data": {"resolution": 128}, "epochs": facts.pop("epochs", 15), "batch_size": 32,
        "student": {"model": student, "weights": "imagenet", "freeze": freeze, "head": "hidden"},
        "teacher": {"model": facts.pop("teacher"), "freeze": freeze} if "teacher" in facts else None,
        "optimizer": {"name": facts.pop("optimizer", "adam")},
        "lr_schedule": {"name": "exponential", "factor": 0.7}, "method": {"name": facts.pop("method", "none")},
        "ema": facts.pop("ema", None),
    }  # fmt: skip
    about = {
        "weights": None, "parameters": 11e6, "trial_ids": {seed: f"{key}-{seed}" for seed in range(len(tests))},
        "teacher_id": None, "images": {"val": 100, "test": 10_000}, "epochs": facts.pop("runs", {}),
    }  # fmt: skip
    return Measured(key=key, role=role, recipe=recipe, values=values, **about | facts)


def test_the_hymenoptera_rows_follow_from_the_references_own_records_to_the_last_digit() -> None:
    printed = published("hymenoptera_mse").set_index("alpha")
    computed = pooled(hymenoptera_records()).round(6)
    for alpha in (0.0, 1.0):
        assert computed.loc[alpha].to_dict() == printed.loc[alpha].to_dict()
    assert computed.loc[0.5].to_dict() != printed.loc[0.5].to_dict()  # one of its runs was overwritten


def test_a_teachers_one_run_is_subtracted_from_every_seed() -> None:
    found = difference(row("best 1", [0.9, 0.92, 0.94]), row("teacher", 0.9), "test/accuracy")
    assert found == mean_estimate([0.0, 0.92 - 0.9, 0.94 - 0.9])


TAUGHT = {"teacher": "resnet50", "teacher_id": "t"}


def cifar_rows() -> list[Measured]:
    alone = [0.90, 0.91, 0.90, 0.91, 0.90]
    return [
        row("teacher", 0.95, student="resnet50", trial_ids={0: "t"}),
        row("baseline 1", alone),
        row("baseline 2", [0.95] * 5, freeze="encoder_but_norm"),
        row("published 1", [a + 0.02 + 0.001 * i for i, a in enumerate(alone)], method="kd", **TAUGHT),
        row("best 1", [0.5] * 5, method="kd", **TAUGHT),
    ]


def verdicts(name: str, rows: list[Measured]) -> dict[str, str]:
    return {claim.text: verdict(claim).name for claim in REFERENCES[name].claims(rows)}


def test_a_reported_absence_of_gain_is_supported_by_a_loss() -> None:
    loss = row("published 1", [0.88, 0.88, 0.88, 0.885, 0.88], method="logits_discriminator", teacher="resnet50")
    found = verdicts("cifar10", [row("baseline 1", [0.9, 0.91, 0.9, 0.91, 0.9]), loss])
    assert found["The logits discriminator does not raise the accuracy of the unfrozen student"] == "supported"


STRONGER = "A stronger teacher does not give a better student: MGD from efficientnet_v2_s or resnet50"


def test_a_substitute_of_a_teacher_is_judged_under_its_own_name_alone() -> None:
    """Not as each of the reported teachers at once, whose conclusions differ."""
    lite = {"student": "tf_efficientnet_lite0", "teacher": "tf_efficientnet_lite2", "teacher_id": "t"}
    rows = [row("baseline 1", [0.60, 0.61, 0.62, 0.61, 0.60], student="tf_efficientnet_lite0")]
    rows += [row("teacher", 0.55, student="tf_efficientnet_lite2", trial_ids={0: "t"})]
    rows += [row("best 1", [0.63, 0.64, 0.65, 0.64, 0.66], method="mgd", **lite)]
    rows += [row("best 2", [0.58, 0.58, 0.59, 0.59, 0.57], method="sp", **lite)]
    found = verdicts("cub200", rows)
    decided = {text: name for text, name in found.items() if name != "not measured here"}
    assert decided == {
        "MGD from tf_efficientnet_lite2 (a substitute) raises the student's accuracy": "supported",
        "SP from tf_efficientnet_lite2 (a substitute) raises the student's accuracy": "contradicted",
        "MGD's student beats its teacher tf_efficientnet_lite2 (a substitute) on val": "supported",
        "MGD's student beats its teacher tf_efficientnet_lite2 (a substitute) on test": "supported",
    }
    assert {"MGD from resnet50 raises the student's accuracy", STRONGER} <= found.keys()


def cub_rows() -> list[Measured]:
    mobilenet = {"student": "mobilenetv2"}
    second = mobilenet | {"method": "mgd", "teacher": "resnet50", "teacher_id": "b"}
    strongest = mobilenet | {"method": "mgd", "teacher": "efficientnet_v2_s", "teacher_id": "a"}
    return [
        row("teacher a", 0.9, student="efficientnet_v2_s", trial_ids={0: "a"}),
        row("teacher b", 0.8, student="resnet50", trial_ids={0: "b"}),
        row("baseline 1", [0.70, 0.71, 0.72, 0.71, 0.70], ema={"decay": 0.9999}, **mobilenet),
        row("published 1", [0.74, 0.75, 0.76, 0.76, 0.74], weights=(1.0, 0.25), **second),
        row("published 2", [0.72, 0.73, 0.73, 0.73, 0.71], **strongest),
        row("published 3", [0.73, 0.74, 0.735, 0.74, 0.72], ema={"decay": 0.9999}, **strongest),
        row("published 4", [0.68, 0.69, 0.70, 0.68, 0.68], method="sp", teacher="ghostnet", **mobilenet),
        row("published 5", [0.72, 0.73, 0.73, 0.73, 0.71], method="at", teacher="mobilenetv2", **mobilenet),
    ]


def test_a_teacher_that_is_not_stronger_here_decides_nothing_about_stronger_teachers() -> None:
    rows = [replace(each, values={}) if each.key == "teacher a" else each for each in cub_rows()]
    stronger = next(claim for claim in REFERENCES["cub200"].claims(rows) if claim.text == STRONGER)
    assert verdict(stronger).name == "not measured here"
    assert "not the stronger teacher" in stronger.compared
    assert verdicts("cub200", cub_rows())[STRONGER] == "supported"


def hymenoptera_rows(epochs: int = 2) -> list[Measured]:
    run = [{"epoch": epoch, "val/loss": 1 / epoch} for epoch in range(1, epochs + 1)]
    about: dict[str, Any] = {"method": "logit_mse", "freeze": "encoder", "teacher": "resnet50"}
    return [
        row(f"published {i}", tests, weights=(alpha, 1 - alpha), runs=dict.fromkeys(SEEDS, run), **about)
        for i, (alpha, tests) in enumerate(ALPHAS.items(), start=1)
    ]


def test_the_conclusions_of_hinton_are_judged_on_the_students_that_they_are_about() -> None:
    found = REFERENCES["mnist_hinton"].claims(hinton_rows())
    assert [verdict(claim).name for claim in found] == ["supported"] * 4
    gain = mean_estimate([0.0050, 0.0055, 0.0060, 0.0052, 0.0051])
    for claim, less in ((found[0], 0.0), (found[1], 0.0036)):
        assert (claim.ours.mean, claim.ours.half_width) == pytest.approx((gain.mean - less, gain.half_width))
    of_all = [each for each in hinton_rows() if not each.unseen]
    assert [claim.ours is None for claim in REFERENCES["mnist_hinton"].claims(of_all)] == [False, False, True, True]


def flowers_rows() -> list[Measured]:
    log = [{"epoch": e, "train/kd": 2.0 / e, "val/kd": 3.0 / e, "val/accuracy": 0.01 * e} for e in range(1, 61)]
    return [row("published 1", [0.02, 0.03], method="kd", teacher="bit_resnet50x1", runs={0: log})]


def hinton_rows() -> list[Measured]:
    """Return the rows of two sweeps: one of all digits, one whose students have seen no 3."""
    about: dict[str, Any] = {"student": "mlp", "teacher": "mlp", "teacher_id": "t", "method": "kd"}
    alone = [0.9835, 0.984, 0.9832, 0.9838, 0.9841]
    distilled = [each + gain for each, gain in zip(alone, (0.005, 0.0055, 0.006, 0.0052, 0.0051), strict=True)]
    rows = [
        row("teacher mlp 1200-1200", 0.9891, student="mlp", trial_ids={0: "t"}),
        row("baseline 1", alone, student="mlp"),
        row("published 1", distilled, **about),
    ]
    known = [0.86, 0.87, 0.88, 0.85, 0.9]
    without = row("published 2", [0.975, 0.976, 0.974, 0.977, 0.975], **about)
    recipe = without.recipe | {
        "data": {"resolution": 28, "exclude_classes": ["3"]},
        "method": {"name": "kd", "temperature": 20.0},
    }
    without = replace(without, recipe=recipe, values=without.values | {"test/unseen": dict(enumerate(known))})
    biases = {"bias": {0: 2.5, 1: 3.0, 2: 2.0, 3: 2.25, 4: 2.75}, "test/unseen": dict(enumerate([0.98] * 5))}
    better = biases | {
        "test/accuracy": {seed: value + 0.01 - seed / 1e4 for seed, value in without.values["test/accuracy"].items()}
    }
    return [*rows, without, replace(without, key="published 2, bias raised", role="biased", values=better)]


ROWS = {
    "cifar10": cifar_rows(), "cub200": cub_rows(), "flowers102": flowers_rows(), "hymenoptera": hymenoptera_rows(),
    "mnist_hinton": hinton_rows(),
    "mnist": [row("teacher", 0.99, student="lenet5_teacher"), row("best 1", [0.98, 0.97], student="lenet5_student")],
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_section_of_a_report_with_tables_and_conclusions(name: str, golden: Any) -> None:
    found = section(REFERENCES[name], ROWS[name])
    pictures = Pictures(drawn=frozenset(curves.file for curves in found.curves))
    golden(f"reference_{name}.md", render("report_reference.md.j2", section=found, pictures=pictures))


def test_published_tables_belong_to_the_package() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["package-data"]["*"] == ["py.typed", "published/*", "templates/*"]


@pytest.mark.parametrize(
    ("mean", "half_width", "n", "higher", "name", "reason"),
    [
        (0.01, 0.004, 2, True, "undecided", "2 seeds"),
        (0.01, None, 5, True, "undecided", "equal"),
        (0.01, 0.02, 5, True, "undecided", "contains 0"),
        (0.01, 0.004, 5, True, "supported", ""),
        (0.01, 0.004, 5, False, "contradicted", ""),
        (-0.01, 0.004, 5, True, "contradicted", ""),
        (-0.01, 0.004, 5, False, "supported", ""),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(
    mean: float, half_width: float | None, n: int, higher: bool, name: str, reason: str
) -> None:
    found = verdict(Claim("x", 0.0, higher, "a minus b", Estimate(mean, half_width, n)))
    assert found.name == name
    assert reason in found.reason


def test_without_a_published_point_the_best_searched_recipe_is_compared() -> None:
    searched = REFERENCES["cifar10"].claims([each for each in cifar_rows() if each.role != "published"])
    assert searched[1].compared == "best 1 (searched) minus baseline 1"


@pytest.mark.parametrize(
    ("method", "weights", "ratio"),
    [
        ("mgd", (1.0, 7 / 3), 0.7),
        ("at", (1.0, 100.0), 100.0),
        ("sp", (1.0, 10.0), 10.0),
        ("sp", (1.0, 0.25), 0.2),
        ("mgd", (0.0, 1.0), None),
        ("none", (1.0, 0.0), None),
    ],
)
def test_kd_ratio_is_the_references_spelling_of_the_weight(
    method: str, weights: tuple[float, float], ratio: float | None
) -> None:
    assert row("best 1", [0.5], method=method, weights=weights).kd_ratio == pytest.approx(ratio)


def test_hyperparameters_and_networks_that_differ_from_the_reference_are_listed() -> None:
    cifar10, rows = REFERENCES["cifar10"], cifar_rows()
    assert differences(cifar10, rows) == substitutes(cifar10, rows) == []
    other = row("best 1", [0.5], method="kd", epochs=2, optimizer="sgd", student="lite", teacher="resnet50")
    assert differences(cifar10, [other]) == ["epochs 2 (15)", "optimizer.name sgd (adam)"]
    assert substitutes(cifar10, [other]) == ["lite as student"]
    limited = replace(other, recipe=rows[1].recipe | {"data": {"resolution": 128, "limit_per_class": 20}})
    assert differences(cifar10, [limited]) == ["data.limit_per_class 20 (None)"]


@pytest.mark.parametrize(
    ("method", "teacher", "blocks", "methods"),
    [
        ("mgd", "ghostnet", {"ghostnet_to_mobilenetv2"}, ["none", "none", "MGD"]),
        ("at", "mobilenetv2", {"self_distillation"}, None),
        ("sp", "tf_efficientnet_lite2", {"ghostnet_to_mobilenetv2_sp", "resnet50_to_mobilenetv2_sp"}, None),
        ("dkd", "resnet50", None, None),
    ],
)
def test_cubs_table_has_the_published_rows_of_the_methods_and_teachers_that_are_here(
    method: str, teacher: str, blocks: set[str] | None, methods: list[str] | None
) -> None:
    alone = row("baseline 1", [0.7, 0.71], student="mobilenetv2")
    rows = [alone, row("published 1", [0.7, 0.72], student="mobilenetv2", method=method, teacher=teacher)]
    cells = [each for each in REFERENCES["cub200"].tables(rows)["results"] if each[""].startswith("reported")]
    if blocks is not None:
        assert {each[""].removeprefix("reported: ") for each in cells} == blocks
    if methods is not None:
        assert [each["method"] for each in cells] == methods
    taught = {each["teacher"] for each in cells if not missing(each["teacher"])}
    assert taught == {"mgd": {"ghostnet"}, "at": {"mobilenetv2"}, "sp": {"ghostnet", "resnet50"}, "dkd": set()}[method]


def test_nothing_confirmed_makes_no_table() -> None:
    assert "|" not in render("report_reference.md.j2", section=section(REFERENCES["cub200"], []), pictures=Pictures())


def test_the_overview_has_each_reference_once_with_the_trainings_that_sweeps_share_once(whole: Any) -> None:
    studies = []
    for name in ("one", "other"):
        made = whole(name=name, searched=6)
        made.describe(report={"published": "mnist"})
        studies.append(read_study(made.folder))
    (found,) = all_references(studies)
    assert found.name == "mnist"
    assert found.tables is not None
    networks = [cells["network"] for cells in found.tables["results"]]
    assert networks.count("teacher") == 1
    assert "student alone (one: baseline 1, other: baseline 1)" in networks  # both studies wrote the same trainings


def test_curves_are_drawn_once_more_if_they_are_zoomed(finished: Study) -> None:  # 12 epochs
    runs = {"best": list(finished.stage("confirm")["trial_id"][:5])}
    metrics = {"val/accuracy": "accuracy", "val/absent": "absent"}
    for zoomed_epochs, panels in ((5, 2), (None, 1)):
        drawn = bands_and_zoom(finished, Curves("a.png", "frozen", runs, metrics, zoomed_epochs))
        assert drawn is not None
        assert len(drawn.axes) == panels
        assert len(drawn.axes[0].lines[0].get_xdata()) == 12
    assert bands_and_zoom(finished, Curves("a.png", "frozen", runs, {"val/absent": "absent"}, 5)) is None


@pytest.mark.parametrize(("epochs", "zoomed_epochs"), [(15, None), (16, 15)])
def test_hymenopteras_curves_are_zoomed_if_there_are_more_than_15_epochs(
    epochs: int, zoomed_epochs: int | None
) -> None:
    (curves,) = REFERENCES["hymenoptera"].curves(hymenoptera_rows(epochs))
    assert (curves.file, curves.zoomed_epochs) == ("alphas_frozen.png", zoomed_epochs)
    assert list(curves.trial_ids) == ["alpha 0", "alpha 0.5", "alpha 1"]
