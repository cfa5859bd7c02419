"""Two real processes on gloo train what one trains: equal but for float rounding. One group serves all tests here."""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from groups import join
from trainings import CPU, KD, NO_DATA, Trained, equal_weights, measured, recipe, timeless, trained

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.runtime import distributed
from kdtrain.storage.cache import Cache
from kdtrain.storage.folder import Row
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.trainer import train
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store, TrialFolder
from kdtrain.trials.workspace import Workspace

pytestmark = pytest.mark.ddp

RANKS = 2
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
"""Of weights and losses in float32 after a dozen steps: the ranks' gradients are averaged in another order."""

TEACHER = KD["teacher"] | {"batch_size": 16}
WHOLE_DIGITS = {"name": "digits", "resolution": 16}
RECIPES: dict[str, dict[str, Any]] = {
    # 898 images: shards of 150 and 149, a last batch of one image for two ranks; 599 test images
    "kd": KD | {"data": WHOLE_DIGITS, "batch_size": 299, "epochs": 3},
    "teacher": {"data": WHOLE_DIGITS, "batch_size": 299, "student": {"model": "lenet5_teacher"}},
    "adamw": {
        "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.1}, "label_smoothing": 0.1, "batch_size": 15,
        "lr_schedule": {"name": "cosine", "warmup_epochs": 1}, "epochs": 3,
    },
    "class weights": {
        "class_weights": [0.5, 1.0, 2.0, 3.0, 1.0, 1.0, 0.25, 1.0, 4.0, 1.0], "label_smoothing": 0.1,
        "sampler": "class_balanced", "batch_size": 59,
    },
    "bf16": {"precision": "bf16", "batch_size": 15},
    # 60 images: shards of 10 and 9, then of 2 and 1; the turns change in the middle of an epoch
    "critic": {
        "teacher": TEACHER, "batch_size": 19, "epochs": 3,
        "method": {
            "name": "logits_discriminator", "temperature": 1.5, "balance": {"alpha": 0.5},
            "critic_steps": 3, "student_steps": 2,
        },
    },
    # 59 images and one: the second rank has none of the last batch
    "sp": {
        "teacher": TEACHER, "batch_size": 59,
        "method": {"name": "sp", "balance": {"weight": 100.0}, "stages": ["4"]},
    },
    "mgd": {
        "teacher": TEACHER, "batch_size": 15,
        "method": {"name": "mgd", "balance": {"weight": 3.0}, "stage": "4", "mask_ratio": 0.4, "alpha": 0.01},
    },
    "max-norm": {"student": {"model": "mlp", "hidden": [20, 20], "max_norm": 0.5}, "batch_size": 15},
    "mixup": KD | {"teacher": TEACHER, "mixup": {}, "batch_size": 59},
    "mixup published": KD | {"teacher": TEACHER, "mixup": {"convention": "published"}, "batch_size": 15},
    "ema": {"ema": {"decay": 0.9, "ramp_updates": 3.0}, "batch_size": 15, "epochs": 3},
}  # fmt: skip
FAILING = {"optimizer": {"name": "sgd", "lr": 1e30}}
CUT = ("adamw", "critic")
READ = ("kd", "sp", "mgd", "mixup")


def work(rank: int, ranks: int, folder: str) -> None:
    """Train every recipe as one rank, then one that fails, then some that are cut off after an epoch and continued."""
    store = Store(Path(folder) / "results")
    written = watch_writes(store.results)
    join(rank, ranks, folder)
    outcomes: dict[str, Any] = {name: outcome_of(recipe(**RECIPES[name]), store) for name in RECIPES}
    outcomes["failing"] = outcome_of(recipe(**FAILING), store)
    cut = Store(Path(folder) / "cut")

    def stop(metrics: Metrics) -> None:
        raise KeyboardInterrupt

    for name in CUT:
        with suppress(KeyboardInterrupt):
            outcome_of(recipe(**RECIPES[name]), cut, stop)
        outcomes[f"{name} continued"] = outcome_of(recipe(**RECIPES[name]), cut)
    cache = Cache(Path(folder) / "cache", 1 << 26)
    for name in READ:
        for results in ("fills", "reads"):
            outcome_of(recipe(**RECIPES[name]), Store(Path(folder) / results), cache=cache)
    outcomes["gathered"] = distributed.gather_rows(distributed.share(torch.arange(5))[:, None] * 1.0, 5)[:, 0].tolist()
    outcomes["written"] = written
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


def outcome_of(config, store: Store, on_epoch=lambda metrics: None, cache: Cache | None = None) -> Row:
    taught_by = teacher_recipe(config)
    if taught_by is not None:
        train(taught_by, Workspace(store, NO_DATA, CPU), final=True)
    outcome = train(config, Workspace(store, NO_DATA, CPU, cache), final=True, on_epoch=on_epoch)
    return read_test(config, Workspace(store, NO_DATA, CPU)) if outcome["state"] == "complete" else outcome


def watch_writes(results: Path) -> list[str]:
    """Return a list that fills with the paths below `results` that this process writes, makes, renames or removes."""
    written: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.chmod")
        opens = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (changes or opens) and str(arguments[0]).startswith(str(results)):
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    return written


