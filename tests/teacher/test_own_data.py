"""Teachers that were trained otherwise than their students: at another resolution, on other images, by a teacher."""

from pathlib import Path
from typing import Any

import made_up_data
import pytest
import torch
from runs import BATCH_NORM_STUDENT, fresh_state
from trainings import CPU, KD, NO_DATA, Trained, equal_weights, recipe, trained, workspace

from kdtrain.config.needed_trainings import chain, teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.data.base import as_floats
from kdtrain.data.pillow_resize import weights
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.models.classifier import resized
from kdtrain.storage.cache import Cache
from kdtrain.study.step_cost import image_flops
from kdtrain.teacher.network import trained_teacher
from kdtrain.teacher.own_data import require_same_classes, shared_images
from kdtrain.training.evaluation import accuracy, logits_of
from kdtrain.training.preflight import check_before_teacher, smoke
from kdtrain.trials.identity import identity

LARGER = KD | {"teacher": KD["teacher"] | {"data": {"resolution": 24}}}
CONV_TEACHER = {"model": "test_resnet", "weights": None, "epochs": 1, "data": {"resolution": 48}}
CONV: dict[str, Any] = {
    "teacher": CONV_TEACHER,
    "student": BATCH_NORM_STUDENT,
    "data": {"name": "digits", "resolution": 32, "limit_per_class": 6},
}
ASSISTED: dict[str, Any] = KD | {
    "student": {"model": "lenet5_half"},
    "teacher": {"model": "lenet5_student", "epochs": 2, "method": KD["method"], "teacher": KD["teacher"]},
}


@pytest.mark.parametrize("size", [(24, 24), (10, 10), (24, 10), (16, 16)])
def test_views_are_resized_by_triangle_filters_that_widen_if_a_side_shrinks(size: tuple[int, int]) -> None:
    images = torch.rand(3, 2, 16, 16)
    rows, columns = (weights(torch.tensor([16]), side)[0] for side in size)
    expected = rows @ images.double() @ columns.T
    torch.testing.assert_close(resized(images, size).double(), expected, rtol=0, atol=4e-6)  # weights in units of 2^-22


