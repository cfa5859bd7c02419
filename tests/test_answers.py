"""The same training with its teacher asked live and read from the cache: the same bits, wherever answers are kept."""

import errno
from pathlib import Path
from typing import Any

import made_up_data
import pytest
from runs import BATCH_NORM_STUDENT
from trainings import KD, Trained, equal_weights, recipe, trained

from kdtrain import answers, environment
from kdtrain.answers import Sharing
from kdtrain.errors import UserError
from kdtrain.shared import Cache, SharedFolder

MIB = 1 << 20
CONV_TEACHER = {"model": "test_resnet", "weights": None, "epochs": 1}
ON_DIGITS: dict[str, dict[str, Any]] = {
    "deterministic": KD,
    "mixup": KD | {"mixup": {}, "method": {"name": "kd", "temperature": 2.0, "balance": {"alpha": 1.0}}},
    "attention": {
        "teacher": CONV_TEACHER,
        "student": BATCH_NORM_STUDENT,
        "data": {"name": "digits", "resolution": 32, "limit_per_class": 6},
        "method": {"name": "at", "balance": {"weight": 100.0}, "stages": ["8", "16"]},
    },
    "similarity": {
        "teacher": CONV_TEACHER,
        "student": BATCH_NORM_STUDENT,
        "data": {"name": "digits", "resolution": 32, "limit_per_class": 6},
        "method": {"name": "sp", "balance": {"weight": 10.0}, "stages": ["8", "16"]},
    },
    "relations": {
        "teacher": CONV_TEACHER,
        "student": BATCH_NORM_STUDENT,
        "data": {"name": "digits", "resolution": 32, "limit_per_class": 6},
        "method": {"name": "rkd_distance", "balance": {"weight": 5.0}},
    },
    "discriminator": KD
    | {
        "method": {
            "name": "logits_discriminator",
            "balance": {"alpha": 0.5},
            "temperature": 2.0,
            "critic_steps": 1,
            "student_steps": 2,
        }
    },
}


def sharing(folder: Path, budget: int = 64 * MIB) -> Sharing:
    return Sharing(Cache(folder / "cache", budget))


def computed(run: Trained) -> list[int]:
    return [int(row["teacher_images_computed"]) for row in run.folder.epochs()]


def require_equal(live: Trained, cached: Trained) -> None:
    assert cached.outcome["state"] == "complete"
    assert cached.checkpoints == live.checkpoints
    assert cached.rows == live.rows
    assert equal_weights(cached.weights, live.weights)


@pytest.mark.parametrize("kind", list(ON_DIGITS))
def test_a_training_that_reads_equals_one_that_asks_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config = recipe(**ON_DIGITS[kind])
    live = trained(config, tmp_path / "live")
    first = trained(config, tmp_path / "first", sharing=sharing(tmp_path))
    second = trained(config, tmp_path / "second", sharing=sharing(tmp_path))
    require_equal(live, first)
    require_equal(live, second)
    assert sum(computed(first)) >= 60
    assert sum(computed(second)) <= 40  # one chunk or batch, to compare


@pytest.mark.parametrize("name", ["hymenoptera", "cub200"])
def test_so_do_random_crops_flips_and_autoaugment(name: str, tmp_path: Path) -> None:
    getattr(made_up_data, name)(tmp_path / "data")
    config = recipe(**KD | {"data": {"name": name, "resolution": 32}, "batch_size": 8, "epochs": 3})
    runs = [
        trained(config, tmp_path / str(i), data_root=tmp_path / "data", sharing=shared)
        for i, shared in enumerate((None, sharing(tmp_path), sharing(tmp_path)))
    ]
    require_equal(runs[0], runs[1])
    require_equal(runs[0], runs[2])
    assert all(images > 0 for images in computed(runs[1]))  # another epoch, other views
    assert computed(runs[2])[1:] == [0, 0]


def test_trials_of_other_hyperparameters_and_batch_sizes_read_the_same_rows(tmp_path: Path) -> None:
    trained(recipe(**KD), tmp_path / "one", sharing=sharing(tmp_path))
    other = KD | {"method": {"name": "logit_mse", "balance": {"weight": 0.3}}, "batch_size": 20}
    other["teacher"] = KD["teacher"] | {"batch_size": 16}
    assert computed(trained(recipe(**other), tmp_path / "one", sharing=sharing(tmp_path)))[1:] == [0]


