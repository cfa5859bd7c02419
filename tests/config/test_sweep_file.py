import re
from pathlib import Path

import optuna
import pytest

from kdtrain.config.needed_trainings import teacher_recipe
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
  confirm: {seeds: 5}
resources: {workers: 1, concurrent_trials: auto}
"""
METHOD = "    choice:\n" + "".join(line + "\n" for line in SWEEP.splitlines()[6:8])
KD = "balance: {weight: 1}, temperature: 4"
NO_POINTS = "study.published=[]", "recipe.teacher.optimizer={name: sgd, lr: 1e-2}"


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
    names = "method, method[kd].balance.weight, method[kd].temperature, method[kd (2)].balance.alpha, optimizer.lr"
    assert ", ".join(parameter.name for parameter in sweep.parameters) == names
    assert (sweep.study.objective, sweep.study.trials, sweep.study.order) == ("val/accuracy", 24, "batches")
    assert sweep.study.pruner.model_dump() == {"name": "asha", "min_epochs": 2, "min_share": None, "reduction": 3}
    assert (sweep.resources.cpus_per_worker, sweep.resources.teacher_cache) == (1, "auto")


def test_a_published_point_becomes_values_and_a_recipe(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    values = sweep.published[0]
    assert values["method[kd].balance.weight"] == pytest.approx(0.7 / 0.3)
    assert [values[name] for name in ("method", "method[kd].temperature", "optimizer.lr")] == ["kd", 4.0, 1e-3]
    recipe = sweep.recipe_for(values, 7)
    assert (recipe.seed, recipe.objective, recipe.optimizer.lr) == (7, "val/accuracy", 1e-3)


def test_whatever_is_suggested_is_a_recipe(tmp_path: Path) -> None:
    sweep = load(tmp_path, SWEEP, "recipe.batch_size={logint: [8, 128]}", "recipe.teacher.batch_size=32", *NO_POINTS)
    for searched in (sweep, sweep.baseline()):
        search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        assert all(searched.recipe_for(suggest(search.ask(), searched.tree, {}), seed) for seed in range(30))


def test_the_baseline_searches_only_what_it_shares(tmp_path: Path) -> None:
    baseline = load(tmp_path).baseline()
    assert [parameter.name for parameter in baseline.parameters] == ["optimizer.lr"]
    assert baseline.published == ({"optimizer.lr": 1e-3},)
    recipe = baseline.recipe_for(baseline.published[0], 3)
    assert (recipe.method.name, recipe.teacher, recipe.optimizer.lr) == ("none", None, 1e-3)
    nothing_shared = load(tmp_path, changed("{loguniform: [3.0e-4, 1e-1]}", "1e-3")).baseline()
    assert (nothing_shared.parameters, nothing_shared.published) == ([], ())


HIDDEN_LABELS = "recipe.data={name: digits, labelled_per_class: 5}"
SHARE = "  batch_size: 64\n  labelled_share: "


def test_the_baseline_leaves_out_the_share_of_labelled_images(tmp_path: Path) -> None:
    for share in ("{uniform: [0.1, 0.9]}", "0.5"):
        sweep = load(tmp_path, changed("  batch_size: 64\n", f"{SHARE}{share}\n"), HIDDEN_LABELS, *NO_POINTS)
        baseline = sweep.baseline()
        assert [parameter.name for parameter in baseline.parameters] == ["optimizer.lr"]
        assert baseline.recipe_for({"optimizer.lr": 0.01}, 0).labelled_share is None
        names = [parameter.name for parameter in sweep.parameters]
        assert names[-1] == ("optimizer.lr" if share == "0.5" else "labelled_share")


@pytest.mark.parametrize(("share", "rule"), [("0", "must be > 0, got 0"), ("1.5", "must be <= 1, got 1.5")])
def test_a_share_of_labelled_images_has_bounds(share: str, rule: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, changed("  batch_size: 64\n", f"{SHARE}{share}\n"), HIDDEN_LABELS)
    assert problem == f"x.yaml:12: recipe.labelled_share: {rule}"


def test_what_hidden_labels_do_not_allow_is_refused_in_its_line_for_every_option(tmp_path: Path) -> None:
    useless = changed("  batch_size: 64\n", f"{SHARE}0.5\n")
    (problem,) = problems_of(tmp_path, useless)
    assert problem.startswith("x.yaml:12: recipe.labelled_share: has no effect")
    balanced = changed("  batch_size: 64\n", "  batch_size: 64\n  sampler: {choice: [shuffled, class_balanced]}\n")
    (problem,) = problems_of(tmp_path, balanced, HIDDEN_LABELS, "recipe.teacher.sampler=shuffled", *NO_POINTS)
    assert problem.startswith("x.yaml:12: recipe.sampler: class_balanced needs the class of each image")


def test_a_teacher_takes_searched_fields_from_the_first_published_point(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    point = {"method": "kd", "method[kd].balance.weight": 1.0, "method[kd].temperature": 2.0}
    teachers = {teacher_recipe(sweep.recipe_for({**point, "optimizer.lr": lr}, 3)) for lr in (3e-4, 1e-2)}
    assert {teacher.optimizer.lr for teacher in teachers if teacher} == {1e-3}


def test_a_teacher_that_inherits_a_search_is_refused_without_a_published_point(tmp_path: Path) -> None:
    text = "\n".join(line for line in SWEEP.splitlines() if "published: [" not in line)
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith("x.yaml:3: recipe.teacher.optimizer.lr: is inherited from recipe.optimizer.lr")
    load(tmp_path, text, "recipe.teacher={model: lenet5_teacher, trained: teacher.safetensors}")


OWN_LR = "optimizer: {name: sgd, lr: 0.1}"
RENAMED = "recipe.teacher.file: is now teacher.trained"
TEACHERS = {
    "{model: lenet5_teacher, file: t.pth}": RENAMED,
    "{model: resnet34, file: t.pth, weights_key: ema}": RENAMED,
    "{choice: [{model: resnet18, file: t.pth}, {model: resnet50, trained: t.pth}]}": RENAMED,
    f"{{model: lenet5_teacher, weights_key: ema, {OWN_LR}}}": "recipe.teacher.weights_key: needs trained: FILE; for",
    "{model: lenet5_teacher, trained: t.pth, epochs: 3}": "recipe.teacher: a finished teacher .* remove epochs, or",
    "{model: resnet18, trained: t.pth, weights: {file: a.pth}}": "recipe.teacher: a finished teacher .* remove weights",
}


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_finished_teacher_is_written_in_one_way(tmp_path: Path, teacher: str) -> None:
    """The old key names the new one, and is the only mistake, although the teacher would inherit a searched field."""
    text = "\n".join(line for line in SWEEP.splitlines() if "published: [" not in line)
    (problem,) = problems_of(tmp_path, text.replace("{model: lenet5_teacher, epochs: 20}", teacher))
    assert re.match(f"x.yaml:3: {TEACHERS[teacher]}", problem), problem


def test_a_best_yaml_of_an_earlier_version_names_the_new_key(tmp_path: Path) -> None:
    sweep = load(tmp_path, SWEEP, "recipe.teacher={model: resnet34, trained: t.pth}")
    recipe = sweep.recipe_for(sweep.published[0], 0)
    text = dump_yaml(recipe.model_dump(mode="json", exclude_unset=True))
    (tmp_path / "best.yaml").write_text(text.replace("trained:", "file:"))
    with pytest.raises(UserError, match=r"best.yaml:\d+: teacher.file: is now teacher.trained$"):
        load_recipe(tmp_path / "best.yaml")


@pytest.mark.parametrize("teacher", ["{model: lenet5_teacher}", "{model: lenet5_teacher, trained: t.safetensors}"])
def test_a_recipe_dumped_as_it_was_set_reads_back_equal(tmp_path: Path, teacher: str) -> None:
    sweep = load(tmp_path, SWEEP, f"recipe.teacher={teacher}")
    recipe = sweep.recipe_for(sweep.published[0], 1_000_003)
    (tmp_path / "best.yaml").write_text(dump_yaml(recipe.model_dump(mode="json", exclude_unset=True)))
    assert load_recipe(tmp_path / "best.yaml") == recipe


TEACHER = "{model: lenet5_teacher, epochs: 20}"
NEEDED = "a sweep compares a student that has a teacher with the same student alone"
RANGED = "would train a teacher for every trial"


@pytest.mark.parametrize(
    ("old", "new", "place", "rule"),
    [
        ("batch_size: 64", "batchsize: 64", "11: recipe.batchsize", "nearest: batch_size"),
        ("batch_size: 64", "batch_size: 64\n  class_weights: [1, -2, 3]", "12: recipe.class_weights.1",
         "must be > 0, got -2"),
        ("batch_size: 64", "batch_size: 64\n  class_weights: [1, 2, 3]", "12: recipe.class_weights",
         "must have a weight for each of the 10 classes, got 3"),
        (TEACHER, TEACHER.replace("20", "20, class_weights: [1]"), "3: recipe.teacher.class_weights",
         "must have a weight for each of the 10 classes, got 1"),
        ("{model: lenet5_student}", "{model: mlp, hidden: [9, 100001]}", "4: recipe.student.hidden.1",
         "must be <= 100000, got 100001"),
        ("{model: lenet5_student}", "{model: mlp, hidden: [50000, 50000]}", "4: recipe.student.hidden",
         "must have at most 1,000,000,000 weights between its layers, got 2,500,000,000"),
        ("{name: digits}", "{name: digits, resolution: 8}", "2: recipe.data.resolution",
         "must be >= 10 for lenet5_student, got 8"),
        ("batch_size: 64", "batch_size: 64\n  class_weights: balance", "12: recipe.class_weights",
         "must be one of none, balanced, got 'balance'; nearest: balanced"),
        ("batch_size: 64", "batch_size: 64\n  sampler: balanced", "12: recipe.sampler", "nearest: class_balanced"),
        ("epochs: 8", "epochs: eight", "12: recipe.epochs", "must be a whole number, got 'eight'"),
        ("batch_size: 64", "batch_size: {choice: [64, 0]}", "11: recipe.batch_size", "must be >= 1, got 0"),
        ("batch_size: 64", "batch_size: {uniform: [8, 64]}", "11: recipe.batch_size",
         "must be a whole number, got 8.0 in uniform [8.0, 64.0]; for whole numbers write int or logint"),
        ("momentum: 0.9", "momentum: {uniform: [0.5, 1.5]}", "9: recipe.optimizer.momentum",
         "must be < 1, got 1.5 in uniform [0.5, 1.5]"),
        ("name: digits", "name: digts", "2: recipe.data.name", "unknown data 'digts'; choices: digits, mnist, "),
        ("name: asha", "name: asah", "16: study.pruner.name",
         "unknown pruner 'asah'; choices: asha, median, "),
        ("{name: digits}", "{}", "2: recipe.data", "needs a name; choices: digits, "),
        ("{name: digits}", "digits", "2: recipe.data", "got 'digits'; write {name: digits}"),
        ("{model: lenet5_student}", "{}", "4: recipe.student.model", "is missing"),
        ("warmup_epochs: 1", "warmup_epochs: 8", "10: recipe.lr_schedule.warmup_epochs",
         "must be below epochs 8, got 8"),
        (TEACHER, TEACHER.replace("20", "1"), "3: recipe.teacher",
         "lr_schedule.warmup_epochs must be below epochs 1, got 1"),
        (TEACHER, "{model: lenet5_teacher, epochs: {int: [5, 20]}}", "3: recipe.teacher.epochs", RANGED),
        ("{name: digits}", "{name: digits, exclude_classes: []}", "2: recipe.data.exclude_classes",
         "must have a length >= 1, got []"),
        ("{name: digits}", "{name: digits, exclude_classes: [3, 3.5]}", "2: recipe.data.exclude_classes",
         "must have names of classes, text or whole numbers, got 3.5"),
        ("{name: digits}", "{name: digits, limit_per_class: {int: [5, 20]}}", "2: recipe.data.limit_per_class", RANGED),
        ("{name: digits}", "{choice: [{name: digits}, {name: mnist}]}", "2: recipe.data", "'digits', 'mnist'"),
        ("  epochs: 8\n", "  epochs: 8\n  seed: 3\n", "13: recipe.seed", "write study.seed"),
        (f"  teacher: {TEACHER}\n", "", "1: recipe.teacher", NEEDED),
        (TEACHER, "{choice: [null, {model: lenet5_teacher}]}", "3: recipe.teacher", NEEDED),
        ("study:", "studies:", "13: studies", "nearest: study"),
        ("trials: 24", "trials: {int: [1, 9]}", "14: study.trials", "must be a whole number, got {int: [1, 9]}"),
        ("  trials: 24\n", "  trials: 24\n  seed: 1000000\n", "15: study.seed", "must be < 1000000, got 1000000"),
        ("  trials: 24\n", "  trials: 24\n  order: free\n  batch: 8\n", "16: study.batch", "order free; remove it"),
        ("  trials: 24\n", "  trials: 24\n  objective: val/acc\n", "15: study.objective",
         "must be one of val/accuracy, val/mpa, val/nll, val/ece, got 'val/acc'; nearest: val/accuracy"),
        ("  trials: 24\n", "  seed: 3\n", "13: study.trials", "is missing; write it, or study.budget"),
        ("  trials: 24\n", "  budget: {epochs: 0}\n", "14: study.budget.epochs", "must be >= 1, got 0"),
        ("  trials: 24\n", "  budget: {hours: 0}\n", "14: study.budget.hours", "must be > 0, got 0"),
        ("  trials: 24\n", "  budget: {gpu_hours: -2}\n", "14: study.budget.gpu_hours", "must be > 0, got -2"),
        ("  trials: 24\n", "  budget: {hours: 2, epochs: 9}\n", "14: study.budget",
         "takes exactly one of hours, gpu_hours, epochs, got hours: 2"),
        ("  trials: 24\n", "  budget: 2\n", "14: study.budget", "got 2; it has: hours, gpu_hours, epochs"),
        ("  trials: 24\n", "  budget: {epochs: 239}\n", "14: study.budget.epochs",  # 3 seeds of 4 recipes of 8 epochs
         "must be >= 240: the first batch of each search can take 64 epochs, for which there are 60 %,"
         " and 3 confirming seeds 96; got 239"),
        ("  trials: 24\n", "  trials: 24\n  start_from: papers\n", "15: study.start_from",
         "must be one of defaults, got 'papers'"),
        ("  trials: 24\n", "  trials: 24\n  warm_start: results/other\n", "15: study.warm_start", "must be a list"),
        ("  trials: 24\n", "  trials: 24\n  warm_start: [a, b, a]\n", "15: study.warm_start.2", "repeats 'a'"),
        ("  sampler: {name: tpe, startup_trials: 10}\n", "  sampler: {name: random}\n  warm_start: [results/other]\n",
         "16: study.warm_start", "has no effect with sampler random, which learns from no trial; remove it"),
        ("  sampler: {name: tpe, startup_trials: 10}\n", "  sampler: {name: cmaes}\n  warm_start: [results/other]\n",
         "16: study.warm_start", "has no effect with sampler cmaes, which learns from its own trials only; remove it"),
        ("min_epochs: 2", "min_epochs: 8", "16: study.pruner.min_epochs", "must be below recipe.epochs 8, "),
        ("workers: 1", "gpus_per_worker: 1.5", "19: resources.gpus_per_worker", "got 1.5"),
        ("concurrent_trials: auto", "concurrent_trials: atuo", "19: resources.concurrent_trials",
         "must be auto or a whole number, got 'atuo'; nearest: auto"),
        ("resources:", "report: {published: cub200}\nresources:", "19: report.published", "digits, got cub200"),
        ("published: [{method", "published: [{epochs: 30, method", "17: study.published.0.epochs",
         "is fixed to 8 in the recipe, got 30"),
        ("published: [{", "published: [3, {", "17: study.published.0", "must be a mapping, {key: value}, got 3"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_place_rule_value_and_choices(
    tmp_path: Path, old: str, new: str, place: str, rule: str
) -> None:
    found = problems_of(tmp_path, changed(old, new))
    (problem,) = [problem for problem in found if problem.startswith(f"x.yaml:{place}: ")]
    assert rule in problem
    # a wrong key can leave another one missing, and a published point incomplete; nothing else is reported
    beside = (": is missing", "so a published point must give it")
    assert all(other == problem or other.endswith(beside) for other in found), found


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (f"{{name: kdd, {KD}}}", ["6: recipe.method.name: unknown method 'kdd'; choices: none, kd, "]),
        (f"{{name: kd, temprature: 3, {KD}}}",
         ["6: recipe.method.temprature: kd has no 'temprature'; nearest: temperature"]),
        ("{name: kd, temperature: 1, balance: {weight: 1, alpha: 1}}",
         ["6: recipe.method.balance: takes exactly one of weight, kd_ratio, alpha, alpha_ce, got weight, alpha"]),
        (f"{{choice: [{{name: kd, {KD}}}, {{name: none, temperature: {{uniform: [1, 4]}}}}]}}",
         ["6: recipe.method.name: none is the student alone",
          "6: recipe.method.temperature: none has no 'temperature'; it has: name"]),
        ("{choice: [kd]}", ["6: recipe.method: must be a mapping, {key: value}, got 'kd'"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_method_names_the_method(tmp_path: Path, method: str, expected: list[str]) -> None:
    found = problems_of(tmp_path, with_method(method))
    assert len(found) == len(expected)
    assert all(text.startswith(f"x.yaml:{start}") for text, start in zip(found, expected, strict=True)), found


def test_every_mistake_of_a_file_is_reported_at_once_in_the_order_of_its_lines(tmp_path: Path) -> None:
    text = with_method("{name: kd, temperatur: 4, balance: {weight: {loguniform: [0, 20]}}}")
    for old, new in (
        ("{name: digits}", "{name: digts}"),
        ("epochs: 20, ", ""),
        ("momentum: 0.9", "momentum: {uniform: [-1, 0.1]}"),
        ("batch_size: 64", "batch_size: 1.5\n  batch_size: 3"),
        ("trials: 24", "trails: 3"),
        ("workers: 1", "workers: 0, gpus_per_worker: .nan"),
    ):
        assert old in text
        text = text.replace(old, new)
    places = [problem.split(": ")[:2] for problem in problems_of(tmp_path, text, "study.confirm.seeds=0", "lr=3")]
    assert places == [
        ["x.yaml:2", "recipe.data.name"],
        ["x.yaml:5", "recipe.method.temperature"],
        ["x.yaml:6", "recipe.method.balance.weight"],
        ["x.yaml:6", "recipe.method.temperatur"],
        ["x.yaml:7", "recipe.optimizer.momentum"],
        ["x.yaml:9", "recipe.batch_size"],
        ["x.yaml:10", "recipe.batch_size"],
        ["x.yaml:12", "study.trials"],
        ["x.yaml:13", "study.trails"],
        ["x.yaml:17", "resources.gpus_per_worker"],
        ["x.yaml:17", "resources.workers"],
        ["--set lr", "must begin with recipe., study., resources., report."],
        ["--set study.confirm.seeds", "must be >= 1, got 0"],
    ]


@pytest.mark.parametrize(
    ("override", "place", "rule"),
    [
        ("recipe.epochs=0", "recipe.epochs: ", "must be >= 1, got 0"),
        ("recipe.optimizer={name: sgd, lr: -1}", "recipe.optimizer: recipe.optimizer.lr: ", "must be > 0, got -1"),
        ("recipe.method.choice.1.temperature=hot", "recipe.method.choice.1.temperature: ", "number, got 'hot'"),
        ("recipe.method.choice.7.temperature=1", "recipe.method.choice.7.temperature: ", "a list of 2: its items are"),
        ("recipe.optimizer.lr.x=1", "recipe.optimizer.lr.x: ", "recipe.optimizer.lr is a search space, {loguniform: "),
        ("recipe.method.temperature=4", "recipe.method.temperature: ", "write recipe.method.choice.0.temperature"),
        ("recipe.epochs.x=1", "recipe.epochs.x: ", "recipe.epochs is 8"),
        ("epochs=3", "epochs: ", "must begin with recipe., study., resources., report.; did you mean recipe.epochs?"),
        ("recipe.epochs", "recipe.epochs: ", "must be written as recipe.epochs=3"),
        ("=3", ": ", "must be written as recipe.epochs=3"),
    ],
)
def test_a_wrong_override_is_reported_with_its_option(tmp_path: Path, override: str, place: str, rule: str) -> None:
    found = problems_of(tmp_path, SWEEP, override)
    assert found[-1].startswith(f"--set {place}")
    assert rule in found[-1]
    assert len([problem for problem in found if problem.startswith("--set")]) == 1


def test_overrides_replace_values_subtrees_and_spaces(tmp_path: Path) -> None:
    values = "recipe.epochs=3", "study.pruner.min_epochs=1", "recipe.method.choice.1.temperature=5"
    smoothing = "recipe.label_smoothing={uniform: [0, 0.2]}", "recipe.teacher.label_smoothing=0"
    sweep = load(tmp_path, SWEEP, *values, *smoothing, *NO_POINTS, trials=5, seed=9)
    assert sweep.tree["epochs"] == 3
    assert sweep.tree["method"]["choice"][1]["temperature"] == 5
    assert "label_smoothing" in [parameter.name for parameter in sweep.parameters]
    assert (sweep.study.trials, sweep.study.seed) == (5, 9)
    assert sweep.overrides[0] == "recipe.epochs=3"


def test_a_plain_recipe_takes_no_spaces_and_reports_every_mistake(tmp_path: Path) -> None:
    plain = load(tmp_path, PLAIN, trials=1).tree
    method = plain["method"] | {"temperature": {"uniform": [-3, 1]}}
    tree = {key: value for key, value in plain.items() if key != "epochs"}
    (tmp_path / "plain.yaml").write_text(dump_yaml(tree | {"method": method, "epoch": 3}))
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "plain.yaml")
    rules = "epochs: is missing", "method.temperature: is a search space", "epoch: a recipe has no 'epoch'; nearest"
    assert all(rule in text for rule, text in zip(rules, caught.value.problems, strict=True)), caught.value


def test_trials_and_seed_of_the_command_line_are_checked_as_such(tmp_path: Path) -> None:
    assert problems_of(tmp_path, SWEEP, trials=0, seed=-1) == [
        "--trials: must be >= 1, got 0",
        "--seed: must be >= 0, got -1",
    ]


PLAIN = changed("{loguniform: [3.0e-4, 1e-1]}", "0.1").replace(METHOD, f"    {{name: kd, {KD}}}\n").replace(
    "  published: [{method: {name: kd, balance: {kd_ratio: 0.7}, temperature: 4}, optimizer: {lr: 1e-3}}]\n", ""
).replace("{best: 2, seeds: 5}", "{seeds: 5}")  # fmt: skip


def test_a_study_fits_its_space(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, PLAIN)
    assert problem.startswith("x.yaml:12: study.trials: must be 1: recipe has no search space")
    assert load(tmp_path, PLAIN, trials=1).parameters == []
    assert problems_of(tmp_path, SWEEP, "study.published=[{}, {}]", trials=1)  # and they do not match either
    two = "{optimizer: {lr: 1e-3}, method: {name: kd, balance: {weight: 1}, temperature: 4}}"
    both = f"study.published=[{two}, {two.replace('weight: 1', 'weight: 2')}]"
    found = problems_of(tmp_path, SWEEP, both, trials=1)
    assert [problem.partition(", got")[0] for problem in found] == [
        "--trials: must be >= 2, the number of published points",
        "--trials: must be >= 2, the number of options of method that are compared",
    ]
    repeated = problems_of(tmp_path, SWEEP, f"study.published=[{two}, {two}]")
    assert "--set study.published: study.published.1: repeats an earlier published point" in repeated


@pytest.mark.parametrize(
    ("override", "place", "rule"),
    [
        ("study.confirm={best: 2}", "study.confirm.best", "is now study.select.candidates"),
        ("study.select.candidates=1", "study.select.candidates", "must be >= 2, got 1"),
        # 8 candidates, 1 published point, and 2 of the other method
        ("study.select.trainings=21", "study.select.trainings", "must be >= 22, 2 for each of up to 11 candidates"),
        (
            "study.select.best_of_each=optimizer.lr",
            "study.select.best_of_each",
            "must be a choice that every trial has",
        ),
        ("study.select.best_of_each=mehtod", "study.select.best_of_each", "(method), got 'mehtod'"),
    ],
)
def test_a_race_that_cannot_be_run_is_refused(override: str, place: str, rule: str, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, SWEEP, override)
    assert place in problem
    assert rule in problem


def test_options_are_compared_if_the_space_has_any(tmp_path: Path) -> None:
    sweep = load(tmp_path, SWEEP)
    assert (sweep.compared and sweep.compared.name, sweep.options) == ("method", ("kd", "kd (2)"))
    assert [sweep.option({"method": label}) for label in ("kd", "kd (2)")] == ["kd", "kd (2)"]
    assert (sweep.baseline().compared, sweep.baseline().options) == (None, ())
    (problem,) = problems_of(tmp_path, PLAIN, "study.select.equal_trials=false", trials=1)
    assert "study.select.equal_trials: has no effect: no options are compared" in problem
    students = "recipe.student={model: {choice: [lenet5_student, lenet5_teacher]}}"
    by_student = load(tmp_path, SWEEP, students, "study.published=[]", "recipe.teacher.optimizer={name: sgd, lr: 1e-2}",
                      "study.select.best_of_each=student.model")  # fmt: skip
    assert by_student.options == by_student.baseline().options == ("lenet5_student", "lenet5_teacher")


def test_a_grid_has_points_and_no_more_trials_than_points(tmp_path: Path) -> None:
    def refusal(trials: int, *overrides: str) -> str:
        (problem,) = problems_of(tmp_path, PLAIN, *overrides, trials=trials)
        return problem

    grids = ("recipe.batch_size={choice: [16, 32]}", "recipe.teacher.batch_size=32", "study.sampler={name: grid}")
    points = "study.sampler.points=3"
    ranges = (*grids, "recipe.label_smoothing={uniform: [0, 0.2]}", "recipe.teacher.label_smoothing=0.0")
    assert refusal(3, *grids).startswith("--trials: must be <= 2: the grid has 2 points, got 3")
    assert refusal(2, *grids, points).startswith("--set study.sampler.points: has no effect")
    assert refusal(2, *ranges).startswith("--set study.sampler: study.sampler.points: is missing")
    assert refusal(7, *ranges, points).startswith("--trials: must be <= 6: the grid has 6 points, got 7")
    assert load(tmp_path, PLAIN, *grids, trials=2).study.sampler.name == "grid"
    sweep = load(tmp_path, PLAIN, *ranges, points, trials=6)
    assert len({sweep.recipe_for(values, 0) for values in grid(sweep.tree, 3)}) == 6


def test_a_pruner_may_act_where_the_longest_of_searched_epochs_lets_it(tmp_path: Path) -> None:
    options = "recipe.epochs={choice: [2, 9]}", "study.pruner.min_epochs=8"
    assert load(tmp_path, SWEEP, *options, *NO_POINTS).study.pruner.name == "asha"


def test_values_that_only_together_are_wrong_are_refused_when_they_meet(tmp_path: Path) -> None:
    epochs = "recipe.lr_schedule.warmup_epochs={int: [0, 3]}", "recipe.epochs={int: [3, 8]}"
    options = *epochs, "recipe.teacher.lr_schedule={name: constant}", *NO_POINTS
    assert problems_of(tmp_path, SWEEP, *options) == [
        "--set recipe.lr_schedule.warmup_epochs: must be below epochs 3, got 3 in int [0, 3]"
    ]


def test_a_smoke_error_names_the_option_that_was_chosen(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    values = {"method": "kd (2)", "method[kd (2)].balance.alpha": 0.5, "optimizer.lr": 1e-3}
    problem = sweep.error(values, ("method",), "fails on its first batch").problems[0]
    assert problem.endswith("x.yaml:8: recipe.method: fails on its first batch")


def test_a_sweep_and_a_recipe_are_told_apart(tmp_path: Path) -> None:
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(dump_yaml(load(tmp_path, PLAIN, trials=1).tree))
    assert load_recipe(recipe).epochs == 8
    with pytest.raises(UserError, match="is a plain recipe, not a sweep; train it with: kdtrain train"):
        load_sweep(recipe)
    with pytest.raises(UserError, match="is a sweep, not a plain recipe; run it with: kdtrain sweep"):
        load_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "recipe: 3\nstudy: {trials: 3}\n",
        "recipe:\nstudy:\n",
        "recipe: {choice: [{}]}\nstudy: 3\n",
        "recipe: {method: {choice: [{choice: [1]}]}}\n",
        "recipe: {teacher: 3, student: [], data: {choice: [1, {name: [1]}]}}\nstudy: {published: 3}\n",
        "recipe: {method: {name: {choice: [kd, none]}}}\nstudy: {published: [{method: 3}]}\n",
        "recipe: {optimizer: {uniform: [1, 2]}, epochs: {choice: [{a: 1}]}}\nstudy: {trials: x}\n",
        "recipe: {uniform: [0, 1], epochs: 3}\nstudy: {trials: 1}\n",
        changed("balance: {weight:", "balance: {wieght:"),
    ],
)
def test_any_wrong_shape_is_a_user_error(tmp_path: Path, text: str) -> None:
    assert problems_of(tmp_path, text)


@pytest.mark.parametrize(("method", "weight"), [("at", 0.5), ("sp", 1.0)])
def test_a_published_ratio_is_converted_as_the_points_method_defines_it(
    tmp_path: Path, method: str, weight: float
) -> None:
    text = with_method(f"{{name: {method}, balance: {{weight: {{loguniform: [0.05, 20]}}}}}}")
    point = f"{{method: {{name: {method}, balance: {{kd_ratio: 0.5}}}}, optimizer: {{lr: 1e-3}}}}"
    sweep = load(tmp_path, text, f"study.published=[{point}]")
    assert sweep.published[0]["method.balance.weight"] == pytest.approx(weight)


def test_a_frozen_encoder_has_no_features_to_teach(tmp_path: Path) -> None:
    text = with_method("{name: sp, balance: {weight: 1}}").replace(
        "{model: lenet5_student}", "{model: resnet18, weights: imagenet, freeze: encoder}"
    )
    (sentence,) = [text for text in problems_of(tmp_path, text) if "recipe.student.freeze" in text]
    assert sentence.startswith("x.yaml:4: recipe.student.freeze: must be none or encoder_but_norm with method sp")


def test_a_teacher_as_student_is_the_students_model_in_every_trial(tmp_path: Path) -> None:
    models = ["lenet5_student", "lenet5_teacher"]
    student = f"recipe.student.model={{choice: [{', '.join(models)}]}}"
    sweep = load(tmp_path, SWEEP, student, "recipe.teacher.model=as_student", *NO_POINTS)
    point = {"method": "kd", "method[kd].balance.weight": 1.0, "method[kd].temperature": 2.0, "optimizer.lr": 0.01}
    recipes = [sweep.recipe_for(point | {"student.model": model}, 0) for model in models]
    assert [recipe.teacher.model for recipe in recipes if recipe.teacher] == models
    assert trainings(sweep)["teacher"] == 2
    written_out = load(tmp_path, SWEEP, *NO_POINTS)
    assert recipes[1].model_copy(update={"student": recipes[0].student}) == written_out.recipe_for(point, 0)
    unknown = problems_of(tmp_path, SWEEP, "recipe.teacher.model=as_student", "recipe.student.model=lenet6")
    assert any("recipe.student.model" in problem and "lenet6" in problem for problem in unknown)


def test_a_teacher_as_student_has_the_students_hidden_layers_unless_it_has_its_own(tmp_path: Path) -> None:
    student = "recipe.student={model: mlp, hidden: {choice: [[30, 20], [10]]}, max_norm: 3.5}"
    point = {"method": "kd", "method[kd].balance.weight": 1.0, "method[kd].temperature": 2.0, "optimizer.lr": 0.01}
    for teacher, hidden in (("{model: as_student}", (10,)), ("{model: as_student, hidden: [40]}", (40,))):
        sweep = load(tmp_path, SWEEP, student, f"recipe.teacher={teacher}", *NO_POINTS)
        recipe = sweep.recipe_for(point | {"student.hidden": "[10]"}, 0)
        assert (recipe.student.hidden, recipe.student.max_norm) == ((10,), 3.5)
        assert (recipe.teacher.hidden, recipe.teacher.max_norm) == (hidden, None)


def test_max_norm_of_a_network_with_convolutions_is_refused_at_its_line(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, changed("{model: lenet5_student}", "{model: lenet5_student, max_norm: 3.5}"))
    assert problem.startswith("x.yaml:4: recipe.student: lenet5_student takes no max_norm: ")


def test_a_published_point_need_not_name_a_model_that_all_options_share(tmp_path: Path) -> None:
    options = (
        "{model: lenet5_student, freeze: encoder, allow_random_frozen: true}, {model: lenet5_student, freeze: none}"
    )
    point = "{student: {freeze: none}, method: {name: kd, balance: {weight: 1}, temperature: 4}, optimizer: {lr: 1e-3}}"
    overrides = f"recipe.student={{choice: [{options}]}}", f"study.published=[{point}]"
    sweep = load(tmp_path, SWEEP, *overrides)
    assert sweep.recipe_for(sweep.published[0], 0).student.freeze == "none"
    other = overrides[0].replace("{model: lenet5_student, freeze: none}", "{model: lenet5_teacher, freeze: none}")
    refused = problems_of(tmp_path, SWEEP, other, overrides[1])[0]
    assert "study.published.0.student: must be one of the options" in refused
