# ruff: noqa: E501  (a sentence is easier to compare in one line)
import random
from pathlib import Path
from typing import Any

import pytest

from kdtrain.config.recipe import teacher_recipe
from kdtrain.config.space import grid, suggest
from kdtrain.config.sweep import Sweep, load_recipe, load_sweep
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.errors import UserError
from kdtrain.study.plan import trainings

SWEEP = """\
recipe:
  data: {name: digits}
  teacher: {model: lenet5_teacher, epochs: 20}
  student: {model: lenet5_student}
  method:
    choice:
      - {name: kd, balance: {weight: {loguniform: [0.05, 20]}}, temperature: {loguniform: [1, 20]}}
      - {name: kd, balance: {alpha: {uniform: [0, 1]}}, temperature: 4, convention: published_mnist}
  optimizer: {name: sgd, lr: {loguniform: [3.0e-4, 1e-1]}, momentum: 0.9}
  lr_schedule: {name: cosine, warmup_epochs: 1}
  batch_size: 64
  epochs: 8
study:
  trials: 24
  sampler: {name: tpe, startup_trials: 10}
  pruner: {name: asha, min_epochs: 2, reduction: 3}
  published: [{method: {name: kd, balance: {kd_ratio: 0.7}, temperature: 4}, optimizer: {lr: 1e-3}}]
  confirm: {best: 2, seeds: 5}
resources: {workers: 1, concurrent_trials: auto}
"""
METHOD = "    choice:\n" + "".join(line + "\n" for line in SWEEP.splitlines()[6:8])
KD = "balance: {weight: 1}, temperature: 4"


def load(tmp_path: Path, text: str = SWEEP, *overrides: str, **options: int) -> Sweep:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    return load_sweep(file, overrides, **options)


