"""`kdtrain sweep`, `plan` and `check`: exit codes, sentences, and nothing left behind by what was refused."""

import json
import shlex
from pathlib import Path
from typing import Any

import made_up_data
import pytest
import yaml
from studies import TREE, carry_out, open_study, sweep_file

from kdtrain.api.sweeps import opened
from kdtrain.cli import check, plan
from kdtrain.cli.sweep import _again, main, options
from kdtrain.config.space import probe_points
from kdtrain.config.sweep import Sweep, load_sweep
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.storage.folder import locked
from kdtrain.study import cost
from kdtrain.study.plan import _sizes, duration
from kdtrain.study.step_cost import CPU, META, ImageCost, ImageSeconds, _counted_on, image_flops, image_seconds
from kdtrain.trials.store import STUDY_SCHEMA

ROOT = Path(__file__).parents[2]
VALID = yaml.safe_dump(TREE, sort_keys=False)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("", [], "is empty"),
        (VALID.replace("batch_size", "batchsize"), [], "nearest: batch_size"),
        (VALID.replace("name: kd", "name: none"), [], "none has no 'temperature'"),
        (VALID.replace("name: digits\n    resolution: 16\n    limit_per_class: 15", "name: mnist"), ["--data", "here"],
         "here/MNIST/raw); fetch it with: "),
        (VALID + "resources: {workers: 4000}\n", [], "a trial needs 4000 CPUs"),
        (VALID + "resources: {concurrent_trials: 4000}\n", [], "trials fit at once, got 4000"),
        (VALID + "resources: {gpus_per_worker: 99}\n", [], "a trial needs 99 GPUs"),
        (VALID, ["--trials", "0"], "--trials: must be >= 1, got 0"),
        (VALID, ["--set", "recipe.epoch=3"], "nearest: epochs"),
        (VALID, ["--set", "study.budget={hours: 0}"], "study.budget.hours: must be > 0, got 0"),
        (VALID.replace("trials: 6", "budget: {epochs: -1}"), [], "study.budget.epochs: must be >= 1, got -1"),
        (VALID.replace("trials: 6", "budget: {gpu_hours: 1}") + "resources: {gpus_per_worker: 0}\n", [],
         "study.budget.gpu_hours: gpu_hours needs trainings on a GPU"),
        (VALID.replace("trials: 6", "trials: 6\n  warm_start: [results/other]"), [],
         "study.warm_start.0: results/other is no folder of a sweep's results"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_and_exit_code_2_and_leaves_nothing(
    text: str, options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert main([str(file), "--results", str(tmp_path / "results"), *options]) == 2
    assert expected in (err := capsys.readouterr().err), err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]


def test_check_reports_every_mistake_at_once_by_the_command_and_by_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, recipe={"data": {"name": "digit"}, "epochs": -4}, study={"trials": 0})
    assert check.main([str(file)]) == main([str(file), "--check"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"{file}:") for line in lines)
    assert (len(lines), lines[:3]) == (6, lines[3:])
    sweep_file(tmp_path, study={"confirm": {"seeds": 3}})
    assert check.main([str(file)]) == main([str(file), "--check"]) == 0
    assert capsys.readouterr().out == f"{file}: valid; 2 searched parameters, 6 trials\n" * 2


def test_check_and_plan_refuse_what_the_images_of_a_teachers_data_do_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path)
    for command in (check, plan):
        assert command.main([str(file), "--set", "recipe.teacher.data={labelled_per_class: 5000}"]) == 2
        assert "recipe.teacher.data.labelled_per_class: must be at most" in capsys.readouterr().err


def test_plan_refuses_a_warm_start_that_check_refuses_and_notes_one_that_may_come_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (other := tmp_path / "other").mkdir()
    file = sweep_file(tmp_path, study={"warm_start": [str(other)]})
    for command in (check, plan):
        assert command.main([str(file)]) == 2
        assert f"study.warm_start.0: {other} is no folder of a sweep's results" in capsys.readouterr().err
    other.rmdir()
    for command in (check, plan):
        assert command.main([str(file)]) == 0
        assert f"note: study.warm_start: {other} is not there" in capsys.readouterr().out


