import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kdtrain.config.located import load_located
from kdtrain.config.schema import schema_text, sweep_schema
from kdtrain.config.sweep import load_sweep
from kdtrain.config.yaml_reader import read_yaml

SWEEPS = Path(__file__).parents[2] / "sweeps"
GOOD = read_yaml(
    """
recipe:
  data: {name: digits}
  teacher:
    choice:
      - {model: lenet5_teacher, data: {resolution: {choice: [16, 24]}, limit_per_class: null}}
      - model: lenet5_student
        epochs: 3
        method: {name: kd, temperature: 2, balance: {alpha: 1}}
        teacher: {model: lenet5_half, data: {split_seed: 1}}
  student: {model: lenet5_student}
  method:
    choice:
      - {name: kd, temperature: {loguniform: [1, 20]}, balance: {alpha: {uniform: [0, 1]}}}
      - choice: [{name: kd, temperature: {choice: [1, {uniform: [2, 4]}]}, balance: {weight: 1}}]
  optimizer: {name: sgd, lr: {loguniform: [1e-4, 1e-1]}}
  lr_schedule: {name: cosine, warmup_epochs: {int: [0, 2]}}
  batch_size: {logint: [16, 128]}
  epochs: 8
study: {trials: 3, pruner: {name: asha, min_epochs: 2}}
""",
    "good.yaml",
).data


def mistakes(sweep: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(sweep_schema()).iter_errors(sweep)]


def test_the_file_equals_the_code() -> None:
    stale = "stale: run kdtrain schema > sweeps/schema.json"
    assert (SWEEPS / "schema.json").read_text(encoding="utf-8") == schema_text(), stale
    Draft202012Validator.check_schema(json.loads(schema_text()))


def test_spaces_and_nested_choices_validate() -> None:
    assert mistakes(GOOD) == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("recipe", "epoch"), 3),
        (("recipe", "seed"), 3),
        (("recipe", "epochs"), {"uniform": [1, 4]}),
        (("recipe", "epochs"), 2.5),
        (("recipe", "data", "name"), "cifar"),
        (("recipe", "teacher"), {"model": "lenet5_teacher", "data": {"resolutions": 24}}),
        (("recipe", "teacher"), {"model": "lenet5_teacher", "data": {"name": "cifar"}}),
        (("recipe", "student", "model"), 18),
        (("recipe", "optimizer", "lr"), {"loguniform": [0, 1]}),
        (("recipe", "optimizer", "lr"), {"logunform": [1, 2]}),
        (("recipe", "optimizer", "lr"), {"uniform": [1, 2, 3]}),
        (("recipe", "method"), {"choice": []}),
        (("recipe", "method"), {"choice": [{"name": "none", "temperature": 4}]}),
        (("study", "sampler"), {"name": "cma"}),
        (("study", "trials"), {"int": [1, 3]}),
        (("resources",), {"workers": 0}),
    ],
)
def test_a_wrong_file_does_not_validate(keys: tuple[str, ...], value: Any) -> None:
    sweep = json.loads(json.dumps(GOOD))
    node = sweep
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    assert mistakes(sweep)


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_names_the_schema_validates_and_loads(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
    assert mistakes(load_located(file).data) == []
    assert load_sweep(file).name == file.stem
