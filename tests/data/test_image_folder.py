"""image_folder: a user's own images, in every layout and with every mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdtrain.data.image_folder import ImageFolder
from kdtrain.data.registry import load
from kdtrain.data.views import ViewedImages
from kdtrain.errors import UserError


def config(folder: str | Path, **changes: Any) -> ImageFolder:
    return ImageFolder.model_validate({"name": "image_folder", "folder": str(folder), "resolution": 16} | changes)


def paint(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (30, 24)) -> None:
    """Images of noise, each its own: .png names sort in the order of their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        noise = np.random.default_rng([number, len(folder.name)]).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:03d}.png")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """<class>/<image>: 20 cats, 10 dogs."""
    paint(tmp_path / "pets" / "cat", 20)
    paint(tmp_path / "pets" / "hound", 10)
    return tmp_path / "pets"


@pytest.fixture
def parts(tmp_path: Path) -> Callable[[str], Path]:
    """train/<class>/<image> and another part beside it."""

    def made(held_out: str) -> Path:
        for part, count in (("train", 10), (held_out, 4)):
            paint(tmp_path / "parts" / part / "cat", count, first=100 * len(part))
            paint(tmp_path / "parts" / part / "hound", count, first=100 * len(part))
        return tmp_path / "parts"

    return made


def all_files(*splits: ViewedImages) -> list[Path]:
    return sorted(file for split in splits for file in split.source.files)


def test_a_folder_of_classes_is_split_by_fractions_and_nothing_is_lost(flat: Path) -> None:
    data = config("pets", test_fraction=0.3, val_fraction=0.2).load(flat.parent)
    assert data.classes == ("cat", "hound")
    assert (len(data.train), len(data.val), len(data.test)) == (17, 4, 9)
    assert torch.bincount(data.test.labels).tolist() == [6, 3]
    assert all_files(data.train.images, data.val.images, data.test.images) == sorted(flat.rglob("*.png"))
    for split in (data.train, data.val, data.test):
        assert [data.classes[label] for label in split.labels] == [f.parent.name for f in split.images.source.files]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_test_or_else_a_val_part_is_the_test_split_and_validation_comes_from_train(parts, held_out: str) -> None:
    folder = parts(held_out)
    data = config(folder).load(Path("unused"))
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 8)
    assert {file.parts[-3] for file in data.test.images.source.files} == {held_out}
    assert {file.parts[-3] for file in data.train.images.source.files + data.val.images.source.files} == {"train"}


def test_where_test_and_val_stand_side_by_side_test_is_tested(parts) -> None:
    parts("val")
    data = config(parts("test")).load(Path("unused"))
    assert {file.parts[-3] for file in data.test.images.source.files} == {"test"}


def test_files_that_are_no_images_and_hidden_folders_are_left_alone(flat: Path) -> None:
    (flat / "cat" / "Thumbs.db").write_bytes(b"")
    (flat / ".cache").mkdir()
    data = config(flat, test_fraction=0.3).load(Path("unused"))
    assert data.classes == ("cat", "hound")
    assert len(data.train) + len(data.val) + len(data.test) == 30


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_view_is_a_pure_function_of_seed_epoch_and_index(flat: Path, augment: str) -> None:
    def fresh() -> ViewedImages:
        return config(flat, test_fraction=0.3, augment=augment).load(Path("unused")).train.images

    images = fresh()
    straight = images.train_view(torch.tensor([0, 1, 2, 3]), seed=5, epoch=7)
    torch.rand(100)
    images.train_view(torch.tensor([9, 2]), seed=5, epoch=8)
    backwards = images.train_view(torch.tensor([3, 2, 1, 0]), seed=5, epoch=7)
    assert torch.equal(straight, backwards.flip(0))
    assert torch.equal(straight, fresh().train_view(torch.tensor([0, 1, 2, 3]), seed=5, epoch=7))
    assert straight.shape == (4, 3, 16, 16)
    assert straight.dtype == torch.uint8
    assert straight.min() < straight.max()


def test_augmented_views_differ_between_seeds_epochs_and_images(flat: Path) -> None:
    images = config(flat, test_fraction=0.3, augment="crop_flip").load(Path("unused")).train.images
    index = torch.tensor([4])
    views = [images.train_view(index, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({view.numpy().tobytes() for view in views}) == 3


def test_drawing_views_leaves_the_callers_random_numbers_as_they_were(flat: Path) -> None:
    images = config(flat, test_fraction=0.3, augment="crop_flip").load(Path("unused")).train.images
    before = torch.random.get_rng_state()
    images.train_view(torch.arange(3), seed=0, epoch=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_view_of_evaluation_is_torchvisions_resize_and_centre_crop(flat: Path) -> None:
    from torchvision import transforms

    images = config(flat, test_fraction=0.3, augment="crop_flip").load(Path("unused")).val.images
    as_torchvision = transforms.Compose(
        [transforms.Resize(18), transforms.CenterCrop(16), transforms.PILToTensor()]  # 18 = round(16 * 8 / 7)
    )
    expected = torch.stack([as_torchvision(Image.open(file).convert("RGB")) for file in images.source.files])
    view = images.eval_view(torch.arange(len(images)))
    assert torch.equal(view, expected)
    assert torch.equal(view, images.eval_view(torch.arange(len(images))))


def test_grey_transparent_and_palette_images_have_three_channels(tmp_path: Path) -> None:
    for name, mode in (("a", "L"), ("b", "RGBA"), ("c", "P")):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new(mode, (20, 20), number).save(tmp_path / name / f"{number}.png")
    data = config(tmp_path, test_fraction=0.34, val_fraction=0.5).load(Path("unused"))
    assert data.train.images.eval_view(torch.arange(len(data.train))).shape[1:] == (3, 16, 16)


def test_an_image_decoded_again_is_the_same_image(flat: Path, monkeypatch) -> None:
    kept, never_kept = (config(flat, test_fraction=0.3).load(Path("unused")).train.images for _ in range(2))
    first = kept.eval_view(torch.arange(5))
    monkeypatch.setattr("kdtrain.data.image_files.MAX_MEMORY_BYTES", 0)
    for images in (kept, never_kept, never_kept):
        assert torch.equal(images.eval_view(torch.arange(5)), first)
    assert (len(kept.source.decoded), len(never_kept.source.decoded)) == (5, 0)


def test_the_fingerprint_changes_with_a_file_its_size_or_the_split(flat: Path) -> None:
    def mark(**changes: Any) -> str:
        return config(flat, **{"test_fraction": 0.3} | changes).load(Path("unused")).fingerprint

    known = mark()
    assert known == mark() == mark(resolution=20)  # how they are seen is said by the recipe
    assert known != mark(split_seed=1)
    paint(flat / "cat", 1, first=3, size=(31, 24))
    resized = mark()
    paint(flat / "cat", 1, first=200)
    assert len({known, resized, mark()}) == 3


def test_a_folder_that_is_not_there_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        config("absent", test_fraction=0.2).load(tmp_path)
    (problem,) = caught.value.problems
    assert f"looked for {tmp_path / 'absent'}" in problem
    assert "<class>/<image>" in problem
    assert "--data DIR or KDTRAIN_DATA" in problem


def refusal(configured: ImageFolder) -> str:
    with pytest.raises(UserError) as caught:
        configured.load(Path("unused"))
    (problem,) = caught.value.problems
    return problem


def test_absent_parts_need_a_fraction_and_a_test_part_takes_none(flat: Path, parts) -> None:
    assert refusal(config(flat)) == f"recipe.data.test_fraction: {flat} has no train and test part; write a fraction"
    folder = parts("elsewhere")
    assert refusal(config(folder)).startswith(f"recipe.data.test_fraction: {folder} has no test or val part")
    parts("test")
    assert "remove the fraction" in refusal(config(folder, test_fraction=0.2))


def test_a_missing_class_an_empty_class_and_a_single_class_are_refused_with_the_folder(flat: Path, parts) -> None:
    folder = parts("test")
    (folder / "test" / "cat").rename(folder / "test" / "dog")
    assert refusal(config(folder)).startswith(f"recipe.data: {folder / 'test'} and {folder / 'train'} hold different")
    for image in (flat / "cat").iterdir():
        image.unlink()
    assert refusal(config(flat, test_fraction=0.2)).startswith(f"recipe.data: {flat / 'cat'} holds no image (.jpg")
    (flat / "cat").rmdir()
    assert "a folder for each of at least 2 classes, got 1" in refusal(config(flat, test_fraction=0.2))


@pytest.mark.parametrize(
    ("fractions", "split"),
    [({"val_fraction": 0.01, "test_fraction": 0.3}, "validation"), ({"test_fraction": 0.01}, "test"),
     ({"val_fraction": 0.99, "test_fraction": 0.3}, "train")],
)  # fmt: skip
def test_a_split_without_images_is_refused_by_name(flat: Path, fractions: dict[str, float], split: str) -> None:
    assert refusal(config(flat, **fractions)) == f"recipe.data: {flat} leaves no image for the {split} split"


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_image_is_a_sentence_with_its_file(flat: Path, damage: str) -> None:
    images = config(flat, test_fraction=0.3).load(Path("unused")).train.images
    file = images.source.files[0]
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no image", "empty": b""}[damage])
    with pytest.raises(UserError) as caught:
        images.eval_view(torch.tensor([0]))
    assert caught.value.problems[0].startswith(f"{file}: is not a whole image")


@pytest.mark.data
def test_hymenoptera_is_read_as_it_is_distributed(real_data: Path) -> None:
    source = real_data / "hymenoptera_data"
    data = load(config("hymenoptera_data", resolution=32), real_data)
    on_disk = {part: len(list((source / part).glob("*/*.jp*g"))) for part in ("train", "val")}  # and one .gif
    assert data.classes == ("ants", "bees")
    assert len(data.train) + len(data.val) == on_disk["train"] > 200
    assert len(data.test) == on_disk["val"] > 100
    assert {file.parts[-3] for file in data.test.images.source.files} == {"val"}
    assert data.test.images.eval_view(torch.arange(8)).shape == (8, 3, 32, 32)