@dataclass(frozen=True)
class Group:
    folder: Path
    outcomes: list[dict[str, Any]]

    def trial(self, name: str, results: str = "results") -> TrialFolder:
        return Store(self.folder / results).trial(trial_id(recipe(**RECIPES[name]), NO_DATA))


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(work, (RANKS, str(folder)), nprocs=RANKS)
    return Group(folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)])


def alone(name: str) -> Trained:
    return trained(recipe(**RECIPES[name]))


def weights(folder: TrialFolder) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder.weights)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "bf16"])
def test_two_ranks_learn_what_one_learns(name: str, group: Group) -> None:
    # each group has trained its own teacher: their rounding differs, and so the students' a little more
    tolerance = TOLERANCE if name in ("teacher", "adamw") else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(weights(group.trial(name)), alone(name).weights, **tolerance)
    for ours, single in zip(group.trial(name).epochs(), alone(name).rows, strict=True):
        assert timeless(ours).keys() == single.keys()
        for key in single:
            if key.startswith("train/") or key in ("val/nll", "val/teacher_accuracy"):
                assert ours[key] == pytest.approx(single[key], rel=tolerance["rtol"], abs=1e-6), key


@pytest.mark.parametrize("name", READ)
def test_two_ranks_that_read_what_a_teacher_outcomes_learn_what_two_learn_that_ask(name: str, group: Group) -> None:
    live, *others = (group.trial(name, results) for results in ("results", "fills", "reads"))
    computed, checked = (
        [sum(row[f"teacher_images_{name}"] for row in other.epochs()) for other in others]
        for name in ("computed", "checked")
    )
    assert computed[1] == 0 < computed[0]
    assert all(count > 0 for count in checked)
    for other in others:
        assert [timeless(row) for row in other.epochs()] == [timeless(row) for row in live.epochs()]
        assert weights(other).keys() == weights(live).keys()
        assert all(torch.equal(value, weights(live)[key]) for key, value in weights(other).items())


def test_bf16_on_two_ranks_is_close_to_one(group: Group) -> None:
    ours, single = group.trial("bf16").epochs()[-1], alone("bf16").rows[-1]
    assert ours["train/loss"] == pytest.approx(single["train/loss"], rel=2e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_counts_are_exact_whatever_the_number_of_ranks(name: str, group: Group) -> None:
    ours, single = group.trial(name).outcome(), alone(name).outcome
    counts = ("state", "reason", "epochs", "parameters", "images")
    assert {key: ours[key] for key in counts} == {key: single[key] for key in counts}
    assert ours["test"]["images"] == single["test"]["images"]
    for key in ("step", "lr", "images"):
        assert [row[key] for row in group.trial(name).epochs()] == [row[key] for row in alone(name).rows]


def test_teacher_forwards_are_counted_as_computed_with_the_one_that_keeps_an_idle_rank_in_step(group: Group) -> None:
    two, one = group.trial("kd").epochs(), alone("kd").rows
    assert [row["teacher_images"] for row in one] == [898 + 300, 898, 898]
    assert [row["teacher_images"] for row in two] == [898 + 300 + 1, 898 + 1, 898 + 1]


@pytest.mark.parametrize("name", ["teacher", "kd"])
def test_every_image_of_an_odd_split_is_judged_once_and_in_its_place(name: str, group: Group) -> None:
    with np.load(group.trial(name).predictions) as ours, np.load(alone(name).folder.predictions) as single:
        assert ours["test_logits"].shape == (599, 10)
        assert (ours["test_labels"] == single["test_labels"]).all()
        np.testing.assert_allclose(ours["test_logits"], single["test_logits"], rtol=1e-2, atol=1e-4)
        accuracy = (ours["test_logits"].argmax(1) == ours["test_labels"]).mean()
    assert group.trial(name).outcome()["test"]["test/accuracy"] == pytest.approx(accuracy, abs=1e-15)


def test_all_ranks_return_the_outcome_that_is_written_and_it_says_two_workers(group: Group) -> None:
    for name in RECIPES:
        stored = group.trial(name).outcome()
        assert stored["workers"] == RANKS
        for outcomes in group.outcomes:
            assert measured(outcomes[name]) == measured(stored)


def test_rank_0_writes_and_rank_1_writes_nothing(group: Group) -> None:
    first, second = (outcomes["written"] for outcomes in group.outcomes)
    assert any("outcome.json" in path for path in first)
    assert second == []


def test_a_loss_that_is_no_number_fails_on_all_ranks_alike(group: Group) -> None:
    first, second = (outcomes["failing"] for outcomes in group.outcomes)
    assert first == second
    assert first["state"] == "failed"
    assert first["reason"].startswith("epoch 1, step ")


@pytest.mark.parametrize("name", CUT)
def test_interrupted_and_continued_on_two_ranks_equals_uninterrupted_bit_for_bit(name: str, group: Group) -> None:
    straight = group.trial(name)
    continued = Store(group.folder / "cut").trial(straight.trial_id)
    assert equal_weights(weights(continued), weights(straight))
    assert [timeless(row) for row in continued.epochs()] == [timeless(row) for row in straight.epochs()]
    first, second = (outcomes[f"{name} continued"] for outcomes in group.outcomes)
    assert first == second


def test_rows_of_uneven_shards_are_put_back_in_order(group: Group) -> None:
    assert [outcomes["gathered"] for outcomes in group.outcomes] == [[0, 1, 2, 3, 4]] * 2