def test_check_notes_what_is_not_there_and_the_file_is_valid_nevertheless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = {
        "data": {"name": "image_folder", "folder": "pets", "resolution": 16},
        "teacher": {"model": "lenet5_teacher", "trained": "~/teacher.pth"},
        "student": {"model": "lenet5_student", "weights": {"file": "start.pth"}},
    }
    file = sweep_file(tmp_path, recipe=recipe, study={"confirm": {"seeds": 3}})
    assert check.main([str(file), "--data", str(tmp_path / "data")]) == 0
    valid, *notes = capsys.readouterr().out.splitlines()
    assert valid.endswith("valid; 2 searched parameters, 6 trials")
    places = (
        "recipe.data: image_folder is not there",
        "recipe.student.weights.file: start.pth",
        "recipe.teacher.trained: ~/teacher.pth",
    )
    assert [note.startswith(f"note: {place}") for note, place in zip(notes, places, strict=True)] == [True] * 3, notes
    assert str(tmp_path / "data" / "pets") in notes[0]
    assert f"looked for {tmp_path}/teacher.pth" in notes[2]
    (tmp_path / "teacher.pth").write_bytes(b"")
    made_up_data.paint_classes(tmp_path / "data" / "pets")
    assert main([str(file), "--check", "--data", "~/data", "--set", "recipe.student.weights=null"]) == 0
    assert capsys.readouterr().out.splitlines() == [valid]
    assert check.main([str(file), "--data", "s3://bucket/data"]) == 0
    assert "note: recipe.data: s3://bucket/data is not downloaded for this check" in capsys.readouterr().out


