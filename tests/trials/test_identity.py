"""Every field of a recipe changes what is learned and the trial_id; equal recipes have equal ids."""

from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import made_up_data
import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from runs import fitted, fresh_state
from safetensors.torch import save_file
from trainings import ALONE, CPU, KD, NO_DATA, recipe, timeless, trained

from kdtrain.config.needed_trainings import teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import INHERITED, Teacher
from kdtrain.data.digits import Digits
from kdtrain.errors import UserError
from kdtrain.methods.loss_weights import SPELLINGS, LossWeights
from kdtrain.training.evaluation import tta_logits
from kdtrain.trials import identity as identity_module
from kdtrain.trials.identity import identity, trial_id

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.5, "weight_decay": 0.01}
ADAM = {"name": "adam", "lr": 0.002, "weight_decay": 0.01}
ADAMW = {"name": "adamw", "lr": 0.002, "weight_decay": 0.1}
RESTLESS = {"optimizer": {"name": "sgd", "lr": 0.7, "momentum": 0.5}, "epochs": 12}
DIGITS = ALONE["data"] | {"limit_per_class": 4}  # fewer images than other tests have: here are 120 trainings
ONE_OF_EACH = DIGITS | {"limit_per_class": 1}
MNIST = {
    "name": "mnist",
    "resolution": 28,
    "limit_per_class": 6,
}  # its own size: 5,100 images are not resized each time
FOLDER = {
    "name": "image_folder", "folder": "pets", "resolution": 16, "augment": "none", "val_fraction": 0.3,
    "test_fraction": 0.3, "limit_per_class": 6
}  # fmt: skip

MLP = {"model": "mlp", "hidden": [8], "input_dropout": 0.1, "max_norm": 0.5}
TINY = {"model": "test_resnet", "weights": {"file": "tiny.safetensors", "part": "encoder"}}

Case = tuple[dict[str, Any], Any]
"""(the recipe's changed top-level fields, another value of the field)"""


def fields(part: str, base: dict[str, Any], **values: Any) -> dict[str, Case]:
    """Return the cases of the fields of one part of a recipe that has `base`."""
    return {f"{part}.{field}": (base, value) for field, value in values.items()}


def scheduled(values: dict[str, Any], **schedule: Any) -> dict[str, Case]:
    return fields(f"lr_schedule[{schedule['name']}]", {"lr_schedule": schedule}, **values)


COSINE = {"name": "cosine", "warmup_epochs": 1}
TRAINING: dict[str, Case] = {
    "optimizer": ({"optimizer": SGD}, ADAM),
    **fields("optimizer[sgd]", {"optimizer": SGD}, lr=0.06, momentum=0.6, weight_decay=0.02),
    **fields("optimizer[adam]", {"optimizer": ADAM}, lr=0.003, weight_decay=0.02),
    **fields(
        "optimizer[adamw]", {"optimizer": ADAMW},
        lr=0.003, weight_decay=0.2, decay_on="all", decay_times="relative_lr",
    ),
    "lr_schedule": ({"lr_schedule": {"name": "constant"}}, COSINE),
    **scheduled({"every_epochs": 2, "factor": 0.4}, name="step", every_epochs=1, factor=0.5),
    **scheduled({"factor": 0.4}, name="exponential", factor=0.5),
    **scheduled({"lowest_lr": 0.01, "convention": "published", "warmup_epochs": 0}, **COSINE),
    **scheduled(
        {"warmup_steps": 3, "total_steps": 9, "convention": "corrected"},
        name="cosine_in_steps", warmup_steps=2, total_steps=12, convention="published",
    ),
    **fields("clipping", {"clipping": {"norm": 0.1}}, norm=0.2, over="tensor"),
    "early_stopping.patience_epochs": (RESTLESS | {"early_stopping": {"patience_epochs": 1}}, 12),
    "label_smoothing": ({"label_smoothing": 0.0}, 0.1),
    "class_weights": ({"class_weights": "none"}, [2.0, *[1.0] * 9]),
    "sampler": ({"sampler": "shuffled"}, "class_balanced"),
    "batch_size": ({"batch_size": 16}, 15),
    "epochs": ({"epochs": 2}, 3),
    "precision": ({"precision": "fp32"}, "bf16"),
}  # fmt: skip
"""Fields of a training, for students and teachers."""