def test_a_teacher_of_another_resolution_sees_the_students_view_resized_whatever_the_batch() -> None:
    state = fresh_state(recipe(**LARGER))
    (teacher,) = state.teachers
    assert teacher.network.image_shape == (1, 24, 24)
    assert state.distiller.student.image_shape == (1, 16, 16)
    images = torch.rand(40, 1, 16, 16)
    logits = teacher(images).logits
    with torch.no_grad():
        expected = teacher.network(resized(images, (24, 24)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for part in (slice(0, 1), slice(5, 25), slice(33, 40)):
        assert torch.equal(teacher(images[part]).logits, logits[part])
        last = images[part].contiguous(memory_format=torch.channels_last)
        assert torch.equal(teacher(last).logits, logits[part])


def require_equal(live: Trained, *cached: Trained) -> None:
    for each in cached:
        assert each.outcome["state"] == "complete"
        assert (each.checkpoints, each.rows) == (live.checkpoints, live.rows)
        assert equal_weights(each.weights, live.weights)


ON_DIGITS: dict[str, dict[str, Any]] = {
    "larger": LARGER,
    "smaller": LARGER | {"data": {"name": "digits", "resolution": 32, "limit_per_class": 6}},
    "mixup": LARGER | {"mixup": {}, "method": {"name": "kd", "temperature": 2.0, "balance": {"alpha": 1.0}}},
    "maps": CONV | {"method": {"name": "sp", "balance": {"weight": 10.0}, "stages": ["8", "16"]}},
    "pooled": CONV | {"method": {"name": "rkd_distance", "balance": {"weight": 5.0}}},
}


def live_then_cached(config: Recipe, tmp_path: Path, data_root: Path = NO_DATA) -> None:
    live = trained(config, tmp_path / "live", data_root=data_root)
    shared = Cache(tmp_path / "cache", 64 << 20)
    cached = [trained(config, tmp_path / name, data_root=data_root, cache=shared) for name in ("1", "2")]
    require_equal(live, *cached)
    assert sum(int(row["teacher_images_computed"]) for row in cached[1].folder.epochs()) == 0


@pytest.mark.parametrize("kind", list(ON_DIGITS))
def test_cached_outputs_of_another_resolution_equal_live_ones_bit_for_bit(kind: str, tmp_path: Path) -> None:
    live_then_cached(recipe(**ON_DIGITS[kind]), tmp_path)


def test_so_do_those_of_random_views(tmp_path: Path) -> None:
    made_up_data.hymenoptera(tmp_path / "data")
    own = {"data": {"name": "hymenoptera", "resolution": 32}, "batch_size": 8}
    live_then_cached(recipe(**LARGER | own), tmp_path, tmp_path / "data")


def test_methods_that_compare_maps_refuse_maps_of_unequal_sizes() -> None:
    method = {"name": "at", "balance": {"weight": 1.0}, "stages": ["8"]}
    with pytest.raises(UserError, match=r"^recipe\.method\.stages: .* 48 x 4 x 4 .* 48 x 6 x 6"):
        smoke(recipe(**CONV | {"method": method}), workspace(Path("unused")))
    equal = CONV | {"teacher": CONV_TEACHER | {"data": {"resolution": 64}}, "method": method | {"stages": ["16"]}}
    assert fresh_state(recipe(**equal | {"data": CONV["data"] | {"resolution": 64}})).teachers


def test_flops_of_the_teacher_are_those_of_its_own_images() -> None:
    own, plain = (image_flops(recipe(**KD | changes), 10) for changes in (LARGER, {}))
    alone = recipe(**KD | {"data": {"name": "digits", "resolution": 24}})
    assert own.teacher == image_flops(alone, 10).teacher > plain.teacher
    assert own.step == plain.step


def load_config(data: dict[str, Any]) -> Any:
    return recipe(data=data).data


def content(images: Any) -> list[bytes]:
    return [image.numpy().tobytes() for image in images.eval_view(torch.arange(len(images)))]


SHARED: dict[str, dict[str, Any]] = {
    "other splits": {"split_seed": 1},
    "fewer images": {"limit_per_class": 2},
    "all images": {"limit_per_class": None, "resolution": 24},
    "labels": {"labelled_per_class": 2},
}


@pytest.mark.parametrize("own", list(SHARED))
def test_the_students_images_that_the_teacher_was_trained_on_are_counted_by_content(own: str, tmp_path: Path) -> None:
    config = recipe(**KD | {"teacher": KD["teacher"] | {"data": SHARED[own]}})
    data = load(config.data, NO_DATA)
    own_config = config.data.model_copy(update=SHARED[own] | {"resolution": 16})
    train = load(own_config, NO_DATA).train
    seen = {image for image, label in zip(content(train.images), train.labels.tolist(), strict=True) if label >= 0}
    splits = {"train": data.train, "val": data.val, "test": data.test}
    expected = {name: sum(each in seen for each in content(split.images)) for name, split in splits.items()}
    assert shared_images(config, data, workspace(tmp_path)) == expected
    assert (expected["test"] > 0) == (own == "other splits")
    assert own != "labels" or expected["train"] == 20
    record = trained(config).folder.recipe()
    assert record is not None
    assert record["teacher"] is not None
    assert record["teacher"]["shared_images"] == expected


def test_the_images_of_disjoint_parts_are_disjoint_and_a_teacher_without_labels_learns_from_all(tmp_path: Path) -> None:
    data = {"name": "digits", "resolution": 16, "part": {"of": 2, "index": 0}}
    own = {"part": {"of": 2, "index": 1}, "labelled_per_class": 3}
    place = workspace(tmp_path)
    taught = recipe(**KD | {"data": data, "teacher": KD["teacher"] | {"data": own}})
    assert shared_images(taught, load(taught.data, NO_DATA), place) == {"train": 0, "val": 0, "test": 0}
    alone = taught.model_copy(update={"data": load_config(data | {"part": None})})
    assert shared_images(alone, load(alone.data, NO_DATA), place) == {"train": 30, "val": 0, "test": 0}
    assistant = ASSISTED["teacher"] | {"data": own}
    chained = recipe(**ASSISTED | {"data": data, "teacher": assistant})
    chained = chained.model_copy(update={"data": alone.data})
    half = len(load(taught.data.model_copy(update={"part": load_config(own | data | own).part}), NO_DATA).train)
    assert shared_images(chained, load(alone.data, NO_DATA), place) == {"train": half, "val": 0, "test": 0}


@pytest.mark.parametrize("taught", [KD, ASSISTED, {}, KD | {"teacher": KD["teacher"] | {"data": {}}}])
def test_nothing_is_counted_if_no_teacher_has_other_data(taught: dict[str, Any], tmp_path: Path) -> None:
    config = recipe(**taught)
    assert shared_images(config, load(config.data, NO_DATA), workspace(tmp_path)) is None


def test_images_of_the_teachers_teacher_count_too(tmp_path: Path) -> None:
    first = KD["teacher"] | {"data": {"limit_per_class": 3}}
    config = recipe(**ASSISTED | {"teacher": ASSISTED["teacher"] | {"data": {"limit_per_class": 1}, "teacher": first}})
    data = load(config.data, NO_DATA)
    assert shared_images(config, data, workspace(tmp_path)) == {"train": 30, "val": 0, "test": 0}


def test_the_teachers_test_accuracy_is_measured_on_the_students_test_images(tmp_path: Path) -> None:
    config = recipe(**KD | {"teacher": KD["teacher"] | {"data": {"split_seed": 1, "resolution": 24}}})
    outcome = trained(config, tmp_path).outcome
    taught_by, place = teacher_recipe(config), workspace(tmp_path)
    assert taught_by is not None
    data = load(config.data, NO_DATA)
    teacher = trained_teacher(config, data, place)
    assert teacher is not None
    images = resized(as_floats(data.test.images.eval_view(torch.arange(len(data.test)))), (24, 24))
    with torch.no_grad():
        expected = accuracy(teacher.network(images), data.test.labels)
    assert outcome["test"]["test/teacher_accuracy"] == expected
    own = load(taught_by.data, NO_DATA)
    assert not torch.equal(own.test.labels, data.test.labels)
    assert outcome["best"] is not None
    val = logits_of(teacher.network, data.val, CPU)
    assert trained(config, tmp_path).rows[0]["val/teacher_accuracy"] == accuracy(val, data.val.labels)


def test_a_finished_teacher_may_have_its_own_resolution(tmp_path: Path) -> None:
    taught = trained(recipe(student={"model": "lenet5_teacher"}, data={"name": "digits", "resolution": 24}))
    file = {"model": "lenet5_teacher", "trained": str(taught.folder.weights)}
    outcome = trained(recipe(**KD | {"teacher": file | {"data": {"resolution": 24}}}), tmp_path).outcome
    assert outcome["state"] == "complete"
    with pytest.raises(UserError, match=r"^recipe\.teacher\.trained: "):
        trained(recipe(**KD | {"teacher": file}), tmp_path)


def test_a_teacher_of_other_classes_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    for folder, other in (("pets", "dog"), ("others", "cow")):
        for number in range(12):
            made_up_data.paint(tmp_path / folder / ("cat", other)[number % 2] / f"{number}.png")
    data = {"name": "image_folder", "folder": "pets", "resolution": 16, "test_fraction": 0.3}
    config = recipe(**KD | {"data": data, "teacher": KD["teacher"] | {"data": {"folder": "others"}}, "batch_size": 2})
    place = workspace(tmp_path / "results", tmp_path)
    for refused in (
        lambda: require_same_classes(config, place.dataset(config.data), place),
        lambda: smoke(config, place),
        lambda: check_before_teacher(config, place),
    ):
        with pytest.raises(UserError, match=r"^recipe\.teacher\.data: .*cow, dog"):
            refused()


def test_a_chain_is_a_training_whose_teacher_is_the_training_before_it(tmp_path: Path) -> None:
    config = recipe(**ASSISTED)
    first, second, _ = chain(config)
    assert first == teacher_recipe(recipe(**KD))
    alone = recipe(**KD | {"student": {"model": "lenet5_student"}})
    assert second == alone
    ids = identity(config, NO_DATA)["recipe"]["teacher"]
    assert ids == identity(alone, NO_DATA)
    assert ids["recipe"]["teacher"] == identity(first, NO_DATA)
    student = trained(config, tmp_path)
    place = workspace(tmp_path)
    record, of_assistant = student.folder.recipe(), place.trial(second).recipe()
    assert record is not None
    assert record["teacher"] == {"trial_id": place.trial_id(second)}
    assert of_assistant is not None
    assert of_assistant["teacher"] == {"trial_id": place.trial_id(first)}


def test_what_a_teachers_data_do_not_have_is_told_at_their_place(tmp_path: Path) -> None:
    config = recipe(**KD | {"teacher": KD["teacher"] | {"data": {"labelled_per_class": 99}}})
    with pytest.raises(UserError, match=r"^recipe\.teacher\.data\.labelled_per_class: must be at most"):
        workspace(tmp_path).trial_id(config)
    below = KD["teacher"] | {"data": {"exclude_classes": ["eleven"]}}
    config = recipe(**ASSISTED | {"teacher": ASSISTED["teacher"] | {"teacher": below}})
    with pytest.raises(UserError, match=r"^recipe\.teacher\.teacher\.data\.exclude_classes: digits has no class"):
        workspace(tmp_path).trial_id(config)


def test_errors_of_a_chain_name_the_place_in_the_whole_recipe(tmp_path: Path) -> None:
    method = {"name": "at", "balance": {"weight": 1.0}, "stages": ["8"]}
    assistant = {**BATCH_NORM_STUDENT, "method": method, "teacher": CONV_TEACHER}
    config = recipe(**CONV | {"method": KD["method"], "student": {"model": "lenet5_half"}, "teacher": assistant})
    with pytest.raises(UserError, match=r"^recipe\.teacher\.method\.stages: "):
        check_before_teacher(config, workspace(tmp_path))
    weights_file = {"model": "lenet5_teacher", "weights": {"file": "absent.pth"}}
    config = recipe(**ASSISTED | {"teacher": ASSISTED["teacher"] | {"teacher": weights_file}})
    with pytest.raises(UserError, match=r"^recipe\.teacher\.teacher\.weights\.file: absent\.pth"):
        workspace(tmp_path).trial_id(config)
