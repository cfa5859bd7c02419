"""The benchmarks compare equal work; the FLOPs of a plan are those counted by hand."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_up_data import mnist
from trainings import CPU

from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import load_sweep
from kdtrain.models.build import build, parameter_count
from kdtrain.models.weights import load_whole_network
from kdtrain.study.step_cost import image_flops

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SETUPS = ("mnist", "mnist_small", "mnist_tiny", "resnet50", "efficientnet", "bit")

# expansion, channels, repeats, stride: Sandler et al. 2018 (arXiv:1801.04381), table 2
MOBILENET_V2 = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
]  # fmt: skip


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of benchmarks/ import one another as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def benchmark(name: str) -> Any:
    return importlib.import_module(name)


def mobilenet_v2_by_hand(px: int, classes: int) -> int:
    """Return the FLOPs of one image's forward pass."""
    size, channels = px // 2, 32
    forward = size**2 * channels * 3 * 9
    for expansion, out, repeats, stride in MOBILENET_V2:
        for number in range(repeats):
            hidden = channels * expansion
            forward += size**2 * channels * hidden if expansion > 1 else 0
            size //= stride if number == 0 else 1
            forward += size**2 * (hidden * 9 + hidden * out)
            channels = out
    return 2 * (forward + size**2 * channels * 1280 + 1280 * classes)


def test_a_plan_counts_a_network_of_depthwise_convolutions_as_by_hand() -> None:
    config = {
        "data": {"name": "flowers102", "resolution": 64}, "student": {"model": "mobilenetv2", "weights": None},
        "method": {"name": "none"}, "optimizer": {"name": "sgd", "lr": 0.1}, "lr_schedule": {"name": "constant"},
        "batch_size": 8, "epochs": 1,
    }  # fmt: skip
    assert image_flops(Recipe.model_validate(config), 102) == (3 * mobilenet_v2_by_hand(64, 102), 0)
    assert 3 * mobilenet_v2_by_hand(224, 200) / 1e9 == pytest.approx(1.79, abs=0.02)


@pytest.mark.parametrize(
    ("title", "changes"),
    [
        ("LeNet5 -> LeNet5, kd", []),
        ("ResNet50 -> ResNet18 frozen, logit_mse", []),
        ("ResNet50 -> MobileNetV2, mgd", ["teacher.model=ghostnet", "student.dropout=0", "method.mask_ratio=0"]),
        ("BiT 50x1 -> ResNet50V2, kd, mixup", ["mixup=null"]),
    ],
)
def test_both_loops_learn_the_same_if_nothing_is_random(title: str, changes: list[str]) -> None:
    """Two steps: the second one's loss tells whether the first one's update was the same."""
    pairs = benchmark("pairs")
    pair = next(each for each in pairs.PAIRS if each.title == title)
    recipe = pair.resolved(32, ["batch_size=8", *changes])
    ours = pairs.Ours(recipe, pairs.made_up(pair, 32, 16), CPU)
    plain = pairs.ByHand(ours)
    assert plain.epoch() == pytest.approx(ours.epoch(), rel=1e-4)


def test_train_step_prints_every_part_of_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("train_step").main(["--setup", "3", "--rounds", "1", "--batches", "2", "--channels-last", "both"])
    printed = capsys.readouterr().out
    for part in ("kdtrain, contiguous", "plain loop, contiguous", "images/s", "teacher", "optimizer", "GF an image"):
        assert part in printed


def test_every_sweep_file_is_valid_and_so_is_its_small_version() -> None:
    files = {path.stem: path for path in (BENCHMARKS.parent / "sweeps").glob("*.yaml")}
    small = benchmark("all_sweeps").SWEEPS
    assert set(small) == {name for name in files if not name.startswith("digits_")}
    for name, file in files.items():
        assert load_sweep(file).study.trials >= 24
        if name in small:
            sweep = load_sweep(file, small[name])
            assert (sweep.study.trials >= 4, sweep.study.confirm.seeds) == (True, 2)
            assert (sweep.report.published or "").partition("_")[0] == sweep.tree["data"]["name"]


@pytest.mark.parametrize("name", SETUPS)
def test_the_three_sweeps_train_the_same_recipes(name: str, tmp_path: Path) -> None:
    """The same hyperparameters; kdtrain reads the plain teacher's file strictly; students have as many parameters."""
    parts = benchmark("sweep_parts")
    assert tuple(parts.SETUPS) == SETUPS
    setup = parts.SETUPS[name]
    teacher, file = tmp_path / "teacher.pth", tmp_path / "compared.yaml"
    file.write_text(yaml.safe_dump(parts.sweep(setup, teacher)))
    sweep = load_sweep(file)
    recipes = [sweep.recipe_for(point, 0) for point in sweep.published]
    assert len(recipes) == sweep.study.trials == setup.trials
    ours = [
        {"lr": each.optimizer.lr, "temperature": each.method.temperature, "alpha": each.method.balance.alpha}
        for each in recipes
    ]
    assert ours == parts.hyperparameters(setup.trials)
    assert {(each.epochs, each.batch_size, each.optimizer.momentum) for each in recipes} == {
        (parts.EPOCHS, setup.batch_size, 0.9)
    }
    if name.startswith("mnist_"):
        return  # the networks of mnist
    torch.save(parts.network(setup.teacher, setup.class_count).state_dict(), teacher)
    recipe = recipes[0]
    shape = recipe.data.image_shape
    load_whole_network(build(recipe.teacher, shape, setup.class_count, 0, pretrained=False), teacher, "recipe.teacher")
    student = build(recipe.student, shape, setup.class_count, 0, pretrained=False)
    assert parameter_count(student) == parameter_count(parts.network(setup.student, setup.class_count))


