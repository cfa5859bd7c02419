"""The documents' own tables and conclusions: published rows, measured rows beside them, verdicts."""

import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.bands import bands_and_zoom
from analysis.documents.claims import Claim, verdict
from analysis.documents.document import differences
from analysis.documents.measured import Measured, difference
from analysis.documents.published import hymenoptera_records, one_run, pooled, published
from analysis.documents.registry import DOCUMENTS, document_section
from analysis.documents.together import documents_section
from analysis.frame import read_study
from analysis.report import write_report
from analysis.statistics import Estimate, mean_estimate
from kdtrain.trials.store import read_json, write_json

SEEDS = range(5)
METRICS = ("test/accuracy", "val/accuracy", "test_tta/accuracy", "mean/accuracy")
ALPHAS = {0.0: [0.95, 0.96, 0.97, 0.96, 0.95], 0.5: [0.96, 0.95, 0.96, 0.95, 0.96], 1.0: [0.93, 0.94, 0.93, 0.94, 0.93]}


def row(key: str, test: list[float] | float, **facts: Any) -> Measured:
    """A measured row; a number is a teacher's one run."""
    role = key.split()[0]
    tests = [test] if isinstance(test, float) else test
    values = {metric: dict(enumerate(tests)) for metric in METRICS}
    method = {"name": facts.pop("method", "none")}
    student, freeze = facts.pop("student", "resnet18"), facts.pop("freeze", "none")
    recipe = {
        "data": {"resolution": 128},
        "epochs": facts.pop("epochs", 15),
        "batch_size": 32,
        "student": {"model": student, "weights": "imagenet", "freeze": freeze, "head": "hidden"},
        "teacher": {"model": facts.pop("teacher"), "freeze": freeze} if "teacher" in facts else None,
        "optimizer": {"name": facts.pop("optimizer", "adam")},
        "lr_schedule": {"name": "exponential", "factor": 0.7},
        "method": method,
        "ema": facts.pop("ema", None),
    }
    about = {
        "weights": None,
        "parameters": 11e6,
        "trial_ids": {seed: f"{key}-{seed}" for seed in range(len(tests))},
        "teacher_id": None,
        "images": {"val": 100, "test": 10_000},
        "epochs": {},
    }
    return Measured(key=key, role=role, recipe=recipe, values=values, **about | facts)


def test_the_hymenoptera_rows_follow_from_the_documents_own_records_to_the_last_digit() -> None:
    printed = published("hymenoptera_mse").set_index("alpha")
    computed = pooled(hymenoptera_records()).round(6)
    for alpha in (0.0, 1.0):
        assert computed.loc[alpha].to_dict() == printed.loc[alpha].to_dict()
    assert computed.loc[0.5].to_dict() != printed.loc[0.5].to_dict()  # one of its runs was overwritten


def test_pooling_takes_every_epoch_of_every_run_with_n_minus_1() -> None:
    others = {"alpha": 0.0, "epoch_acc": 1.0, "epoch_acc_teacher": 1.0, "diff_t_s": 0.0}
    rows = pd.DataFrame([others | {"epoch_loss": loss} for loss in (1.0, 2.0, 4.0)])
    assert pooled(rows).loc[0.0, "epoch_loss_mean"] == pytest.approx(7 / 3)
    assert pooled(rows).loc[0.0, "epoch_loss_std"] == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2))


def test_a_published_run_carries_the_binomial_interval_of_its_test_images() -> None:
    assert one_run(0.73483, 2_323) == "73.48 [71.64 to 75.27]"


@pytest.mark.parametrize(
    "name", ["cifar10_resnet", "cub200", "flowers102_funmatch", "hymenoptera_mse", "hymenoptera_runs"]
)
def test_every_published_table_is_read_and_belongs_to_the_package(name: str) -> None:
    assert len(published(name)) >= 3
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["package-data"]["analysis"] == ["published/*"]


