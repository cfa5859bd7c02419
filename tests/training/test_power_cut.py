"""A power cut loses or doubles rows, or damages files: rows, checkpoint and outcome agree before anything counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_resume import cut_after, require_continued
from trainings import KD, NO_DATA, recipe, trained, with_teacher, workspace

from kdtrain.errors import DamagedFile
from kdtrain.storage.folder import append_row
from kdtrain.training.trainer import train
from kdtrain.trials.store import TrialFolder

EPOCHS = 4


def without_the_last(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def without_the_last_two(path: Path) -> None:
    without_the_last(path)
    without_the_last(path)


def doubled(path: Path) -> None:
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])


def doubled_and_sealed(path: Path) -> None:
    append_row(
        path, {key: value for key, value in json.loads(path.read_bytes().splitlines()[-1]).items() if key[0] != "d"}
    )


def zeroed(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def lost(path: Path) -> None:
    path.unlink()


CUTS = [without_the_last, without_the_last_two, doubled, doubled_and_sealed, zeroed, lost]


@pytest.mark.parametrize("cut", CUTS)
def test_a_training_goes_back_to_where_its_rows_and_a_checkpoint_agree(
    cut: Callable[[Path], None], tmp_path: Path
) -> None:
    config = recipe(epochs=EPOCHS)
    cut(cut_after(config, tmp_path, 3).path / "epochs.jsonl")
    require_continued(config, tmp_path)


@pytest.mark.parametrize("cut", CUTS)
def test_a_training_whose_rows_its_outcome_does_not_count_is_trained_again(
    cut: Callable[[Path], None], tmp_path: Path
) -> None:
    config = recipe(epochs=EPOCHS)
    cut(trained(config, tmp_path).folder.path / "epochs.jsonl")
    require_continued(config, tmp_path, done=0)


@pytest.mark.parametrize("name", ["outcome.json", "recipe.json", "weights.safetensors", "predictions.npz"])
def test_a_file_with_a_flipped_bit_is_made_again(name: str, tmp_path: Path) -> None:
    config = recipe(epochs=EPOCHS)
    folder = trained(config, tmp_path).folder
    flip(folder, name)
    require_continued(config, tmp_path, done=EPOCHS if name == "predictions.npz" else 0)
    assert folder.is_whole(name) or name.endswith(".json")


def test_a_teacher_whose_weights_changed_after_its_training_teaches_nobody(tmp_path: Path) -> None:
    config = recipe(**KD)
    with_teacher(config, tmp_path)
    place = workspace(tmp_path)
    (teacher,) = [trial for trial in place.store.trials() if trial.has_weights()]
    flip(teacher, "weights.safetensors")
    with pytest.raises(DamagedFile, match=rf"^{teacher.path}/weights.safetensors: "):
        train(config, place)
    assert place.store.trial(place.trial_id(config)).outcome() is None
    assert place.data_root == NO_DATA


def flip(folder: TrialFolder, name: str) -> None:
    """Flip a bit in the middle of a value."""
    path = folder.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if path.suffix != ".json" else data.index(b'"parameters": ') + 14] ^= 1
    path.write_bytes(data)
