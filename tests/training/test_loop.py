"""One training, from recipe to outcome: what is counted, what repeats, what chooses the epoch, how it fails."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from runs import fitted, fresh_state
from torch.nn import functional
from trainings import (
    ALONE,
    CPU,
    KD,
    NO_DATA,
    Trained,
    equal_weights,
    measured,
    recipe,
    session_results,
    strict_json,
    timeless,
    trained,
    workspace,
)

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.config.recipe import Objective
from kdtrain.config.training import Cosine
from kdtrain.data.base import TensorImages, as_floats
from kdtrain.data.registry import load
from kdtrain.data.sampling import Drawing, Sampler
from kdtrain.errors import UserError
from kdtrain.models.build import build
from kdtrain.models.config import Network
from kdtrain.models.weights import load_whole_network
from kdtrain.runtime.rng import generator, stream
from kdtrain.training import loop
from kdtrain.training.assembly import assemble
from kdtrain.training.evaluation import accuracy, ece, logits_of, mpa, nll
from kdtrain.training.loop import train_step
from kdtrain.training.optimizers import lr_at
from kdtrain.training.preflight import smoke
from kdtrain.training.trainer import train
from kdtrain.trials.objectives import HIGHER_IS_BETTER, ranking_key
from kdtrain.trials.outcome import best_epoch


@pytest.mark.parametrize(
    "changes", [{}, KD, {"precision": "bf16"}, {"mixup": {}}], ids=["alone", "kd", "bf16", "mixup"]
)
def test_the_same_recipe_again_gives_equal_bits_whatever_was_trained_and_drawn_before(changes, tmp_path: Path) -> None:
    first = trained(recipe(**changes))
    trained(recipe(**KD, seed=5, precision="bf16"))
    torch.manual_seed(99)
    again = trained(recipe(**changes), tmp_path)
    assert again.rows == first.rows
    assert again.checkpoints == first.checkpoints
    assert equal_weights(again.weights, first.weights)
    assert timeless(again.outcome) == timeless(first.outcome)


def test_every_epoch_has_every_image_once_in_an_order_of_its_own() -> None:
    epochs = [Drawing(seed, 16).batches(torch.zeros(60), epoch) for seed in (0, 1) for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [16, 16, 16, 12]
        assert torch.cat(batches).sort().values.tolist() == list(range(60))
    assert len({tuple(torch.cat(batches).tolist()) for batches in epochs}) == 6


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_a_training_sees_the_batches_of_its_epochs_in_their_order(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    load_one = loop.load_batch

    def watched(state, indices: torch.Tensor, *rest):
        seen.append(indices)
        return load_one(state, indices, *rest)

    monkeypatch.setattr(loop, "load_batch", watched)
    labels = load(recipe().data, NO_DATA).train.labels
    fitted(fresh_state(recipe(sampler=sampler)))
    expected = [batch.tolist() for epoch in range(2) for batch in Drawing(0, 16, sampler).batches(labels, epoch)]
    assert [indices.tolist() for indices in seen] == expected


@pytest.mark.parametrize("batch_size", [7, 16, 60, 1000])
def test_the_training_loss_is_the_mean_over_images_whatever_the_last_batch(batch_size: int) -> None:
    still = {"optimizer": {"name": "sgd", "lr": 1e-30}, "batch_size": batch_size, "epochs": 1, "label_smoothing": 0.1}
    left = trained(recipe(**still))
    data = load(recipe().data, NO_DATA)
    network = build(Network(model="lenet5_student"), data.image_shape, 10, stream(0, "init"))
    logits = logits_of(network, data.train, CPU).double()
    by_hand = functional.cross_entropy(logits, data.train.labels, label_smoothing=0.1).item()
    assert left.rows[0]["train/loss"] == pytest.approx(by_hand, rel=1e-6)
    assert left.rows[0]["step"] == math.ceil(60 / batch_size)
    assert left.rows[0]["images"] == 60


def test_the_loss_is_the_balanced_sum_of_its_terms() -> None:
    for row in trained(recipe(**KD)).rows:
        expected = 0.5 * row["train/cross_entropy"] + 0.5 * row["train/kd"]
        assert row["train/loss"] == pytest.approx(expected, rel=1e-6)
        assert row["train/kd"] == pytest.approx(16 * row["train/kd_without_t2"], rel=1e-5)


def test_a_step_is_the_optimizers_step_on_the_mean_gradient_of_the_batch() -> None:
    config = recipe(optimizer={"name": "sgd", "lr": 0.1})
    data = load(config.data, NO_DATA)
    state = assemble(config, data, (), CPU)
    by_hand = build(Network(model="lenet5_student"), data.image_shape, 10, stream(0, "init"))
    batch = torch.tensor([3, 1, 4, 15, 9])
    images, labels = as_floats(data.train.images.eval_view(batch)), data.train.labels[batch]
    functional.cross_entropy(by_hand(images), labels).backward()
    state.distiller.train()
    train_step(state, batch)
    trained_weights = state.distiller.student.state_dict()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(trained_weights[name], parameter.detach() - 0.1 * parameter.grad)


def test_the_rows_tell_the_learning_rate_of_each_epochs_first_step() -> None:
    schedule = {"name": "cosine", "warmup_epochs": 1}
    rows = trained(recipe(lr_schedule=schedule, epochs=3)).rows
    cosine = Cosine.model_validate(schedule)
    assert [row["lr"] for row in rows] == [lr_at(cosine, 0.05, step, 4, 3) for step in (0, 4, 8)]


ROWS = [
    {"epoch": 1, "val/accuracy": 0.5, "val/mpa": 0.6, "val/nll": 1.0, "val/ece": 0.3},
    {"epoch": 2, "val/accuracy": 0.7, "val/mpa": 0.6, "val/nll": 0.9, "val/ece": 0.1},
    {"epoch": 3, "val/accuracy": 0.7, "val/mpa": 0.5, "val/nll": 0.8, "val/ece": 0.1},
    {"epoch": 4, "val/accuracy": 0.6, "val/mpa": 0.4, "val/nll": 0.7, "val/ece": 0.2},
    {"epoch": 5, "val/accuracy": 0.7, "val/mpa": 0.5, "val/nll": 0.8, "val/ece": 0.1},
]


def test_the_best_epoch_is_by_the_objective_then_the_other_metric_then_the_earlier() -> None:
    assert best_epoch(ROWS, "val/accuracy") == ROWS[2]
    assert best_epoch(ROWS, "val/nll") == ROWS[3]
    assert best_epoch(ROWS, "val/mpa") == ROWS[1]
    assert best_epoch(ROWS[4:] + ROWS[:3], "val/accuracy") == ROWS[2]
    assert best_epoch([], "val/accuracy") is None
    assert ranking_key(ROWS[0], "val/nll") == (-1.0, 0.5)
    assert ranking_key(ROWS[0], "val/mpa") == (0.6, -1.0)
    assert best_epoch(ROWS, "val/ece") == ROWS[2], "the lowest; of equal ones that of the lower NLL"
    earlier = [{name: row[name] for name in row if name != "val/mpa"} for row in ROWS]
    assert best_epoch(earlier, "val/accuracy") == earlier[2], "rows of before have no val/mpa"
    assert set(HIGHER_IS_BETTER) == set(get_args(Objective))


@pytest.mark.parametrize("objective", HIGHER_IS_BETTER)
def test_a_run_remembers_the_weights_of_the_epoch_that_the_rows_call_best(objective: str) -> None:
    config = recipe(objective=objective)
    state = assemble(config, load(config.data, NO_DATA), (), CPU)
    for row in ROWS:
        state.epoch = row["epoch"]
        with torch.no_grad():
            state.distiller.student.head[0].bias.fill_(row["epoch"])
        state.remember_best(row)
    best = best_epoch(ROWS, objective)
    assert state.best == best
    assert state.best_weights["head.0.bias"][0] == best["epoch"]


OVERFITTING = {
    "data": ALONE["data"] | {"limit_per_class": 3}, "optimizer": {"name": "adam", "lr": 0.01}, "epochs": 25
}  # fmt: skip


def test_the_kept_weights_give_the_best_epochs_metrics_and_the_kept_predictions() -> None:
    config = recipe(**KD, epochs=4)
    left = trained(config)
    data = load(config.data, NO_DATA)
    network = build(Network(model="lenet5_student"), data.image_shape, 10, 0)
    load_whole_network(network, left.folder.weights, "recipe.student")
    val, test = (logits_of(network, split, CPU) for split in (data.val, data.test))
    labels = data.val.labels
    best = {
        f"val/{name}": of(val, labels)
        for name, of in {"accuracy": accuracy, "mpa": mpa, "nll": nll, "ece": ece}.items()
    }
    assert left.outcome["best"] == {"epoch": left.outcome["best"]["epoch"], **best}
    assert left.outcome["test"]["test/accuracy"] == accuracy(test, data.test.labels)
    assert left.outcome["test"]["test/nll"] == nll(test, data.test.labels)
    assert left.outcome["test"]["images"] == len(data.test) == 60
    expected = {
        "val_logits": val, "test_logits": test, "val_labels": data.val.labels, "test_labels": data.test.labels
    }  # fmt: skip
    assert equal_weights(predictions(left), expected)


def test_the_outcome_sums_up_the_rows() -> None:
    left = trained(recipe(**KD, epochs=3))
    outcome, rows = left.outcome, left.folder.epochs()
    assert (outcome["state"], outcome["reason"], outcome["epochs"], outcome["workers"]) == ("complete", None, 3, 1)
    assert outcome["images"] == 3 * 60 == sum(row["images"] for row in rows)
    assert outcome["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert outcome["images_per_s"] == pytest.approx(180 / outcome["seconds"])
    assert outcome["parameters"] == sum(value.numel() for value in left.weights.values())
    assert [row["teacher_images"] for row in rows] == [60 + 60, 60, 60]  # the validation images are asked once
    assert outcome["teacher_images"] == 240
    assert outcome["peak_memory_bytes"] > 1e6
    assert outcome["versions"].keys() >= {"python", "torch"}
    stored = strict_json(left.folder.path / "outcome.json")
    assert measured(stored) == measured(outcome)


def test_the_recipe_file_tells_what_is_trained_on_which_data() -> None:
    left = trained(recipe(**KD))
    row = strict_json(left.folder.path / "recipe.json")
    assert (row["trial_id"], row["weights"]) == (left.folder.trial_id, [0.5, 0.5])
    assert type(recipe()).model_validate(row["recipe"]) == recipe(**KD)
    assert row["teacher"]["trial_id"] == taught().folder.trial_id
    sizes = {"classes": 10, "train": 60, "val": 60, "test": 60}
    assert {key: row["data"][key] for key in sizes} == sizes


def test_a_searched_trial_becomes_final_with_the_same_rows_and_does_not_pass_for_ended_meanwhile(
    tmp_path: Path,
) -> None:
    def files() -> set[str]:
        return {path.name for path in searched.folder.path.glob("[!.]*")}

    searched = trained(recipe(), tmp_path, final=False)
    rows, best, before = searched.rows, searched.outcome["best"], files()
    assert searched.outcome["test"] is None
    assert before == {"recipe.json", "epochs.jsonl", "outcome.json"}
    seen = []
    final = trained(recipe(), tmp_path, on_epoch=lambda metrics: seen.append(searched.folder.outcome()))
    assert seen == [None, None]
    assert (final.rows, final.outcome["best"]) == (rows, best)
    assert final.outcome["test"] is not None
    assert files() == before | {"weights.safetensors", "predictions.npz"}


def test_no_training_reads_the_test_split_and_read_test_reads_it_once(tmp_path: Path, monkeypatch) -> None:
    data = load(recipe().data, NO_DATA)
    reads: list[int] = []

    class Watched(TensorImages):
        def eval_view(self, indices: torch.Tensor) -> torch.Tensor:
            reads.extend(indices.tolist())
            return super().eval_view(indices)

    watched = replace(data, test=replace(data.test, images=Watched(data.test.images.pixels)))
    monkeypatch.setattr("kdtrain.trials.workspace.load", lambda config, root: watched)
    train(recipe(), workspace(tmp_path), final=True)
    assert reads == []
    trained(recipe(), tmp_path, final=True)
    trained(recipe(), tmp_path, final=True)
    assert reads == list(range(60))


@pytest.mark.parametrize("lr", [0.05, 1e9])
def test_what_has_ended_is_returned_and_not_trained_again(lr: float) -> None:
    config = recipe(optimizer={"name": "sgd", "lr": lr})
    first, results = trained(config), Path(session_results().name) / "cpu"
    assert first.outcome["state"] == ("complete" if lr < 1 else "failed")
    before = {path.name: path.read_bytes() for path in first.folder.path.iterdir()}
    for final in (True, False):
        again = trained(config, results, final=final)
        assert again.checkpoints == []
        assert measured(again.outcome) == measured(first.outcome)
    assert {path.name: path.read_bytes() for path in first.folder.path.iterdir()} == before


@pytest.mark.parametrize(("batch_size", "part"), [(16, "train"), (60, "val")])
def test_a_loss_that_is_no_number_ends_as_failed_with_epoch_and_terms(
    batch_size: int, part: str, tmp_path: Path
) -> None:
    wild = recipe(optimizer={"name": "sgd", "lr": 1e30}, batch_size=batch_size, epochs=5)
    left = trained(wild, tmp_path)
    outcome = strict_json(left.folder.path / "outcome.json")
    assert measured(outcome) == left.outcome
    assert outcome["state"] == "failed"
    assert outcome["reason"].startswith({"train": "epoch 1, step 1: ", "val": "epoch 1, after step 0: "}[part])
    assert f"{part}/" in outcome["reason"]
    assert " is nan" in outcome["reason"] or " is inf" in outcome["reason"]
    assert (outcome["epochs"], outcome["best"], outcome["test"]) == (0, None, None)
    assert not list(left.folder.path.glob("checkpoint-*"))


def test_a_training_that_breaks_has_no_outcome_and_continues_from_its_checkpoint(tmp_path: Path) -> None:
    def broken(metrics) -> None:
        raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="the power went out"):
        trained(recipe(), tmp_path, on_epoch=broken)
    left = workspace(tmp_path).trial(recipe())
    assert left.outcome() is None
    assert [row["epoch"] for row in left.epochs()] == [1]
    epochs: list[int] = []
    continued = trained(recipe(), tmp_path, on_epoch=lambda metrics: epochs.append(metrics["epoch"]))
    assert epochs == [2]
    assert equal_weights(continued.weights, trained(recipe()).weights)


def test_smoke_runs_one_batch_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    smoke(recipe(**KD), workspace(Path()))
    smoke(recipe(), workspace(Path()))
    assert list(tmp_path.iterdir()) == []


def test_distilling_without_the_teachers_weights_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe.teacher: .*weights.safetensors"):
        train(recipe(**KD), workspace(tmp_path))


@pytest.mark.parametrize("content", [b"", None])
def test_a_teachers_file_that_does_not_fit_is_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is None:  # whole, but of another network
        content = trained(recipe()).folder.weights.read_bytes()
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"recipe.teacher.trained: {file} "):
        trained(recipe(**KD | {"teacher": {"model": "lenet5_teacher", "trained": str(file)}}), tmp_path)


def test_a_teacher_from_a_file_teaches_as_the_one_that_was_trained() -> None:
    teacher = {"model": "lenet5_teacher", "trained": str(taught().folder.weights)}
    assert trained(recipe(**KD | {"teacher": teacher})).checkpoints == trained(recipe(**KD)).checkpoints


def test_streams_are_named_by_all_their_arguments() -> None:
    arguments = [(0, "order"), (1, "order"), (0, "init"), (0, "order", 1), (0, "order", 1, 1), (0, "order", 11)]
    assert len({stream(*each) for each in arguments}) == len(arguments)
    assert all(0 <= stream(*each) < 2**63 for each in arguments)
    assert torch.equal(torch.rand(5, generator=generator(0, "x", 3)), torch.rand(5, generator=generator(0, "x", 3)))


def taught() -> Trained:
    """Return the training of KD's teacher."""
    return trained(teacher_recipe(recipe(**KD)))


