"""What setups add to any method, in real trainings: R-Drop, moving average, patience, mixup, each network's pixels."""

import math
from typing import Any

import pytest
import torch
from losses import kl_of_rows, normal, softened
from pydantic import ValidationError
from runs import BATCH_NORM_STUDENT, fitted, fresh_state, state_of, watched_inputs
from test_loop import OVERFITTING
from torch.nn import functional
from trainings import CPU, KD, equal_weights, recipe, trained

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.data.base import as_floats
from kdtrain.data.mixup import Mixup, pairing
from kdtrain.errors import UserError
from kdtrain.methods.base import Outputs
from kdtrain.methods.r_drop import symmetric_kl
from kdtrain.runtime.rng import stream
from kdtrain.training.evaluation import logits_of, student_metrics
from kdtrain.training.loop import fit, load_batch, train_step
from kdtrain.training.state import TrainState
from kdtrain.trials.outcome import best_epoch

DROPPING: dict[str, Any] = {"student": BATCH_NORM_STUDENT | {"dropout": 0.4}}
TAUGHT: dict[str, Any] = {"teacher": BATCH_NORM_STUDENT | {"epochs": 1}}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "kd": TAUGHT | {"method": {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}}},
    "sp": TAUGHT | {"method": {"name": "sp", "balance": {"weight": 3.0}}},
    "mgd": TAUGHT | {"method": {"name": "mgd", "balance": {"weight": 3.0}, "mask_ratio": 0.4, "alpha": 0.01}},
}
R_DROP = DROPPING | {"r_drop": {"weight": 0.3}}
EMA = {"ema": {"decay": 0.9, "ramp_updates": 3.0}}


# R-Drop


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 200)])
def test_the_symmetric_kl_is_half_of_both_directions(shape: tuple[int, int]) -> None:
    one, other = 3 * normal(*shape, purpose="one"), 3 * normal(*shape, purpose="other")
    total = 0.0
    for p_row, q_row in zip(one.tolist(), other.tolist(), strict=True):
        p, q = softened(p_row, 1.0), softened(q_row, 1.0)
        total += (kl_of_rows(p, q) + kl_of_rows(q, p)) / 2
    assert symmetric_kl(one, other).item() == pytest.approx(total / shape[0], rel=1e-9)
    assert symmetric_kl(other, one).item() == pytest.approx(total / shape[0], rel=1e-9)
    assert symmetric_kl(one, one).item() == 0


