"""The command `kdtrain`: which sub-command runs, what it imports, the shipped examples, and what the wheel contains."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import kdtrain
from kdtrain.cli import example
from kdtrain.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
OLD_COMMANDS = ("run_sweep.py", "-m kdtrain", "-m kdtrain.cluster", "-m analysis")


def test_help_of_each_entry_takes_no_second_and_needs_neither_torch_nor_ray() -> None:
    """In one process, each as `python ENTRY --help` would run it."""
    code = """
import runpy, sys, time
for words in sys.argv[1:]:
    began = time.perf_counter()
    first, *rest = words.removeprefix("-m ").split()
    sys.argv = [first, *rest, "--help"]
    try:
        if words.startswith("-m "):
            runpy.run_module(first, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        assert not end.code, words
    assert not {"torch", "ray", "optuna", "pandas"} & set(sys.modules), words
    assert time.perf_counter() - began < 1, words
"""
    entries = [*OLD_COMMANDS, *(f"-m kdtrain {name}" for name in COMMANDS)]
    done = subprocess.run([sys.executable, "-c", code, *entries], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: kdtrain") == len(entries)


def test_a_first_word_that_is_a_file_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").write_text("epoch: 3\n")
    for words in ([str(tmp_path / "recipe")], ["train", str(tmp_path / "recipe")]):
        assert main(words) == 2
        assert f"{tmp_path / 'recipe'}:1: epoch" in capsys.readouterr().err
    assert main(["absent.yaml"]) == 2
    assert capsys.readouterr().err == "absent.yaml: no such file\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "a command is missing; commands: sweep, plan"),
        (["sweeep"], "sweeep is neither a command nor a recipe file; commands: sweep, plan"),
        (["example", "digit_kd"], "example: digit_kd: there is no such example; nearest: digits_kd"),
        (["report", "absent"], "absent: no such folder"),
        (["report", "."], "no study.json"),
        (["report", "~nobody-of-this-name"], "folder: ~nobody-of-this-name is no path"),
        (["plan", "absent.yaml"], "absent.yaml: no such file; `kdtrain example` lists sweeps"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_every_shipped_sweep_and_recipe_is_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example"]) == 0
    listed = capsys.readouterr().out.splitlines()
    files = [file for kind in example.KINDS for file in sorted((ROOT / kind).glob("*.yaml"))]
    assert listed == [f"{file.parent.name}/{file.stem}" for file in files]
    for name, file in (("cub_mgd", "sweeps/cub_mgd"), ("cub_mgd.yaml", "sweeps/cub_mgd"), ("recipes/cub_mgd",) * 2):
        assert main(["example", name]) == 0
        assert capsys.readouterr().out == (ROOT / f"{file}.yaml").read_text()


def test_the_schema_is_the_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "sweeps" / "schema.json").read_text()


def test_every_package_is_in_the_wheels_list_and_the_clusters_install_what_the_sweeps_use() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(ROOT) for top in ("kdtrain", "analysis") for path in ROOT.glob(f"{top}/**/*.py")}
    mapped = set(project["tool"]["setuptools"]["package-dir"])
    assert set(project["tool"]["setuptools"]["packages"]) - mapped == {".".join(folder.parts) for folder in folders}
    assert project["project"]["version"] == kdtrain.__version__
    extras = {"cluster.yaml": "[aws,pictures,weights]", "cluster.local.yaml": "[pictures,weights]"}
    for name, installed in extras.items():
        commands = yaml.safe_load((ROOT / name).read_text())["setup_commands"]
        assert any(installed in command for command in commands)


@pytest.mark.slow
@pytest.mark.ray
def test_a_wheel_away_from_the_clone_runs_an_example_to_its_report(tmp_path: Path) -> None:
    """Installed into an environment of its own, which sees the dependencies of this one but not the clone."""

    def run(*words: str | Path, **options: str) -> str:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **options}
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=500)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    source = tmp_path / "source"  # a build leaves its files beside the sources
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    run(sys.executable, *build)
    (wheel,) = tmp_path.glob("kdtrain-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    shipped = {
        f"kdtrain/shipped/{name}" if name.startswith(("sweeps/", "recipes/")) else name
        for name in listed.split("\0")
        if name.startswith(("kdtrain/", "analysis/", "sweeps/", "recipes/")) and (ROOT / name).is_file()
    }
    assert inside == shipped

    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--no-index", "-q", str(wheel))
    # a path entry, whose own .pth files are not read: an editable install of the clone stays out of sight
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    found = run(python, "-c", "import kdtrain, analysis; print(kdtrain.__file__, analysis.__file__)").split()
    assert all(Path(file).is_relative_to(packages) for file in found), found

    command = tmp_path / "venv" / "bin" / "kdtrain"
    (tmp_path / "my.yaml").write_text(run(command, "example", "digits_kd"))
    small = [
        "recipe.epochs=2",
        "recipe.teacher.epochs=2",
        "study.pruner={name: none}",
        "study.select={candidates: 2}",
    ]
    small += ["study.confirm.seeds=2", "study.sampler.startup_trials=2"]
    options = [word for setting in small for word in ("--set", setting)]
    assert "my.yaml: valid" in run(command, "check", "my.yaml")
    out = run(command, "sweep", "my.yaml", "--trials", "2", *options)
    assert "my: results/my/report.md" in out
    assert (tmp_path / "results" / "my" / "report.md").read_text().startswith("# my")
    assert run(command, "report", "results/my") == "results/my/report.md\n"


@pytest.mark.parametrize("command", ["kdtrain example digits_kd", "kdtrain schema", "kdtrain --help"])
def test_a_reader_that_has_gone_is_no_traceback(command: str) -> None:
    line = command.replace("kdtrain", f"{sys.executable} -m kdtrain") + " | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_a_file_in_place_of_a_results_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.md"
    file.write_text("")
    assert main(["report", str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"{file}: is a file; name the folder of a sweep")
