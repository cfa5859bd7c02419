"""Several teachers: the mean of their outputs, live and cached, against a slow reference."""

import math
from pathlib import Path
from typing import Any

import made_up_data
import pytest
import torch
from trainings import (
    CPU,
    KD,
    NO_DATA,
    equal_weights,
    recipe,
    session_results,
    timeless,
    trained,
    with_teacher,
    workspace,
)

from kdtrain.config.needed_trainings import recipes_by_teacher, teacher_recipes
from kdtrain.data.registry import load
from kdtrain.storage.cache import Cache
from kdtrain.storage.folder import Row
from kdtrain.teacher.ensemble import combined_logits, mean_of_logits, mean_of_probabilities
from kdtrain.teacher.network import trained_teacher, trained_teachers
from kdtrain.training.evaluation import logits_of

FIRST = KD["teacher"]
TWO = [FIRST, {"model": "lenet5_half", "epochs": 2, "seed": 1}]


def ensemble(of: Any = TWO, **fields: Any) -> dict[str, Any]:
    return {"teacher": {"ensemble": {"of": of, **fields}}}


def softmax(row: list[float], temperature: float) -> list[float]:
    largest = max(row)
    exponentials = [math.exp((value - largest) / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [2.0, 1.0, 0.0], [0.1, 0.7, 3.0]])
def test_softened_probabilities_are_the_weighted_mean_of_the_teachers(weights: list[float], temperature: float) -> None:
    logits = 3 * torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(0))
    combined = mean_of_probabilities(logits, [weight / sum(weights) for weight in weights], temperature)
    assert combined.dtype == torch.float32
    for n in range(5):
        own = [softmax(logits[m, n].double().tolist(), temperature) for m in range(3)]
        mean = [sum(w * p[k] for w, p in zip(weights, own, strict=True)) / sum(weights) for k in range(10)]
        assert softmax(combined[n].double().tolist(), temperature) == pytest.approx(mean, rel=1e-5)


def test_logits_are_the_weighted_mean_of_the_teachers() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    combined = mean_of_logits(logits, [0.75, 0.25])
    for n in range(4):
        for k in range(3):
            assert combined[n, k].item() == pytest.approx(0.75 * logits[0, n, k].item() + 0.25 * logits[1, n, k].item())


def test_sure_teachers_that_disagree_give_finite_logits_in_half_precision_too() -> None:
    logits = torch.tensor([[[300.0, -300.0]], [[-300.0, 300.0]]])
    for given in (logits, logits.half()):
        assert mean_of_probabilities(given, [0.5, 0.5], 1.0).tolist()[0] == pytest.approx(2 * [math.log(0.5)])
        assert mean_of_logits(given, [0.5, 0.5]).tolist() == [[0.0, 0.0]]


def test_the_temperature_is_the_methods_and_one_teacher_keeps_its_bits() -> None:
    logits = list(torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(2)))
    hot = recipe(**KD | ensemble() | {"method": KD["method"] | {"temperature": 7.0}})
    assert torch.equal(combined_logits(hot, logits), mean_of_probabilities(torch.stack(logits), [0.5, 0.5], 7.0))
    without = recipe(**KD | ensemble() | {"method": {"name": "logit_mse", "balance": {"alpha": 0.5}}})
    assert torch.equal(combined_logits(without, logits), mean_of_probabilities(torch.stack(logits), [0.5, 0.5], 1.0))
    assert combined_logits(recipe(**KD), logits[:1]) is logits[0]


def computed(rows: list[Row]) -> list[int]:
    return [int(row["teacher_images_computed"]) for row in rows]


CRITIC = {"name": "logits_discriminator", "temperature": 2.0, "critic_steps": 1, "student_steps": 2}
ALIKE: dict[str, dict[str, Any]] = {
    "deterministic views": {},
    "weights": ensemble(weights=[1, 3]),
    "mean of logits": ensemble(combine="logits"),
    "mixup": {"mixup": {}, "method": {"name": "kd", "temperature": 2.0, "balance": {"alpha": 1.0}}},
    "a critic": {"method": CRITIC | {"balance": {"alpha": 0.5}}},
    "random views": {"data": {"name": "hymenoptera", "resolution": 32}, "batch_size": 8},
}


