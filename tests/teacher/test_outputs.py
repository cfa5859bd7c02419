"""The same training with a live teacher and with cached teacher outputs: the same bits, whatever the cache does."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up_data
import pytest
import torch
from runs import BATCH_NORM_STUDENT, fresh_state
from trainings import KD, NO_DATA, Trained, equal_weights, recipe, trained, workspace

from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import INHERITED
from kdtrain.config.teacher import Teacher as TeacherConfig
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.runtime import process
from kdtrain.storage import cache
from kdtrain.storage.cache import Cache, SharedFolder
from kdtrain.storage.folder import Row
from kdtrain.teacher import cache_key
from kdtrain.teacher.cache_key import train_key, val_key
from kdtrain.teacher.cache_policy import cached_readings
from kdtrain.teacher.cache_rows import LAST, CachedRows, from_stored, to_stored
from kdtrain.teacher.outputs import LiveTeacher
from kdtrain.training.preflight import smoke

MIB = 1 << 20
CONV_TEACHER = {"model": "test_resnet", "weights": None, "epochs": 1}
CONV: dict[str, Any] = {
    "teacher": CONV_TEACHER,
    "student": BATCH_NORM_STUDENT,
    "data": {"name": "digits", "resolution": 32, "limit_per_class": 6},
}
CRITIC = {"name": "logits_discriminator", "temperature": 2.0, "critic_steps": 1, "student_steps": 2}
ON_DIGITS: dict[str, dict[str, Any]] = {
    "deterministic": KD,
    "mixup": KD | {"mixup": {}, "method": {"name": "kd", "temperature": 2.0, "balance": {"alpha": 1.0}}},
    "attention": CONV | {"method": {"name": "at", "balance": {"weight": 100.0}, "stages": ["8", "16"]}},
    "similarity": CONV | {"method": {"name": "sp", "balance": {"weight": 10.0}, "stages": ["8", "16"]}},
    "whole maps": CONV | {"method": {"name": "mgd", "balance": {"weight": 1.0}, "stage": "8"}},
    "relations": CONV | {"method": {"name": "rkd_distance", "balance": {"weight": 5.0}}},
    "discriminator": KD | {"method": CRITIC | {"balance": {"alpha": 0.5}}},
}


def shared(folder: Path, budget: int = 64 * MIB) -> Cache:
    return Cache(folder / "cache", budget)


def counted(state: Trained, name: str) -> int:
    return sum(int(row[name]) for row in state.folder.epochs())


def computed(state: Trained) -> list[int]:
    return [int(row["teacher_images_computed"]) for row in state.folder.epochs()]


def require_equal(live: Trained, *cached: Trained) -> None:
    for each in cached:
        assert each.outcome["state"] == "complete"
        assert each.checkpoints == live.checkpoints
        assert each.rows == live.rows
        assert equal_weights(each.weights, live.weights)


def live_then_cached_twice(config: Recipe, tmp_path: Path, data_root: Path = NO_DATA) -> list[Trained]:
    """Train without a cache, with one that is filled and with one that is read, and require equal trainings."""
    live = trained(config) if data_root == NO_DATA else trained(config, tmp_path / "live", data_root=data_root)
    cached = [trained(config, tmp_path / name, data_root=data_root, cache=shared(tmp_path)) for name in ("1", "2")]
    require_equal(live, *cached)
    return cached


@pytest.mark.parametrize("kind", list(ON_DIGITS))
def test_a_training_that_reads_the_cache_equals_a_live_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    first, second = live_then_cached_twice(recipe(**ON_DIGITS[kind]), tmp_path)
    assert sum(computed(first)) >= 60
    assert sum(computed(second)) == 0
    assert 0 < counted(second, "teacher_images_checked") <= 40  # one chunk or batch, to compare


@pytest.mark.parametrize("name", ["hymenoptera", "cub200"])
def test_so_do_random_crops_flips_and_autoaugment(name: str, tmp_path: Path) -> None:
    getattr(made_up_data, name)(tmp_path / "data")
    config = recipe(**KD | {"data": {"name": name, "resolution": 32}, "batch_size": 8, "epochs": 3})
    first, second = live_then_cached_twice(config, tmp_path, tmp_path / "data")
    assert all(images > 0 for images in computed(first))  # another epoch, other views
    assert computed(second) == [0, 0, 0]


REAL: dict[str, dict[str, Any]] = {
    "mnist": {"data": {"name": "mnist", "resolution": 32, "limit_per_class": 12}},
    "hymenoptera": {"data": {"name": "hymenoptera", "resolution": 64, "limit_per_class": 20}},  # crop and flip
    "cub200": {"data": {"name": "cub200", "resolution": 64, "limit_per_class": 1}},  # AutoAugment
    "flowers102": {  # crop, flip and mixup
        "data": {"name": "flowers102", "resolution": 64, "limit_per_class": 1}, "mixup": {},
        "method": {"name": "kd", "temperature": 2.0, "balance": {"alpha": 1.0}},
    },
}  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("name", list(REAL))
def test_so_does_a_training_on_real_images(name: str, real_data: Path, tmp_path: Path) -> None:
    of_files = {} if name == "mnist" else {"teacher": CONV_TEACHER, "student": BATCH_NORM_STUDENT}
    _, second = live_then_cached_twice(recipe(**KD | of_files | REAL[name]), tmp_path, real_data)
    assert sum(computed(second)) == 0


def test_trials_of_other_hyperparameters_and_batch_sizes_read_the_same_rows(tmp_path: Path) -> None:
    trained(recipe(**KD), tmp_path / "one", cache=shared(tmp_path))
    other = KD | {"method": {"name": "logit_mse", "balance": {"weight": 0.3}}, "batch_size": 20}
    other["teacher"] = KD["teacher"] | {"batch_size": 16}
    assert computed(trained(recipe(**other), tmp_path / "one", cache=shared(tmp_path))) == [0, 0]


def folders(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").glob("*/about.json")))


def ingredients(
    teacher_file: Path, split: str = "train", epoch: int = 0, data_root: Path = NO_DATA, **changes: Any
) -> Row:
    """Return the key of the outputs of a teacher in a file, whose digest is the same whatever is changed."""
    teacher = {"model": "test_resnet", "trained": str(teacher_file)} | changes.pop("teacher", {})
    state = fresh_state(recipe(**KD | CONV | {"teacher": teacher} | changes), data_root)
    assert isinstance(state.teacher_outputs, LiveTeacher)
    if split == "val":
        return val_key(state.teacher_outputs, "a digest")
    return train_key(state.teacher_outputs, "a digest", state.recipe.method.teacher_readings, epoch)


RELATIONS = {"name": "rkd_distance", "balance": {"weight": 5.0}}
SIMILARITY = {"name": "sp", "balance": {"weight": 5.0}, "stages": ["4"]}
FUNMATCH = {"name": "kd", "temperature": 2.0, "balance": {"alpha": 1.0}}
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "its head": ("network", {"teacher": {"head": "hidden", "dropout": 0.5}}),
    "its memory layout": ("network", {"teacher": {"channels_last": False}}),
    "its normalisation": ("network", {"teacher": {"normalization": "imagenet"}}),
    "its compilation": ("network", {"teacher": {"compile": True}}),
    "its own resolution": ("image shape", {"teacher": {"data": {"resolution": 24}}}),
    "resolution": ("data config", {"data": {"name": "digits", "resolution": 20, "limit_per_class": 6}}),
    "images": ("data", {"data": {"name": "digits", "resolution": 32, "limit_per_class": 5}}),
    "splits": ("data", {"data": {"name": "digits", "resolution": 32, "limit_per_class": 6, "split_seed": 1}}),
    "mixup": ("mixup", {"mixup": {}, "method": FUNMATCH}),
    "mixup's seed": ("random views of", {"mixup": {}, "method": FUNMATCH, "seed": 1}),
    "readings": ("readings", {"method": RELATIONS}),
    "precision": ("precision", {"precision": "bf16"}),
    "batches": ("batches", {"method": SIMILARITY}),
}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    file.touch()  # its digest is given
    return file


@pytest.mark.parametrize("what", list(CHANGES))
def test_each_ingredient_is_in_the_key_by_itself(what: str, teacher_file: Path) -> None:
    ingredient, changes = CHANGES[what]
    plain, changed = ingredients(teacher_file), ingredients(teacher_file, **changes)
    assert plain[ingredient] != changed[ingredient]
    assert cache.key_of(plain) != cache.key_of(changed)
    assert plain["weights"] == changed["weights"]


def test_every_field_of_a_teacher_is_in_the_key_or_decides_only_its_weights_whose_digest_is() -> None:
    training = {
        *INHERITED,
        "seed",
        "weights",
        "freeze",
        "batch_norm_statistics",
        "dropout",
        "input_dropout",
        "max_norm",
    }
    training |= {"data", "method", "teacher"}  # the resolution of its data is there as the image shape
    own = {"trained", "weights_key", "allow_random_frozen"}
    assert set(TeacherConfig.model_fields) == cache_key.NETWORK | training | own


def test_readings_of_edited_code_are_not_read_again(teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for of_batches in (RELATIONS, SIMILARITY):
        before, asked = ingredients(teacher_file, method=of_batches), []
        with monkeypatch.context() as patch:
            patch.setattr(cache_key, "code_digest", lambda module: asked.append(module) or "edited")  # noqa: B023
            after = ingredients(teacher_file, method=of_batches)
        assert {name for name in before if before[name] != after[name]} == {"readings"}
    assert asked == ["kdtrain.methods.sp"]


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 20}, {"seed": 1}, {"student": {"model": "lenet5_teacher"}}, {"epochs": 5}, {"label_smoothing": 0.1},
     {"optimizer": {"name": "adam", "lr": 0.1}}, {"method": {"name": "logit_mse", "balance": {"weight": 1.0}}}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_changes_no_output_is_not_in_the_key(changes: dict[str, Any], teacher_file: Path) -> None:
    assert ingredients(teacher_file, **changes) == ingredients(teacher_file)


def test_similarities_are_of_the_same_batches_only(teacher_file: Path) -> None:
    keys = {
        cache.key_of(ingredients(teacher_file, method=SIMILARITY, epoch=epoch, **changes))
        for epoch, changes in ((0, {}), (1, {}), (0, {"seed": 1}), (0, {"batch_size": 20}))
    }
    assert len(keys) == 4


def test_validation_is_in_float32_but_for_tf32(teacher_file: Path) -> None:
    assert ingredients(teacher_file, "val", precision="bf16") == ingredients(teacher_file, "val")
    state = fresh_state(recipe(**KD))
    assert isinstance(state.teacher_outputs, LiveTeacher)
    state.teacher_outputs.use = replace(state.teacher_outputs.use, precision="tf32")
    assert val_key(state.teacher_outputs, "a digest")["precision"] == "tf32"


def test_other_weights_are_another_entry(tmp_path: Path) -> None:
    config = KD | {"epochs": 1}
    trained(recipe(**config), tmp_path / "one", cache=shared(tmp_path))
    assert folders(tmp_path) == 2  # training and validation
    trained(recipe(**config | {"teacher": KD["teacher"] | {"epochs": 1}}), tmp_path / "one", cache=shared(tmp_path))
    assert folders(tmp_path) == 4


@pytest.mark.parametrize(
    ("of", "name", "changed"),
    [
        (cache_key, "CHUNK_IMAGES", 16),
        (cache_key, "UNIT_IMAGES", 32),
        (cache_key, "NUMERICS", -1),
        (process, "rounding", lambda device: {"device": "another"}),
    ],
)
def test_another_chunk_code_or_machine_is_another_entry(
    of: Any, name: str, changed: Any, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [cache.key_of(ingredients(teacher_file, split)) for split in ("train", "val")]
    monkeypatch.setattr(of, name, changed)
    after = [cache.key_of(ingredients(teacher_file, split)) for split in ("train", "val")]
    assert len({*before, *after}) == 4


def test_transform_epoch_seed_and_content_of_drawn_views_are_in_the_key(teacher_file: Path, tmp_path: Path) -> None:
    made_up_data.cub200(tmp_path)

    def key(augment: str = "standard", **changes: Any) -> str:
        load.cache_clear()  # as in another process
        data = {"name": "cub200", "resolution": 32, "augment": augment}
        return cache.key_of(ingredients(teacher_file, data_root=tmp_path, data=data, **changes))

    keys = [key(), key("none"), key(epoch=1), key(seed=1)]
    assert key() == keys[0]
    file = next(tmp_path.rglob("*.png"))
    os.utime(file, (1, 1))  # a time alone is no change
    assert key() == keys[0]
    made_up_data.paint(file.with_name("another.png")).replace(file)
    assert len({*keys, key()}) == 5


def test_a_searched_trial_leaves_the_test_splits_images_alone_and_whoever_may_read_them_does_not(
    tmp_path: Path,
) -> None:
    made_up_data.hymenoptera(tmp_path / "data")
    config = recipe(data={"name": "hymenoptera", "resolution": 32}, batch_size=8, epochs=1)
    broken = config.data.load(tmp_path / "data").test.images.source.files[-1]
    broken.write_bytes(b"no image")
    searched = trained(config, tmp_path / "one", data_root=tmp_path / "data", final=False, cache=shared(tmp_path))
    assert searched.outcome["state"] == "complete"
    assert folders(tmp_path) == 2  # training's and validation's
    for refused in (
        lambda: smoke(config, workspace(tmp_path / "one", tmp_path / "data")),
        lambda: trained(config, tmp_path / "one", data_root=tmp_path / "data", cache=shared(tmp_path)),
    ):
        with pytest.raises(UserError, match=str(broken)):
            refused()


def test_what_is_kept_and_is_not_what_the_teacher_says_stops_the_training(tmp_path: Path) -> None:
    config = recipe(**KD)
    trained(config, tmp_path / "one", cache=shared(tmp_path))
    for about in (tmp_path / "cache").glob("*/about.json"):
        folder = SharedFolder(about.parent)
        kept = folder.load(0)
        folder.drop(0)
        folder.fill([0], lambda number, kept=kept: {name: values + 0.01 for name, values in kept.items()})
    with pytest.raises(
        UserError, match=r"teacher cache: .* differs from the teacher's outputs \(logits by up to 0\.01"
    ):
        trained(config, tmp_path / "other", cache=shared(tmp_path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages, full once about.json and a unit lie there."""
    disk = tmp_path / "small disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_turns_the_cache_off_and_the_training_goes_on(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = trained(recipe(**KD), tmp_path / "full", cache=shared(small_disk))
    require_equal(trained(recipe(**KD)), without)
    reason = f"{small_disk / 'cache'} cannot be written to (No space left on device)"
    assert without.outcome["teacher_cache_off"] == reason
    assert f"computed live from here on: {reason}" in caplog.text