def folders(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").glob("*/about.json")))


CHANGES: dict[str, dict[str, Any]] = {
    "weights": {"teacher": KD["teacher"] | {"epochs": 1}},
    "network": {"teacher": {"model": "lenet5_student", "epochs": 2}},
    "resolution": {"data": {"name": "digits", "resolution": 20, "limit_per_class": 6}},
    "images": {"data": {"name": "digits", "resolution": 16, "limit_per_class": 5}},
    "splits": {"data": {"name": "digits", "resolution": 16, "limit_per_class": 6, "split_seed": 1}},
    "mixup": {"mixup": {}, "method": {"name": "kd", "temperature": 2.0, "balance": {"alpha": 1.0}}},
    "readings": {"method": {"name": "rkd_distance", "balance": {"weight": 5.0}}},
    "precision": {"precision": "bf16"},
}


@pytest.mark.parametrize("ingredient", list(CHANGES))
def test_another_ingredient_is_another_entry(ingredient: str, tmp_path: Path) -> None:
    config = KD | {"epochs": 1}
    trained(recipe(**config), tmp_path / "one", sharing=sharing(tmp_path))
    before = folders(tmp_path)
    trained(recipe(**config | CHANGES[ingredient]), tmp_path / "one", sharing=sharing(tmp_path))
    assert folders(tmp_path) > before == 2  # training and validation


def test_another_normalisation_of_the_same_weights_is_another_entry(tmp_path: Path) -> None:
    for normalization in ("imagenet", "half"):
        teacher = CONV_TEACHER | {"normalization": normalization}
        config = recipe(**KD | {"teacher": teacher, "epochs": 1, "data": ON_DIGITS["attention"]["data"]})
        trained(config, tmp_path / "one", sharing=sharing(tmp_path))
    assert folders(tmp_path) == 4


def test_another_epoch_and_another_seed_of_drawn_views_are_other_entries(tmp_path: Path) -> None:
    made_up_data.hymenoptera(tmp_path / "data")
    config = KD | {"data": {"name": "hymenoptera", "resolution": 32}, "batch_size": 8}
    found = []
    for changes in ({"epochs": 1}, {"epochs": 2}, {"epochs": 1, "seed": 1}):
        teacher = recipe(**config).teacher  # the same one for every seed
        own = recipe(**config | changes).model_copy(update={"teacher": teacher.model_copy(update={"seed": 0})})
        trained(own, tmp_path / "one", data_root=tmp_path / "data", sharing=sharing(tmp_path))
        found.append(folders(tmp_path))
    assert found == [2, 3, 4]  # the first has validation beside its one epoch


@pytest.mark.parametrize(
    ("of", "name", "changed"),
    [
        (answers, "CHUNK_IMAGES", 16),
        (answers, "UNIT_IMAGES", 32),
        (answers, "NUMERICS", -1),
        (environment, "rounding", lambda device: {"device": "another"}),
    ],
)
def test_another_chunk_code_or_machine_is_another_entry(
    of: Any, name: str, changed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(recipe(**KD | {"epochs": 1}), tmp_path / "one", sharing=sharing(tmp_path))
    monkeypatch.setattr(of, name, changed)
    other = KD | {"epochs": 1, "batch_size": 20, "teacher": KD["teacher"] | {"batch_size": 16}}
    trained(recipe(**other), tmp_path / "one", sharing=sharing(tmp_path))
    assert folders(tmp_path) == 4


def test_another_seed_is_no_other_entry_where_no_view_is_drawn(tmp_path: Path) -> None:
    for seed in (1, 2):
        config = recipe(**KD | {"seed": seed, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.01 * seed}})
        trained(
            config.model_copy(update={"teacher": recipe(**KD).teacher}), tmp_path / "one", sharing=sharing(tmp_path)
        )
    assert folders(tmp_path) <= 4


def test_what_is_kept_and_is_not_what_the_teacher_says_stops_the_training(tmp_path: Path) -> None:
    config = recipe(**KD)
    trained(config, tmp_path / "one", sharing=sharing(tmp_path))
    for about in (tmp_path / "cache").glob("*/about.json"):
        folder = SharedFolder(about.parent)
        kept = folder.load(0)
        folder.drop(0)
        folder.fill([0], lambda number, kept=kept: {name: values + 0.01 for name, values in kept.items()})
    with pytest.raises(
        UserError, match=r"teacher cache: .* is not what the teacher says \(logits differs by up to 0\.01"
    ):
        trained(config, tmp_path / "other", sharing=sharing(tmp_path))


def test_a_full_disk_turns_the_cache_off_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: SharedFolder, unit: int, tensors: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    live = trained(recipe(**KD), tmp_path / "live")
    monkeypatch.setattr(SharedFolder, "_write", full)
    without = trained(recipe(**KD), tmp_path / "full", sharing=sharing(tmp_path))
    require_equal(live, without)
    assert (
        without.outcome["teacher_cache_off"] == f"{tmp_path / 'cache'} cannot be written to (No space left on device)"
    )


def test_without_room_the_teacher_is_asked_live(tmp_path: Path) -> None:
    live = trained(recipe(**KD), tmp_path / "live")
    without = trained(recipe(**KD), tmp_path / "small", sharing=sharing(tmp_path, budget=100))
    require_equal(live, without)
    assert without.outcome["teacher_cache_off"] == "no room within 100 bytes (resources.cache_bytes)"
    assert folders(tmp_path) == 0


def test_whole_feature_maps_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LARGEST_BYTES", 500)
    config = recipe(**ON_DIGITS["attention"] | {"method": {"name": "mgd", "balance": {"weight": 1.0}, "stage": "16"}})
    trained(config, tmp_path / "one", sharing=sharing(tmp_path))
    assert folders(tmp_path) == 0
