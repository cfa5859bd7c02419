"""The critic of logits and the losses of both turns, against setup 1's reference implementation and loops."""

import math
from typing import Any

import pytest
import torch
from losses import batch, method, normal, softened
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.config.training import Adam, Constant
from kdtrain.errors import UserError
from kdtrain.methods.base import MethodContext, Outputs, weighted_sum
from kdtrain.methods.critic import Turns
from kdtrain.methods.logits_discriminator import Critic, LogitsDiscriminator, gradient_penalty, interpolate, new_critic
from kdtrain.methods.logits_discriminator import softened_probabilities as softened_NK
from kdtrain.training.learner import Learner

ALPHA, T, SMOOTHING = 0.3, 1.5, 0.1
CORRECTED: dict[str, Any] = {"name": "logits_discriminator", "temperature": T, "balance": {"alpha": ALPHA}}
PUBLISHED = CORRECTED | {"convention": "published", "critic_steps": 21, "student_steps": 179, "restart": "epoch"}
SETTING = MethodContext(classes=10, batch_size=5, label_smoothing=SMOOTHING, seed=3)


def config(written: dict[str, Any], **other: Any) -> LogitsDiscriminator:
    made = method(written | other)
    assert isinstance(made, LogitsDiscriminator)
    return made


def logits(whose: str, classes: int = 10, count: int = 5) -> Tensor:
    return 3 * normal(count, classes, purpose=whose)


def of(**other: Any):
    return batch(classes=10, seed=3, **other)


def scores_by_hand(critic: Critic, row: list[float]) -> float:
    """Compute the corrected critic of one image: twice convolution, norm of one group, ReLU and mean of three."""
    channels = [row]
    for convolution, norm in ((critic.layers[0], critic.layers[1]), (critic.layers[4], critic.layers[5])):
        weight, bias = convolution.weight.tolist(), convolution.bias.tolist()
        width = len(weight[0][0])
        steps = len(channels[0]) - width + 1
        window = [(i, k) for i in range(len(channels)) for k in range(width)]
        channels = [
            [b + math.fsum(each[i][k] * channels[i][x + k] for i, k in window) for x in range(steps)]
            for each, b in zip(weight, bias, strict=True)
        ]
        flat = [value for channel in channels for value in channel]
        mean = math.fsum(flat) / len(flat)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in flat) / len(flat) + norm.eps)
        scale, shift = norm.weight.tolist(), norm.bias.tolist()
        channels = [
            [max(0.0, (value - mean) / deviation * scale[c] + shift[c]) for value in channel]
            for c, channel in enumerate(channels)
        ]
        channels = [[math.fsum(each[x : x + 3]) / 3 for x in range(len(each) - 2)] for each in channels]
    flat = [value for channel in channels for value in channel]
    return critic.score.bias.item() + math.fsum(
        w * value for w, value in zip(critic.score.weight[0].tolist(), flat, strict=True)
    )


def d(critic: Critic, logits_NK: Tensor) -> list[float]:
    """Compute D(softmax(logits / T)) of each image."""
    return [scores_by_hand(critic, softened(row, T)) for row in logits_NK.tolist()]