def test_a_cache_that_is_turned_off_in_mid_training_is_not_read_any_more(tmp_path: Path) -> None:
    """The views of training have room, those of validation have not; the ninth epoch would check what was read."""
    maps = ON_DIGITS["attention"]
    config = recipe(**maps | {"method": KD["method"], "epochs": 9})
    readings = recipe(**maps).method.teacher_readings
    trained(config, tmp_path / "whole", cache=shared(tmp_path), shared_readings=readings)
    expected = [json.loads(about.read_text()) for about in (tmp_path / "cache").glob("*/about.json")]
    budget = next(about["expected_bytes"] for about in expected if about["split"] == "train") + 1
    part = trained(config, tmp_path / "part", cache=Cache(tmp_path / "small", budget), shared_readings=readings)
    require_equal(trained(config), part)
    assert part.outcome["teacher_cache_off"] == f"no room within {budget:,} bytes (resources.cache_bytes)"


def test_each_trial_checks_another_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    train_unit = LiveTeacher.train_unit

    def watched(self: LiveTeacher, indices: torch.Tensor, epoch: int) -> Any:
        asked.append(tuple(indices.tolist()))
        return train_unit(self, indices, epoch)

    monkeypatch.setattr(LiveTeacher, "train_unit", watched)
    taught = KD["teacher"] | {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05}}
    config = KD | {"teacher": taught, "data": {"name": "digits", "resolution": 16}, "epochs": 1}
    for lr in (0.01, 0.02, 0.03, 0.04):
        own = recipe(**config | {"optimizer": {"name": "sgd", "lr": lr}})
        trained(own, tmp_path / "one", final=False, cache=shared(tmp_path))
    units, checks = asked[:4], asked[4:]
    assert sorted(index for unit in units for index in unit) == list(range(898))
    assert [0 < len(check) <= 32 for check in checks] == [True] * 4
    assert len(set(checks)) > 1


