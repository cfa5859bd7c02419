"""What pictures.npz holds, against formulas by hand and against what a training sees."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import fresh_state
from torch import Tensor, nn
from torch.nn import functional
from trainings import KD, NO_DATA, recipe, trained, workspace

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import Student
from kdtrain.config.training import Constant, Cosine, CosineInSteps, Exponential, LrSchedule
from kdtrain.data.registry import load
from kdtrain.methods.at import at_loss
from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network
from kdtrain.storage.folder import LocalFolder
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.loop import load_batch
from kdtrain.training.optimizers import lr_at
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store
from kdtrain.visualization.attention import attention_maps
from kdtrain.visualization.gradcam import deepest_stage, gradcam, gradcam_maps
from kdtrain.visualization.networks import Networks, drawable, student_alone
from kdtrain.visualization.pictures import draw_arrays
from kdtrain.visualization.training import lr_schedule, mixed_images

PX = 64


def resnet18(seed: int = 0, freeze: str = "none", px: int = PX) -> Classifier:
    config = Network.model_validate(
        {"model": "resnet18", "weights": None, "freeze": freeze, "allow_random_frozen": freeze != "none"}
    )
    return build(config, (3, px, px), 5, seed)


def noise(images: int = 3, px: int = PX) -> Tensor:
    return torch.rand(images, 3, px, px, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 4, 2])


def gradcam_by_hand(network: Classifier, stage: str, images: Tensor, labels: Tensor) -> Tensor:
    """Chattopadhyay et al. 2018, equations 10 and 19 with the exponential's derivatives: powers of the gradient."""
    network = network.eval().requires_grad_(True)
    logits, features = network.outputs(images, (stage,))
    maps = features[stage]
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps)
    alpha = gradient**2 / (2 * gradient**2 + maps.sum((2, 3), keepdim=True) * gradient**3 + 1e-6)
    weights = (alpha * (gradient != 0) * gradient.relu()).sum((2, 3), keepdim=True)
    seen = (weights * maps).sum(1, keepdim=True).relu().detach()
    seen = seen - seen.amin((2, 3), keepdim=True)
    seen = functional.interpolate(seen / seen.amax((2, 3), keepdim=True), images.shape[2:], mode="bilinear")[:, 0]
    seen = seen - seen.amin((1, 2), keepdim=True)
    return seen / seen.amax((1, 2), keepdim=True)


@pytest.mark.parametrize("stage", ["16", "32"])
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_gradcam_is_the_papers_equations_and_needs_no_parameter_that_trains(stage: str, freeze: str) -> None:
    network, images = resnet18(freeze=freeze).eval(), noise()
    trains = [parameter.requires_grad for parameter in network.parameters()]
    maps = gradcam_maps(network, stage, images, LABELS)
    assert maps.shape == (3, PX, PX)
    assert maps.amin((1, 2)).tolist() == [0.0] * 3
    assert maps.amax((1, 2)).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert [parameter.requires_grad for parameter in network.parameters()] == trains
    assert not images.requires_grad
    torch.testing.assert_close(maps, gradcam_by_hand(network, stage, images, LABELS), atol=2e-4, rtol=0)


def test_gradcam_tells_networks_and_classes_apart() -> None:
    one, other = resnet18(0).eval(), resnet18(1).eval()
    maps = gradcam_maps(one, "16", noise(), LABELS)
    assert torch.equal(maps, gradcam_maps(one, "16", noise(), LABELS))
    assert not torch.allclose(maps, gradcam_maps(other, "16", noise(), LABELS), atol=0.05)
    assert not torch.allclose(maps, gradcam_maps(one, "16", noise(), LABELS.flip(0)), atol=0.05)


@pytest.mark.parametrize(("px", "stage"), [(32, "8"), (64, "16"), (128, "32"), (8, None)])
def test_gradcam_takes_the_deepest_stage_whose_map_has_four_by_four_pixels(px: int, stage: str | None) -> None:
    assert deepest_stage(resnet18(px=px)) == stage


def test_attention_maps_are_what_at_compares() -> None:
    one, other = resnet18(0).eval(), resnet18(1).eval()
    ours, theirs = (attention_maps(network, ("16", "32"), noise()) for network in (one, other))
    assert ours["16"].shape == (3, 4, 4)
    with torch.no_grad():
        features, others = (network.outputs(noise(), ("16", "32"))[1] for network in (one, other))
    for stage in ("16", "32"):
        energy = features[stage].square().mean(1)
        torch.testing.assert_close(ours[stage], energy / energy.square().sum((1, 2), keepdim=True).sqrt())
        loss = (ours[stage] - theirs[stage]).square().mean()
        torch.testing.assert_close(loss, at_loss(features[stage], others[stage]))


