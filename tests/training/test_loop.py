"""One training, from recipe to outcome: what is counted, what repeats, what chooses the epoch, how it fails."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from trainings import ALONE, CPU, KD, NO_DATA, equal_weights, recipe, strict_json, timeless, trained, workspace

from kdtrain.config.recipe import teacher_recipe
from kdtrain.config.training import Cosine
from kdtrain.data.base import as_floats
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.models.build import build
from kdtrain.models.config import Network
from kdtrain.models.weights import load_whole_network
from kdtrain.runtime.rng import generator, stream
from kdtrain.training.assembly import assemble
from kdtrain.training.evaluation import accuracy, logits_of, nll
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.loop import fit, train_step
from kdtrain.training.optimizers import lr_at
from kdtrain.training.preflight import smoke
from kdtrain.training.trainer import train
from kdtrain.trials.outcome import best_epoch, ranking_key
from kdtrain.trials.store import Store


@pytest.mark.parametrize("changes", [{}, KD, {"precision": "bf16"}], ids=["alone", "kd", "bf16"])
def test_the_same_recipe_twice_gives_equal_bits(changes, tmp_path: Path) -> None:
    one, other = (trained(recipe(**changes), tmp_path / name) for name in ("one", "other"))
    assert one.rows == other.rows
    assert one.checkpoints == other.checkpoints
    assert equal_weights(one.weights, other.weights)
    assert timeless(one.outcome) == timeless(other.outcome)


def test_two_seeds_give_different_weights_and_rows(tmp_path: Path) -> None:
    one, other = (trained(recipe(seed=seed), tmp_path) for seed in (0, 1))
    assert one.folder.path != other.folder.path
    assert not equal_weights(one.weights, other.weights)
    assert one.rows[0]["train/loss"] != other.rows[0]["train/loss"]


def test_what_was_drawn_before_does_not_change_a_training(tmp_path: Path) -> None:
    one = trained(recipe(**KD), tmp_path / "one")
    torch.manual_seed(99)
    torch.rand(12345)
    assert trained(recipe(**KD), tmp_path / "other").checkpoints == one.checkpoints


def test_a_training_second_in_a_warm_process_equals_one_that_came_first(tmp_path: Path) -> None:
    first = trained(recipe(), tmp_path / "cold")
    trained(recipe(**KD, seed=5, precision="bf16"), tmp_path / "warm")
    assert trained(recipe(), tmp_path / "warm").checkpoints == first.checkpoints


def batches_of(config) -> list[list[torch.Tensor]]:
    """The batches of image indices in each epoch of a training, as the images are asked for them."""
    data = load(config.data, NO_DATA)
    asked: list[torch.Tensor] = []

    class Asked:
        at_once = True

        def on(self, device: torch.device) -> "Asked":
            return self

        def train_view(self, indices: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
            asked.append(indices)
            return data.train.images.train_view(indices, seed, epoch)

    watched = replace(data, train=replace(data.train, images=Asked()))
    epochs = []

    def cut(metrics, run) -> None:
        epochs.append(asked.copy())
        asked.clear()

    fit(assemble(config, watched, None, CPU), config.epochs, cut)
    return epochs


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    config = recipe(batch_size=16, epochs=3)
    epochs = batches_of(config)
    for batches in epochs:
        assert [len(batch) for batch in batches] == [16, 16, 16, 12]
        assert torch.cat(batches).sort().values.tolist() == list(range(60))
    orders = [torch.cat(batches).tolist() for batches in epochs]
    assert len({tuple(order) for order in orders}) == 3
    assert orders == [torch.cat(batches).tolist() for batches in batches_of(config)]
    assert orders[0] != torch.cat(batches_of(recipe(seed=1))[0]).tolist()


@pytest.mark.parametrize("batch_size", [7, 16, 60, 1000])
def test_the_training_loss_is_the_mean_over_images_whatever_the_last_batch(batch_size: int, tmp_path: Path) -> None:
    still = {"optimizer": {"name": "sgd", "lr": 1e-30}, "batch_size": batch_size, "epochs": 1, "label_smoothing": 0.1}
    left = trained(recipe(**still), tmp_path)
    data = load(recipe().data, NO_DATA)
    network = build(Network(model="lenet5_student"), data.image_shape, 10, stream(0, "init"))
    logits = logits_of(network, data.train, CPU).double()
    by_hand = functional.cross_entropy(logits, data.train.labels, label_smoothing=0.1).item()
    assert left.rows[0]["train/loss"] == pytest.approx(by_hand, rel=1e-6)
    assert left.rows[0]["step"] == math.ceil(60 / batch_size)
    assert left.rows[0]["images"] == 60


def test_the_loss_is_the_balanced_sum_of_its_terms(tmp_path: Path) -> None:
    for row in trained(recipe(**KD), tmp_path).rows:
        expected = 0.5 * row["train/cross_entropy"] + 0.5 * row["train/kd"]
        assert row["train/loss"] == pytest.approx(expected, rel=1e-6)
        assert row["train/kd"] == pytest.approx(16 * row["train/kd_without_t2"], rel=1e-5)


def test_a_step_is_the_optimizers_step_on_the_mean_gradient_of_the_batch() -> None:
    config = recipe(optimizer={"name": "sgd", "lr": 0.1})
    data = load(config.data, NO_DATA)
    run = assemble(config, data, None, CPU)
    by_hand = build(Network(model="lenet5_student"), data.image_shape, 10, stream(0, "init"))
    batch = torch.tensor([3, 1, 4, 15, 9])
    images, labels = as_floats(data.train.images.eval_view(batch)), data.train.labels[batch]
    functional.cross_entropy(by_hand(images), labels).backward()
    run.distiller.train()
    train_step(run, batch)
    trained_weights = run.distiller.student.state_dict()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(trained_weights[name], parameter.detach() - 0.1 * parameter.grad)


def test_the_rows_tell_the_learning_rate_of_each_epochs_first_step(tmp_path: Path) -> None:
    schedule = {"name": "cosine", "warmup_epochs": 1}
    rows = trained(recipe(lr_schedule=schedule, epochs=3), tmp_path).rows
    cosine = Cosine.model_validate(schedule)
    assert [row["lr"] for row in rows] == [lr_at(cosine, 0.05, step, 4, 3) for step in (0, 4, 8)]


@pytest.mark.parametrize(
    "change",
    [{"precision": "bf16"}, {"label_smoothing": 0.2}, {"batch_size": 15}, {"lr_schedule": {"name": "cosine"}}],
    ids=lambda change: next(iter(change)),
)
def test_a_knob_changes_what_is_learned(change, tmp_path: Path) -> None:
    assert not equal_weights(trained(recipe(), tmp_path).weights, trained(recipe(**change), tmp_path).weights)


def test_label_smoothing_raises_the_reported_cross_entropy_of_a_confident_student(tmp_path: Path) -> None:
    sharp = {"epochs": 40, "optimizer": {"name": "adam", "lr": 0.005}}
    hard = trained(recipe(**sharp), tmp_path).rows[-1]["train/cross_entropy"]
    soft = trained(recipe(**sharp, label_smoothing=0.2), tmp_path).rows[-1]["train/cross_entropy"]
    entropy_of_smoothed_labels = -(0.82 * math.log(0.82) + 9 * 0.02 * math.log(0.02))
    assert hard < 0.2
    assert soft > entropy_of_smoothed_labels > 0.8


ROWS = [
    {"epoch": 1, "val/accuracy": 0.5, "val/nll": 1.0},
    {"epoch": 2, "val/accuracy": 0.7, "val/nll": 0.9},
    {"epoch": 3, "val/accuracy": 0.7, "val/nll": 0.8},
    {"epoch": 4, "val/accuracy": 0.6, "val/nll": 0.7},
    {"epoch": 5, "val/accuracy": 0.7, "val/nll": 0.8},
]


def test_the_best_epoch_is_by_the_objective_then_the_other_metric_then_the_earlier() -> None:
    assert best_epoch(ROWS, "val/accuracy") == ROWS[2]
    assert best_epoch(ROWS, "val/nll") == ROWS[3]
    assert best_epoch(ROWS[4:] + ROWS[:3], "val/accuracy") == ROWS[2]
    assert best_epoch([], "val/accuracy") is None
    assert ranking_key(ROWS[0], "val/nll") == (-1.0, 0.5)


@pytest.mark.parametrize("objective", ["val/accuracy", "val/nll"])
def test_a_run_remembers_the_weights_of_the_epoch_that_the_rows_call_best(objective: str) -> None:
    config = recipe(objective=objective)
    run = assemble(config, load(config.data, NO_DATA), None, CPU)
    for row in ROWS:
        run.epoch = row["epoch"]
        with torch.no_grad():
            run.distiller.student.head[0].bias.fill_(row["epoch"])
        run.remember_best(row)
    best = best_epoch(ROWS, objective)
    assert run.best == best
    assert run.best_weights["head.0.bias"][0] == best["epoch"]


OVERFITTING = {
    "data": ALONE["data"] | {"limit_per_class": 3}, "optimizer": {"name": "adam", "lr": 0.01}, "epochs": 25
}  # fmt: skip


def test_another_objective_chooses_another_epoch_of_the_same_training(tmp_path: Path) -> None:
    by_accuracy = trained(recipe(**OVERFITTING), tmp_path)
    by_nll = trained(recipe(**OVERFITTING, objective="val/nll"), tmp_path)
    assert by_accuracy.rows == by_nll.rows
    for left, metric, best in ((by_accuracy, "val/accuracy", max), (by_nll, "val/nll", min)):
        assert left.outcome["best"][metric] == best(row[metric] for row in left.rows)
    assert by_accuracy.outcome["best"]["epoch"] != by_nll.outcome["best"]["epoch"]
    assert not equal_weights(by_accuracy.weights, by_nll.weights)


def test_the_kept_weights_give_the_best_epochs_metrics_and_the_kept_predictions(tmp_path: Path) -> None:
    import numpy as np

    config = recipe(**KD, epochs=4)
    left = trained(config, tmp_path)
    data = load(config.data, NO_DATA)
    network = build(Network(model="lenet5_student"), data.image_shape, 10, 0)
    load_whole_network(network, left.folder.weights, "recipe.student")
    val, test = (logits_of(network, split, CPU) for split in (data.val, data.test))
    best = {"val/accuracy": accuracy(val, data.val.labels), "val/nll": nll(val, data.val.labels)}
    assert left.outcome["best"] == {"epoch": left.outcome["best"]["epoch"], **best}
    assert left.outcome["test"]["test/accuracy"] == accuracy(test, data.test.labels)
    assert left.outcome["test"]["test/nll"] == nll(test, data.test.labels)
    assert left.outcome["test"]["images"] == len(data.test) == 60
    with np.load(left.folder.predictions) as kept:
        assert kept["val_logits"].tobytes() == val.numpy().tobytes()
        assert kept["test_logits"].tobytes() == test.numpy().tobytes()
        assert (kept["test_labels"] == data.test.labels.numpy()).all()
        assert (kept["val_labels"] == data.val.labels.numpy()).all()


def test_the_outcome_sums_up_the_rows(tmp_path: Path) -> None:
    left = trained(recipe(**KD, epochs=3), tmp_path)
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
    assert stored == {"schema": 1, **outcome}


def test_the_recipe_file_says_what_is_trained_on_which_data(tmp_path: Path) -> None:
    left = trained(recipe(**KD), tmp_path)
    row = strict_json(left.folder.path / "recipe.json")
    assert row["trial_id"] == left.folder.trial_id
    assert row["weights"] == [0.5, 0.5]
    assert type(recipe()).model_validate(row["recipe"]) == recipe(**KD)
    assert (tmp_path / "trials" / row["teacher"]["trial_id"] / "weights.safetensors").exists()
    assert {key: row["data"][key] for key in ("classes", "train", "val", "test")} == {
        "classes": 10, "train": 60, "val": 60, "test": 60
    }  # fmt: skip


def test_nothing_but_the_test_split_weights_and_predictions_is_added_by_final(tmp_path: Path) -> None:
    searched = trained(recipe(), tmp_path / "searched", final=False)
    final = trained(recipe(), tmp_path / "final", final=True)
    assert searched.rows == final.rows
    assert searched.outcome["test"] is None
    files, more = ({p.name for p in left.folder.path.glob("[!.]*")} for left in (searched, final))
    assert files == {"recipe.json", "epochs.jsonl", "outcome.json"}
    assert more == files | {"weights.safetensors", "predictions.npz"}


def test_no_training_reads_the_test_split_and_read_test_reads_it_once(tmp_path: Path, monkeypatch) -> None:
    data = load(recipe().data, NO_DATA)
    reads: list[int] = []

    class Watched:
        def check(self) -> None:
            pass

        def tta_view(self, indices: torch.Tensor) -> None:
            return None

        def on(self, device: torch.device) -> "Watched":
            return self

        def eval_view(self, indices: torch.Tensor) -> torch.Tensor:
            reads.extend(indices.tolist())
            return data.test.images.eval_view(indices)

    watched = replace(data, test=replace(data.test, images=Watched()))
    monkeypatch.setattr("kdtrain.trials.workspace.load", lambda config, root: watched)
    train(recipe(), workspace(tmp_path), final=True)
    assert reads == []
    trained(recipe(), tmp_path, final=True)
    trained(recipe(), tmp_path, final=True)
    assert reads == list(range(60))


def test_what_has_ended_is_returned_and_not_trained_again(tmp_path: Path) -> None:
    first = trained(recipe(), tmp_path)
    before = {path.name: path.read_bytes() for path in first.folder.path.iterdir()}
    again = trained(recipe(), tmp_path)
    assert again.checkpoints == []
    assert again.outcome == {"schema": 1, **first.outcome}
    assert {path.name: path.read_bytes() for path in first.folder.path.iterdir()} == before
    assert trained(recipe(), tmp_path, final=False).checkpoints == []


def test_a_searched_trial_that_is_to_be_final_is_trained_to_the_same_rows(tmp_path: Path) -> None:
    searched = trained(recipe(), tmp_path, final=False)
    rows, best = searched.rows, searched.outcome["best"]
    final = trained(recipe(), tmp_path, final=True)
    assert final.rows == rows
    assert final.outcome["best"] == best
    assert final.outcome["test"] is not None


def test_while_an_ended_trial_is_trained_on_it_does_not_pass_for_ended(tmp_path: Path) -> None:
    searched = trained(recipe(), tmp_path, final=False)
    seen = []
    trained(recipe(), tmp_path, final=True, on_epoch=lambda metrics: seen.append(searched.folder.outcome()))
    assert seen == [None, None]


@pytest.mark.parametrize(("batch_size", "part"), [(16, "train"), (60, "val")])
def test_a_loss_that_is_no_number_ends_as_failed_with_epoch_and_terms(
    batch_size: int, part: str, tmp_path: Path
) -> None:
    wild = recipe(optimizer={"name": "sgd", "lr": 1e30}, batch_size=batch_size, epochs=5)
    left = trained(wild, tmp_path)
    outcome = strict_json(left.folder.path / "outcome.json")
    assert outcome == {"schema": 1, **left.outcome}
    assert outcome["state"] == "failed"
    assert outcome["reason"].startswith({"train": "epoch 1, step 1: ", "val": "epoch 1, after step 0: "}[part])
    assert f"{part}/" in outcome["reason"]
    assert " is nan" in outcome["reason"] or " is inf" in outcome["reason"]
    assert (outcome["epochs"], outcome["best"], outcome["test"]) == (0, None, None)
    assert not list(left.folder.path.glob("checkpoint-*"))


def test_a_learning_rate_of_a_billion_fails_and_stays_failed(tmp_path: Path) -> None:
    wild = recipe(optimizer={"name": "sgd", "lr": 1e9}, epochs=5)
    left = trained(wild, tmp_path)
    assert left.outcome["state"] == "failed"
    assert trained(wild, tmp_path).outcome == {"schema": 1, **left.outcome}


def test_a_training_that_breaks_ends_as_failed_with_its_reason_and_the_traceback_kept(tmp_path: Path) -> None:
    def broken(metrics) -> None:
        raise RuntimeError("the power went out")

    left = trained(recipe(), tmp_path, on_epoch=broken)
    assert (left.outcome["state"], left.outcome["reason"]) == ("failed", "RuntimeError: the power went out")
    assert left.outcome["epochs"] == 1
    assert "test_loop.py" in (left.folder.path / "error.txt").read_text()


def test_smoke_runs_one_batch_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    smoke(recipe(**KD), workspace(Path()))
    smoke(recipe(), workspace(Path()))
    assert list(tmp_path.iterdir()) == []


def test_distilling_without_the_teachers_weights_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe.teacher: .*weights.safetensors"):
        train(recipe(**KD), workspace(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_a_teachers_file_that_does_not_fit_is_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is None:  # whole, but of another network
        content = trained(recipe(), tmp_path).folder.weights.read_bytes()
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"recipe.teacher.file: {file} "):
        trained(recipe(**KD | {"teacher": {"model": "lenet5_teacher", "file": str(file)}}), tmp_path)


def test_a_teacher_from_a_file_teaches_as_the_one_that_was_trained(tmp_path: Path) -> None:
    by_training = trained(recipe(**KD), tmp_path)
    teacher_id = by_training.folder.recipe()["teacher"]["trial_id"]
    file = Store(tmp_path).trial(teacher_id).weights
    by_file = trained(recipe(**KD | {"teacher": {"model": "lenet5_teacher", "file": str(file)}}), tmp_path / "file")
    assert by_file.checkpoints == by_training.checkpoints


def test_streams_are_named_by_all_their_arguments() -> None:
    arguments = [(0, "order"), (1, "order"), (0, "init"), (0, "order", 1), (0, "order", 1, 1), (0, "order", 11)]
    assert len({stream(*each) for each in arguments}) == len(arguments)
    assert all(0 <= stream(*each) < 2**63 for each in arguments)
    assert torch.equal(torch.rand(5, generator=generator(0, "x", 3)), torch.rand(5, generator=generator(0, "x", 3)))


def test_validation_has_the_loss_of_a_method_that_reads_single_images(tmp_path: Path) -> None:
    left = trained(recipe(**KD, label_smoothing=0.1), tmp_path)
    read_test(teacher_recipe(recipe(**KD, label_smoothing=0.1)), workspace(tmp_path))
    with np.load(left.folder.predictions) as kept:
        student, labels = (torch.from_numpy(kept[name]) for name in ("val_logits", "val_labels"))
    teacher = Store(tmp_path).trial(left.folder.recipe()["teacher"]["trial_id"])
    with np.load(teacher.predictions) as kept:
        teacher_logits = torch.from_numpy(kept["val_logits"])
    best = left.rows[left.outcome["best"]["epoch"] - 1]
    p, log_q = functional.softmax(teacher_logits / 4, 1), functional.log_softmax(student / 4, 1)
    kd = 16 * (p * (p.log() - log_q)).sum(1).mean().item()
    hard = functional.cross_entropy(student, labels, label_smoothing=0.1).item()
    assert best["val/kd"] == pytest.approx(kd, rel=1e-4)
    assert best["val/loss"] == pytest.approx(0.5 * hard + 0.5 * kd, rel=1e-4)


def test_the_test_split_compares_student_and_teacher(tmp_path: Path) -> None:
    left = trained(recipe(**KD), tmp_path)
    read_test(teacher_recipe(recipe(**KD)), workspace(tmp_path))
    teacher = Store(tmp_path).trial(left.folder.recipe()["teacher"]["trial_id"])
    with np.load(left.folder.predictions) as kept, np.load(teacher.predictions) as known:
        student, taught = kept["test_logits"], known["test_logits"]
    test = left.outcome["test"]
    assert test["test/teacher_accuracy"] == teacher.outcome()["test"]["test/accuracy"]
    assert test["test/agreement"] == (student.argmax(1) == taught.argmax(1)).mean()
    assert test["test/diff_t_s"] == pytest.approx(np.abs(student - taught).mean(), rel=1e-5)
