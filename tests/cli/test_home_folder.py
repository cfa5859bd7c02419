"""`~` is the home folder wherever a path is written: options, environment variables, keys of a file, the Python API."""

from pathlib import Path

import made_up_data
import pytest
from pydantic import TypeAdapter
from studies import sweep_file

import kdtrain as kd
from kdtrain.cli.main import main
from kdtrain.config.sweep import load_sweep
from kdtrain.data.registry import Data, data_folder
from kdtrain.models.weights import content_digest
from kdtrain.storage.cache import cache_folder
from kdtrain.storage.mirror import results_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the working folder is another one."""
    folder = tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("KDTRAIN_DATA", raising=False)
    return folder


def test_results_data_and_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert results_folder("~/results").path == home / "results"
    assert data_folder("~/data") == data_folder(Path("~/data")) == home / "data"
    monkeypatch.setenv("KDTRAIN_DATA", "~/named")
    assert data_folder(None) == home / "named"
    monkeypatch.setenv("KDTRAIN_CACHE", "~/cache")
    assert cache_folder() == home / "cache"
    assert list(Path().iterdir()) == []


def test_files_and_folders_that_a_recipe_names(home: Path) -> None:
    (home / "teacher.pth").write_bytes(b"weights")
    assert content_digest("~/teacher.pth", "recipe.teacher") == content_digest(home / "teacher.pth", "recipe.teacher")
    made_up_data.paint_classes(home / "pets")
    config = TypeAdapter(Data).validate_python({"name": "image_folder", "folder": "~/pets", "resolution": 16})
    assert config.load(Path("data")).classes == ("cat", "dog")


def test_sweep_files_and_reports(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_file(home)
    assert load_sweep("~/small.yaml").name == "small"
    assert main(["check", "~/small.yaml"]) == 0
    with pytest.raises(kd.UserError, match=f"^{home}/none: no such folder"):
        kd.open_study("~/none")
    capsys.readouterr()
    assert main(["report", "~/none"]) == 2
    assert capsys.readouterr().err.startswith(f"{home}/none: no such folder")
    assert list(Path().iterdir()) == []