@pytest.mark.parametrize("kind", list(ALIKE))
def test_a_training_that_reads_both_teachers_from_the_cache_equals_a_live_one(kind: str, tmp_path: Path) -> None:
    data_root = NO_DATA
    if kind == "random views":
        made_up_data.hymenoptera(data_root := tmp_path / "data")
    config = recipe(**KD | ensemble() | ALIKE[kind])
    live = trained(config, tmp_path / "live", data_root=data_root)
    cache = Cache(tmp_path / "cache", 1 << 26)
    first, second = (trained(config, tmp_path / name, data_root=data_root, cache=cache) for name in ("1", "2"))
    for each in (first, second):
        assert each.outcome["state"] == "complete"
        assert each.checkpoints == live.checkpoints
        assert each.rows == live.rows
        assert equal_weights(each.weights, live.weights)
    assert sum(computed(second.folder.epochs())) == 0
    assert second.outcome["teacher_cache_off"] is None
    assert second.outcome["teacher_images"] == live.outcome["teacher_images"] == sum(computed(live.folder.epochs()))


def test_temperature_and_weights_share_the_cached_rows_with_one_another_and_with_one_teacher(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 26)
    trained(recipe(**KD | ensemble()), tmp_path / "results", cache=cache)
    folders = sorted((tmp_path / "cache").glob("*/about.json"))
    others = [
        KD | ensemble(weights=[1, 4]),
        KD | ensemble(combine="logits"),
        KD | ensemble() | {"method": KD["method"] | {"temperature": 9.0}},
        KD | {"teacher": FIRST},
        KD | {"teacher": TWO[1]},
    ]
    for other in others:
        ended = trained(recipe(**other), tmp_path / "results", cache=cache)
        assert computed(ended.folder.epochs()) == [0, 0]
    assert sorted((tmp_path / "cache").glob("*/about.json")) == folders


def test_what_the_student_is_compared_with_is_the_combined_output() -> None:
    config = recipe(**KD | ensemble(weights=[1, 2]))
    ended = trained(config)
    data, place = load(config.data, NO_DATA), workspace(Path(session_results().name) / "cpu")
    with_teacher(config, place.store.results)
    networks = [trained_teacher(each, data, place).network for each in recipes_by_teacher(config)]

    def accuracy(split: Any) -> float:
        first, other = (logits_of(network, split, CPU).double() / 4.0 for network in networks)
        mean = first.softmax(1) / 3 + 2 * other.softmax(1) / 3
        return (mean.argmax(1) == split.labels).double().mean().item()

    assert {row["val/teacher_accuracy"] for row in ended.folder.epochs()} == {accuracy(data.val)}
    assert ended.outcome["test"]["test/teacher_accuracy"] == accuracy(data.test)
    record = ended.folder.recipe()
    assert record is not None
    ids = [place.trial(each).trial_id for each in teacher_recipes(config)]
    assert record["teacher"] == {"members": [{"trial_id": trial_id} for trial_id in ids]}


def test_a_training_cut_within_an_epoch_continues_with_the_same_bits(tmp_path: Path) -> None:
    config = recipe(**KD | ensemble())

    def cut(metrics: Row) -> None:
        if metrics["epoch"] == 1:
            raise KeyboardInterrupt

    whole = trained(config)
    with pytest.raises(KeyboardInterrupt):
        trained(config, tmp_path, on_epoch=cut)
    again = trained(config, tmp_path)
    assert [timeless(row) for row in again.folder.epochs()] == whole.rows
    assert equal_weights(again.weights, whole.weights)


def test_a_process_reads_the_networks_of_an_ensemble_once_for_all_its_students(tmp_path: Path) -> None:
    config = recipe(**KD | ensemble())
    with_teacher(config, tmp_path)
    data, place = load(config.data, NO_DATA), workspace(tmp_path)
    first, again = (trained_teachers(config, data, place) for _ in range(2))
    assert [teacher.network for teacher in first] == [teacher.network for teacher in again]
    assert first[0].network is not first[1].network
