"""The contract suite: facts that hold for every method with a distillation term, except the critic of logits."""

from typing import Any, get_args

import pytest
import torch
from losses import (
    CLASSES,
    CONFIGS,
    RELATIONAL,
    batch,
    context,
    criterion,
    leaves,
    loss_and_gradients,
    method,
    order,
    outputs,
)
from pydantic import TypeAdapter, ValidationError
from torch import nn
from trainings import CPU, KD, NO_DATA, recipe

from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.methods.base import Outputs, cross_entropy, weighted_sum
from kdtrain.methods.loss_weights import SPELLINGS, LossWeights, RatioIsWeight
from kdtrain.methods.none import CrossEntropy
from kdtrain.methods.registry import Method, loss_weights_of
from kdtrain.models.classifier import Classifier
from kdtrain.teacher.network import Teacher
from kdtrain.training.assembly import assemble
from kdtrain.training.loop import fit
from kdtrain.training.state import TrainState

every = pytest.mark.parametrize("label", CONFIGS)
FROM_FEATURES = ("at", "sp", "mgd", "rkd_distance", "rkd_angle")


def distilling() -> list[type]:
    """Return the config classes of the methods under test."""
    union, *_ = get_args(Method)
    return [
        each for each in get_args(union) if each.__module__.rpartition(".")[2] not in ("none", "logits_discriminator")
    ]


def test_every_method_is_tested_here() -> None:
    names = {get_args(each.model_fields["name"].annotation)[0] for each in distilling()}
    assert {config["name"] for config in CONFIGS.values()} == names


@every
def test_a_config_survives_json_and_plain_data(label: str) -> None:
    config = method(CONFIGS[label])
    adapter = TypeAdapter(Method)
    assert adapter.validate_json(config.model_dump_json()) == config
    assert adapter.validate_python(config.model_dump(mode="json")) == config


@every
def test_the_terms_have_the_weights_of_the_balance_and_the_name_of_the_method(label: str) -> None:
    written = CONFIGS[label] | {"balance": {"alpha_ce": 0.1}}
    student, teacher, of = outputs("student"), outputs("teacher"), batch(epoch=50)
    terms = criterion(written, label_smoothing=0.1)(student, teacher, of)
    assert terms["cross_entropy"].weight == 0.1
    torch.testing.assert_close(terms["cross_entropy"].value, cross_entropy(student.logits, of.target, 0.1))
    assert terms[written["name"]].weight == 0.9
    logged = [term for name, term in terms.items() if name not in ("cross_entropy", written["name"])]
    assert all(term.weight == 0 and not term.value.requires_grad for term in logged)
    assert all(term.value.shape == () for term in terms.values())


@pytest.mark.parametrize("name", ["at", "sp"])
def test_the_losses_of_the_stages_are_summed(name: str) -> None:
    both, *single = (
        criterion(CONFIGS[name] | {"stages": stages})(outputs("student"), outputs("teacher"), batch())[name].value
        for stages in (["8", "32"], ["8"], ["32"])
    )
    torch.testing.assert_close(both, sum(single))


@every
def test_with_weight_zero_the_student_is_alone(label: str) -> None:
    made = criterion(CONFIGS[label] | {"balance": {"weight": 0.0}}, label_smoothing=0.1)
    student, teacher, of = outputs("student", grad=True), outputs("teacher"), batch()
    alone = CrossEntropy(context(label_smoothing=0.1))(student, None, of)
    assert torch.equal(weighted_sum(made(student, teacher, of)), weighted_sum(alone))
    assert not any(parameter.requires_grad for parameter in made.parameters())