FINISHED = KD | {"teacher": {"model": "lenet5_teacher", "trained": "one.safetensors"}}
NETWORK: dict[str, Case] = {
    "weights.file": (TINY, "tiny 1.safetensors"),
    "weights.part": (TINY, "network"),
    "weights.weights_key": (TINY | {"weights": TINY["weights"] | {"file": "tinies.pth"}}, "tiny 1"),
    "freeze": (TINY | {"batch_norm_statistics": "update"}, "encoder_but_norm"),
    "batch_norm_statistics": (TINY, "keep"),
    "head": (TINY | {"dropout": 0.2}, "hidden"),
    "dropout": (TINY, 0.3),
    "normalization": (TINY, "none"),
    "channels_last": (TINY, False),
    **{field: (MLP, value) for field, value in {"hidden": [9], "input_dropout": 0.2, "max_norm": 0.4}.items()},
    "stem": ({"model": "resnet18", "weights": None}, "cifar"),
}
"""Fields of a network, for students and teachers."""


BALANCE = {"balance": {"alpha": 0.5}}
DISTANCE = {"name": "rkd_distance", **BALANCE}
ANGLE = {"name": "rkd_angle", **BALANCE}
PUBLISHED_DISTANCE = {**DISTANCE, "features": "logits", "convention": "published"}
AT = {"name": "at", "stages": ["4", "8"], "balance": {"weight": 1000.0}}
SP = {"name": "sp", "stages": ["16", "32"], "balance": {"weight": 1000.0}}
MGD = {"name": "mgd", "stage": "32", "mask_ratio": 0.3, "alpha": 0.01, "balance": {"weight": 1.0}}
DKD = {"name": "dkd", "warmup_epochs": 2, **BALANCE}
DIST = {"name": "dist", **BALANCE}
CRITIC = {
    "name": "logits_discriminator", "temperature": 2.0, "critic_steps": 2, "student_steps": 1, **BALANCE
}  # fmt: skip
DROPPED = {"student": {"model": "test_resnet", "weights": None, "dropout": 0.3}}


def distilling(method: dict[str, Any], **values: Any) -> dict[str, Case]:
    """Return the cases of a method's fields, for the smallest networks that have all stages."""
    base = {"teacher": TINY, "student": {"model": "test_resnet", "weights": None}, "method": method}
    return fields(f"method[{method['name']}]", base, **values)


METHODS: dict[str, Case] = {
    "method": (KD, {"name": "none"}),
    **fields("method[kd]", KD, temperature=5.0, convention="published_mnist", standardise=True),
    **{
        f"method[kd].balance.{spelling}": (KD | {"method": KD["method"] | {"balance": {spelling: 0.5}}}, 0.7)
        for spelling in SPELLINGS
    },
    **distilling(DISTANCE, features="logits"),
    **distilling({**PUBLISHED_DISTANCE, "temperature": 1.5}, convention="corrected", temperature=3.0),
    **distilling(ANGLE, features="logits"),
    **distilling(AT, stages=["8"]),
    **distilling(SP, stages=["32"], convention="published"),
    **distilling(MGD, stage="16", mask_ratio=0.6, alpha=0.02),
    **distilling(DKD, temperature=2.0, alpha=2.0, beta=4.0, warmup_epochs=4, standardise=True),
    **distilling(DIST, temperature=2.0, beta=2.0, gamma=2.0),
    **distilling(
        CRITIC, temperature=3.0, critic_steps=1, student_steps=2, restart="epoch", convention="published",
        **{
            "critic_training.lr": 0.01,
            "critic_training.lipschitz": {"name": "none"},
            "critic_training.lipschitz[gradient_penalty].weight": 1.0,
        },
    ),
    **distilling(
        {**CRITIC, "critic_training": {"lipschitz": {"name": "clipping", "bound": 0.1}}},
        **{"critic_training.lipschitz[clipping].bound": 0.01},
    ),
}  # fmt: skip
"""Fields of methods; that each changes the loss or the update is shown in tests/methods."""

