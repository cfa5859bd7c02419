"""The report: golden files hold its words, the tests the numbers, the order and the bytes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_study import MadeUpStudy, choice, curve
from scipy import stats

from analysis import results
from analysis.__main__ import main
from analysis.accounts import Equal, equal_trials, reasons, trial_counts
from analysis.claims import bootstrap, candidates, find, teachers, verdict
from analysis.cost import cost
from analysis.findings import Pictures, find_all
from analysis.frame import read_study
from analysis.headline import Headline, Lost, headline
from analysis.report import compose, write_report

Maker = Callable[..., MadeUpStudy]
Golden = Callable[[str, str], None]
ROOT = Path(__file__).parents[2]
SOFTENED = {
    "softened_image": np.arange(64, dtype=np.uint8).reshape(8, 8),
    "softened_classes": np.array([f"species {k}" for k in range(10)]),
    "softened_label": np.array(3),
    "softened_temperatures": np.array([1.0, 5.0]),
    "softened_teacher": np.full((2, 10), 0.1),
    "softened_student": np.full((2, 10), 0.1),
}


def text_of(made: MadeUpStudy) -> str:
    return write_report(made.folder).read_text()


def headline_of(made: MadeUpStudy) -> Headline:
    study = read_study(made.folder)
    found = candidates(study)
    return headline(study, find(found, "best 1"), find(found, "baseline 1"), teachers(study))


def test_a_whole_study(whole: Maker, golden: Golden) -> None:
    made = whole()
    np.savez(made.folder / "pictures.npz", **SOFTENED, gradcam_none_reason=np.array("no stage"))  # type: ignore[arg-type]
    golden("report_whole.md", text_of(made))


def test_a_study_without_a_trial_has_a_report(made_up: Maker) -> None:
    assert "unfinished: search 0 of 24" in text_of(made_up())


def test_an_unfinished_study_without_a_winner(made_up: Maker, golden: Golden) -> None:
    made = made_up(trials=24)
    teacher = made.trial("teacher", 0, curve(0.9, 5, 0), test=0.9, model="lenet5_teacher")
    made.trial("baselines", 0, curve(0.95, 5, 0), values={"optimizer.lr": 0.1})
    made.trial("search", 0, curve(0.9, 5, 0), values={"optimizer.lr": 0.1}, teacher=teacher)
    made.plan("search", 1, values={"optimizer.lr": 0.2})
    made.plan("pictures", 0)
    golden("report_unfinished.md", text_of(made))


def test_a_study_with_every_rare_sentence(whole: Maker, golden: Golden) -> None:
    """Two seeds, weak teacher, a lost run, free order, caches off, float16, equal trials, a failed job of pictures."""
    made = whole(seeds=2, teacher_test=0.9, order="free", searched=22, objective="val/nll")
    made.describe(report={"title": "Does it help?"})
    made.change_outcome("confirm0007", test=None)
    made.store.trial("confirm0001").predictions.unlink()
    made.trial("search", 30, [0.5], recipe={"method": {"name": "kd", "temperature": 4.0}})
    made.trial("search", 31, [0.5], recipe={"method": {"name": "kd", "temperature": 9.0}})
    made.plan("pictures", 0)
    made.end("pictures", 0, "confirm0000", "failed", reason="out of memory\ntraceback")
    share_teachers(made)
    made.change_outcome("search0001", skipped_steps=3.0)
    golden("report_rare.md", text_of(made))


def test_a_study_whose_trials_all_failed_has_a_report_without_pictures(made_up: Maker) -> None:
    made = made_up(trials=1)
    made.trial("search", 0, [0.4], state="failed", reason="out of memory", values={"optimizer.lr": 0.1})
    best = {"epoch": 1, "val/accuracy": 0.4, "val/nll": 1.0}
    made.change_outcome("search0000", best=best)  # reached before it failed
    folder = made.store.trial("search0000")
    folder.write_recipe((folder.recipe() or {}) | {"teacher": {"file": "t.safetensors", "sha256": "0"}})
    assert "| teacher (from a file, not measured here) |" in text_of(made)
    assert not list(made.folder.glob("*.png"))


@pytest.mark.parametrize(
    ("fields", "name", "bold"),
    [
        ({"gain": 0.02}, "beat", True),
        ({"gain": -0.02}, "lost to", True),
        ({"gain": 0.001}, "undecided", False),
        ({"gain": 0.05, "seeds": 2}, "undecided", False),
        ({"gain": 0.05, "seeds": 1}, "undecided", False),
    ],
)
def test_the_verdict_and_only_the_decided_primary_difference_in_bold(
    whole: Maker, fields: dict[str, float], name: str, bold: bool
) -> None:
    study = read_study(whole(**fields).folder)
    rows = {row["recipe"]: row["difference, points"] for row in results.confirmed(study, candidates(study))}
    assert verdict(candidates(study)[0].difference).name == name
    assert [key for key, cell in rows.items() if "**" in cell] == (["best 1"] if bold else [])


def test_the_primary_interval_is_scipys_paired_t_interval(whole: Maker) -> None:
    study = read_study(whole().folder)
    tests = {key: group["test/accuracy"].to_numpy() for key, group in study.stage("confirm").groupby("candidate")}
    gaps = tests["best 1"] - tests["baseline 1"]
    difference = candidates(study)[0].difference
    assert difference is not None
    assert difference.interval is not None
    expected = stats.t.interval(0.95, 4, loc=gaps.mean(), scale=stats.sem(gaps))
    assert (difference.interval.low, difference.interval.high) == pytest.approx(expected)
    assert (difference.mean, difference.n) == (pytest.approx(gaps.mean()), 5)


def test_the_teacher_is_one_run_with_the_binomial_interval_of_its_test_images(whole: Maker) -> None:
    interval = teachers(read_study(whole(teacher_test=0.975).folder))[0].interval
    expected = stats.binomtest(351, 360).proportion_ci(0.95, method="exact")
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_teacher_below_the_student_alone_is_found_on_test_and_before_that_on_validation(
    whole: Maker, made_up: Maker, tmp_path: Path
) -> None:
    assert headline_of(whole(tmp_path / "good")).teacher_below is None
    below = headline_of(whole(tmp_path / "bad", teacher_test=0.9)).teacher_below
    assert below is not None
    assert (below.split, below.teacher, below.alone) == ("test", 0.9, pytest.approx(0.94, abs=0.002))
    made = made_up()
    made.trial("teacher", 0, [0.9], test=0.9)
    made.trial("baselines", 0, [0.95])
    below = headline_of(made).teacher_below
    assert below is not None
    assert (below.split, below.teacher, below.alone) == ("validation", 0.9, 0.95)


def test_holm_corrects_all_differences_but_the_primary(whole: Maker) -> None:
    study = read_study(whole(gain=0.005).folder)
    found = {candidate.key: candidate for candidate in candidates(study)}
    p, q = sorted(found[key].p for key in ("best 2", "published 1"))  # type: ignore[type-var]
    assert found["best 1"].p is not None
    assert found["best 1"].p_holm is None
    assert found["best 1"].primary
    adjusted = sorted(found[key].p_holm for key in ("best 2", "published 1"))  # type: ignore[type-var]
    assert adjusted == pytest.approx([2 * p, max(2 * p, q)])  # type: ignore[operator, type-var]
    claims = {row["recipe"]: row["claim"] for row in results.confirmed(study, candidates(study))}
    assert claims == {
        "best 1": "primary", "best 2": "exploratory", "published 1": "exploratory", "baseline 1": "—",
    }  # fmt: skip


def test_confirmed_recipes_show_the_searched_values_and_both_weights(whole: Maker) -> None:
    study = read_study(whole().folder)
    row = results.confirmed(study, candidates(study))[0]
    assert float(row["CE weight"]) == float(row["alpha_ce"])
    assert float(row["distillation weight"]) == pytest.approx(1 - float(row["alpha_ce"]), abs=1e-4)


def test_best_trials_complete_first_by_objective_then_nll_then_number(made_up: Maker) -> None:
    made = made_up(trials=5)
    made.trial("search", 0, [0.8], nlls=[0.5], published=True)
    made.trial("search", 1, [0.9], nlls=[0.6])
    made.trial("search", 2, [0.9], nlls=[0.4])
    made.trial("search", 3, [0.99], nlls=[0.1], state="pruned")
    made.trial("search", 4, [], state="failed")
    rows = results.best_trials(read_study(made.folder), 10)
    assert [row["trial"] for row in rows] == ["2", "1", "0 (published)", "3", "4"]
    assert list(rows[0].values()) == ["2", "1", "90.00", "0.4000", "complete"]
    assert list(rows[4].values()) == ["4", "—", "—", "—", "failed"]


def test_with_nll_as_objective_the_lowest_is_best(made_up: Maker) -> None:
    made = made_up(trials=2, objective="val/nll")
    made.trial("search", 0, [0.95], nlls=[0.3])
    made.trial("search", 1, [0.90], nlls=[0.2])
    assert [row["trial"] for row in results.best_trials(read_study(made.folder), 10)] == ["1", "0"]


def test_trials_are_counted_with_the_reasons(whole: Maker) -> None:
    study = read_study(whole().folder)
    counts = {row["stage"]: list(row.values())[1:] for row in trial_counts(study)}
    assert counts["search"] == [30, 26, 3, 1, 0]
    assert [list(row.values()) for row in reasons(study)] == [
        ["search", "failed", "the loss is not finite at step 21", 1, "13"],
        ["search", "pruned", "after epoch 4", 3, "5, 14, 23"],
    ]


def test_trials_with_equal_metrics_in_every_epoch_show_a_hyperparameter_without_effect(made_up: Maker) -> None:
    made = made_up(trials=4)
    for number, (temperature, seconds) in enumerate([(4.0, 1.0), (9.0, 2.0)]):
        recipe = {"method": {"name": "kd", "temperature": temperature}}
        made.trial("search", number, [0.5, 0.6], recipe=recipe, seconds=seconds)
    made.trial("search", 2, [0.5, 0.6], recipe={"note": 1}, seed=1)  # another seed
    made.trial("search", 3, [0.5, 0.6 + 1e-12], recipe={"note": 2})  # another epoch 2
    assert equal_trials(read_study(made.folder)) == [Equal("search 0", "search 1", "`method.temperature` (4 and 9)")]


def test_confirming_runs_that_failed_are_left_out_with_their_pair(whole: Maker) -> None:
    made = whole()
    made.trial("confirm", 2, state="failed", seed=1002, candidate="best 1", role="best", baseline="baseline 1",
               source={"stage": "search", "number": 0})  # fmt: skip
    found = headline_of(made)
    assert found.lost == [Lost(1, 5, "best 1")]
    assert found.winner is not None
    assert found.winner.difference is not None
    assert found.winner.difference.n == 4


def test_missing_predictions_leave_out_the_bootstrap(whole: Maker) -> None:
    made = whole()
    study = read_study(made.folder)
    best, alone = candidates(study)[0], candidates(study)[-1]
    found = bootstrap(study, best, alone)
    assert found is not None
    assert (found.images, found.seeds) == (360, 5)
    made.store.trial("confirm0003").predictions.unlink()
    assert bootstrap(study, best, alone) is None


def test_only_cost_differs_if_only_times_and_the_machine_differ(whole: Maker, tmp_path: Path) -> None:
    first, second = whole(tmp_path / "one"), whole(tmp_path / "two")
    for trial in second.store.trials():
        changes = {"seconds": 99.0, "images_per_s": 1.0, "device": "gpu", "git_commit": "f00", "threads": 8}
        trial.write_outcome((trial.outcome() or {}) | changes)
    second.event("opened", command="again")
    studies = [read_study(made.folder) for made in (first, second)]
    texts = [compose(study, find_all(study), Pictures()) for study in studies]
    one, two = (text.split("## Cost and versions") for text in texts)
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert "\n## " not in one[1], "cost stands last"


def share_teachers(made: MadeUpStudy) -> None:
    """Teacher outputs: 1077 needed by each training, computed once, read else; 32 checked; two caches off."""
    for number, trial in enumerate(made.store.trials()):
        computed = 1077 if number == 0 else 0
        changes = {
            "teacher_images": 1077, "teacher_images_computed": computed, "teacher_seconds": computed / 1000,
            "teacher_forward_seconds": (computed + 32) / 1000, "teacher_images_checked": 32, "device": "cpu (x86_64)",
            "image_cache_off": "disk full" if number < 2 else None, "seconds": 10.0, "views_seconds": 0.0,
            "teacher_cache_off": "no room" if number == 1 else None,
        }  # fmt: skip
        trial.write_outcome((trial.outcome() or {}) | changes)


def test_cost_counts_every_training_once_and_what_the_cache_saved(whole: Maker) -> None:
    made = whole()
    found = cost(read_study(made.folder))
    trainings = 1 + 8 + 30 + 20
    assert (found.trainings, found.peak_memory_bytes) == (trainings, 300 * 2**20)
    assert found.epochs == sum(outcome["epochs"] for outcome in read_study(made.folder).outcomes.values())
    assert found.teacher_outputs is found.skipped_steps is found.bare_s is None
    share_teachers(made)
    found = cost(read_study(made.folder))
    outputs = found.teacher_outputs
    assert outputs is not None
    assert (outputs.computed, outputs.read, outputs.checked) == (1077, 1077 * (trainings - 1), 32 * trainings)
    assert outputs.seconds_per_image == pytest.approx(1 / 1000)
    assert found.caches_off == {"teacher": ["no room"], "image": ["disk full"] * 2}
    assert found.bare_s == pytest.approx(10 * trainings - 1.077)
    assert found.overhead == pytest.approx(10 * trainings / (10 * trainings - 1.077))
    for trial in made.store.trials():
        trial.write_outcome((trial.outcome() or {}) | {"device": "cuda", "skipped_steps": 3.0})
    found = cost(read_study(made.folder))
    assert (found.bare_s, found.overhead, found.skipped_steps) == (None, None, 3 * trainings)
    assert found.teacher_outputs is not None
    assert found.teacher_outputs.seconds_per_image is None  # a GPU still computes when the time is taken


def built(folder: Path) -> dict[str, bytes]:
    write_report(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".png", ".csv")}


def test_two_builds_are_equal_and_every_named_picture_is_there_and_stale_ones_are_removed(whole: Maker) -> None:
    made = whole()
    np.savez(made.folder / "pictures.npz", **SOFTENED)  # type: ignore[arg-type]
    (made.folder / "attention.png").write_bytes(b"of an earlier report")
    first = built(made.folder)
    pictures = {"history.png", "slices.png", "importance.png", "learning_curves.png", "softened.png"}
    assert set(first) == {"report.md", "trials.csv", *pictures}
    lines = first["report.md"].decode().splitlines()
    assert {line.split("](")[1].rstrip(")") for line in lines if line.startswith("![")} == pictures
    assert first == built(made.folder)


def test_without_matplotlib_the_report_gives_the_reason(whole: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = whole(searched=6)
    monkeypatch.setitem(sys.modules, "analysis.pictures", None)
    lines = [line for line in text_of(made).splitlines() if "There is no picture of this study" in line]
    assert len(lines) == 1
    assert "analysis.pictures" in lines[0]


def test_the_command_builds_report_and_overview_without_torch_or_ray(whole: Maker) -> None:
    made = whole(searched=6)
    code = (
        "import runpy, sys\n"
        "for folder in sys.argv[1:]:\n"
        "    sys.argv[1:] = [folder]\n"
        "    try: runpy.run_module('analysis', run_name='__main__')\n"
        "    except SystemExit as end: print('code', end.code)\n"
        "print('imported', sorted({'torch', 'ray', 'torchvision', 'pydantic'} & set(sys.modules)))"
    )
    folders = {made.folder: "report.md", made.folder.parent: "overview.md"}
    command = [sys.executable, "-c", code, *map(str, folders)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    written = [line for folder, name in folders.items() for line in (str(folder / name), "code 0")]
    assert (done.stdout.splitlines(), done.stderr) == ([*written, "imported []"], "")


@pytest.mark.parametrize("name", ["absent", ""])
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", str(tmp_path / name)])
    assert main() == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"{tmp_path / name}: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_choices_of_numbers_switches_and_nothing_are_drawn_by_name(made_up: Maker) -> None:
    options = {"ema": ["null", "decay: 0.9999"], "batch_size": [32, 64], "compile": [True, False]}
    made = made_up(parameters=tuple(choice(name, *each) for name, each in options.items()))
    for number in range(6):
        values = {name: each[number % 2] for name, each in options.items()}
        made.trial("search", number, [0.5 + 0.01 * number], values=values)
    write_report(made.folder)
    assert (made.folder / "slices.png").exists()