def predictions(left: Trained) -> dict[str, torch.Tensor]:
    with np.load(left.folder.predictions) as kept:
        return {name: torch.from_numpy(kept[name]) for name in kept}


def test_validation_has_the_loss_of_a_method_that_reads_single_images() -> None:
    config = recipe(**KD, label_smoothing=0.1)
    left = trained(config)
    student, teacher = predictions(left), predictions(trained(teacher_recipe(config)))["val_logits"]
    best = left.rows[left.outcome["best"]["epoch"] - 1]
    p, log_q = functional.softmax(teacher / 4, 1), functional.log_softmax(student["val_logits"] / 4, 1)
    kd = 16 * (p * (p.log() - log_q)).sum(1).mean().item()
    hard = functional.cross_entropy(student["val_logits"], student["val_labels"], label_smoothing=0.1).item()
    assert best["val/kd"] == pytest.approx(kd, rel=1e-4)
    assert best["val/loss"] == pytest.approx(0.5 * hard + 0.5 * kd, rel=1e-4)


def test_the_test_split_compares_student_and_teacher() -> None:
    left = trained(recipe(**KD))
    student, teacher = (predictions(each)["test_logits"] for each in (left, taught()))
    test = left.outcome["test"]
    assert test["test/teacher_accuracy"] == taught().outcome["test"]["test/accuracy"]
    assert test["test/agreement"] == (student.argmax(1) == teacher.argmax(1)).double().mean()
    assert test["test/diff_t_s"] == pytest.approx((student - teacher).abs().mean().item(), rel=1e-5)