SMALL_DATA = {
    "digits": DIGITS, "mnist": MNIST, "fashion_mnist": MNIST | {"name": "fashion_mnist"},
    "kmnist": MNIST | {"name": "kmnist"}, "image_folder": FOLDER,
    "cifar10": {"name": "cifar10", "resolution": 16, "limit_per_class": 3},
    "hymenoptera": {"name": "hymenoptera", "resolution": 16, "limit_per_class": 4},
    "cub200": {"name": "cub200", "resolution": 16, "limit_per_class": 4},
    "flowers102": {"name": "flowers102", "resolution": 16, "limit_per_class": 3},
}  # fmt: skip
GREY = ("digits", "mnist", "fashion_mnist", "kmnist")
TURNED = {"rotate_degrees": 20.0, "translate": 0.1, "scale": 0.1}
CLASSES = {
    "image_folder": "cat", "cifar10": "frog", "hymenoptera": "ants", "cub200": "001.Bird_1",
    "flowers102": "pink primrose", "fashion_mnist": "Dress", "kmnist": "o",
}  # fmt: skip
OF_EVERY_SET: dict[str, tuple[dict[str, Any], Any]] = {
    "part.of": ({"part": {"of": 2, "index": 0}}, 3),
    "part.index": ({"part": {"of": 2, "index": 0}}, 1),
    "labelled_per_class": ({"labelled_per_class": 1}, 2),
    "labelled_fraction": ({"labelled_fraction": 0.5}, 0.3),
    **{f"augment.{key}": ({"augment": TURNED}, value / 2) for key, value in TURNED.items()},
}
DATA: dict[str, Case] = {"data": ({}, DIGITS | {"name": "mnist"})}
for name, data in SMALL_DATA.items():
    part = f"data[{name}]"
    other = {
        "name": "digits" if name in GREY else "hymenoptera",
        "resolution": data["resolution"],
        "limit_per_class": 2,
    }
    DATA |= fields(part, {"data": data}, resolution=17, split_seed=1, limit_per_class=2)
    DATA |= fields(part, {"data": data}, exclude_classes=[CLASSES.get(name, "3")], transfer=other)
    DATA |= {f"{part}.{field}": ({"data": data | base}, value) for field, (base, value) in OF_EVERY_SET.items()}
GENERIC = {
    f"data[{name}].{field}" for name in SMALL_DATA for field in (*OF_EVERY_SET, "exclude_classes", "transfer")
    if name != "digits"
}  # fmt: skip
"""Fields by which one function changes the training split of every data set: that they change what is learned is shown
for one of them."""
TOO_FEW = {"data[flowers102].labelled_per_class"}
"""Of its 102 classes 3 are made up here, and all must have a label."""
DATA |= {
    **fields("data[cifar10]", {"data": SMALL_DATA["cifar10"]}, augment="none", convention="published"),
    **fields("data[hymenoptera]", {"data": SMALL_DATA["hymenoptera"]}, convention="published"),
    **fields("data[cub200]", {"data": SMALL_DATA["cub200"]}, augment="none", test_time_augmentation="none"),
    **fields("data[flowers102]", {"data": SMALL_DATA["flowers102"]}, crop="inception"),
    **fields(
        "data[image_folder]", {"data": FOLDER},
        folder="other pets", augment="crop_flip", test_time_augmentation="ten_crop",
    ),
    "data[image_folder].background": ({"data": FOLDER | {"folder": "icons"}}, "black"),
    **{
        f"data[{name}].augment.also": ({"data": SMALL_DATA[name] | {"augment": TURNED | {"also": word}}}, "none")
        for name, word in (("cifar10", "standard"), ("cub200", "standard"), ("image_folder", "crop_flip"))
    },
    **fields("data[image_folder]", {"data": FOLDER | {"limit_per_class": None}}, val_fraction=0.4, test_fraction=0.4),
}  # fmt: skip
DIGITS_ONLY = {
    field: case for field, case in DATA.items() if field.startswith("data[digits]") and not field.endswith("part.of")
}
"""The fields that a teacher's own data are tested with: they are those of the recipe's data."""
OF_BOTH_PARTS = {"teacher.data[digits].part.of"}
"""It must be that of the recipe's own part."""

TWO = [KD["teacher"], KD["teacher"] | {"seed": 1}]
BY_TWO = KD | {"teacher": {"ensemble": {"of": TWO}}}

ALSO: dict[str, dict[str, Any]] = {
    "teacher.ensemble.seeds": {"of": KD["teacher"], "weights": None},
    "lr_schedule[cosine_in_steps].convention": {"total_steps": None},
    "method[logits_discriminator].convention": {"critic_training": None},
    "method": {"teacher": None},
}
ALSO |= {f"teacher.{path}": keys for path, keys in ALSO.items()}
"""Other keys of the same part that must change together with a field."""