def test_class_weights_that_only_the_images_can_refuse_are_told_by_check_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up_data.paint_classes(tmp_path / "pets")
    teacher = TREE["recipe"]["teacher"] | {"class_weights": [1.0, 2.0, 3.0]}
    pets = {"name": "image_folder", "folder": "pets", "resolution": 16}
    file = sweep_file(tmp_path, recipe={"data": pets, "teacher": teacher, "class_weights": [1.0, 2.0]})
    line = 1 + file.read_text().splitlines().index("    class_weights:")
    assert check.main([str(file), "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"{file}:{line}: recipe.teacher.class_weights: must have a weight for")
    options = [str(file), "--set", "recipe.class_weights={choice: [balanced, [1, 2, 3]]}", "--data", str(tmp_path)]
    assert check.main([*options, "--set", "recipe.teacher.class_weights=none", "--set", "study.published=[]"]) == 2
    assert capsys.readouterr().err.startswith("--set recipe.class_weights: must have a weight for each of the 2")


def test_an_absent_data_set_that_is_transferred_is_noted_at_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path)
    transfer = "recipe.data={name: digits, resolution: 16, transfer: {name: kmnist, resolution: 16}}"
    assert check.main([str(file), "--set", transfer, "--data", str(tmp_path)]) == 0
    assert "note: recipe.data.transfer: kmnist is not there" in capsys.readouterr().out


def test_the_command_that_continues_is_complete_and_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTRAIN_DATA", "/all data")
    words = ["my sweep.yaml", "--set", "recipe.data={name: mnist}", "--set", "recipe.epochs=3", "--trials", "8"]
    words += ["--seed", "3", "--results", "~/some results", "--address", "auto"]
    parser = options()
    again = shlex.split(_again(parser.parse_args(words)))
    assert again[:2] == ["kdtrain", "sweep"]
    assert vars(parser.parse_args(again[2:])) == vars(parser.parse_args([*words, "--data", "/all data"]))
    named = shlex.split(_again(parser.parse_args(["a.yaml", "--data", "here"])))
    assert named == ["kdtrain", "sweep", "a.yaml", "--data", "here"]


def test_a_folder_that_is_not_ours_is_refused_and_kept_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, results = sweep_file(tmp_path), tmp_path / "results"
    command = [str(file), "--results", str(results)]
    carry_out(open_study(file, results), jobs=1)
    with locked(results / "small", wait=False):
        assert main(command) == 2
    assert "another sweep is at work there" in capsys.readouterr().err
    path = results / "small" / "study.json"
    study = json.loads(path.read_text())
    for damage, expected in (
        ({"recipe": {**study["recipe"], "epochs": 9}}, "holds another study of this name"),
        ({"schema": STUDY_SCHEMA + 1}, "written by a newer kdtrain"),
    ):
        path.write_text(json.dumps(study | damage))
        before = everything(results)
        assert main(command) == 2
        assert expected in capsys.readouterr().err
        assert everything(results) == before


@pytest.mark.parametrize("at_url", [False, True])
@pytest.mark.parametrize("there", [[], ["notes.txt"], ["small/notes.txt"], ["small/.hidden", "small/deep/notes.txt"]])
def test_a_refused_first_start_removes_only_what_it_has_written(
    there: list[str], at_url: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    results = tmp_path / "results"
    for name in there:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text("mine")
    before = everything(tmp_path)
    sweep = load_sweep(sweep_file(tmp_path))
    where = f"file://{results}" if at_url else str(results)
    written = []

    def refused_start() -> None:
        with opened(sweep, where, None, "again", check_capacity=False) as study:
            written.append(study.journal.files.has("study.json"))
            raise UserError("a preflight check failed")

    with pytest.raises(UserError, match="preflight"):
        refused_start()
    assert written == [True]
    (tmp_path / "small.yaml").unlink()
    assert everything(tmp_path) == before
    assert results.exists() == (bool(there) or at_url)


@pytest.mark.parametrize("name", ["sweep.yaml", "report.md", "trials.csv", "best.yaml"])
def test_files_of_somebody_else_are_not_overwritten_by_a_first_start(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = sweep_file(tmp_path), tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    (folder / name).write_text("mine")
    assert main([str(file), "--results", str(tmp_path / "results")]) == 2
    assert f"holds {name}, which no sweep has written" in capsys.readouterr().err
    assert everything(tmp_path / "results") == {str(folder / name): b"mine"}


@pytest.mark.parametrize("stem", ["..", ".", ".hidden", "ends.", "a b", "a*b", "ü", "trials", "x" * 201, "a\nb"])
def test_a_name_that_is_no_folder_of_a_sweep_is_refused_and_the_folders_stay(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    Path(f"{stem}.yaml").write_text(VALID)
    before = everything(tmp_path)
    for arguments in ([f"{stem}.yaml"], [f"{stem}.yaml", "--check"], [f"{stem}.yaml", "--results", "."]):
        assert main(arguments) == 2
        assert "the sweep's name" in capsys.readouterr().err
    assert everything(tmp_path) == before
    with pytest.raises(UserError, match="the sweep's name"):
        Sweep.from_dict(TREE, stem)


@pytest.mark.parametrize("name", ["a", "cub_mgd", "run-2", "v1.2", "_x", "-", "2026-11-30"])
def test_letters_digits_and_dots_inside_name_a_sweep(name: str) -> None:
    assert Sweep.from_dict(TREE, name).name == name


def everything(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): path.read_bytes() for path in files}


ABSENT_FROM_THE_DATA = [
    ({"exclude_classes": ["thirty"]}, "recipe.data.exclude_classes: digits has no class 'thirty'"),
    ({"labelled_per_class": 16}, "recipe.data.labelled_per_class: must be at most the 15 training images of class 0"),
    (
        {"transfer": {"name": "digits", "resolution": 16, "split_seed": 1}},
        "recipe.data.transfer.name: must have no image of the test split of digits",
    ),
]


@pytest.mark.parametrize(("options", "problem"), ABSENT_FROM_THE_DATA, ids=lambda each: str(each)[:40])
def test_what_the_images_do_not_have_is_said_with_its_line_and_by_check_and_plan(
    options: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, recipe={"data": {"name": "digits", "resolution": 16, "limit_per_class": 15, **options}})
    line = 1 + next(i for i, text in enumerate(file.read_text().splitlines()) if next(iter(options)) in text)
    line += "transfer" in options  # its name stands below
    assert main([str(file), "--results", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err.startswith(f"{file}:{line}: {problem}")
    assert not (tmp_path / "results").exists()
    for command in (check, plan):
        assert command.main([str(file)]) == 2
        assert capsys.readouterr().err.startswith(f"{file}:{line}: {problem}")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"part": {"of": 2, "index": 2}}, "index"),
        ({"part": {"of": 90, "index": 0}}, "of: 90"),
        ({"labelled_per_class": 1, "labelled_fraction": 0.5}, "labelled_fraction"),
        ({"transfer": {"name": "kmnist", "resolution": 20}}, "resolution: 20"),
        ({"transfer": {"resolution": 16, "name": "cifar10"}}, "name: cifar10"),
        ({"transfer": {"name": "mnist", "resolution": 16, "labelled_fraction": 0.5}}, "labelled_fraction"),
        (
            {"transfer": {"name": "mnist", "resolution": 16, "transfer": {"name": "digits", "resolution": 16}}},
            "      transfer",
        ),
        ({"augment": {"rotate_degrees": -3}}, "rotate_degrees"),
        ({"augment": {"turn": 3}}, "turn"),
        ({"augment": {"scale": 0}}, "augment"),
    ],
    ids=lambda each: str(each)[:60],
)
def test_options_of_the_data_that_do_not_go_together_are_refused_with_their_line(
    options: dict[str, Any], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, recipe={"data": {"name": "digits", "resolution": 16, **options}})
    (line,) = (i for i, text in enumerate(file.read_text().splitlines(), 1) if key in text)
    assert check.main([str(file)]) == 2
    (problem,) = capsys.readouterr().err.splitlines()
    assert problem.startswith(f"{file}:{line}: recipe.data.")


# The plan


def test_plan_names_stages_space_networks_and_cost_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(sweep_file(tmp_path))
    assert main([file, "--plan", "--results", str(tmp_path / "results")]) == 0
    out = capsys.readouterr().out
    for words in (
        "baselines  6", "search     6", "select     <= 18", "<= 6",
        "loguniform 0.0001 to 0.03", "19,754", "11,604", "cost at most",
        "computed once for all trials: 40 bytes", "the same view in every epoch",
    ):  # fmt: skip
        assert words in out, out
    assert not (tmp_path / "results").exists()
    mixed = ["--set", "recipe.mixup={}", "--set", "recipe.data.resolution={choice: [16, 20]}"]
    mixed += ["--set", "study.published=[]"]
    assert plan.main([file, *mixed, "--set", "resources.cache_bytes=10000"]) == 0
    out = capsys.readouterr().out
    for words in ("6 streams of views", "4 epochs each", "each value of data.resolution has", "at the same epoch"):
        assert words in out, out
    options = ["--set", "resources.teacher_cache=none", "--set", "recipe.data={name: mnist}", "--data", str(tmp_path)]
    assert plan.main([file, *options]) == 0  # the data need not be there
    assert "in every trial (resources.teacher_cache: none)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({}, 150),
        ({"part": {"of": 4, "index": 3}}, 37),
        ({"exclude_classes": [3, 4]}, 120),
        ({"transfer": {"name": "digits", "resolution": 16, "limit_per_class": 2}}, 170),
    ],
    ids=str,
)
def test_a_plan_counts_the_images_that_training_sees(options: dict[str, Any], images: int, tmp_path: Path) -> None:
    data = {"name": "digits", "resolution": 16, "limit_per_class": 15, **options}
    sweep = load_sweep(sweep_file(tmp_path, recipe={"data": data}))
    config = sweep.recipe_for(probe_points(sweep.tree)[0], 0).data
    assert _sizes(config, None)[:2] == (images, 10)
    assert len(load(config, tmp_path).train) == images


