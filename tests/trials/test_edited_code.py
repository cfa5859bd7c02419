"""A copy of the package is edited, and the same command is run again, in a real process."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainings import ALONE, KD

ROOT = Path(__file__).parents[2]
TERM = "    return temperature**2 * _kl(teacher_NK.detach(), student_NK, temperature)\n"
"""The loss of kd."""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with a copy of kdtrain, and a recipe of kd."""
    for name in ("kdtrain", "analysis"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(ALONE | KD | {"epochs": 1}))
    return tmp_path


def edit(package: Path, old: str, new: str) -> None:
    file = package / "kdtrain" / "methods" / "kd.py"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def trained_anew(package: Path) -> set[str]:
    """Run the command; return the methods of the trials that it trained."""
    before = {path.name for path in package.glob("results/trials/*")}
    command = [sys.executable, "-m", "kdtrain", "train", "kd.yaml", "--results", "results"]
    done = subprocess.run(command, cwd=package, env={"PYTHONPATH": str(package)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recipes = [path / "recipe.json" for path in package.glob("results/trials/*") if path.name not in before]
    return {yaml.safe_load(path.read_text())["recipe"]["method"]["name"] for path in recipes}


@pytest.mark.slow
def test_a_method_that_is_edited_is_trained_again_and_its_teacher_is_not(package: Path) -> None:
    assert trained_anew(package) == {"none", "kd"}
    edit(package, TERM, f"    # the same\n{TERM.replace('temperature**2', '(temperature ** 2)')}")
    edit(package, "Hinton, Vinyals, Dean 2015", "Hinton et al. 2015")
    assert trained_anew(package) == set()
    edit(package, "(temperature ** 2) *", "100 * (temperature ** 2) *")
    assert trained_anew(package) == {"kd"}
    edit(package, "100 * ", "")
    assert trained_anew(package) == set()
