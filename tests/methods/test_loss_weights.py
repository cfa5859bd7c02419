"""LossWeights: four spellings of the same two weights."""

import pytest
from pydantic import ValidationError

from kdtrain.methods.loss_weights import SPELLINGS, LossWeights, RatioIsWeight


@pytest.mark.parametrize(
    ("spelling", "value", "weights"),
    [
        ("weight", 0.0, (1, 0)),
        ("weight", 2.5, (1, 2.5)),
        ("kd_ratio", 0.0, (1, 0)),
        ("kd_ratio", 0.7, (1, 0.7 / 0.3)),
        ("kd_ratio", 1.0, (1, 1)),  # setup 4: from 1 on the ratio is the weight
        ("kd_ratio", 1000.0, (1, 1000)),
        ("alpha", 0.0, (1, 0)),
        ("alpha", 0.3, (0.7, 0.3)),
        ("alpha", 1.0, (0, 1)),
        ("alpha_ce", 0.1, (0.1, 0.9)),
        ("alpha_ce", 1.0, (1, 0)),
    ],
)
def test_a_spelling_means_two_weights(spelling: str, value: float, weights: tuple[float, float]) -> None:
    balance = LossWeights.model_validate({spelling: value})
    assert balance.spelling == spelling
    assert balance.weights == pytest.approx(weights, rel=1e-11)


@pytest.mark.parametrize(
    ("one", "other"),
    [({"alpha": tenth / 10}, {"alpha_ce": (10 - tenth) / 10}) for tenth in range(11)]
    + [
        ({"weight": 1.0}, {"kd_ratio": 0.5}),
        ({"weight": 0.25}, {"kd_ratio": 0.2}),
        ({"weight": 4}, {"kd_ratio": 0.8}),
    ],
)
def test_spellings_of_the_same_weights_are_equal_without_float_noise(
    one: dict[str, float], other: dict[str, float]
) -> None:
    assert LossWeights.model_validate(one).weights == LossWeights.model_validate(other).weights


@pytest.mark.parametrize("written", [{}, {"weight": 1.0, "alpha": 0.5}, dict.fromkeys(SPELLINGS, 0.5)])
def test_exactly_one_spelling_is_taken(written: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="takes exactly one of weight, kd_ratio, alpha, alpha_ce"):
        LossWeights.model_validate(written)


@pytest.mark.parametrize(
    "written",
    [{"weight": -0.1}, {"kd_ratio": -1.0}, {"alpha": 1.1}, {"alpha": -0.1}, {"alpha_ce": 1.5},
     {"weight": float("nan")}, {"weight": float("inf")}, {"weight": "1"}, {"ratio": 1.0}],
)  # fmt: skip
def test_a_weight_out_of_its_range_is_refused(written: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LossWeights.model_validate(written)


@pytest.mark.parametrize(
    ("written", "spelling", "value"),
    [
        ({"alpha": 0.3}, "alpha_ce", 0.7),
        ({"alpha_ce": 0.1}, "alpha", 0.9),
        ({"weight": 3.0}, "kd_ratio", 0.75),
        ({"kd_ratio": 0.75}, "weight", 3.0),
        ({"kd_ratio": 5.0}, "weight", 5.0),
        ({"kd_ratio": 5.0}, "kd_ratio", 5.0),
        ({"weight": 0.0}, "alpha", 0.0),
    ],
)
def test_a_balance_can_be_written_in_another_spelling(written: dict[str, float], spelling: str, value: float) -> None:
    balance = LossWeights.model_validate(written)
    respelled = balance.respell(spelling)
    assert respelled == pytest.approx(value, abs=1e-12)
    assert LossWeights.model_validate({spelling: respelled}).weights == pytest.approx(balance.weights, rel=1e-9)


@pytest.mark.parametrize(
    ("written", "spelling"),
    [({"alpha": 0.3}, "weight"), ({"weight": 1.0}, "alpha"), ({"kd_ratio": 5.0}, "alpha_ce")],
)
def test_weights_that_a_spelling_cannot_express_are_refused(written: dict[str, float], spelling: str) -> None:
    with pytest.raises(ValueError, match=rf"cross-entropy .*, distillation .* cannot be written as {spelling}"):
        LossWeights.model_validate(written).respell(spelling)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 100.0])
def test_the_kd_ratio_of_at_is_the_weight_below_one_too_in_both_directions(ratio: float) -> None:
    balance = RatioIsWeight(kd_ratio=ratio)
    assert balance.weights == (1, ratio)
    assert balance.respell("weight") == ratio
    assert RatioIsWeight(weight=ratio).respell("kd_ratio") == ratio


def test_the_other_spellings_mean_the_same_in_both_kinds_of_balance() -> None:
    for spelling in ("weight", "alpha", "alpha_ce"):
        written = {spelling: 0.3}
        assert RatioIsWeight.model_validate(written).weights == LossWeights.model_validate(written).weights
    with pytest.raises(ValidationError, match="takes exactly one of weight, kd_ratio, alpha, alpha_ce"):
        RatioIsWeight.model_validate({"weight": 1.0, "alpha": 0.5})