@every
def test_the_gradient_is_that_of_the_value(label: str) -> None:
    made, teacher, of = criterion(CONFIGS[label]), outputs("teacher", 3), batch(3, epoch=3)
    student = outputs("student", 3, grad=True)
    needed = method(CONFIGS[label]).needed_stages

    def loss(logits: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        return weighted_sum(made(Outputs(logits, dict(zip(needed, maps, strict=True))), teacher, of))

    assert torch.autograd.gradcheck(loss, (student.logits, *(student.features[stage] for stage in needed)))


@every
def test_no_gradient_reaches_the_teacher_and_one_reaches_what_the_method_needs(label: str) -> None:
    student, teacher = outputs("student", grad=True), outputs("teacher", grad=True)
    weighted_sum(criterion(CONFIGS[label])(student, teacher, batch())).backward()
    assert all(leaf.grad is None for leaf in leaves(teacher).values())
    reached = {name for name, leaf in leaves(student).items() if leaf.grad is not None and leaf.grad.abs().max() > 0}
    assert reached == {"logits", *method(CONFIGS[label]).needed_stages}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every
def test_half_precision_gives_float32_terms_near_those_of_float32(label: str, dtype: torch.dtype) -> None:
    made = criterion(CONFIGS[label], torch.float32)
    student, teacher = outputs("student", dtype=dtype, grad=True), outputs("teacher", dtype=dtype)
    with torch.autocast("cpu", dtype):
        terms = made(student, teacher, batch())
    weighted_sum(terms).backward()
    assert all(term.value.dtype == torch.float32 for term in terms.values())
    for leaf in leaves(student).values():
        assert leaf.grad is None or leaf.grad.isfinite().all()
    full = [Outputs(of.logits.detach().float(), {s: f.detach().float() for s, f in of.features.items()})
            for of in (student, teacher)]  # fmt: skip
    for name, term in made(*full, batch()).items():
        torch.testing.assert_close(terms[name].value, term.value, rtol=2e-2, atol=1e-5)


@every
def test_a_last_batch_of_one_image_has_a_finite_loss_and_gradient(label: str) -> None:
    student, teacher = outputs("student", 1, grad=True), outputs("teacher", 1)
    loss, gradients = loss_and_gradients(criterion(CONFIGS[label]), student, teacher, batch(1))
    assert torch.tensor(loss).isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@every
def test_equal_images_and_zero_features_have_a_finite_gradient(label: str) -> None:
    student, teacher = outputs("student"), outputs("teacher")
    equal = order(student, torch.zeros(5, dtype=torch.int64))
    dead = Outputs(student.logits * 0, {stage: each * 0 for stage, each in student.features.items()})
    for leaf in (*leaves(equal).values(), *leaves(dead).values()):
        leaf.requires_grad_()
    for of in (equal, dead):
        loss, gradients = loss_and_gradients(criterion(CONFIGS[label]), of, teacher, batch())
        assert torch.tensor(loss).isfinite()
        # a standard deviation of 0 counts as 1e-7 and a product of two norms as 1e-8, as in the authors' codes
        limit = 1e9 if "standardised" in label or label == "dist" else 1e3
        assert max(gradient.abs().max().item() for gradient in gradients) < limit


@every
def test_the_order_of_the_batch_does_not_matter(label: str) -> None:
    made, student, teacher, of = criterion(CONFIGS[label]), outputs("student"), outputs("teacher"), batch()
    by = torch.tensor([3, 0, 4, 1, 2])
    turned = batch(target=of.target[by], indices=of.indices[by])
    value = weighted_sum(made(student, teacher, of))
    torch.testing.assert_close(
        weighted_sum(made(order(student, by), order(teacher, by), turned)), value, rtol=1e-12, atol=0
    )


ZERO_WHEN_EQUAL = [label for label in CONFIGS if label not in ("mgd", "rkd_distance published")]


@pytest.mark.parametrize("label", ZERO_WHEN_EQUAL)
def test_a_method_is_zero_with_zero_gradient_when_student_equals_teacher(label: str) -> None:
    config = CONFIGS[label]
    student = outputs("student", grad=True)
    made = criterion(config, teacher_shapes=context().student_shapes)
    term = made(student, outputs("student"), batch())[config["name"]].value
    assert abs(term.item()) < 1e-12
    gradients = torch.autograd.grad(term, list(leaves(student).values()), allow_unused=True)
    assert all(gradient is None or gradient.abs().max() < 1e-10 for gradient in gradients)


def with_batch_norm_teacher(label: str) -> TrainState:
    """Return a training on digits whose teacher has BatchNorm and dropout, so that its outputs depend on its mode."""
    at_four = {"stages": ["4"]} if "stages" in method(CONFIGS[label]).model_dump() else {}
    at_four |= {"stage": "4"} if CONFIGS[label]["name"] == "mgd" else {}
    config = recipe(**KD | {"method": CONFIGS[label] | at_four}, epochs=1)
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    network = Classifier(
        "normalised", encoder, nn.Sequential(nn.Dropout(), nn.Linear(20, 10)), (1, 16, 16), channels=1
    )  # fmt: skip
    return assemble(config, load(config.data, NO_DATA), Teacher(network, CPU, config.method.needed_stages), CPU)


@every
def test_a_training_epoch_does_not_change_the_teacher_and_trains_student_and_criterion_only(label: str) -> None:
    run = with_batch_norm_teacher(label)
    network = run.teacher.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained = [id(p) for group in run.learner.optimizer.param_groups for p in group["params"]]
    parts = (run.distiller.student, run.distiller.criterion)
    assert sorted(trained) == sorted(id(p) for part in parts for p in part.parameters())
    rows = []
    fit(run, 1, lambda metrics, run: rows.append(metrics))
    assert rows[0][f"train/{CONFIGS[label]['name']}"] > 0
    assert {"encoder.1.running_mean", "encoder.1.num_batches_tracked"} < before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training
    assert not any(name.startswith("teacher") for name in run.distiller.state_dict())


FIELDS: list[tuple[str, str, Any]] = [  # (config, field, another value)
    ("kd", "temperature", 3.0),
    ("kd", "standardise", True),
    ("kd", "convention", "published_mnist"),
    ("kd", "convention", "published_cifar10"),
    ("kd", "convention", "published_flowers"),
    ("rkd_distance", "features", "logits"),
    ("rkd_distance logits", "convention", "published"),
    ("rkd_distance published", "temperature", 3.0),
    ("rkd_angle", "features", "logits"),
    ("at", "stages", ["16"]),
    ("at", "stages", ["4", "8", "16", "32"]),
    ("sp", "stages", ["32"]),
    ("sp", "convention", "published"),
    ("mgd", "stage", "16"),
    ("mgd", "mask_ratio", 0.7),
    ("mgd", "alpha", 0.02),
    ("dkd", "alpha", 2.0),
    ("dkd", "beta", 2.0),
    ("dkd", "temperature", 3.0),
    ("dkd", "warmup_epochs", 0),
    ("dkd", "warmup_epochs", 10),
    ("dkd", "standardise", True),
    ("dist", "beta", 2.0),
    ("dist", "gamma", 2.0),
    ("dist", "temperature", 3.0),
    *((label, f"balance.{spelling}", 0.3) for label in CONFIGS for spelling in SPELLINGS),
]  # fmt: skip


def test_every_field_of_every_method_is_changed_here() -> None:
    changed = {(CONFIGS[label]["name"], field.split(".")[0]) for label, field, _ in FIELDS}
    fields = {
        (get_args(each.model_fields["name"].annotation)[0], field)
        for each in distilling()
        for field in each.model_fields
    }
    assert changed == {(name, field) for name, field in fields if field != "name"}


@pytest.mark.parametrize(("label", "field", "value"), FIELDS)
def test_every_field_changes_the_loss_and_its_gradient(label: str, field: str, value: Any) -> None:
    outer, _, inner = field.partition(".")
    before, other = CONFIGS[label], CONFIGS[label] | {outer: {inner: value} if inner else value}
    if inner:  # the same spelling, another number
        before = CONFIGS[label] | {outer: {inner: 0.6}}
    found = []
    for config in (before, other):
        student, teacher = outputs("student", grad=True), outputs("teacher")
        found.append(loss_and_gradients(criterion(config), student, teacher, batch(epoch=3)))
    (loss, gradients), (other_loss, other_gradients) = found
    assert abs(loss - other_loss) > 1e-6 * abs(loss)
    assert len(gradients) == len(other_gradients)
    shapes_differ = any(one.shape != two.shape for one, two in zip(gradients, other_gradients, strict=True))
    assert shapes_differ or any(
        (one - two).abs().max() > 1e-6 * one.abs().max() for one, two in zip(gradients, other_gradients, strict=True)
    )


@pytest.mark.parametrize("label", RELATIONAL)
def test_relational_methods_refuse_batches_of_one(label: str) -> None:
    with pytest.raises(UserError, match=r"^recipe\.batch_size: .* 2, got 1$"):
        criterion(CONFIGS[label], batch_size=1)


def test_dist_within_images_only_takes_a_batch_of_one() -> None:
    assert criterion(CONFIGS["dist"] | {"gamma": 0.0}, batch_size=1)


@pytest.mark.parametrize("label", ["kd standardised", "dkd", "dkd standardised"])
def test_losses_without_gradient_between_two_classes_refuse_them(label: str) -> None:
    with pytest.raises(UserError, match=r"^recipe\.method: .* needs at least 3 classes, got 2: "):
        criterion(CONFIGS[label], classes=2)


@pytest.mark.parametrize(("name", "field"), [("at", "stages"), ("mgd", "stage")])
def test_maps_of_different_size_are_refused_with_both_shapes(name: str, field: str) -> None:
    shapes = context().teacher_shapes | {"32": (3, 7, 7)}
    with pytest.raises(UserError, match=rf"^recipe\.method\.{field}: .*'32'.* 4 x 3 x 2 .* 3 x 7 x 7 "):
        criterion(CONFIGS[name], teacher_shapes=shapes)


@pytest.mark.parametrize("name", FROM_FEATURES)
@pytest.mark.parametrize("balance", [{"alpha": 1.0}, {"alpha_ce": 0.0}])
def test_a_method_that_does_not_train_the_classifier_needs_cross_entropy(name: str, balance: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="must leave cross-entropy a weight above 0"):
        method(CONFIGS[name] | {"balance": balance})


@pytest.mark.parametrize("label", ["kd", "logit_mse", "dkd", "dist"])
def test_a_method_of_logits_works_without_labels(label: str) -> None:
    loss, _ = loss_and_gradients(
        criterion(CONFIGS[label] | {"balance": {"alpha": 1.0}}),
        outputs("student", grad=True),
        outputs("teacher"),
        batch(),
    )
    assert loss > 0


@pytest.mark.parametrize(
    ("label", "other", "sentence"),
    [
        ("kd mnist", {"standardise": True}, "standardise goes with convention corrected only, got published_mnist"),
        ("kd", {"convention": "published"}, "published_mnist"),
        ("rkd_distance", {"convention": "published"}, "convention published compares logits; write features: logits"),
        ("rkd_distance", {"temperature": 4.0}, "temperature does nothing with convention corrected"),
        ("at", {"stages": []}, "must name at least one of 4, 8, 16, 32"),
        ("at", {"stages": ["16", "16"]}, r"must name each stage once, got \[16, 16\]"),
        ("sp", {"stages": [16]}, "a stage is text: write '16', got 16"),
        ("sp", {"stages": ["64"]}, "Input should be '1', '2', '4', '8', '16' or '32'"),
        ("mgd", {"stage": 32}, "a stage is text: write '32', got 32"),
        ("mgd", {"mask_ratio": 1.0}, "less than 1"),
        ("dkd", {"alpha": 0.0, "beta": 0.0}, "nothing would be distilled"),
        ("dist", {"beta": 0.0, "gamma": 0.0}, "nothing would be distilled"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_mean_is_refused(label: str, other: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        method(CONFIGS[label] | other)


def test_only_dkd_needs_one_class_per_image_and_refuses_mixed_targets() -> None:
    assert [each.__name__ for each in distilling() if each.needs_hard_labels] == ["Dkd"]
    mixed = torch.full((5, CLASSES), 1 / CLASSES, dtype=torch.float64)
    for config in CONFIGS.values():
        arguments = (outputs("student"), outputs("teacher"), batch(target=mixed))
        if config["name"] == "dkd":
            with pytest.raises(UserError, match="dkd needs one class per image, got mixed targets 5 x 7"):
                criterion(config)(*arguments)
        else:
            assert weighted_sum(criterion(config)(*arguments)).isfinite()


def test_the_class_of_a_methods_balance_is_found_by_its_name() -> None:
    assert loss_weights_of("at") is RatioIsWeight
    assert all(loss_weights_of(other) is LossWeights for other in ("kd", "mgd", "none", None, {"choice": ["at"]}))
