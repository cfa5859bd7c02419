"""What a training records of the code that it ran."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kdtrain.runtime.process import source_state

UNKNOWN = {"git_commit": None, "git_dirty": None}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a package in a repository of its own, with one commit."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "loss.py").write_text("factor = 1\n")
    git(folder.parent, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def state(package: Path) -> dict[str, str | None]:
    source_state.cache_clear()  # a process reads it once
    return source_state(package)


def test_a_clean_tree_has_its_commit_and_no_digest(package: Path) -> None:
    (package / "notes.txt").write_text("untracked, and no module")
    assert state(package) == {"git_commit": git(package, "rev-parse", "HEAD"), "git_dirty": None}


def test_each_difference_from_the_commit_has_a_digest_of_its_own(package: Path) -> None:
    digests = []
    for content in ("factor = 2\n", "factor = 3\n"):
        (package / "loss.py").write_text(content)
        digests.append(state(package)["git_dirty"])
    (package / "loss.py").write_text("factor = 1\n")
    for content in ("one\n", "two\n"):
        (package / "untracked.py").write_text(content)
        digests.append(state(package)["git_dirty"])
    git(package, "add", ".")
    digests.append(state(package)["git_dirty"])  # staged changes are not committed
    assert all(digest is not None and len(digest) == 16 for digest in digests)
    assert len(set(digests)) == len(digests)
    git(package, "commit", "-m", "second")
    assert state(package)["git_dirty"] is None


def test_a_package_that_is_only_installed_inside_a_repository_is_not_of_its_commit(package: Path) -> None:
    installed = package.parent / ".venv" / "site-packages" / "package"
    shutil.copytree(package, installed)
    assert state(installed) == UNKNOWN


def test_without_a_repository_or_without_git_nothing_is_known(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(package.parent / ".git")
    assert state(package) == UNKNOWN
    monkeypatch.setenv("PATH", str(package))
    assert state(package) == UNKNOWN


def test_another_repository_in_the_environment_is_not_read(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = state(package)
    git(tmp_path, "init", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert state(package) == expected