def test_a_compiled_teacher_is_asked_for_its_own_stages_only(tmp_path: Path) -> None:
    maps = ON_DIGITS["attention"]
    of_all = recipe(**maps).method.teacher_readings
    for compiled, kept in ((False, of_all), (True, ())):
        state = fresh_state(recipe(**maps | {"method": KD["method"], "teacher": CONV_TEACHER | {"compile": compiled}}))
        assert isinstance(state.teacher_outputs, LiveTeacher)
        assert cached_readings(state.teacher_outputs, of_all, 64 * MIB) == kept


def test_without_room_the_teacher_is_asked_live(tmp_path: Path) -> None:
    without = trained(recipe(**KD), tmp_path / "small", cache=shared(tmp_path, budget=100))
    require_equal(trained(recipe(**KD)), without)
    assert without.outcome["teacher_cache_off"] == "no room within 100 bytes (resources.cache_bytes)"
    assert folders(tmp_path) == 0


MGD = ON_DIGITS["whole maps"] | {"epochs": 1}


def test_whole_feature_maps_are_kept_only_where_all_views_of_a_training_fit(tmp_path: Path) -> None:
    size = 4 * (10 + 32 * 16 * 16)  # logits, and the test network's maps at stage 4
    data = {"name": "digits", "resolution": 64, "limit_per_class": 6}
    maps = MGD | {"data": data} | {"method": {"name": "mgd", "balance": {"weight": 1.0}, "stage": "4"}}
    shown = trained(recipe(**maps), tmp_path / "one", cache=shared(tmp_path, budget=size * 60 + 100_000)).outcome
    assert shown["teacher_cache_off"] is None
    assert folders(tmp_path) >= 1
    off = trained(recipe(**maps), tmp_path / "other", cache=shared(tmp_path / "small", budget=size * 60 - 1)).outcome
    assert off["teacher_cache_off"] == (
        f"what mgd reads takes {size:,} bytes per image and view, {60 * size:,} in all: more than {60 * size - 1:,}"
        " (resources.cache_bytes)"
    )
    assert folders(tmp_path / "small") == 0