def problems_of(tmp_path: Path, text: str = SWEEP, *overrides: str, **options: int) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides, **options)
    return [problem.replace(str(tmp_path / "x.yaml"), "x.yaml") for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert SWEEP.count(old) == 1, old
    return SWEEP.replace(old, new)


def with_method(method: str) -> str:
    """The sweep with another method, and without the published point that belonged to the old one."""
    lines = changed(METHOD, f"    {method}\n").replace("epochs: 20}", "epochs: 20, optimizer: {name: adam, lr: 0.1}}")
    return "\n".join(line for line in lines.splitlines() if "published: [" not in line)


def test_the_example_loads_with_everything_resolved(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    assert sweep.name == "x"
    assert sweep.located.text == SWEEP
    assert sweep.tree["optimizer"]["lr"] == {"loguniform": [3e-4, 1e-1]}
    assert [parameter.name for parameter in sweep.parameters] == [
        "method", "method[kd].balance.weight", "method[kd].temperature", "method[kd (2)].balance.alpha", "optimizer.lr",
    ]  # fmt: skip
    assert sweep.study.model_dump(mode="json", exclude={"published"}) == {
        "objective": "val/accuracy", "trials": 24, "sampler": {"name": "tpe", "startup_trials": 10},
        "pruner": {"name": "asha", "min_epochs": 2, "reduction": 3}, "confirm": {"best": 2, "seeds": 5, "published": True},
        "seed": 0, "order": "batches", "batch": 4,
    }  # fmt: skip
    assert sweep.resources.model_dump() == {
        "workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.0, "concurrent_trials": "auto",
        "loaders": 0, "checkpoint_every_steps": None, "teacher_cache": "auto", "cache_bytes": 20 << 30,
    }  # fmt: skip
    assert (sweep.line_of(("recipe", "method")), sweep.line_of(("study", "pruner", "min_epochs"))) == (5, 16)


def test_a_published_point_becomes_values_and_a_recipe(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    values = sweep.published[0]
    assert values["method[kd].balance.weight"] == pytest.approx(0.7 / 0.3)
    assert {key: values[key] for key in ("method", "method[kd].temperature", "optimizer.lr")} == {
        "method": "kd", "method[kd].temperature": 4.0, "optimizer.lr": 1e-3,
    }  # fmt: skip
    recipe = sweep.recipe_for(values, 7)
    assert (recipe.seed, recipe.objective, recipe.optimizer.lr) == (7, "val/accuracy", 1e-3)


def test_whatever_is_suggested_is_a_recipe(tmp_path: Path) -> None:
    class Dice:
        """Draws as an Optuna trial does."""

        def __init__(self, seed: int) -> None:
            self.random = random.Random(seed)

        def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
            return self.random.uniform(low, high)

        def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
            return self.random.randint(low, high)

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            return self.random.choice(choices)

    sweep = load(tmp_path, SWEEP, "recipe.batch_size={logint: [8, 128]}", "study.published=[]", "recipe.teacher.batch_size=32",
                 "recipe.teacher.optimizer={name: sgd, lr: 0.1}")  # fmt: skip
    methods = {sweep.recipe_for(suggest(Dice(seed), sweep.tree), seed).method.convention for seed in range(50)}
    assert methods == {"corrected", "published_mnist"}
    baseline = sweep.baseline()
    for seed in range(20):
        alone = baseline.recipe_for(suggest(Dice(seed), baseline.tree), seed)
        assert (alone.method.name, alone.teacher) == ("none", None)


def test_the_baseline_searches_only_what_it_shares(tmp_path: Path) -> None:
    baseline = load(tmp_path).baseline()
    assert [parameter.name for parameter in baseline.parameters] == ["optimizer.lr"]
    assert baseline.published == ({"optimizer.lr": 1e-3},)
    recipe = baseline.recipe_for(baseline.published[0], 3)
    assert (recipe.method.name, recipe.teacher, recipe.optimizer.lr) == ("none", None, 1e-3)
    nothing_shared = load(tmp_path, changed("{loguniform: [3.0e-4, 1e-1]}", "1e-3")).baseline()
    assert (nothing_shared.parameters, nothing_shared.published) == ([], ())


def test_a_teacher_takes_searched_fields_from_the_first_published_point(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    low = {
        "method": "kd",
        "method[kd].balance.weight": 1.0,
        "method[kd].temperature": 2.0,
        "optimizer.lr": 3e-4,
    }
    teachers = {teacher_recipe(sweep.recipe_for({**low, "optimizer.lr": lr}, 3)) for lr in (3e-4, 1e-2)}
    assert {teacher.optimizer.lr for teacher in teachers if teacher} == {1e-3}


def test_a_teacher_that_inherits_a_search_is_refused_without_a_published_point(tmp_path: Path) -> None:
    text = "\n".join(line for line in SWEEP.splitlines() if "published: [" not in line)
    assert problems_of(tmp_path, text) == [
        "x.yaml:3: recipe.teacher.optimizer.lr: is inherited from recipe.optimizer.lr, which is searched;"
        " write teacher.optimizer (or a study.published point, whose value it takes)"
    ]
    load(tmp_path, text, "recipe.teacher={model: lenet5_teacher, file: teacher.safetensors}")


@pytest.mark.parametrize("teacher", ["{model: lenet5_teacher}", "{model: lenet5_teacher, file: teacher.safetensors}"])
def test_a_recipe_dumped_as_it_was_set_reads_back_equal(tmp_path: Path, teacher: str) -> None:
    sweep = load(tmp_path, SWEEP, f"recipe.teacher={teacher}")
    recipe = sweep.recipe_for(sweep.published[0], 1_000_003)
    (tmp_path / "best.yaml").write_text(dump_yaml(recipe.model_dump(mode="json", exclude_unset=True)))
    assert load_recipe(tmp_path / "best.yaml") == recipe


UNKNOWN = "unknown {} '{}'; choices: {}"
DATA = "digits, mnist, cifar10, hymenoptera, cub200, flowers102, image_folder"
MODELS = (
    "lenet5_teacher, lenet5_student, mobilenetv2, resnet18, resnet50, efficientnet_v2_s, ghostnet, resnet50v2, "
    "bit_resnet101x3, bit_resnet50x1 and every classifier of torchvision and timm"
)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("batch_size: 64", "batchsize: 64", "x.yaml:11: recipe.batchsize: recipe has no 'batchsize'; nearest: batch_size"),
        ("epochs: 8", "epochs: eight", "x.yaml:12: recipe.epochs: must be a whole number, got 'eight'"),
        ("epochs: 8", "epochs: 8.5", "x.yaml:12: recipe.epochs: must be a whole number, got 8.5"),
        ("epochs: 8", "epochs: true", "x.yaml:12: recipe.epochs: must be a whole number, got true"),
        ("epochs: 8", "epochs:", "x.yaml:12: recipe.epochs: must be a whole number, got null"),
        ("batch_size: 64", "batch_size: 0", "x.yaml:11: recipe.batch_size: must be >= 1, got 0"),
        ("batch_size: 64", "batch_size: {choice: [64, 0]}", "x.yaml:11: recipe.batch_size: must be >= 1, got 0"),
        ("batch_size: 64", "batch_size: {uniform: [8, 64]}", "x.yaml:11: recipe.batch_size: must be a whole number, got 8.0 in uniform [8.0, 64.0]; for whole numbers write int or logint"),
        ("momentum: 0.9", "momentum: {uniform: [0.5, 1.5]}", "x.yaml:9: recipe.optimizer.momentum: must be < 1, got 1.5 in uniform [0.5, 1.5]"),
        ("momentum: 0.9", "momentum: {uniform: [0.9, 0.1]}", "x.yaml:9: recipe.optimizer.momentum: uniform must go from low to high, got [0.9, 0.1]; write [0.1, 0.9]"),
        ("momentum: 0.9", "momentum: {loguniform: [0, 0.9]}", "x.yaml:9: recipe.optimizer.momentum: loguniform must lie above 0, got [0, 0.9]"),
        ("momentum: 0.9", "momentum: .nan", "x.yaml:9: recipe.optimizer.momentum: must be a finite number, got .nan"),
        ("name: digits", "name: digts", "x.yaml:2: recipe.data.name: " + UNKNOWN.format("data", "digts", f"{DATA}; nearest: digits")),
        ("model: lenet5_student", "model: lenet5_studnt", "x.yaml:4: recipe.student.model: " + UNKNOWN.format("model", "lenet5_studnt", f"{MODELS}; nearest: lenet5_student")),
        ("name: sgd", "name: sdg", "x.yaml:9: recipe.optimizer.name: " + UNKNOWN.format("optimizer", "sdg", "sgd, adam, adamw; nearest: sgd")),
        ("name: tpe", "name: tpee", "x.yaml:15: study.sampler.name: " + UNKNOWN.format("sampler", "tpee", "tpe, random, grid; nearest: tpe")),
        ("name: asha", "name: hyperband", "x.yaml:16: study.pruner.name: " + UNKNOWN.format("pruner", "hyperband", "asha, median, none")),
        ("{name: digits}", "{}", f"x.yaml:2: recipe.data: needs a name; choices: {DATA}"),
        ("{name: digits}", "digits", "x.yaml:2: recipe.data: must be a mapping, {key: value}, got 'digits'"),
        ("{model: lenet5_student}", "{}", "x.yaml:4: recipe.student.model: is missing"),
        ("warmup_epochs: 1", "warmup_epochs: 8", "x.yaml:10: recipe.lr_schedule.warmup_epochs: must be below epochs 8, got 8"),
        ("model: lenet5_teacher, epochs: 20", "model: lenet5_teacher, epochs: 1", "x.yaml:3: recipe.teacher: trained by its own recipe: lr_schedule.warmup_epochs must be below epochs 1, got 1"),
        ("model: lenet5_teacher, epochs: 20", "model: lenet5_teacher, label_smoothing: 1.0", "x.yaml:3: recipe.teacher.label_smoothing: must be < 1, got 1.0"),
        ("model: lenet5_teacher, epochs: 20", "model: lenet5_teacher, epochs: {int: [5, 20]}", "x.yaml:3: recipe.teacher.epochs: only choices can stand in teacher: a range would train a teacher for every trial"),
        ("{name: digits}", "{name: digits, limit_per_class: {int: [5, 20]}}", "x.yaml:2: recipe.data.limit_per_class: only choices can stand in data: a range would train a teacher for every trial"),
        ("{name: digits}", "{choice: [{name: digits}, {name: mnist}]}", "x.yaml:2: recipe.data: trials on different data cannot be compared: 'digits', 'mnist'; write a sweep for each"),
        ("  epochs: 8\n", "  epochs: 8\n  seed: 3\n", "x.yaml:13: recipe.seed: stands in the study; write study.seed"),
        ("  epochs: 8\n", "  epochs: 8\n  objective: val/nll\n", "x.yaml:13: recipe.objective: stands in the study; write study.objective"),
        ("  teacher: {model: lenet5_teacher, epochs: 20}\n", "", "x.yaml:1: recipe.teacher: is missing: a sweep compares a student that has a teacher with the same student alone"),
        ("{model: lenet5_teacher, epochs: 20}", "{choice: [null, {model: lenet5_teacher}]}", "x.yaml:3: recipe.teacher: is missing: a sweep compares a student that has a teacher with the same student alone"),
        ("study:", "studies:", "x.yaml:13: studies: a sweep has no 'studies'; nearest: study"),
        ("trials: 24", "trials: 0", "x.yaml:14: study.trials: must be >= 1, got 0"),
        ("trials: 24", "trials: {int: [1, 9]}", "x.yaml:14: study.trials: must be a whole number, got {int: [1, 9]}"),
        ("  trials: 24\n", "  trials: 24\n  seed: 1000000\n", "x.yaml:15: study.seed: must be < 1000000, got 1000000"),
        ("  trials: 24\n", "  trials: 24\n  order: free\n  batch: 8\n", "x.yaml:16: study.batch: does nothing with order free; remove it"),
        ("  trials: 24\n", "  trials: 24\n  objective: val/acc\n", "x.yaml:15: study.objective: must be one of val/accuracy, val/nll, got 'val/acc'; nearest: val/accuracy"),
        ("min_epochs: 2", "min_epochs: 8", "x.yaml:16: study.pruner.min_epochs: must be below recipe.epochs 8, else nothing is ever pruned, got 8"),
        ("seeds: 5", "sedes: 5", "x.yaml:18: study.confirm.sedes: confirm has no 'sedes'; nearest: seeds"),
        ("workers: 1", "workers: 0", "x.yaml:19: resources.workers: must be >= 1, got 0"),
        ("workers: 1", "gpus_per_worker: 1.5", "x.yaml:19: resources.gpus_per_worker: must be whole above 1, got 1.5"),
        ("concurrent_trials: auto", "concurrent_trials: atuo", "x.yaml:19: resources.concurrent_trials: must be auto or a whole number, got 'atuo'; nearest: auto"),
        ("resources:", "report: {published: cub200}\nresources:", "x.yaml:19: report.published: must be of the recipe's data, digits, got cub200"),
        ("resources:", "report: {publisher: cub200}\nresources:", "x.yaml:19: report.publisher: report has no 'publisher'; nearest: published"),
        ("published: [{method: {name: kd, ", "published: [{epochs: 30, method: {name: kd, ", "x.yaml:17: study.published.0.epochs: is fixed to 8 in the recipe, got 30"),
        ("optimizer: {lr: 1e-3}}]", "optimizer: {lr: 1}}]", "x.yaml:17: study.published.0.optimizer.lr: lies outside what is searched, loguniform [0.0003, 0.1], got 1"),
        (", optimizer: {lr: 1e-3}}]", "}]", "x.yaml:17: study.published.0.optimizer.lr: is searched (loguniform [0.0003, 0.1]), so a published point must give it"),
        ("published: [{", "published: [3, {", "x.yaml:17: study.published.0: must be a mapping, {key: value}, got 3"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_with_place_rule_value_and_choices(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    found = problems_of(tmp_path, changed(old, new))
    assert sentence in found
    # what a wrong key leaves missing, and what a published point now leaves open, may be said beside it; nothing else
    beside = (": is missing", "so a published point must give it")
    assert all(problem == sentence or problem.endswith(beside) for problem in found), found


@pytest.mark.parametrize(
    ("method", "sentences"),
    [
        (f"{{name: kdd, {KD}}}", ["x.yaml:6: recipe.method.name: unknown method 'kdd'; choices: none, kd, logit_mse, rkd_distance, rkd_angle, logits_discriminator, at, sp, mgd, dkd, dist; nearest: kd"]),
        (f"{{name: kd, temprature: 3, {KD}}}", ["x.yaml:6: recipe.method.temprature: kd has no 'temprature'; nearest: temperature"]),
        ("{name: kd, temperature: 0, balance: {weight: 1}}", ["x.yaml:6: recipe.method.temperature: must be > 0, got 0"]),
        ("{name: kd, temperature: 1, balance: {weight: 1, alpha: 1}}", [
            "x.yaml:6: recipe.method.balance: takes exactly one of weight, kd_ratio, alpha, alpha_ce, got weight, alpha"]),
        ("{name: kd, temperature: {logunform: [1, 20]}, balance: {weight: 1}}", [
            "x.yaml:6: recipe.method.temperature: unknown search space 'logunform'; nearest: loguniform"
            " (choices: uniform, loguniform, int, logint, choice)"]),
        (f"{{choice: [{{name: kd, {KD}}}, {{name: none, temperature: {{uniform: [1, 4]}}}}]}}", [
            "x.yaml:6: recipe.method.name: none is the student alone, which every sweep trains as its baseline;"
            " to train only that: python -m kdtrain",
            "x.yaml:6: recipe.method.temperature: none has no 'temperature'; it has: name"]),
        (f"{{choice: [{{name: kd, {KD}}}, {{name: kd, {KD}}}]}}", [
            "x.yaml:6: recipe.method: option 2 repeats option 1: {name: kd, balance: {weight: 1}, temperature: 4}"]),
        ("{choice: []}", ["x.yaml:5: recipe.method: choice takes a list of at least one option, got []"]),
        ("{choice: [kd]}", ["x.yaml:6: recipe.method: must be a mapping, {key: value}, got 'kd'"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_method_is_said_in_its_words(tmp_path: Path, method: str, sentences: list[str]) -> None:
    assert problems_of(tmp_path, with_method(method)) == sentences


def test_every_mistake_of_a_file_is_reported_at_once_in_the_order_of_its_lines(tmp_path: Path) -> None:
    text = """\
recipe:
  data: {name: digts}
  teacher: {model: lenet5_teacher, optimizer: {name: adam, lr: 0.1}}
  student: {model: lenet5_studnt}
  method:
    choice:
      - {name: kd, temperatur: 4, balance: {weight: {loguniform: [0, 20]}}}
      - name: kd
        temperature: {uniform: [8, 2]}
        balance: {weight: 1, alpha: 0.5}
  optimizer: {name: sgd, lr: {uniform: [-1, 0.1]}}
  lr_schedule: {name: cosine}
  batch_size: 1.5
  batch_size: 3
  epochs: {int: [1, 10]}
  seed: 3
study:
  trails: 3
  pruner: {name: asha, min_epochs: 0}
resources: {concurrent_trials: 0, gpus_per_worker: .nan}
"""
    places = [problem.split(": ")[:2] for problem in problems_of(tmp_path, text, "study.confirm.seeds=0", "lr=3")]
    assert places == [
        ["x.yaml:2", "recipe.data.name"],
        ["x.yaml:3", "recipe.teacher.epochs"],
        ["x.yaml:4", "recipe.student.model"],
        ["x.yaml:7", "recipe.method.balance.weight"],
        ["x.yaml:7", "recipe.method.temperature"],
        ["x.yaml:7", "recipe.method.temperatur"],
        ["x.yaml:9", "recipe.method.temperature"],
        ["x.yaml:10", "recipe.method.balance"],
        ["x.yaml:11", "recipe.optimizer.lr"],
        ["x.yaml:13", "recipe.batch_size"],
        ["x.yaml:14", "recipe.batch_size"],
        ["x.yaml:16", "recipe.seed"],
        ["x.yaml:17", "study.trials"],
        ["x.yaml:18", "study.trails"],
        ["x.yaml:19", "study.pruner.min_epochs"],
        ["x.yaml:20", "resources.gpus_per_worker"],
        ["x.yaml:20", "resources.concurrent_trials"],
        ["--set lr", "must begin with recipe., study., resources., report."],
        ["--set study.confirm.seeds", "must be >= 1, got 0"],
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("recipe.epochs=0", "--set recipe.epochs: must be >= 1, got 0"),
        ("recipe.optimizer={name: sgd, lr: -1}", "--set recipe.optimizer: recipe.optimizer.lr: must be > 0, got -1"),
        ("recipe.method.choice.1.temperature=hot", "--set recipe.method.choice.1.temperature: must be a number, got 'hot'"),
        ("recipe.method.choice.7.temperature=1", "--set recipe.method.choice.7.temperature: recipe.method.choice is a list of 2: its items are 0 to 1, got '7'"),
        ("recipe.optimizer.lr.x=1", "--set recipe.optimizer.lr.x: recipe.optimizer.lr is a search space, {loguniform: [0.0003, 0.1]}: set it whole"),
        ("recipe.epochs.x=1", "--set recipe.epochs.x: recipe.epochs is 8, which has nothing inside"),
        ("epochs=3", "--set epochs: must begin with recipe., study., resources., report.; did you mean recipe.epochs?"),
        ("recipe.epochs", "--set recipe.epochs: must be written as recipe.epochs=3"),
        ("=3", "--set : must be written as recipe.epochs=3"),
        ("recipe.epochs=[1", "--set recipe.epochs:1: is not YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_reported_with_its_option(tmp_path: Path, override: str, sentence: str) -> None:
    found = problems_of(tmp_path, SWEEP.replace(METHOD, METHOD), override)
    assert found[-1] == sentence
    assert len([problem for problem in found if problem.startswith("--set")]) == 1


def test_setting_inside_a_choice_asks_for_the_option(tmp_path: Path) -> None:
    found = problems_of(tmp_path, SWEEP, "recipe.method.temperature=4")
    assert found[0].startswith("--set recipe.method.temperature: recipe.method is a search space, {choice: ")
    assert found[0].endswith("set it whole; for one option write recipe.method.choice.0.temperature")


def test_overrides_replace_values_subtrees_and_spaces(tmp_path: Path) -> None:
    sweep = load(
        tmp_path, SWEEP, "recipe.epochs=3", "study.pruner.min_epochs=1", "recipe.label_smoothing={uniform: [0, 0.2]}", "recipe.method.choice.1.temperature=5",
        "study.published=[]", "recipe.teacher.optimizer={name: sgd, lr: 1e-2}", "recipe.teacher.label_smoothing=0", trials=5, seed=9,
    )  # fmt: skip
    assert sweep.tree["epochs"] == 3
    assert sweep.tree["method"]["choice"][1]["temperature"] == 5
    assert "label_smoothing" in [parameter.name for parameter in sweep.parameters]
    assert (sweep.study.trials, sweep.study.seed) == (5, 9)
    assert sweep.overrides[0] == "recipe.epochs=3"
    assert sweep.line_of(("recipe", "epochs")) == 0


def test_trials_and_seed_of_the_command_line_are_checked_as_such(tmp_path: Path) -> None:
    assert problems_of(tmp_path, SWEEP, trials=0, seed=-1) == [
        "--trials: must be >= 1, got 0", "--seed: must be >= 0, got -1",
    ]  # fmt: skip


PLAIN = changed("{loguniform: [3.0e-4, 1e-1]}", "0.1").replace(METHOD, f"    {{name: kd, {KD}}}\n").replace(
    "  published: [{method: {name: kd, balance: {kd_ratio: 0.7}, temperature: 4}, optimizer: {lr: 1e-3}}]\n", ""
)  # fmt: skip


def test_a_study_fits_its_space(tmp_path: Path) -> None:
    trials = "x.yaml:12: study.trials: must be 1: recipe has no search space, so all trials are equal, got 24"
    assert problems_of(tmp_path, PLAIN) == [trials]
    assert load(tmp_path, PLAIN, trials=1).parameters == []
    assert problems_of(tmp_path, SWEEP, "study.published=[{}, {}]", trials=1)  # and they do not match either
    two = "{optimizer: {lr: 1e-3}, method: {name: kd, balance: {weight: 1}, temperature: 4}}"
    both = f"study.published=[{two}, {two.replace('weight: 1', 'weight: 2')}]"
    assert problems_of(tmp_path, SWEEP, both, trials=1) == ["--trials: must be >= 2, the published points, got 1"]
    assert "--set study.published: study.published.1: repeats an earlier published point" in problems_of(
        tmp_path, SWEEP, f"study.published=[{two}, {two}]"
    )


def test_a_grid_has_points_and_no_more_trials_than_points(tmp_path: Path) -> None:
    grids = [
        "recipe.batch_size={choice: [16, 32]}",
        "recipe.teacher.batch_size=32",
        "study.sampler={name: grid}",
    ]
    assert problems_of(tmp_path, PLAIN, *grids) == [
        "x.yaml:12: study.trials: must be <= 2: the grid has 2 points, got 24"
    ]
    assert load(tmp_path, PLAIN, *grids, trials=2).study.sampler.name == "grid"
    assert problems_of(tmp_path, PLAIN, *grids, "study.sampler.points=3", trials=2) == [
        "--set study.sampler.points: does nothing: the recipe searches only choices; remove it"
    ]
    ranges = [*grids, "recipe.label_smoothing={uniform: [0, 0.2]}", "recipe.teacher.label_smoothing=0.0"]
    assert problems_of(tmp_path, PLAIN, *ranges, trials=2) == [
        "--set study.sampler: study.sampler.points: is missing: how many values of each range (label_smoothing)"
    ]
    assert problems_of(tmp_path, PLAIN, *ranges, "study.sampler.points=3", trials=7) == [
        "--trials: must be <= 6: the grid has 6 points, got 7"
    ]
    sweep = load(tmp_path, PLAIN, *ranges, "study.sampler.points=3", trials=6)
    assert len({sweep.recipe_for(values, 0) for values in grid(sweep.tree, 3)}) == 6


def test_a_pruner_may_act_where_the_longest_of_searched_epochs_lets_it(tmp_path: Path) -> None:
    options = ["recipe.epochs={choice: [2, 9]}", "study.pruner.min_epochs=8", "study.published=[]"]
    options.append("recipe.teacher.optimizer={name: sgd, lr: 1e-2}")
    assert load(tmp_path, SWEEP, *options).study.pruner.name == "asha"


def test_values_that_only_together_are_wrong_are_refused_when_they_meet(tmp_path: Path) -> None:
    options = [
        "recipe.lr_schedule.warmup_epochs={int: [0, 3]}",
        "recipe.teacher.lr_schedule={name: constant}",
    ]
    options += [
        "study.published=[]",
        "recipe.teacher.optimizer={name: sgd, lr: 1e-2}",
        "recipe.epochs={int: [3, 8]}",
    ]
    found = problems_of(tmp_path, SWEEP, *options)
    assert found == [
        "--set recipe.lr_schedule.warmup_epochs: must be below epochs 3, got 3 in int [0, 3]"
    ]  # fmt: skip


def test_a_smoke_error_names_the_option_that_was_chosen(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    values = {"method": "kd (2)", "method[kd (2)].balance.alpha": 0.5, "optimizer.lr": 1e-3}
    problem = sweep.error(values, ("method",), "fails on its first batch").problems[0]
    assert problem.endswith("x.yaml:8: recipe.method: fails on its first batch")


def test_a_sweep_and_a_recipe_are_told_apart(tmp_path: Path) -> None:
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(dump_yaml(load(tmp_path, PLAIN, trials=1).tree))
    assert load_recipe(recipe).epochs == 8
    with pytest.raises(UserError, match="is a plain recipe, not a sweep; train it with: python -m kdtrain"):
        load_sweep(recipe)
    with pytest.raises(UserError, match="is a sweep, not a plain recipe; run it with: python run_sweep"):
        load_recipe(tmp_path / "x.yaml")
    (tmp_path / "trials.yaml").write_text(SWEEP)
    with pytest.raises(UserError, match="a sweep cannot be called trials"):
        load_sweep(tmp_path / "trials.yaml")


def test_a_plain_recipe_takes_no_spaces_and_says_all_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text(
        "data: {name: digits}\nteacher: {model: lenet5_teacher}\nstudent: {model: lenet5}\n"
        "method: {name: kd, balance: {weight: 1}, temperature: {uniform: [-3, 1]}}\nlr_schedule: {name: constant}\n"
        "optimizer: {name: sgd, lr: 0.1}\nepoch: 3\nbatch_size: 32\n"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert [problem.removeprefix(str(file)) for problem in caught.value.problems] == [
        ":1: epochs: is missing",
        f":3: student.model: unknown model 'lenet5'; choices: {MODELS}; nearest: lenet5_teacher",
        ":4: method.temperature: is a search space; a plain recipe takes one value",
        ":7: epoch: a recipe has no 'epoch'; nearest: epochs",
    ]


@pytest.mark.parametrize("text", ["recipe: 3\nstudy: {trials: 3}\n", "recipe:\nstudy:\n", "recipe: {choice: [{}]}\nstudy: 3\n",
                                  "recipe: {}\nstudy: {}\n", "a: 1\n", "recipe: {method: {choice: [{choice: [1]}]}}\n",
                                  "recipe: {teacher: 3, student: [], data: {choice: [1, {name: [1]}]}}\nstudy: {published: 3}\n",
                                  "recipe: {method: {name: {choice: [kd, none]}}}\nstudy: {published: [{method: 3}]}\n",
                                  "recipe: {optimizer: {uniform: [1, 2]}, epochs: {choice: [{a: 1}]}}\nstudy: {trials: x}\n",
                                  "recipe: {}\nstudy: {trials: 1}\n", "recipe: {uniform: [0, 1], epochs: 3}\nstudy: {trials: 1}\n", "!x {a: 1}\n", "recipe: []\nstudy: {trials: 1}\n", changed("balance: {weight:", "balance: {wieght:")])  # fmt: skip
def test_any_wrong_shape_is_a_user_error(tmp_path: Path, text: str) -> None:
    assert problems_of(tmp_path, text)


def test_a_published_ratio_of_attention_is_its_weight_below_one_too(tmp_path: Path) -> None:
    for method, weight in (("at", 0.5), ("sp", 1.0)):
        text = with_method(f"{{name: {method}, balance: {{weight: {{loguniform: [0.05, 20]}}}}}}")
        point = f"{{method: {{name: {method}, balance: {{kd_ratio: 0.5}}}}, optimizer: {{lr: 1e-3}}}}"
        sweep = load(tmp_path, text, f"study.published=[{point}]")
        assert sweep.published[0]["method.balance.weight"] == pytest.approx(weight)


def test_a_frozen_encoder_has_no_features_to_teach(tmp_path: Path) -> None:
    text = with_method("{name: sp, balance: {weight: 1}}").replace(
        "{model: lenet5_student}", "{model: resnet18, weights: imagenet, freeze: encoder}"
    )
    (sentence,) = [text for text in problems_of(tmp_path, text) if "frozen" in text]
    assert sentence.startswith("x.yaml:4: recipe.student.freeze: encoder leaves sp nothing to teach")


def test_a_teacher_as_student_is_the_students_model_in_every_trial(tmp_path: Path) -> None:
    models = ["lenet5_student", "lenet5_teacher"]
    sweep = load(tmp_path, SWEEP, f"recipe.student.model={{choice: [{', '.join(models)}]}}", "recipe.teacher.model=as_student",
                 "study.published=[]", "recipe.teacher.optimizer={name: sgd, lr: 1e-2}")  # fmt: skip
    point = {"method": "kd", "method[kd].balance.weight": 1.0, "method[kd].temperature": 2.0, "optimizer.lr": 0.01}
    recipes = [sweep.recipe_for(point | {"student.model": model}, 0) for model in models]
    assert [recipe.teacher.model for recipe in recipes if recipe.teacher] == models
    assert trainings(sweep)["teacher"] == 2
    written_out = load(tmp_path, SWEEP, "study.published=[]", "recipe.teacher.optimizer={name: sgd, lr: 1e-2}")
    assert recipes[1].model_copy(update={"student": recipes[0].student}) == written_out.recipe_for(point, 0)


def test_as_student_without_a_known_student_is_said_of_the_student(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, SWEEP, "recipe.teacher.model=as_student", "recipe.student.model=lenet6")
    assert any("recipe.student.model" in problem and "lenet6" in problem for problem in problems)


def test_a_published_point_need_not_name_a_model_that_all_options_share(tmp_path: Path) -> None:
    options = "{choice: [{model: lenet5_student, freeze: none}, {model: lenet5_student, freeze: encoder, allow_random_frozen: true}]}"
    point = (
        "{student: {freeze: encoder}, method: {name: kd, balance: {weight: 1}, temperature: 4}, optimizer: {lr: 1e-3}}"
    )
    sweep = load(tmp_path, SWEEP, f"recipe.student={options}", f"study.published=[{point}]")
    assert sweep.recipe_for(sweep.published[0], 0).student.freeze == "encoder"
    other = options.replace("{model: lenet5_student, freeze: none}", "{model: lenet5_teacher, freeze: none}")
    assert (
        "is none of the options"
        in problems_of(tmp_path, SWEEP, f"recipe.student={other}", f"study.published=[{point}]")[0]
    )