@pytest.mark.parametrize(
    ("estimate", "higher", "said"),
    [
        (None, True, "not measured here"),
        (Estimate(0.01, 0.004, 2), True, "undecided: n = 2, a claim needs 3 seeds"),
        (Estimate(0.01, None, 5), True, "undecided: all differences are equal"),
        (Estimate(0.01, 0.02, 5), True, "undecided: the interval contains 0"),
        (Estimate(0.01, 0.004, 5), True, "supported"),
        (Estimate(0.01, 0.004, 5), False, "contradicted"),
        (Estimate(-0.01, 0.004, 5), True, "contradicted"),
        (Estimate(-0.01, 0.004, 5), False, "supported"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(estimate: Estimate | None, higher: bool, said: str) -> None:
    assert verdict(Claim("x", 0.0, higher, "a minus b", estimate)) == said


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
    return {claim.text: verdict(claim) for claim in DOCUMENTS[name].claims(rows)}


def test_cifar10s_claims_compare_the_published_point_with_the_same_students_baseline_and_with_its_teacher() -> None:
    claims = DOCUMENTS["cifar10"].claims(cifar_rows())
    assert [(claim.text, round(100 * (claim.published or 0), 2)) for claim in claims] == [
        ("KD raises the accuracy of the frozen student", 0.24),
        ("KD raises the accuracy of the unfrozen student", 0.61),
        ("KD: the unfrozen student beats its teacher", 0.43),
    ]
    assert [claim.compared for claim in claims] == ["", "published 1 minus baseline 1", "published 1 minus teacher"]
    searched = DOCUMENTS["cifar10"].claims([each for each in cifar_rows() if each.role != "published"])
    assert searched[1].compared == "best 1 (searched) minus baseline 1"
    assert [verdict(claim) for claim in claims] == ["not measured here", "supported", "contradicted"]


def test_what_the_document_found_no_gain_is_supported_by_a_loss() -> None:
    rows = [row("baseline 1", [0.9, 0.91, 0.9, 0.91, 0.9])]
    rows += [row("published 1", [0.88, 0.88, 0.88, 0.885, 0.88], method="logits_discriminator", teacher="resnet50")]
    found = verdicts("cifar10", rows)
    assert found["The logits discriminator does not raise the accuracy of the unfrozen student"] == "supported"


STRONGER = "A stronger teacher is not a better student's: MGD from efficientnet_v2_s or resnet50"


def test_a_teacher_that_stands_in_is_judged_under_its_own_name_alone() -> None:
    """Not as each of the document's teachers at once, whose conclusions differ."""
    lite = {"student": "tf_efficientnet_lite0", "teacher": "tf_efficientnet_lite2", "teacher_id": "t"}
    rows = [row("baseline 1", [0.60, 0.61, 0.62, 0.61, 0.60], student="tf_efficientnet_lite0")]
    rows += [row("teacher", 0.55, student="tf_efficientnet_lite2", trial_ids={0: "t"})]
    rows += [row("best 1", [0.63, 0.64, 0.65, 0.64, 0.66], method="mgd", **lite)]
    rows += [row("best 2", [0.58, 0.58, 0.59, 0.59, 0.57], method="sp", **lite)]
    found = verdicts("cub200", rows)
    decided = {text: said for text, said in found.items() if said != "not measured here"}
    assert decided == {
        "MGD from tf_efficientnet_lite2, which stands in, raises the student's accuracy": "supported",
        "SP from tf_efficientnet_lite2, which stands in, raises the student's accuracy": "contradicted",
        "MGD's student beats its teacher tf_efficientnet_lite2, which stands in, on val": "supported",
        "MGD's student beats its teacher tf_efficientnet_lite2, which stands in, on test": "supported",
    }
    assert {"MGD from resnet50 raises the student's accuracy", STRONGER} <= found.keys()


def test_cubs_other_claims() -> None:
    mobilenet = {"student": "mobilenetv2"}
    strongest = mobilenet | {"method": "mgd", "teacher": "efficientnet_v2_s", "teacher_id": "a"}
    rows = [
        row("teacher a", 0.9, student="efficientnet_v2_s", trial_ids={0: "a"}),
        row("teacher b", 0.8, student="resnet50", trial_ids={0: "b"}),
        row("baseline 1", [0.70, 0.71, 0.72, 0.71, 0.70], ema={"decay": 0.9999}, **mobilenet),
        row(
            "published 1", [0.74, 0.75, 0.76, 0.76, 0.74], method="mgd", teacher="resnet50", teacher_id="b", **mobilenet
        ),
        row("published 2", [0.72, 0.73, 0.73, 0.73, 0.71], **strongest),
        row("published 3", [0.73, 0.74, 0.735, 0.74, 0.72], ema={"decay": 0.9999}, **strongest),
        row("published 4", [0.68, 0.69, 0.70, 0.68, 0.68], method="sp", teacher="ghostnet", **mobilenet),
        row("published 5", [0.72, 0.73, 0.73, 0.73, 0.71], method="at", teacher="mobilenetv2", **mobilenet),
    ]
    found = verdicts("cub200", rows)
    assert found[STRONGER] == "supported"
    assert found["SP from ghostnet does not raise the student's accuracy"] == "supported"
    assert found["EMA raises the accuracy of MGD's student"] == "supported"
    assert found["mobilenetv2 taught by itself (AT) gains on test"] == "supported"
    assert found["mobilenetv2 taught by itself (AT) does not gain on test with TTA"] == "contradicted"
    assert found["ghostnet taught by itself (AT) gains on test with TTA"] == "not measured here"  # as its table has it
    assert found["resnet50 taught by itself (AT) gains on val"] == "not measured here"
    assert found["MGD's student beats its teacher resnet50 on val"] == "contradicted"
    claims = DOCUMENTS["cub200"].claims(
        [replace(each, values={}) if each.key == "teacher a" else each for each in rows]
    )
    stronger = next(claim for claim in claims if claim.text == STRONGER)
    assert (stronger.compared, verdict(stronger)) == (
        "efficientnet_v2_s is not the stronger teacher here", "not measured here",
    )  # fmt: skip
    helps = next(claim for claim in claims if claim.text.startswith("MGD from resnet50"))
    assert helps.compared == "published 1 minus baseline 1 with EMA"


def test_hymenopteras_table_pools_the_epochs_of_all_runs_as_the_document_does() -> None:
    run = [{"epoch": 1, "val/loss": 1.0}, {"epoch": 2, "val/loss": 0.5}]
    rows = [replace(each, epochs=dict.fromkeys(SEEDS, run)) for each in hymenoptera_rows()]
    table = DOCUMENTS["hymenoptera"].table(rows)
    assert "| document | yes | 0 | 1.481328 ± 0.585938 | 0.945359 ± 0.028460 |" in table
    assert "| document's records | yes | 1 | 0.225731 ± 0.090253 | 0.941242 ± 0.058033 |" in table
    assert "document's records | yes | 0.5" not in table
    losses = pd.Series([1.0, 0.5] * 5)
    assert f"| published 1 | yes | 0 | {losses.mean():.6f} ± {losses.std(ddof=1):.6f} | — |" in table
    assert "5 x 2" in table


def hymenoptera_rows() -> list[Measured]:
    about: dict[str, Any] = {"method": "logit_mse", "freeze": "encoder", "teacher": "resnet50"}
    return [
        row(f"published {i}", tests, weights=(alpha, 1 - alpha), **about)
        for i, (alpha, tests) in enumerate(ALPHAS.items(), start=1)
    ]


def test_hymenopteras_claims_compare_its_alphas() -> None:
    """In its own measure, and on the test images, for which it has no number."""
    claims = DOCUMENTS["hymenoptera"].claims(hymenoptera_rows())
    assert [(claim.text.partition(": ")[2], claim.published is None, verdict(claim)) for claim in claims] == [
        *[("validation accuracy, mean over all epochs", False, "supported"), ("on the test images", True, "supported")]
        * 2,
        ("validation accuracy, mean over all epochs", False, "not measured here"),
    ]


def test_flowers_table_has_the_documents_rows_and_its_log() -> None:
    log = [{"epoch": e, "train/kd": 2.0 / e, "val/kd": 3.0 / e, "val/accuracy": 0.01 * e} for e in range(1, 61)]
    ours = row("published 1", [0.02, 0.03], method="kd", teacher="bit_resnet50x1")
    rows = [replace(ours, epochs={0: log})]
    table = DOCUMENTS["flowers102"].table(rows)
    assert "| document | bit_resnet101x3 | resnet50v2 | 30 | 64 | 23 773 798 | 1.07 [" in table
    assert "| 1 | 2.0000 | 3.0000 | 1.00 |" in table
    assert "| 60 | 0.0333 | 0.0500 | 60.00 |" in table
    assert table.count("\n| ") == 4 + 1 + 1 + 1 + 30 + 1  # published, ours, log: two rules, a head, 30 of 60 epochs


def test_kd_ratio_is_the_documents_spelling_of_the_weight() -> None:
    def ratio(method: str, weights: tuple[float, float]) -> float | None:
        return row("best 1", [0.5], method=method, weights=weights).kd_ratio

    assert ratio("mgd", (1.0, 7 / 3)) == pytest.approx(0.7)
    assert ratio("at", (1.0, 100.0)) == pytest.approx(100.0)
    assert ratio("sp", (1.0, 10.0)) == pytest.approx(10.0)
    assert ratio("sp", (1.0, 0.25)) == pytest.approx(0.2)
    assert ratio("mgd", (0.0, 1.0)) is None
    assert ratio("none", (1.0, 0.0)) is None


def test_what_was_trained_otherwise_than_in_the_document_is_said() -> None:
    assert differences(DOCUMENTS["cifar10"], cifar_rows()) == []
    other = row("best 1", [0.5], epochs=2, optimizer="sgd")
    assert differences(DOCUMENTS["cifar10"], [other]) == ["epochs 2 (15)", "optimizer.name sgd (adam)"]
    limited = replace(other, recipe=cifar_rows()[1].recipe | {"data": {"resolution": 128, "limit_per_class": 20}})
    assert differences(DOCUMENTS["cifar10"], [limited]) == ["data.limit_per_class 20 (None)"]


def test_networks_that_stand_in_are_named() -> None:
    ours = row("best 1", [0.5, 0.6], method="kd", student="tf_efficientnet_lite0", teacher="resnet50")
    said = "Not its networks: tf_efficientnet_lite0 as student."
    assert said in document_section(DOCUMENTS["cifar10"], [ours])
    assert "Not its networks" not in document_section(DOCUMENTS["cifar10"], cifar_rows())


def documents_rows(name: str, rows: list[Measured]) -> list[list[str]]:
    """The cells of the published rows in a document's table."""
    lines = DOCUMENTS[name].table(rows).splitlines()
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| document")]


def test_cubs_table_has_the_published_rows_of_the_methods_and_teachers_that_are_here() -> None:
    alone, mobilenet = row("baseline 1", [0.7, 0.71], student="mobilenetv2"), {"student": "mobilenetv2"}

    def shown(**facts: Any) -> list[tuple[str, str, str]]:
        cells = documents_rows("cub200", [alone, row("published 1", [0.7, 0.72], **mobilenet | facts)])
        return [(each[0].removeprefix("document: "), each[2], each[4]) for each in cells]

    block = "ghostnet_to_mobilenetv2"
    assert shown(method="mgd", teacher="ghostnet") == [
        (block, "—", "none"), (block, "—", "none"), (block, "ghostnet", "MGD"),
    ]  # fmt: skip
    itself = shown(method="at", teacher="mobilenetv2")
    assert {name for name, _, _ in itself} == {"self_distillation"}
    assert [teacher for _, teacher, _ in itself if teacher != "—"] == ["mobilenetv2"]
    assert {name for name, _, _ in shown(method="sp", teacher="tf_efficientnet_lite2")} == {
        "ghostnet_to_mobilenetv2_sp", "resnet50_to_mobilenetv2_sp",
    }  # fmt: skip
    assert {method for _, _, method in shown(method="dkd", teacher="resnet50")} == {"none"}


def test_cubs_table_prints_a_published_row_digit_by_digit() -> None:
    rows = [
        row("published 1", [0.7, 0.72], method="mgd", student="mobilenetv2", teacher="ghostnet", weights=(1.0, 0.25))
    ]
    printed = documents_rows("cub200", rows)[-1]
    assert printed[:8] == [
        "document: ghostnet_to_mobilenetv2",
        "yes",
        "ghostnet",
        "mobilenetv2",
        "MGD",
        "0.2",
        "no",
        "no",
    ]
    assert [cell.split(" ")[0] for cell in printed[8:]] == ["75.63", "75.72", "74.69", "74.64", "77.36", "77.30", "1"]
    assert "| published 1 | no | ghostnet | mobilenetv2 | MGD | 0.2 |" in DOCUMENTS["cub200"].table(rows)


def test_cifar10s_table_has_the_single_networks_and_the_methods_that_are_here() -> None:
    cells = documents_rows("cifar10", cifar_rows())
    assert [(each[1], each[3], each[5]) for each in cells] == [
        *[(model, "cross_entropy", frozen) for model in ("resnet18", "resnet50") for frozen in ("yes", "no")],
        ("resnet18", "kd", "yes"), ("resnet18", "kd", "no"),
    ]  # fmt: skip
    assert cells[0][6:] == ["93.05 [92.53 to 93.54]", "1", "student.ckpt"]


def test_nothing_confirmed_is_said_and_makes_no_table() -> None:
    text = document_section(DOCUMENTS["cub200"], [])
    assert "Nothing is confirmed yet" in text
    assert "|" not in text


def test_a_report_shows_the_table_of_the_document_that_its_sweep_names(whole: Any) -> None:
    made = whole()
    described = read_json(made.folder / "study.json")
    assert "As the document has it" not in write_report(made.folder).read_text()
    write_json(made.folder / "study.json", described | {"report": {"published": "mnist"}})
    text = write_report(made.folder).read_text()
    assert "| student distilled (best 1) | lenet5_student" not in text
    assert f"| student distilled (best 1) | {46_164:,}".replace(",", " ") in text


def test_the_overview_has_each_documents_table_once_over_all_sweeps_with_what_they_share(whole: Any) -> None:
    studies = []
    for name in ("one", "other"):
        made = whole(name=name)
        described = read_json(made.folder / "study.json")
        write_json(made.folder / "study.json", described | {"report": {"published": "mnist"}})
        studies.append(read_study(made.folder))
    text = documents_section(studies)
    assert text.count("### Setup 3") == 1
    assert "| student alone (one: baseline 1, other: baseline 1) |" in text  # both studies wrote the same trainings
    assert text.count("| teacher |") == 1


def test_without_a_named_document_the_overview_has_no_such_section(whole: Any) -> None:
    assert documents_section([read_study(whole().folder)]) == ""


def test_curves_are_shown_once_more_only_where_there_are_more_epochs_than_shown_then(whole: Any) -> None:
    study = read_study(whole().folder)  # 12 epochs
    runs = {"best": list(study.stage("confirm")["trial_id"][:5])}
    for zoomed, panels in ((5, 2), (15, 1)):
        drawn = bands_and_zoom(study, runs, {"val/accuracy": "accuracy", "val/absent": "absent"}, zoomed)
        assert drawn is not None
        assert len(drawn.axes) == panels
    assert len(drawn.axes[0].lines[0].get_xdata()) == 12
    assert bands_and_zoom(study, runs, {"val/absent": "absent"}, 5) is None