FIXED = {"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 16}
WHOLE_MAPS = {
    "data": {"name": "digits", "resolution": 64},
    "teacher": {**FIXED, "model": "resnet10t", "weights": None},
    "student": {"model": "resnet10t", "weights": None},
    "method": {"name": "mgd", "balance": {"weight": {"loguniform": [0.1, 1]}}, "stage": "8"},
}


def shared(folder: Path, recipe: dict[str, Any], **resources: Any) -> cost.Sharing:
    """What the trials of a sweep share on 150 images of ten classes."""
    study = {
        "published": None,
        "trials": 2,
        "pruner": None,
        "select": {"candidates": 2},
        "confirm": {"seeds": 2},
    }
    return cost.sharing(load_sweep(sweep_file(folder, recipe=recipe, study=study, resources=resources)), 150, 10)


@pytest.mark.parametrize(
    ("recipe", "bytes_per_image", "streams", "epochs", "splitting"),
    [
        ({}, [40], 1, 1, ()),
        ({"batch_size": {"choice": [16, 32]}, "teacher": {**FIXED, "model": "lenet5_teacher"}}, [40], 1, 1, ()),
        ({"mixup": {"choice": [None, {}]}}, [40], 6, 4, ("mixup",)),
        ({"data": {"name": "digits", "resolution": {"choice": [16, 20]}}}, [40], 1, 1, ("data.resolution",)),
        ({"teacher": {**FIXED, "precision": "fp32", "model": {"choice": ["lenet5_teacher", "lenet5_student"]}},
          "precision": {"choice": ["fp32", "bf16"]}}, [40], 1, 1, ("teacher.model", "precision")),
        ({"batch_size": {"choice": [16, 32]}, "method": {"name": "sp", "balance": {"weight": 10.0}, "stages": ["4"]},
          "teacher": {**FIXED, "model": "lenet5_teacher"}}, [104, 168], 6, 4, ("batch_size",)),
        (WHOLE_MAPS, [32_808], 1, 1, ()),
    ],
    ids=["kd", "batch size", "mixup", "resolution", "teacher", "sp", "mgd"],
)  # fmt: skip
def test_a_plan_knows_what_trials_share_and_what_splits_them(
    recipe: dict[str, Any], bytes_per_image: list[int], streams: int, epochs: int, splitting: tuple[str, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    found = shared(tmp_path, recipe)
    assert (found.live, found.splitting) == ((), splitting)
    assert sorted({each.bytes_per_image for each in found.cached}) == bytes_per_image
    assert (max(each.streams for each in found.cached), max(each.epochs for each in found.cached)) == (streams, epochs)


def test_whole_maps_that_do_not_fit_into_the_cache_are_computed_in_every_trial(tmp_path: Path) -> None:
    needed = 32_808 * 150
    assert shared(tmp_path, WHOLE_MAPS, cache_bytes=needed).live == ()
    (reason,) = shared(tmp_path, WHOLE_MAPS, cache_bytes=needed - 1).live
    assert all(text in reason for text in ("mgd", "32,808 bytes", f"{needed:,}", f"{needed - 1:,}", "cache_bytes"))


@pytest.mark.parametrize(("budget", "fits"), [(1 << 30, True), (10_000, False)])
def test_views_that_do_not_fit_together_are_computed_in_every_training(budget: int, fits: bool, tmp_path: Path) -> None:
    (cached,) = shared(tmp_path, {"mixup": {}}, cache_bytes=budget).cached
    assert cached.fits == fits
    sweep = load_sweep(tmp_path / "small.yaml")
    counts, streams, epochs = cost.trainings(sweep), 1 + 3 + 2, 4  # search, rounds, confirmation
    expected = streams if fits else counts["search"] + counts["select"] + counts["confirm"]
    assert cost.teacher_images(sweep, 150, 10) == expected * epochs * 150


EXPENSIVE = {
    "student": ({"model": "lenet5_student"}, {"model": "lenet5_teacher"}),
    "method": (
        {"name": "kd", "balance": {"alpha": 0.5}, "temperature": 4.0},
        {"name": "mgd", "balance": {"weight": 1.0}, "stage": "4"},
    ),
    "r_drop": (None, {"weight": 0.3}),
}


@pytest.mark.parametrize("field", EXPENSIVE)
def test_the_cost_of_a_plan_is_that_of_the_most_expensive_training_of_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """MGD's generator and both passes of R-Drop are counted, in whatever order the options are written."""
    untimed = ImageSeconds(0.0, 0.0, "")
    monkeypatch.setattr(cost, "image_seconds", lambda recipes, *_: dict.fromkeys(recipes, untimed))  # it takes seconds
    cheap, expensive = EXPENSIVE[field]

    def flops(option: object) -> float:
        student = (
            {"model": "resnet10t", "weights": None, "dropout": 0.1}
            if field == "r_drop"
            else {"model": "lenet5_student"}
        )
        data = {"name": "digits", "resolution": 32}
        recipe = {"data": data, "student": student, field: option}
        file = sweep_file(tmp_path, recipe=recipe, study={"published": None})
        return sum(stage.flops for stage in cost.stage_costs(load_sweep(file), 150, 10))

    either = [flops({"choice": options}) for options in ([cheap, expensive], [expensive, cheap])]
    assert either[0] == either[1] > 1.02 * flops(cheap)


TIMED = {
    "data": {"name": "digits", "resolution": 64},
    "teacher": {**FIXED, "model": "resnet10t", "weights": None},
    "student": {"model": "test_resnet", "weights": None},
    "method": {"name": "rkd_distance", "balance": {"weight": 1.0}},
}


def test_flops_are_counted_without_numbers_and_equal_those_of_a_real_pass(tmp_path: Path) -> None:
    for method in (TIMED["method"], {"name": "mgd", "balance": {"weight": 1.0}, "stage": "8"}):
        sweep = load_sweep(sweep_file(tmp_path, recipe=TIMED | {"method": method}, study={"published": None}))
        recipe = next(cost._reachable(sweep, ()))
        assert _counted_on(META, recipe, 10) == _counted_on(CPU, recipe, 10)


def test_what_does_not_fit_into_the_budget_of_time_is_scaled_and_said(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, recipe=TIMED, study={"published": None}))
    cheap = next(cost._reachable(sweep.baseline(), ()))
    recipe = next(cost._reachable(sweep, ()))
    measured = image_seconds([recipe, cheap], 10, threads=1, budget_s=60.0)  # ends after five steps
    assert all(" steps of " in seconds.how for seconds in measured.values()), measured
    assert measured[recipe].step > 0
    assert measured[recipe].teacher > 0
    assert measured[cheap].teacher == 0
    scaled = image_seconds([recipe, cheap], 10, threads=1, budget_s=0.0)
    assert {seconds.how for seconds in scaled.values()} == {"scaled by FLOPs from a convolution"}
    flops: ImageCost = image_flops(recipe, 10)
    assert scaled[recipe].teacher / scaled[recipe].step == pytest.approx(flops.teacher / flops.step)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "0.2 s"), (68, "68 s"), (150, "2.5 min"), (9000, "2.5 h"), (4_888_468.2 * 60, "3,394.8 days")],
)
def test_a_plan_shows_times_in_the_unit_that_suits_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_plan_of_a_budget_says_what_it_is_shared_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"trials": None, "budget": {"epochs": 200}, "start_from": "defaults"}
    assert plan.main([str(sweep_file(tmp_path, study=settings))]) == 0
    text = capsys.readouterr().out
    assert "search     14 if none is pruned  tpe" in text  # two searches of 14 trials of 4 epochs: 112 of 120
    assert "the methods' defaults next" in text
    assert "budget: 200 epochs; 60 % for baselines and search" in text
    assert "baselines to confirm  30,000" in text  # 200 epochs of 150 images
    settings = {"trials": None, "budget": {"hours": 2}}
    assert plan.main([str(sweep_file(tmp_path, study=settings))]) == 0
    text = capsys.readouterr().out
    assert "search     as many as fit" in text
    assert "cost at most: 2 hours (study.budget)" in text


def test_check_tells_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(sweep_file(tmp_path, study={"trials": None, "budget": {"hours": 2}}))]) == 0
    assert "valid; 2 searched parameters, 2 hours" in capsys.readouterr().out