PERMISSIONS = {"student.allow_random_frozen", "teacher.allow_random_frozen"}
"""Fields that allow a recipe and change nothing in it; another test shows it."""

COMPILED = {"student.compile", "teacher.compile"}
"""Compiling takes minutes, and the bits may be equal: tests/models/test_compile.py."""

OF_WORKERS = {"batch_norm", "teacher.batch_norm"}
"""Fields without effect for one worker; tests/ddp/test_batch_norm_ranks.py shows their effect for two."""

OVERFITTING = {
    "data": DIGITS | {"limit_per_class": 3}, "optimizer": {"name": "adam", "lr": 0.01}, "epochs": 25
}  # fmt: skip


def of_teacher(path: str, base: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose teacher has what the cases of a field change: of data, a method, or a training."""
    if path.startswith("data"):
        return KD | base | {"teacher": KD["teacher"] | {"data": {}}}
    if path.startswith("method"):
        parts = {key: base[key] for key in ("method", "teacher")}
        return KD | {"teacher": base.get("student", KD["teacher"]) | parts}
    return KD | {"teacher": KD["teacher"] | base}


CASES: dict[str, Case] = {
    **TRAINING,
    **METHODS,
    **{path: case for path, case in DATA.items() if path not in TOO_FEW},
    **{f"student.{field}": ({"student": base}, value) for field, (base, value) in NETWORK.items()},
    "student.model": ({}, "lenet5_teacher"),
    # torchvision has no small ResNet, so this one takes a single step
    "student.stem": ({"student": NETWORK["stem"][0], "epochs": 1, "batch_size": 10, "data": ONE_OF_EACH}, "cifar"),
    "labelled_share": (KD | {"data": DIGITS | {"labelled_per_class": 2}, "labelled_share": 0.3}, 0.6),
    "mixup.convention": ({"mixup": {}}, "published"),
    **fields("r_drop", DROPPED | {"r_drop": {"weight": 0.3}}, weight=0.6, convention="published"),
    **fields("ema", {"ema": {"decay": 0.9, "ramp_updates": 2.0}}, decay=0.8, ramp_updates=4.0),
    "objective": (OVERFITTING, "val/nll"),
    "seed": ({}, 1),
    "teacher": (KD, {"ensemble": {"of": TWO}}),
    **fields("teacher.ensemble", BY_TWO, of=[*TWO[:1], {"model": "lenet5_half"}], seeds=3, combine="logits"),
    "teacher.ensemble.weights": (BY_TWO, [1, 3]),
    **fields("teacher", KD, model="lenet5_student", seed=1),
    "teacher.trained": (FINISHED, "other.safetensors"),
    "teacher.weights_key": (FINISHED | {"teacher": FINISHED["teacher"] | {"trained": "both.pth"}}, "other"),
    **{
        f"teacher.{field}": (of_teacher(field, base), value)
        for field, (base, value) in (TRAINING | NETWORK | DIGITS_ONLY | METHODS).items()
    },
    "teacher.data": (KD, {"split_seed": 1}),  # another data set is refused
    "teacher.teacher": (of_teacher("method", KD), {"model": "lenet5_half"}),
}


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the dotted path of every field that a user can write, with the name of each option in brackets."""
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        options = list(members(field.annotation))
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if model is Teacher and name == "teacher":
            models = []  # its fields are those of the teacher
        if name == "name" and get_origin(options[0]) is Literal and len(get_args(options[0])) == 1:
            continue  # the name of an option: the choice itself is a field of the model above
        if models and issubclass(models[0], LossWeights) and not path.endswith("[kd]"):
            continue  # all methods have the same spellings of weights
        words = [option for option in options if get_origin(option) is Literal and len(get_args(option)) > 1]
        if len(models) != 1 or words:
            yield here
        for option in () if name == "transfer" else models:  # it has the fields of data
            if model is Teacher and name == "data" and option is not Digits:
                continue
            if len(models) == 1 or "name" not in option.model_fields:  # told apart by their keys
                yield from leaves(option, here)
            else:
                (label,) = get_args(option.model_fields["name"].annotation)
                yield from leaves(option, f"{here}[{label}]")


def members(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union without None and without annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members(member)
    elif annotation is not NoneType:
        yield annotation


def test_every_field_of_the_recipe_has_a_case_and_every_case_a_field() -> None:
    fields = set(leaves(Recipe))
    assert {"data[digits].resolution", "method[kd].balance.alpha", "teacher.optimizer[sgd].lr"} <= fields
    given = CASES.keys() | PERMISSIONS | OF_WORKERS | COMPILED | TOO_FEW | OF_BOTH_PARTS
    without_case = sorted(fields - given)
    assert not without_case, f"fields of the recipe that no case here changes: {', '.join(without_case)}"
    assert sorted(CASES.keys() - fields) == []


def changed(base: Recipe, path: str, value: Any) -> Recipe:
    """Return `base` with another value of a field, and without what only the old value needed."""
    tree = base.model_dump(mode="json")
    keys = [key.split("[")[0] for key in path.split(".")]
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    inner |= ALSO.get(path, {})
    return Recipe.model_validate(tree)


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with made-up data sets, and weights for `teacher.trained` and `student.weights.file`."""
    root = tmp_path_factory.mktemp("data")
    for number in range(80):
        made_up_data.paint(
            root / ("pets", "other pets")[number % 2] / ("cat", "dog")[number // 2 % 2] / f"{number}.png"
        )
    for file in sorted((root / "pets").rglob("*.png")):
        icon = root / "icons" / file.relative_to(root / "pets")
        icon.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.putalpha(100)
            image.save(icon)
    for make in (made_up_data.hymenoptera, made_up_data.cub200, made_up_data.flowers102, made_up_data.mnist):
        make(root)
    for folder in ("FashionMNIST", "KMNIST"):
        made_up_data.mnist(root, folder=folder)
    teacher, tiny = {"model": "lenet5_teacher"}, {"model": "test_resnet", "weights": None}
    states = {}
    for name, seed, student in (("one", 2, teacher), ("other", 3, teacher), ("tiny", 2, tiny), ("tiny 1", 3, tiny)):
        network = fresh_state(recipe(student=student, seed=seed)).distiller.student
        save_file(made_up_data.packed(network), root / f"{name}.safetensors")
        states[name] = network.state_dict()
    torch.save({"one": states["one"], "other": states["other"]}, root / "both.pth")
    torch.save({"tiny": states["tiny"], "tiny 1": states["tiny 1"]}, root / "tinies.pth")
    return root


@cache
def learned(config: Recipe, data_root: Path) -> str:
    """Return a digest of a training: its rows, the best epoch and its weights, and logits of views at test time."""
    state = fresh_state(config, data_root)
    rows = [timeless(row) for row in fitted(state)]
    weights = {name: blake2b(value.numpy().tobytes()).hexdigest() for name, value in state.best_weights.items()}
    return repr((rows, state.best["epoch"], weights, tta_logits(state.distiller.student, state.data.test, CPU)))


REAL = ("data[cifar10]", "teacher.data[cifar10]")  # torchvision refuses files that are not CIFAR-10's own
PATHS = [pytest.param(path, marks=pytest.mark.data) if path.startswith(REAL) else path for path in CASES]


@pytest.mark.parametrize("path", PATHS)
def test_changing_a_field_changes_what_is_learned_and_the_id(path: str, small_data, monkeypatch, request) -> None:
    if path.startswith(REAL) and not (small_data / "cifar-10-batches-py").exists():
        real = request.getfixturevalue("real_data") / "cifar-10-batches-py"
        (small_data / real.name).symlink_to(real)
    monkeypatch.chdir(small_data)
    start, value = CASES[path]
    start = {"data": DIGITS} | start
    base = recipe(**start)
    other = changed(base, path, value)
    assert trial_id(other, small_data) != trial_id(base, small_data), f"{path} changes nothing of the identity"
    if (
        path.startswith("teacher.") and base.ensemble is None
    ):  # its training is that of a student alone, whose fields are changed here as well
        assert recipe(**start).teacher.trained or teacher_recipe(other) != teacher_recipe(base)
    elif path not in METHODS.keys() | GENERIC:
        assert learned(other, small_data) != learned(base, small_data), f"{path} changes nothing that is learned"


@pytest.mark.parametrize("place", ["student", "teacher"])
def test_frozen_random_weights_must_be_allowed_and_the_permission_is_not_hashed(place: str) -> None:
    frozen = {"model": "test_resnet", "weights": None, "freeze": "encoder"}
    base = KD if place == "teacher" else {}
    with pytest.raises(ValueError, match="allow_random_frozen: true"):
        recipe(**base | {place: frozen})
    allowed = recipe(**base | {place: frozen | {"allow_random_frozen": True}})
    assert "allow_random_frozen" not in identity(allowed, NO_DATA)["recipe"]["student"]
    with pytest.raises(ValueError, match="allow_random_frozen does nothing"):
        recipe(**base | {place: {"model": "test_resnet", "weights": None, "allow_random_frozen": True}})


def test_spellings_of_equal_weights_and_numbers_have_equal_ids() -> None:
    def of_kd(**changes: Any) -> str:
        return trial_id(recipe(**KD | {"method": KD["method"] | changes}), NO_DATA)

    assert of_kd(balance={"alpha": 0.3}) == of_kd(balance={"alpha_ce": 0.7})
    assert of_kd(balance={"weight": 1.0}) == of_kd(balance={"kd_ratio": 0.5})
    assert of_kd(balance={"weight": 1}) == of_kd(balance={"weight": 1.0})
    assert of_kd(balance={"weight": 1.0}) != of_kd(balance={"alpha": 0.5})
    assert of_kd(temperature=4) == of_kd(temperature=4.0)


def test_a_default_written_out_is_the_default() -> None:
    assert trial_id(recipe(), NO_DATA) == trial_id(recipe(**recipe().model_dump(mode="json")), NO_DATA)
    assert trial_id(recipe(label_smoothing=0), NO_DATA) == trial_id(recipe(), NO_DATA)


def test_a_value_that_the_teacher_inherits_can_be_written_out() -> None:
    written = recipe(**KD | {"teacher": KD["teacher"] | {"optimizer": ALONE["optimizer"], "batch_size": 16}})
    assert trial_id(recipe(**KD), NO_DATA) == trial_id(written, NO_DATA)
    own = recipe(**KD | {"teacher": KD["teacher"] | {"batch_size": 32}}, batch_size=32)
    assert identity(own, NO_DATA)["recipe"]["teacher"] != identity(recipe(**KD), NO_DATA)["recipe"]["teacher"]


GOLDEN_IDS = {"the student alone": ({}, "e5b2153030661962"), "kd": (KD, "d00106da626a37f0")}
"""Ids of NUMERICS 7. A change of the code that is no change of NUMERICS must keep them."""


@pytest.mark.parametrize("name", list(GOLDEN_IDS))
def test_a_recipe_of_an_earlier_version_keeps_its_id(name: str) -> None:
    changes, golden = GOLDEN_IDS[name]
    assert identity_module.NUMERICS == 7, "renew GOLDEN_IDS"
    assert trial_id(recipe(**changes), NO_DATA) == golden


def test_only_the_ratios_of_an_ensembles_weights_are_hashed() -> None:
    def weighted(weights: list[float] | None, **changes: Any) -> str:
        return trial_id(recipe(**KD | {"teacher": {"ensemble": {"of": TWO, "weights": weights} | changes}}), NO_DATA)

    assert (
        weighted(None) == weighted([1, 1]) == weighted([0.3, 0.3]) == trial_id(recipe(**KD | {"teacher": TWO}), NO_DATA)
    )
    assert weighted([1, 2]) == weighted([2, 4]) != weighted([2, 1])
    assert weighted(None) == weighted(None, of=KD["teacher"], seeds=2)
    assert len({weighted(None), weighted(None, of=TWO[::-1]), weighted(None, combine="logits")}) == 3


TEACHERS = [
    KD["teacher"],
    {"model": "lenet5_teacher", "trained": "one.safetensors"},
    TWO,
    {"ensemble": {"of": {"model": "as_student"}, "seeds": 3, "combine": "logits", "weights": [1, 2, 3]}},
]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_dumped_recipe_reads_back_as_the_same_recipe(teacher: dict[str, Any]) -> None:
    config = recipe(**KD | {"teacher": teacher})
    assert Recipe.model_validate(config.model_dump(mode="json")) == config
    unset = config.model_dump(mode="json", exclude_unset=True)  # as best.yaml has it
    assert Recipe.model_validate(unset) == config


def test_a_teacher_shared_by_two_students_has_one_id() -> None:
    ids = [identity(recipe(**KD, seed=seed), NO_DATA)["recipe"]["teacher"] for seed in (0, 1)]
    assert ids[0] == ids[1]
    assert trial_id(recipe(**KD, seed=0), NO_DATA) != trial_id(recipe(**KD, seed=1), NO_DATA)


def test_a_teachers_file_is_hashed_by_content_not_by_name(tmp_path: Path) -> None:
    def by_file(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        teacher = {"model": "lenet5_teacher", "trained": str(tmp_path / name)}
        return trial_id(recipe(**KD | {"teacher": teacher}), NO_DATA)

    assert by_file("a", b"weights") == by_file("b", b"weights") != by_file("a", b"others")
    (tmp_path / "a").unlink()
    teacher = {"model": "lenet5_teacher", "trained": str(tmp_path / "a")}
    with pytest.raises(UserError, match=r"^recipe\.teacher\.trained: "):
        trial_id(recipe(**KD | {"teacher": teacher}), NO_DATA)


OF_A_FILE: dict[str, Case] = {
    "hidden": ({"model": "mlp", "hidden": [8]}, [9]),
    "stem": ({"model": "resnet18"}, "cifar"),
    "model": ({}, "lenet5_student"),
    "head": (TINY, "hidden"),
    "normalization": (TINY, "none"),
    "channels_last": ({}, False),
    "compile": ({}, True),
    "weights_key": ({"trained": "both.pth", "weights_key": "one"}, "other"),
    "data": ({}, {"resolution": 20}),
}
"""Fields of a finished teacher. It takes no others, because it is not trained."""


def test_every_field_of_a_finished_teacher_changes_the_id_or_is_refused(small_data: Path) -> None:
    def of_file(**changes: Any) -> Recipe:
        teacher = {"model": "lenet5_teacher", "weights": None, "trained": "one.safetensors"} | changes
        return recipe(**KD | {"teacher": teacher | {"trained": str(small_data / teacher["trained"])}})

    refused = {"weights": "imagenet", "freeze": "encoder", "batch_norm_statistics": "keep", "dropout": 0.1}
    trains = recipe(clipping={"norm": 1.0}, early_stopping={"patience_epochs": 1}).model_dump(mode="json")
    refused |= {"method": KD["method"], "teacher": KD["teacher"]}
    refused |= {"input_dropout": 0.1, "max_norm": 3.5, "allow_random_frozen": True, "seed": 1} | {
        field: trains[field] for field in INHERITED
    }
    assert {*OF_A_FILE, *refused, "trained"} == set(Teacher.model_fields)
    for field, value in refused.items():
        with pytest.raises(ValueError, match="\nteacher"):
            of_file(**{field: value})
    for field in ("input_dropout", "max_norm"):
        with pytest.raises(ValueError, match=f"is not trained; remove {field}"):
            of_file(model="mlp", hidden=[8], **{field: refused[field]})
    for field, (base, value) in OF_A_FILE.items():
        base = {**base, "weights": None}
        one, other = of_file(**base), of_file(**base | {field: value})
        assert trial_id(one, NO_DATA) != trial_id(other, NO_DATA), field


def test_batch_norm_statistics_per_worker_of_student_or_teacher_are_another_recipe() -> None:
    own = {"batch_norm": "per_worker"}
    taught = KD | {"teacher": KD["teacher"] | own}
    ids = {trial_id(recipe(**written), NO_DATA) for written in (KD, KD | own, taught)}
    assert len(ids) == 3
    assert trial_id(recipe(**KD | own), NO_DATA) == trial_id(recipe(**taught | own), NO_DATA)


def test_another_numerics_number_gives_every_recipe_another_id(monkeypatch) -> None:
    before = trial_id(recipe(), NO_DATA)
    monkeypatch.setattr(identity_module, "NUMERICS", identity_module.NUMERICS + 1)
    assert trial_id(recipe(), NO_DATA) != before


def test_a_recipe_without_newer_fields_has_the_id_that_it_had_before_them() -> None:
    """The golden ids are those of the commit before the first of them, without the digest of the method's code."""
    of_resnet = recipe(student={"model": "resnet18", "weights": None, "head": "hidden"})
    known = {"75107b937abafba4": recipe(), "fc86b1aaa0dafd70": recipe(**KD), "cfe499d43152dd84": of_resnet}
    for golden, config in known.items():
        identities = identity(config, NO_DATA)
        for part in (identities, identities["recipe"]["teacher"] if config.teacher else {}):
            part.pop("code", None)
        assert identity_module._hashed(identities) == golden, identity_module.NUMERICS


def test_an_id_is_16_hexadecimal_digits_and_the_name_of_the_trials_folder() -> None:
    found = trial_id(recipe(), NO_DATA)
    assert trained(recipe()).folder.path.name == found
    assert len(found) == 16
    assert int(found, 16) >= 0