def documents_critic(ours: Critic) -> nn.Sequential:
    """Return setup 1's critic for K = 10 as its table has it, with our weights."""
    layers = nn.Sequential(
        nn.Conv1d(1, 4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(3, stride=1),
        nn.Conv1d(4, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.AvgPool1d(3, stride=1),
        nn.Flatten(), nn.Linear(16, 1), nn.Sigmoid(),
    ).double()  # fmt: skip
    values = list(ours.state_dict().values())
    layers.load_state_dict(dict(zip(layers.state_dict(), values, strict=True)))
    return layers


def cross_entropy_by_hand(logits_NK: Tensor, target: Tensor) -> float:
    total = 0.0
    for row, label in zip(logits_NK.tolist(), target.tolist(), strict=True):
        log_p = [math.log(p) for p in softened(row, 1.0)]
        total -= (1 - SMOOTHING) * log_p[label] + SMOOTHING * math.fsum(log_p) / len(log_p)
    return total / len(logits_NK)


def corrected_critic(classes: int = 10) -> Critic:
    return new_critic(MethodContext(classes, 5, seed=3), published=False).double()


@pytest.mark.parametrize("classes", [10, 11, 200])
@pytest.mark.parametrize("published", [True, False])
def test_the_critic_is_that_of_setup_1_with_a_last_layer_sized_for_k(classes: int, published: bool) -> None:
    critic = Critic(classes, published)
    kinds = [type(layer) for layer in critic.layers]
    norm = nn.BatchNorm1d if published else nn.GroupNorm
    assert kinds == [nn.Conv1d, norm, nn.ReLU, nn.AvgPool1d] * 2 + [nn.Flatten]
    sizes = [(c.in_channels, c.out_channels, *c.kernel_size) for c in (critic.layers[0], critic.layers[4])]
    assert sizes == [(1, 4, 4), (4, 16, 3)]
    assert critic.score.in_features == critic.layers(torch.rand(2, 1, classes)).shape[1]
    assert classes != 10 or critic.score.in_features == 16
    assert critic(torch.rand(2, classes)).shape == (2,)


def test_only_the_published_critic_ends_in_a_sigmoid_and_ties_a_batch_together() -> None:
    probabilities = softened_NK(logits("student"), 1.0).float()
    for published in (True, False):
        critic = new_critic(SETTING, published)
        nn.init.constant_(critic.score.bias, 7.0)
        scores = critic(probabilities)
        assert ((scores > 0) & (scores < 1)).all().item() is published
        alone = critic(probabilities[:1])
        assert torch.allclose(alone, scores[:1]) is not published


def test_the_corrected_critic_scores_as_by_hand() -> None:
    critic, student = corrected_critic(), logits("student")
    scores = critic(softened_NK(student, T)).tolist()
    assert scores == pytest.approx(d(critic, student), rel=1e-9)
    wide = corrected_critic(23)
    student = logits("student", 23)
    assert wide(softened_NK(student, T)).tolist() == pytest.approx(d(wide, student), rel=1e-9)


def test_the_published_critic_scores_as_the_documents_layers() -> None:
    critic = new_critic(SETTING, published=True).double()
    document = documents_critic(critic)
    for mode in (True, False):
        student = logits("student").log_softmax(1)
        torch.testing.assert_close(critic.train(mode)(student), document.train(mode)(student[:, None])[:, 0])
    assert torch.equal(critic.layers[1].running_mean, document[1].running_mean)


def test_the_critics_first_weights_come_from_the_seed_and_leave_the_callers_draws_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (new_critic(MethodContext(10, 5, seed=seed), published=False) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)


def test_the_students_turn_is_the_critics_score_and_cross_entropy() -> None:
    critic, student, given = corrected_critic(), logits("student"), of()
    made = config(CORRECTED).criterion(SETTING)
    terms = made(Outputs(student), Outputs(logits("teacher")), given, critic)
    fooled = -(T**2) * math.fsum(d(critic, student)) / 5
    hard = cross_entropy_by_hand(student, given.target)
    assert terms["adversarial"].value.item() == pytest.approx(fooled, rel=1e-9)
    assert terms["cross_entropy"].value.item() == pytest.approx(hard, rel=1e-9)
    assert weighted_sum(terms).item() == pytest.approx((1 - ALPHA) * hard + ALPHA * fooled, rel=1e-9)
    assert list(made.parameters()) == []


def test_the_critics_turn_is_the_gap_between_teacher_and_student() -> None:
    student, teacher = logits("student"), logits("teacher")
    adversary = config(CORRECTED, critic_training={"lipschitz": {"name": "none"}}).critic(SETTING)
    assert adversary is not None
    loss = adversary.loss.double()
    terms = loss(student, teacher, of())
    gap = (math.fsum(d(loss.critic, teacher)) - math.fsum(d(loss.critic, student))) / 5
    assert terms.keys() == {"critic_gap"}
    assert terms["critic_gap"].value.item() == pytest.approx(gap, rel=1e-9)
    assert weighted_sum(terms).item() == pytest.approx(-gap, rel=1e-9)


def test_the_gradient_penalty_is_that_of_finite_differences_at_each_point() -> None:
    critic, points = corrected_critic(), softened_NK(logits("student"), T)
    step, total = 1e-6, 0.0
    for row in points.tolist():
        squares = 0.0
        for k in range(10):
            above, below = ([p + sign * step * (k == j) for j, p in enumerate(row)] for sign in (1, -1))
            squares += ((scores_by_hand(critic, above) - scores_by_hand(critic, below)) / (2 * step)) ** 2
        total += (math.sqrt(squares) - 1) ** 2
    assert gradient_penalty(critic, points).item() == pytest.approx(total / 5, rel=1e-6)


def test_the_penalty_joins_the_critics_loss_with_its_weight() -> None:
    student, teacher, given = logits("student"), logits("teacher"), of(step=7)
    adversary = config(CORRECTED).critic(SETTING)
    assert adversary is not None
    loss = adversary.loss.double()
    terms = loss(student, teacher, given)
    points = interpolate(softened_NK(student, T), softened_NK(teacher, T), given)
    expected = gradient_penalty(loss.critic, points)
    torch.testing.assert_close(terms["gradient_penalty"].value, expected, rtol=1e-12, atol=0)
    assert terms["gradient_penalty"].weight == 10
    torch.testing.assert_close(weighted_sum(terms), 10 * expected - terms["critic_gap"].value)


def test_the_gradient_penalty_is_zero_at_slope_one_and_has_a_gradient_at_slope_zero() -> None:
    class Slope(nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((10,), slope / math.sqrt(10), dtype=torch.float64))

        def forward(self, points: Tensor) -> Tensor:
            return points @ self.weight

    points = softened_NK(logits("student"), T)
    assert gradient_penalty(Slope(1.0), points).item() == pytest.approx(0, abs=1e-20)
    assert gradient_penalty(Slope(3.0), points).item() == pytest.approx(4)
    flat = Slope(0.0)
    gradient_penalty(flat, points).backward()
    assert flat.weight.grad.isfinite().all()


def test_a_penalty_point_lies_between_both_and_belongs_to_step_and_image() -> None:
    student, teacher = softened_NK(logits("student"), T), softened_NK(logits("teacher"), T)
    given = of(step=4)
    points = interpolate(student, teacher, given)
    shares = (points - teacher) / (student - teacher)
    torch.testing.assert_close(shares, shares[:, :1].expand(5, 10))
    assert ((shares > 0) & (shares < 1)).all()
    assert len(set(shares[:, 0].tolist())) == 5
    some = torch.tensor([3, 1])
    own = of(step=4, indices=given.indices[some], target=given.target[some])
    assert torch.equal(interpolate(student[some], teacher[some], own), points[some])
    for other in (of(step=5), batch(classes=10, seed=4, step=4), of(step=4, indices=given.indices + 1)):
        assert not torch.equal(interpolate(student, teacher, other), points)


@pytest.mark.parametrize(("epoch_step", "critics"), [(0, True), (20, True), (21, False), (199, False), (200, True)])
def test_published_both_turns_are_what_the_reference_implementation_computes(epoch_step: int, critics: bool) -> None:
    given = of(step=1100 + epoch_step, epoch_step=epoch_step)  # 1100: of the other turn
    made = config(PUBLISHED).criterion(SETTING).double()
    document = documents_critic(made.critic)
    student, teacher = (logits(whose).requires_grad_() for whose in ("student", "teacher"))
    value = weighted_sum(made(Outputs(student), Outputs(teacher), given))

    s = logits("student").requires_grad_()
    log_s, t = functional.log_softmax(s / T, dim=1), functional.softmax(logits("teacher") / T, dim=1)
    hard = functional.cross_entropy(log_s, given.target, label_smoothing=SMOOTHING)
    if critics:
        soft = (document(t[:, None]) * -1).mean() + document(log_s[:, None]).mean()
    else:
        soft = -document(log_s[:, None]).mean()
    by_document = soft * ALPHA * T**2 + (1 - ALPHA) * hard
    torch.testing.assert_close(value, by_document, rtol=1e-9, atol=0)
    value.backward()
    by_document.backward()
    torch.testing.assert_close(student.grad, s.grad)
    pairs = zip(made.critic.parameters(), document.parameters(), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_published_one_optimizer_has_both_players_and_there_is_no_second() -> None:
    published = config(PUBLISHED)
    assert published.critic(SETTING) is None
    assert len(list(published.criterion(SETTING).parameters())) == len(list(Critic(10, True).parameters())) == 10


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("written", [CORRECTED, PUBLISHED])
def test_too_few_classes_to_convolve_along_are_refused(classes: int, written: dict[str, Any]) -> None:
    for make in (config(written).criterion, config(CORRECTED).critic):
        with pytest.raises(UserError, match=rf"recipe\.method: .* at least 10 classes, .*; got {classes}$"):
            make(MethodContext(classes, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_under_autocast_every_term_is_finite_float32_and_so_is_its_gradient(scale: float, dtype: torch.dtype) -> None:
    student = (scale * logits("student")).to(dtype).requires_grad_()
    teacher, given = (-scale * logits("teacher")).to(dtype), of()
    adversary = config(CORRECTED).critic(SETTING)
    published = config(PUBLISHED).criterion(SETTING)
    with torch.autocast("cpu", dtype):
        terms = [
            adversary.loss(student, teacher, given),
            config(CORRECTED).criterion(SETTING)(Outputs(student), None, given, adversary.loss.critic),
            published(Outputs(student), Outputs(teacher), given),
            published(Outputs(student), Outputs(teacher), of(epoch_step=30)),
        ]
    values = [term.value for each in terms for term in each.values()]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values)
    sum(weighted_sum(each) for each in terms).backward()
    for leaf in (student, *adversary.loss.parameters(), *published.parameters()):
        assert leaf.grad.isfinite().all()


def test_both_players_losses_have_the_gradient_of_their_value() -> None:
    teacher, given = logits("teacher", count=2), of()
    given = batch(2, classes=10)
    critic = corrected_critic().requires_grad_(False)
    made = config(CORRECTED).criterion(SETTING)
    published = config(PUBLISHED).criterion(SETTING).double().requires_grad_(False)
    student = logits("student", count=2).requires_grad_()
    for loss in (
        lambda leaf: weighted_sum(made(Outputs(leaf), None, given, critic)),
        lambda leaf: weighted_sum(published(Outputs(leaf), Outputs(teacher), given)),
        lambda leaf: weighted_sum(published(Outputs(leaf), Outputs(teacher), batch(2, classes=10, epoch_step=30))),
    ):
        assert torch.autograd.gradcheck(loss, (student,))
    adversary = config(CORRECTED).critic(SETTING)
    loss = adversary.loss.double()
    names = list(dict(loss.named_parameters()))

    def of_weights(*weights: Tensor) -> Tensor:
        own = dict(zip(names, weights, strict=True))
        return weighted_sum(torch.func.functional_call(loss, own, (student.detach(), teacher, given)))

    assert torch.autograd.gradcheck(of_weights, tuple(loss.parameters()))


def test_the_critic_turns_are_thirty_of_two_hundred_and_published_twenty_one() -> None:
    default, published = config(CORRECTED).turns, config(CORRECTED | {"convention": "published"}).turns
    assert published == Turns(21, 179, restart_each_epoch=True)
    assert (default.critic_steps, default.student_steps, default.restart_each_epoch) == (30, 170, False)
    for step in range(1000):
        assert default.is_critics(step, 0) is (step % 200 < 30)
        assert published.is_critics(0, step) is not (step % 200 > 20)  # the code: the student's turn
    epoch = [default.is_critics(step, step) for step in range(200)]
    assert (epoch.count(True), epoch.count(False)) == (30, 170)


def test_restarting_counts_from_the_epochs_start_and_else_from_the_trainings() -> None:
    never, epoch = Turns(2, 3, restart_each_epoch=False), Turns(2, 3, restart_each_epoch=True)
    steps = [(epoch_number * 4 + step, step) for epoch_number in range(3) for step in range(4)]
    assert "".join("sc"[never.is_critics(*each)] for each in steps) == "ccsssccsssc" + "c"
    assert "".join("sc"[epoch.is_critics(*each)] for each in steps) == "ccss" * 3


def test_clipping_keeps_every_weight_of_the_critic_within_its_bound() -> None:
    adversary = config(CORRECTED, critic_training={"lipschitz": {"name": "clipping", "bound": 0.02}}).critic(SETTING)
    adversary.loss.constrain()
    weights = torch.cat([parameter.flatten() for parameter in adversary.loss.parameters()])
    assert weights.abs().max().item() == pytest.approx(0.02)
    assert (weights.abs() < 0.02).any()
    assert adversary.loss(logits("student").float(), logits("teacher").float(), of()).keys() == {"critic_gap"}
    free = config(CORRECTED, critic_training={"lipschitz": {"name": "none"}}).critic(SETTING)
    before = [parameter.clone() for parameter in free.loss.parameters()]
    free.loss.constrain()
    assert all(torch.equal(a, b) for a, b in zip(before, free.loss.parameters(), strict=True))


def effects(made: LogitsDiscriminator) -> dict[str, Any]:
    """Return all effects of a config: losses of both turns, the turn of each step, the critic after one update."""
    student, teacher = logits("student").float(), logits("teacher").float()
    adversary, criterion = made.critic(SETTING), made.criterion(SETTING)
    critic = adversary.loss.critic if adversary else None
    found: dict[str, Any] = {}
    for step in (0, 25, 28, 31):
        terms = criterion(Outputs(student), Outputs(teacher), of(step=step, epoch_step=step), critic)
        found[f"loss {step}"] = weighted_sum(terms).item()
    found["turns"] = [made.turns.is_critics(step, step % 33) for step in range(700)]
    if adversary:
        loss = weighted_sum(adversary.loss(student, teacher, of()))
        found["critic loss"] = loss.item()
        adam = Adam(name="adam", lr=adversary.lr)
        Learner(adversary.loss, adam, Constant(name="constant"), None, 1, 1).update(loss, 0)
        adversary.loss.constrain()
        found["critic"] = adversary.loss.critic.score.weight.tolist()
    return found


def lipschitz(name: str, **other: float) -> dict[str, Any]:
    return {"critic_training": {"lipschitz": {"name": name, **other}}}


FIELDS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    ("temperature", {}, {"temperature": 3.0}, ("loss 0", "critic loss")),
    ("balance", {}, {"balance": {"alpha": 0.6}}, ("loss 0",)),
    ("critic_steps", {}, {"critic_steps": 29}, ("turns",)),
    ("student_steps", {}, {"student_steps": 171}, ("turns",)),
    ("restart", {}, {"restart": "epoch"}, ("turns",)),
    ("convention", {}, {"convention": "published"}, ("loss 0", "loss 31")),
    ("critic_training.lr", {}, {"critic_training": {"lr": 0.01}}, ("critic",)),
    ("critic_training.lipschitz", {}, lipschitz("clipping"), ("critic loss", "critic")),
    ("critic_training.lipschitz", {}, lipschitz("none"), ("critic loss", "critic")),
    ("critic_training.lipschitz", lipschitz("clipping"), lipschitz("none"), ("critic",)),
    ("lipschitz.weight", {}, lipschitz("gradient_penalty", weight=1.0), ("critic loss", "critic")),
    ("lipschitz.bound", lipschitz("clipping"), lipschitz("clipping", bound=0.02), ("critic",)),
    ("critic_steps", {"convention": "published", "critic_steps": 30}, {"critic_steps": 27}, ("loss 28", "turns")),
    ("student_steps", {"convention": "published"}, {"student_steps": 1}, ("loss 31", "turns")),
    ("temperature", {"convention": "published"}, {"temperature": 3.0}, ("loss 0", "loss 31")),
    ("balance", {"convention": "published"}, {"balance": {"weight": 3.0}}, ("loss 0", "loss 31")),
]


@pytest.mark.parametrize(("field", "before", "change", "where"), FIELDS, ids=lambda each: str(each)[:60])
def test_every_field_changes_the_loss_the_schedule_or_the_update(
    field: str, before: dict[str, Any], change: dict[str, Any], where: tuple[str, ...]
) -> None:
    one, other = effects(config(CORRECTED | before)), effects(config(CORRECTED | before | change))
    for name in where:
        assert one[name] != other[name], name


def test_every_field_is_changed_here() -> None:
    changed = {field.split(".")[0] for field, *_ in FIELDS} | {"name"}
    assert LogitsDiscriminator.model_fields.keys() == (changed | {"critic_training"}) - {"lipschitz"}
    nested = {field.split(".")[1] for field, *_ in FIELDS if "." in field}
    assert nested == {"lr", "lipschitz", "weight", "bound"}


def test_the_critics_training_is_filled_in_when_corrected_and_refused_when_published() -> None:
    assert config(CORRECTED).critic_training == config(CORRECTED, critic_training={}).critic_training
    assert config(CORRECTED, critic_training=None).critic_training is not None
    filled = config(CORRECTED).model_dump(mode="json")["critic_training"]
    for made in (config(CORRECTED), config(PUBLISHED), config(CORRECTED | lipschitz("clipping", bound=0.1))):
        assert config(made.model_dump(mode="json")) == made
    assert filled == {"lr": 1e-3, "lipschitz": {"name": "gradient_penalty", "weight": 10.0}}
    assert config(PUBLISHED).critic_training is None
    with pytest.raises(ValidationError, match="critic_training does nothing when published"):
        config(PUBLISHED, critic_training={"lr": 0.01})


@pytest.mark.parametrize(
    "wrong",
    [{"critic_steps": 0}, {"student_steps": 0}, {"temperature": 0.0}, {"restart": "always"}, {"convention": "other"},
     lipschitz("clipping", bound=0.0), lipschitz("clipping", weight=1.0), lipschitz("spectral")],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(CORRECTED | wrong)


def test_a_published_critic_of_weight_0_has_no_trained_parameters() -> None:
    criterion = config(PUBLISHED, balance={"alpha": 0}).criterion(SETTING)
    assert not any(parameter.requires_grad for parameter in criterion.parameters())
