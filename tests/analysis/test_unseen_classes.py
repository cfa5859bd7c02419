"""The bias of classes that a student has never seen, against every bias tried; the rows of references about it."""

from collections.abc import Callable

import numpy as np
import pytest
from made_up_study import IMAGES, MadeUpStudy, npz

from analysis.claims import candidates, teachers
from analysis.findings import Pictures, find_all
from analysis.frame import read_study
from analysis.references.measured import measured_rows
from analysis.references.sections import REFERENCES, section
from analysis.report import compose
from analysis.results import unseen_classes
from analysis.unseen_classes import best_bias, recognised, with_bias


def drawn(seed: int, images: int = 40, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    labels_N = chance.integers(0, classes, images)
    return (chance.normal(0, 2, (images, classes)) + 2 * np.eye(classes)[labels_N]).astype(np.float32), labels_N


def accuracy(logits_NK: np.ndarray, labels_N: np.ndarray) -> float:
    return float((logits_NK.argmax(axis=1) == labels_N).mean())


@pytest.mark.parametrize("classes", [[3], [0, 4], [5, 1, 2]])
@pytest.mark.parametrize("seed", range(8))
def test_no_bias_is_more_accurate_than_the_best_one(seed: int, classes: list[int]) -> None:
    logits_NK, labels_N = drawn(seed)
    logits_NK[:, classes] -= 2.0  # as of a network that was never told to name them
    found = best_bias(logits_NK, labels_N, classes)
    reached = accuracy(with_bias(logits_NK, classes, found), labels_N)
    tried = [accuracy(with_bias(logits_NK, classes, bias), labels_N) for bias in np.linspace(-15, 15, 3_001)]
    assert reached >= max(tried)
    assert best_bias(with_bias(logits_NK, classes, found), labels_N, classes) == 0


def test_the_bias_is_zero_if_none_is_better() -> None:
    logits_NK, labels_N = np.eye(4, dtype=np.float32), np.arange(4)
    assert best_bias(logits_NK, labels_N, [2]) == 0
    assert best_bias(logits_NK[:3], labels_N[:3], [3]) == 0  # no image of the class


def test_one_bias_is_added_to_all_of_the_classes_and_their_images_are_counted() -> None:
    logits_NK, labels_N = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [1.0, 0.5, 0.0]]), np.array([1, 2, 0])
    assert with_bias(logits_NK, [1, 2], 5.0).tolist() == [[0.0, 6.0, 7.0], [3.0, 5.0, 6.0], [1.0, 5.5, 5.0]]
    assert recognised(logits_NK, labels_N, [1, 2]) == 0.0
    assert recognised(with_bias(logits_NK, [1, 2], 5.0), labels_N, [1, 2]) == 0.5
    assert recognised(logits_NK, labels_N, [0]) == 1.0
    assert np.isnan(recognised(logits_NK, labels_N, [3]))


def without_threes(whole: Callable[..., MadeUpStudy], published: str | None) -> MadeUpStudy:
    """Return a study whose confirmed students have seen no image of class 3, and say 3 of a third of their images."""
    made = whole()
    made.describe(report={"published": published})
    planned = {event["trial_id"]: event["stage"] for event in read_study(made.folder).events("planned")}
    for number, (trial_id, stage) in enumerate(planned.items()):
        folder = made.store.trial(trial_id)
        recipe = folder.recipe()
        own_data = {"name": "mnist", "resolution": 28, "exclude_classes": ["3"]}
        recipe["recipe"] |= {"epochs": 12, "batch_size": 128, "data": own_data}
        recipe["data"] |= {"unseen_classes": [3]} if stage == "confirm" else {}
        folder.write_recipe(recipe)
        labels_N = np.arange(IMAGES) % 10
        logits_NK = 6 * np.eye(10, dtype=np.float32)[labels_N]
        logits_NK[labels_N == 3, 5] = 6.5
        logits_NK[(labels_N == 3) & (np.arange(IMAGES) % 30 != 3), 5] = 7.5 + number / 100
        arrays = {"logits": logits_NK, "labels": labels_N}
        folder.write_predictions(
            npz(**{f"{split}_{name}": arrays[name] for split in ("val", "test") for name in arrays})
        )
        folder.write_outcome(folder.outcome())
    return made


def test_each_student_has_a_second_row_with_the_bias_that_is_best_on_validation(whole) -> None:
    study = read_study(without_threes(whole, "mnist_hinton").folder)
    rows = {row.key: row for row in measured_rows(study, candidates(study), teachers(study))}
    assert [key for key, row in rows.items() if row.unseen] == [
        f"{key}{raised}" for key in ("baseline 1", "published 1", "best") for raised in ("", ", bias raised")
    ]
    plain, raised = rows["best"], rows["best, bias raised"]
    assert set(plain.values["test/unseen"].values()) == {0.0}
    assert set(raised.values["test/unseen"].values()) == set(raised.values["test/accuracy"].values()) == {1.0}
    assert all(bias > 1.5 for bias in raised.values["bias"].values())
    assert raised.trial_ids == plain.trial_ids
    table = section(REFERENCES["mnist_hinton"], list(rows.values())).tables["results"]
    found = {cells[""]: cells for cells in table if "bias" in cells}
    assert list(found) == [key for key, row in rows.items() if row.unseen]
    assert (found["best"]["bias"], found["best"]["trained"]) == ("0", "kd, without 3")
    assert found["best, bias raised"]["errors of 10,000"] == "0.0"


def test_the_report_has_both_rows_without_a_reference_and_no_table_if_every_class_was_seen(whole) -> None:
    study = read_study(without_threes(whole, None).folder)
    assert study.published is None
    rows = unseen_classes(study, candidates(study))
    assert [row["recipe"] for row in rows[-2:]] == ["best", "best, bias raised"]
    assert [row["unseen classes recognised, %"].split(" ")[0] for row in rows[-2:]] == ["0.00", "100.00"]
    assert rows[-2]["bias"] == "0" != rows[-1]["bias"]
    assert "\n| best, bias raised | " in compose(study, find_all(study), Pictures())
    seen = read_study(whole().folder)
    assert unseen_classes(seen, candidates(seen)) == []


@pytest.mark.parametrize("name", REFERENCES)
def test_every_reference_takes_the_rows_with_a_bias(name: str, whole) -> None:
    study = read_study(without_threes(whole, name).folder)
    assert section(REFERENCES[name], measured_rows(study, candidates(study), teachers(study))).tables is not None