def test_the_floor_learns_from_ready_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, floor = benchmark("sweep_parts"), benchmark("floor_sweep")
    mnist(tmp_path, train=60_000)
    setup = parts.SETUPS["mnist_tiny"]._replace(images=256, trials=2)
    torch.save(parts.network(setup.teacher, 10).state_dict(), tmp_path / "teacher.pth")
    assert floor.prepare(setup, tmp_path / "teacher.pth", tmp_path, tmp_path) > 0
    ready = torch.load(tmp_path / "train-0.pt", weights_only=True)
    assert [len(part) for part in ready] == [256, 256, 256]
    floor.work(setup, tmp_path, 0)
    assert capsys.readouterr().out.count("accuracy") == 1  # the other process trains the other one


@pytest.mark.ray
def test_the_three_sweeps_are_compared(tmp_path: Path) -> None:
    mnist(tmp_path, train=60_000)
    command = [sys.executable, BENCHMARKS / "sweep_cost.py", "--setup", "mnist_tiny", "--data", tmp_path]
    done = subprocess.run(
        [*command, "--rounds", "1", "--trials", "2", "4"], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for trials in (2, 4):  # the teacher runs once over each image, however many trials there are
        used = trials * (3 * 640 + 640)
        counts = f"{trials} trials, teacher images used {used}, computed {640 + 640}, again to check {32 * trials}"
        assert counts in done.stdout
        assert f"obvious / kdtrain at {trials} trials" in done.stdout
    assert "CPU s for each trial of kdtrain from 2 to 4" in done.stdout


def test_the_surface_of_recorded_trainings_repeats_a_recorded_one_at_its_recipe() -> None:
    pruning = benchmark("pruning")
    sweep = pruning.Sweep.from_dict(pruning.SWEEP, "pruning")
    surface, row = pruning.Surface(sweep, "nearest"), pruning.read_rows()[3]
    values = {parameter.name: float(row[parameter.name]) for parameter in sweep.parameters}
    assert surface.curve(values) == [float(row[f"epoch {epoch}"]) for epoch in range(1, pruning.EPOCHS + 1)]


def test_a_replayed_random_search_trains_every_trial_to_its_end_and_a_pruned_one_does_not() -> None:
    pruning = benchmark("pruning")
    surface = pruning.Surface(pruning.Sweep.from_dict(pruning.SWEEP, "pruning"), "nearest")
    _, whole = pruning.searched(surface, 0, {"trials": 12, "sampler": pruning.RANDOM})
    _, pruned = pruning.searched(surface, 0, {"trials": 12, "sampler": pruning.RANDOM, "pruner": pruning.ASHA})
    assert whole == 12 * pruning.EPOCHS
    assert pruned < 2 / 3 * whole


def test_a_table_of_trainings_is_continued_and_rules_choose_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    selection, table = benchmark("selection"), tmp_path / "table.csv"
    changes = [
        "recipe.data.limit_per_class=6",
        "recipe.epochs=2",
        "study.pruner.min_epochs=1",
        "recipe.teacher.epochs=1",
    ]
    command = ["train", str(BENCHMARKS.parent / "sweeps" / "digits_full.yaml"), str(table), "--results", str(tmp_path)]
    for change in changes:
        command += ["--set", change]
    selection.main([*command, "--recipes", "3", "--seeds", "1"])
    first = table.read_text()
    selection.main([*command, "--recipes", "3", "--seeds", "2"])
    assert table.read_text().startswith(first)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [(recipe, seed) for seed in "01" for recipe in "012"]
    assert [row[2:5] for row in rows[:3]] == [row[2:5] for row in rows[3:]]  # the same points with both seeds
    selection.main(["simulate", "--draws", "20"])
    printed = capsys.readouterr().out
    assert all(rule in printed for rule in selection.RULES)


def test_rules_choose_the_best_recipe_if_seeds_make_no_difference() -> None:
    selection = benchmark("selection")
    true = np.arange(40.0)
    draw = (np.repeat(true[:, None], 21, 1), true)
    assert {rule.__name__: selection.regrets(rule, [draw]).tolist() for rule in selection.RULES.values()} == {
        rule.__name__: [0] for rule in selection.RULES.values()
    }