SCHEDULES = [
    (Exponential(name="exponential", factor=0.7), 0),
    (Cosine(name="cosine", warmup_epochs=3, lowest_lr=1e-6), 12),
    (Cosine(name="cosine", warmup_epochs=3, convention="published"), 12),
    (CosineInSteps(name="cosine_in_steps", warmup_steps=50), 8),
    (CosineInSteps(name="cosine_in_steps", warmup_steps=50, total_steps=70, convention="published"), 50),
]


@pytest.mark.parametrize(("schedule", "warmup"), SCHEDULES, ids=lambda each: getattr(each, "name", ""))
def test_every_step_has_its_learning_rate(schedule: LrSchedule, warmup: int) -> None:
    config = recipe(lr_schedule=schedule.model_dump(), epochs=20)
    data = load(config.data, NO_DATA)
    arrays = lr_schedule(config, data)
    assert arrays["lr_steps"].tolist() == list(range(80))
    assert arrays["lr_rates"].tolist() == [lr_at(schedule, 0.05, step, 4, 20) for step in range(80)]
    assert (int(arrays["lr_steps_per_epoch"]), int(arrays["lr_epochs"])) == (4, 20)
    assert int(arrays["lr_warmup_steps"]) == warmup


def test_a_long_schedule_is_taken_at_some_steps_from_first_to_last_and_a_constant_one_not_at_all() -> None:
    config = recipe(lr_schedule={"name": "cosine"}, epochs=100_000)
    data = load(config.data, NO_DATA)
    steps = lr_schedule(config, data)["lr_steps"]
    assert (len(steps), steps[0], steps[-1]) == (2000, 0, 399_999)
    assert lr_schedule(recipe(lr_schedule=Constant(name="constant").model_dump()), data) == {}


@pytest.mark.parametrize("convention", ["corrected", "published"])
@pytest.mark.parametrize("batch_size", [10, 32])
def test_mixed_images_are_the_trainings_first_batches(convention: str, batch_size: int) -> None:
    config = recipe(**KD, mixup={"convention": convention}, batch_size=batch_size)
    run = fresh_state(config)
    images, targets = [], []
    batches = config.drawing.batches(run.data.train.labels, 0)
    for step, indices in enumerate(batches[:3]):
        run.step = step
        seen, batch = load_batch(run, indices, step)
        images.append(seen)
        targets.append(batch.target)
    arrays = mixed_images(config, run.data)
    assert np.array_equal(arrays["mixed_images"], drawable(torch.cat(images)[:25]))
    for target, share, (own, partner) in zip(
        torch.cat(targets)[:25], arrays["mixed_shares"], arrays["mixed_labels"], strict=True
    ):
        expected = torch.zeros(10)
        expected[own] += float(share)
        expected[partner] += 1 - float(share)
        torch.testing.assert_close(target, expected)


def test_what_is_not_mixed_has_no_grid() -> None:
    assert mixed_images(recipe(), load(recipe().data, NO_DATA)) == {}


def test_images_are_bytes_and_small() -> None:
    assert drawable(torch.full((2, 1, 8, 8), 0.5)).tolist() == [[[128] * 8] * 8] * 2
    large = drawable(torch.ones(2, 3, 320, 320))
    assert (large.shape, large.dtype, int(large.min())) == ((2, 224, 224, 3), np.uint8, 255)