def test_a_method_without_maps_keeps_them_for_those_that_read_them(tmp_path: Path) -> None:
    of_mgd = recipe(**MGD).method.teacher_readings
    first = {"cache": shared(tmp_path), "shared_readings": of_mgd}
    trained(recipe(**MGD | KD | {"teacher": CONV_TEACHER}), tmp_path / "one", **first)
    assert computed(trained(recipe(**MGD), tmp_path / "one", **first)) == [0]


def test_memory_holds_no_maps_that_a_method_does_not_read(tmp_path: Path) -> None:
    kept = {"logits": torch.zeros(4, 3), "features:8" + LAST: torch.zeros(4, 2, 2, 8)}
    folder = shared(tmp_path).folder({"of": "a test"}, lambda: 1)
    assert folder is not None
    rows = CachedRows(folder, 0, [torch.arange(4)], [kept], ("logits",), torch.device("cpu"), False)
    assert list(rows.rows(torch.tensor([3, 1]))) == ["logits"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_come_back_in_the_layout_that_the_teacher_gave_them(layout: torch.memory_format, tmp_path: Path) -> None:
    given = torch.rand(5, 4, 3, 2).contiguous(memory_format=layout)
    name, kept = to_stored("features:8", given)
    assert kept.is_contiguous()
    name, back = from_stored(name, kept)
    assert (name, back.stride(), torch.equal(back, given)) == ("features:8", given.stride(), True)