def test_the_symmetric_kl_teaches_both_passes_the_gradient_of_its_value() -> None:
    one, other = (normal(3, 5, purpose=name).requires_grad_() for name in ("one", "other"))
    assert torch.autograd.gradcheck(symmetric_kl, (one, other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_symmetric_kl_is_finite_and_float32_under_autocast(dtype: torch.dtype) -> None:
    one = torch.tensor([[300.0, -300.0, 0.0]], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype):
        value = symmetric_kl(one, -one.detach())
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert one.grad.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_with_r_drop_every_term_is_the_mean_over_two_passes_with_dropout(method: str) -> None:
    config = recipe(**METHODS[method] | R_DROP)
    by_hand = fresh_state(config)
    student = by_hand.distiller.student
    indices = torch.arange(16)
    images, batch = load_batch(by_hand, indices, 0)
    teacher = by_hand.teachers[0](images) if by_hand.teachers else None
    torch.manual_seed(stream(config.seed, "dropout", 0, 0))
    passes = [Outputs(*student.outputs(images, config.method.needed_stages)) for _ in range(2)]
    assert not torch.equal(passes[0].logits, passes[1].logits)
    terms = [by_hand.distiller.criterion(each, teacher, batch, None) for each in passes]
    expected = {name: (terms[0][name].value + terms[1][name].value).item() / 2 for name in terms[0]}
    expected["r_drop"] = symmetric_kl(passes[0].logits, passes[1].logits).item()
    weights = {name: term.weight for name, term in terms[0].items()} | {"r_drop": 0.3}
    expected["loss"] = math.fsum(weights[name] * value for name, value in expected.items())
    values = first_step(**METHODS[method] | R_DROP)
    assert values == pytest.approx(expected, rel=1e-5)
    assert values["r_drop"] > 0


def first_step(**changes: Any) -> dict[str, float]:
    terms = train_step(fresh_state(recipe(**changes)), torch.arange(16))
    return {name: value.item() for name, value in terms.items()}


def test_published_r_drop_is_summed_over_the_batch() -> None:
    corrected = first_step(**R_DROP)
    published = first_step(**DROPPING, r_drop={"weight": 0.3, "convention": "published"})
    assert published["r_drop"] == pytest.approx(16 * corrected["r_drop"], rel=1e-6)
    assert published["cross_entropy"] == corrected["cross_entropy"]
    assert published["loss"] == pytest.approx(published["cross_entropy"] + 0.3 * published["r_drop"], rel=1e-6)


def test_published_r_drop_never_reached_distillation_and_is_refused_there() -> None:
    for method in ("kd", "sp", "mgd"):
        with pytest.raises(ValidationError, match="published never reached distillation"):
            recipe(**METHODS[method] | DROPPING | {"r_drop": {"convention": "published"}})


@pytest.mark.parametrize("student", [{"model": "lenet5_student"}, BATCH_NORM_STUDENT], ids=["lenet5", "no dropout"])
@pytest.mark.parametrize("method", ["none", "kd"])
def test_two_passes_that_cannot_differ_are_refused(student: dict[str, Any], method: str) -> None:
    model = student["model"]
    with pytest.raises(UserError, match=rf"^recipe\.r_drop: .*, but {model} has none; write student\.dropout$"):
        fresh_state(recipe(**METHODS[method] | {"student": student, "r_drop": {}}))


# the moving average


@pytest.mark.parametrize("method", [{}, KD], ids=["alone", "kd"])
def test_what_is_judged_and_kept_is_the_average(method: dict[str, Any]) -> None:
    state = fresh_state(recipe(**method | EMA, epochs=4))
    averages: dict[int, dict[str, torch.Tensor]] = {}

    def judge(row, state: TrainState) -> None:
        assert state.ema is not None
        split = state.data.val
        for network, same in ((state.ema.module, True), (state.distiller.student, False)):
            found = student_metrics(logits_of(network, split, CPU), split.labels)
            judged = {name: row[f"val/{name}"] for name in found}
            assert (judged == found) is same
        averages[row["epoch"]] = state_of(state.ema.module)

    fit(state, 4, judge)
    assert equal_weights(state.best_weights, averages[state.best["epoch"]])
    if not method:
        assert equal_weights(state.best_weights, trained(recipe(**EMA, epochs=4)).weights)


def test_the_average_does_not_change_what_the_student_learns() -> None:
    plain, averaged = fresh_state(recipe()), fresh_state(recipe(**EMA))
    rows = [fitted(state) for state in (plain, averaged)]
    assert equal_weights(state_of(plain.distiller), state_of(averaged.distiller))
    assert [row["train/loss"] for row in rows[0]] == [row["train/loss"] for row in rows[1]]


# patience


@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize("objective", ["val/accuracy", "val/nll"])
def test_a_training_ends_when_its_best_epoch_lies_so_far_back(objective: str, patience: int) -> None:
    whole = trained(recipe(**OVERFITTING, objective=objective)).rows
    best = [best_epoch(whole[:epoch], objective)["epoch"] for epoch in range(1, 26)]
    last = next(epoch for epoch in range(1, 26) if epoch - best[epoch - 1] == patience)
    left = trained(recipe(**OVERFITTING, objective=objective, early_stopping={"patience_epochs": patience}))
    assert last < len(whole) == 25
    assert left.rows == whole[:last]
    assert left.outcome["best"]["epoch"] == last - patience
    assert (left.outcome["state"], left.outcome["epochs"], left.outcome["images"]) == ("complete", last, 30 * last)


def test_no_training_ends_while_it_improves_or_patience_lasts() -> None:
    improving = {"optimizer": {"name": "sgd", "lr": 0.002}, "objective": "val/nll", "epochs": 8}
    left = trained(recipe(**improving, early_stopping={"patience_epochs": 1}))
    losses = [row["val/nll"] for row in left.rows]
    assert losses == sorted(losses, reverse=True)
    assert left.outcome["epochs"] == left.outcome["best"]["epoch"] == 8
    still = {"optimizer": {"name": "sgd", "lr": 1e-30}, "epochs": 4}
    for patience, epochs in ((4, 4), (2, 3)):
        assert trained(recipe(**still, early_stopping={"patience_epochs": patience})).outcome["epochs"] == epochs


def test_a_teacher_may_have_patience_of_its_own() -> None:
    teacher = {"model": "lenet5_teacher", "epochs": 5, "optimizer": {"name": "sgd", "lr": 1e-30}}
    taught = recipe(**KD | {"teacher": teacher | {"early_stopping": {"patience_epochs": 1}}})
    assert [trained(each).outcome["epochs"] for each in (teacher_recipe(taught), taught)] == [2, 2]


# mixup, and what each network makes of its images


@pytest.mark.parametrize("convention", ["corrected", "published"])
def test_teacher_and_student_see_the_same_mixed_images_and_the_target_is_mixed_alike(convention: str) -> None:
    state = fresh_state(recipe(**KD, mixup={"convention": convention}))
    (student, _), (teacher, _) = watched_inputs(state.distiller.student), watched_inputs(state.teachers[0].network)
    batches: list[Any] = []
    state.distiller.criterion.register_forward_pre_hook(lambda _, arguments: batches.append(arguments[2]))
    state.epoch = 2
    train = state.data.train
    for step, indices in enumerate(torch.randperm(60).split(16)):
        state.step = 8 + step
        train_step(state, indices, step)
        pairs = pairing(Mixup(convention=convention), indices, 60, 0, 2, state.step)
        images, target = [], []
        for index, partner, share in zip(indices, pairs.partners, pairs.shares, strict=True):
            of = [as_floats(train.images.eval_view(one[None])[0]) for one in (index, partner)]
            images.append(share * of[0] + (1 - share) * of[1])
            hot = [functional.one_hot(train.labels[one], 10) for one in (index, partner)]
            target.append(share * hot[0] + (1 - share) * hot[1])
        assert torch.equal(student[step], teacher[step][: len(indices)])  # its chunk is filled up
        assert torch.equal(student[step], torch.stack(images))
        torch.testing.assert_close(batches[step].target, torch.stack(target))
        torch.testing.assert_close(batches[step].target.sum(1), torch.ones(len(indices)))
        assert (batches[step].target.max(1).values < 1).any()
    assert len(student) == 4


def test_the_images_that_are_judged_are_never_mixed() -> None:
    state = fresh_state(recipe(mixup={}, epochs=1))
    seen, _ = watched_inputs(state.distiller.student)
    fitted(state)
    assert torch.equal(seen[-1], as_floats(state.data.val.images.eval_view(torch.arange(60))))


def test_each_network_normalises_the_same_view_its_own_way() -> None:
    student, teacher = (BATCH_NORM_STUDENT | {"normalization": how} for how in ("imagenet", "half"))
    state = fresh_state(recipe(**KD | {"student": student, "teacher": teacher}))
    given, encoded = watched_inputs(state.distiller.student)
    given_teacher, encoded_teacher = watched_inputs(state.teachers[0].network)
    train_step(state, torch.arange(16))
    view = as_floats(state.data.train.images.eval_view(torch.arange(16)))
    assert torch.equal(given[0], view)
    assert torch.equal(given_teacher[0][:16], view)  # its chunk is filled up
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(encoded[0], (view.expand(-1, 3, -1, -1) - mean) / std)
    torch.testing.assert_close(encoded_teacher[0][:16], view.expand(-1, 3, -1, -1) * 2 - 1)
    assert encoded_teacher[0].aminmax() == (-1, 1)
