"""The benchmark of one training: both loops do the same work, and FLOPs are counted as they are by hand."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from trainings import CPU

from kdtrain.config import load_sweep
from kdtrain.environment import prepare_process

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ROOMS = ("flops", "phases", "plain_loop", "pairs", "train_step", "all_sweeps")
ROUNDING = 1e-4

# expansion, channels, repeats, stride: Sandler et al. 2018 (arXiv:1801.04381), table 2
MOBILENET_V2 = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
]  # fmt: skip


@pytest.fixture(autouse=True)
def _rooms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/ is no package: its files import one another as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    prepare_process(1)
    yield
    for name in ROOMS:
        sys.modules.pop(name, None)


def forward_and_backward_flops(network: nn.Module, images: torch.Tensor) -> int:
    counted: int = importlib.import_module("flops").counted_flops(lambda: network(images).sum().backward())
    return counted


def mobilenet_v2_by_hand(px: int, classes: int) -> int:
    """Forward and backward of one image: two gradients cost what the forward costs, but for the images'."""
    size = px // 2
    first = size**2 * 32 * 3 * 9
    forward, channels = first, 32
    for expansion, out, repeats, stride in MOBILENET_V2:
        for number in range(repeats):
            hidden = channels * expansion
            forward += size**2 * channels * hidden if expansion > 1 else 0
            size //= stride if number == 0 else 1
            forward += size**2 * (hidden * 9 + hidden * out)
            channels = out
    forward += size**2 * channels * 1280 + 1280 * classes
    return 2 * (3 * forward - first)


def test_mobilenet_v2_needs_what_is_counted_by_hand() -> None:
    by_hand = mobilenet_v2_by_hand(224, 200)
    assert by_hand / 1e9 == pytest.approx(1.78, abs=0.005)
    network = torchvision.models.mobilenet_v2(num_classes=200)
    assert forward_and_backward_flops(network, torch.zeros(2, 3, 224, 224)) == 2 * by_hand


def test_a_transposed_and_a_grouped_convolution_cost_three_times_their_forward() -> None:
    images = torch.zeros(2, 6, 8, 8, requires_grad=True)
    grouped, transposed = nn.Conv2d(6, 12, 3, groups=3, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2)
    assert forward_and_backward_flops(grouped, images) == 3 * 2 * 2 * 64 * 12 * 2 * 9
    assert forward_and_backward_flops(transposed, images) == 3 * 2 * 2 * 64 * 6 * 4 * 4


def test_the_plain_loop_has_at_most_80_lines() -> None:
    assert len((BENCHMARKS / "plain_loop.py").read_text().splitlines()) <= 80


@pytest.mark.parametrize(
    ("title", "changes"),
    [
        ("LeNet5 -> LeNet5, kd", []),
        ("ResNet50 -> ResNet18 frozen, logit_mse", []),
        ("ResNet50 -> MobileNetV2, mgd", ["teacher.model=ghostnet", "student.dropout=0", "method.mask_ratio=0"]),
        ("BiT 50x1 -> ResNet50V2, kd, mixup", ["mixup=null"]),
    ],
)
def test_both_loops_learn_the_same_where_nothing_is_drawn(title: str, changes: list[str]) -> None:
    """Two steps: the second one's loss tells whether the first one's update was the same."""
    pairs = importlib.import_module("pairs")
    pair = next(each for each in pairs.PAIRS if each.title == title)
    recipe = pair.resolved(32, ["batch_size=8", *changes])
    ours = pairs.Ours(recipe, pairs.made_up(pair, 32, 16), CPU)
    plain = pairs.ByHand(ours)
    assert plain.epoch() == pytest.approx(ours.epoch(), rel=ROUNDING)


def test_the_table_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    train_step = importlib.import_module("train_step")
    train_step.main(["--setup", "3", "--rounds", "1", "--batches", "2", "--channels-last", "both"])
    printed = capsys.readouterr().out
    for part in ("kdtrain, contiguous", "plain loop, contiguous", "images/s", "teacher", "optimizer", "GF an image"):
        assert part in printed


def test_every_sweep_file_is_valid_and_so_is_its_small_version() -> None:
    files = {path.stem: path for path in (BENCHMARKS.parent / "sweeps").glob("*.yaml")}
    small = importlib.import_module("all_sweeps").SWEEPS
    assert set(small) == set(files) - {"digits_kd"}
    for name, file in files.items():
        assert load_sweep(file).study.trials >= 24
        if name in small:
            sweep = load_sweep(file, small[name])
            assert (sweep.study.trials >= 4, sweep.study.confirm.seeds) == (True, 2)
            assert sweep.report.published == sweep.tree["data"]["name"]
