"""The losses of the first epoch of every method and data set, compared with golden ones.

What changes them changes the results of recipes, so NUMERICS must be raised: else old trials are taken for new ones.
Then `python -m pytest tests/training/test_golden_losses.py --renew-golden` writes the golden ones anew.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import made_up_data
import pytest
from losses import CONFIGS, method
from runs import BATCH_NORM_STUDENT, fitted, fresh_state
from trainings import NO_DATA, recipe

from kdtrain.data.registry import AnyData
from kdtrain.methods.registry import Method
from kdtrain.trials.identity import NUMERICS

GOLDEN = Path(__file__).parent / "golden_losses.json"
TOLERANCE = 1e-4
"""Relative: other processors round differently."""
RENEW = "run `python -m pytest tests/training/test_golden_losses.py --renew-golden`"
RAISE = f"the results of recipes have changed: raise NUMERICS in kdtrain/trials/identity.py, then {RENEW}"

SMALL = {"optimizer": {"name": "sgd", "lr": 0.001, "momentum": 0.9}, "epochs": 1, "student": BATCH_NORM_STUDENT}
ALONE = {"optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.1}, "batch_size": 8, "label_smoothing": 0.1}
DIGITS = {"name": "digits", "resolution": 32, "limit_per_class": 3}
STAGES = {"at": {"stages": ["4", "8"]}, "sp": {"stages": ["8"]}, "mgd": {"stage": "8"}}
"""At 32 pixels the last maps have one position."""
CRITIC = {"name": "logits_discriminator", "temperature": 2.0, "balance": {"weight": 3.0}}
METHODS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    **{label: config | STAGES.get(config["name"], {}) for label, config in CONFIGS.items()},
    "logits_discriminator": CRITIC | {"critic_steps": 1, "student_steps": 1},
    "logits_discriminator published": CRITIC | {"critic_steps": 1, "student_steps": 1, "convention": "published"},
}
DATA: dict[str, dict[str, Any]] = {
    "digits": {}, "mnist": {}, "fashion_mnist": {}, "kmnist": {}, "cifar10": {},
    "hymenoptera": {}, "cub200": {}, "flowers102": {},
    "image_folder": {"folder": "pets", "test_fraction": 0.2, "augment": "crop_flip"},
}  # fmt: skip


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    for number in range(24):
        made_up_data.paint(root / "pets" / ("cat", "dog")[number % 2] / f"{number}.png")
    for make in (made_up_data.hymenoptera, made_up_data.cub200, made_up_data.flowers102):
        make(root)
    for folder in ("MNIST", "FashionMNIST", "KMNIST"):
        made_up_data.mnist(root, folder=folder)
    with pytest.MonkeyPatch.context() as patch:
        made_up_data.cifar10(root, patch)
        yield root


Check = Callable[[str, dict[str, float]], None]


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    return lambda name, losses: compare(name, losses, GOLDEN, NUMERICS, request.config.getoption("--renew-golden"))


def compare(name: str, losses: dict[str, float], file: Path, numerics: int, renew: bool) -> None:
    """Fail if losses differ from the file's of this `numerics`, even if those of another one are to be renewed."""
    golden = json.loads(file.read_text()) if file.exists() else {}
    known = golden.get(name)
    if known is not None and known["numerics"] == numerics:
        assert losses == pytest.approx(known["losses"], rel=TOLERANCE), RAISE
    elif renew:
        golden[name] = {"numerics": numerics, "losses": losses}
        file.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    else:
        pytest.fail(f"there are no golden losses of {name} for NUMERICS {numerics}: {RENEW}")


def first_epoch(data_root: Path = NO_DATA, **changes: Any) -> dict[str, float]:
    (row,) = fitted(fresh_state(recipe(**SMALL | changes), data_root))
    return {name: value for name, value in row.items() if name.startswith("train/") or name == "val/nll"}


@pytest.mark.parametrize("label", METHODS)
def test_the_losses_of_a_method_are_the_golden_ones(label: str, check: Check) -> None:
    alone = label == "none"
    check(f"method {label}", first_epoch(
        data=DIGITS, method=METHODS[label], teacher=None if alone else BATCH_NORM_STUDENT,
    ))  # fmt: skip


def test_the_losses_of_an_mlp_with_dropout_and_max_norm_are_the_golden_ones(check: Check) -> None:
    mlp = {"model": "mlp", "hidden": [30, 20], "input_dropout": 0.2, "dropout": 0.5, "max_norm": 0.5}
    check("network mlp", first_epoch(data=DIGITS, student=mlp, epochs=1, optimizer=SMALL["optimizer"] | {"lr": 0.1}))


@pytest.mark.parametrize("name", DATA)
def test_the_losses_on_a_data_set_are_the_golden_ones(name: str, check: Check, small_data: Path) -> None:
    check(f"data {name}", first_epoch(
        small_data, data={"name": name, "resolution": 32, "limit_per_class": 4, **DATA[name]}, **ALONE,
    ))  # fmt: skip


def test_the_losses_on_views_that_are_turned_scaled_and_shifted_are_the_golden_ones(check: Check) -> None:
    augment = {"rotate_degrees": 20, "translate": 0.1, "scale": 0.2}
    check("augment", first_epoch(data=DIGITS | {"augment": augment}, **ALONE))


def test_every_method_and_data_set_has_golden_losses() -> None:
    kinds = {type(method(config)) for config in METHODS.values()}
    assert kinds == set(get_args(get_args(Method)[0]))
    assert set(DATA) == {name for kind in get_args(AnyData) for name in get_args(kind.model_fields["name"].annotation)}


def test_changed_losses_are_not_renewed_without_another_numerics(tmp_path: Path) -> None:
    file = tmp_path / "golden.json"
    compare("a", {"train/loss": 1.0}, file, 6, renew=True)
    compare("a", {"train/loss": 1.00005}, file, 6, renew=False)
    for renew in (True, False):
        with pytest.raises(AssertionError, match="the results of recipes have changed: raise NUMERICS"):
            compare("a", {"train/loss": 1.0002}, file, 6, renew=renew)
    with pytest.raises(pytest.fail.Exception, match="no golden losses of a for NUMERICS 7: run"):
        compare("a", {"train/loss": 1.0002}, file, 7, renew=False)
    compare("a", {"train/loss": 1.0002}, file, 7, renew=True)
    compare("a", {"train/loss": 1.0002}, file, 7, renew=False)