DISTILLED = recipe(**KD, lr_schedule={"name": "cosine"})
ALONE = recipe(seed=3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for config in (DISTILLED, ALONE):
        trained(config, folder)
    taught_by = teacher_recipe(DISTILLED)
    assert taught_by is not None
    read_test(taught_by, workspace(folder))
    return folder


def drawn(results: Path, folder: Path, config: Recipe = DISTILLED) -> dict[str, np.ndarray]:
    draw_arrays(config, workspace(results), LocalFolder(folder), [config, ALONE])
    with np.load(folder / "pictures.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_pictures_of_a_recipe_are_those_that_it_has(results: Path, tmp_path: Path) -> None:
    arrays = drawn(results, tmp_path)
    assert {name.partition("_")[0] for name in arrays} == {"softened", "gradcam", "lr"}
    assert arrays["gradcam_none_roles"].tolist() == ["distilled", "teacher", "alone"]
    assert arrays["gradcam_none_models"].tolist() == ["lenet5_student", "lenet5_teacher", "lenet5_student"]
    assert arrays["gradcam_none_sizes"].tolist() == [[7, 7]] * 3
    assert arrays["gradcam_none_images"].shape == (4, 16, 16)
    maps, classes = arrays["gradcam_none_maps"], arrays["gradcam_none_classes"]
    assert (maps.shape, maps.dtype, float(maps.min())) == ((3, 4, 16, 16), np.float32, 0.0)
    assert float(maps.max()) <= 1.0
    assert (maps[0] != maps[2]).any()
    right = arrays["gradcam_none_named"] == classes[None, :]
    assert np.array_equal(right, arrays["gradcam_none_right"])
    again = drawn(results, tmp_path)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)


def test_the_softened_image_is_the_one_that_the_teacher_gets_right_with_the_least_probability(
    results: Path, tmp_path: Path
) -> None:
    arrays = drawn(results, tmp_path)
    taught_by = teacher_recipe(DISTILLED)
    assert taught_by is not None
    logits = []
    for config in (taught_by, DISTILLED):
        with np.load(Store(results).trial(trial_id(config, NO_DATA)).predictions) as kept:
            logits.append(torch.from_numpy(kept["val_logits"]))
            labels = torch.from_numpy(kept["val_labels"])
    probabilities = [each.softmax(1)[range(len(labels)), labels] for each in logits]
    right = [n for n in range(len(labels)) if logits[0][n].argmax() == labels[n]]
    least = min(right, key=lambda n: float(probabilities[0][n]))
    assert arrays["softened_label"] == labels[least]
    assert arrays["softened_classes"].tolist() == [str(digit) for digit in range(10)]
    assert arrays["softened_temperatures"].tolist() == [1.0, 4.0]
    for name, own in zip(("teacher", "student"), logits, strict=True):
        for row, temperature in zip(arrays[f"softened_{name}"], (1.0, 4.0), strict=True):
            assert row == pytest.approx((own[least] / temperature).softmax(0).numpy(), abs=1e-6)


def test_without_the_extra_there_is_a_reason_and_the_other_pictures(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)  # importing it raises ImportError
    arrays = drawn(results, tmp_path)
    assert "kdtrain[pictures]" in str(arrays["gradcam_none_reason"])
    assert "gradcam_none_maps" not in arrays
    assert "softened_image" in arrays


class WithoutMaps(Networks):
    """Networks that have no stage."""

    def trio(self, recipe: Recipe, compared: Sequence[Recipe]) -> dict[str, tuple[str, Classifier]]:
        flat = Classifier("flat", nn.Flatten(), nn.Linear(256, 10), (1, 16, 16), channels=1)
        return {"distilled": ("none", flat), "teacher": ("none", flat)}


def test_networks_without_maps_have_no_gradcam_and_a_reason(tmp_path: Path) -> None:
    data = load(DISTILLED.data, NO_DATA)
    arrays = gradcam(DISTILLED, [], data, WithoutMaps(workspace(tmp_path)))
    assert {name: str(array) for name, array in arrays.items()} == {
        "gradcam_none_reason": "flat has no stage whose map has at least 4 x 4 pixels"
    }


def test_a_method_that_reads_maps_shows_them_at_its_stages(results: Path, tmp_path: Path) -> None:
    method = {"name": "at", "balance": {"weight": 10.0}, "stages": ["4", "8"]}
    resnet = {"model": "test_resnet", "weights": None}
    config = recipe(method=method, student=resnet, teacher={**resnet, "epochs": 1}, epochs=1)
    trained(config, results)
    arrays = drawn(results, tmp_path, config)
    assert arrays["attention_stages"].tolist() == ["4", "8"]
    assert arrays["attention_roles"].tolist() == ["distilled", "teacher"]  # no student alone of this model
    assert arrays["attention_maps_4_teacher"].shape == (4, 4, 4)
    assert "softened_image" not in arrays


def test_the_student_alone_is_of_the_same_student_or_else_of_the_same_model() -> None:
    frozen = {"model": "test_resnet", "weights": None, "freeze": "encoder", "allow_random_frozen": True}
    free = {"model": "test_resnet", "weights": None}
    other, first, second = recipe(), recipe(student=frozen), recipe(student=free)
    distilled = recipe(**KD, student=free)
    assert distilled.student == Student.model_validate(free)
    assert student_alone(distilled, [distilled, other, first, second]) == second
    assert student_alone(distilled, [distilled, other, first]) == first
    assert student_alone(distilled, [distilled, other]) is None
