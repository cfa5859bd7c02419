"""Every claim of the report, on studies made of numbers whose answer is known."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_study import MadeUpStudy, curve
from scipy import stats

from analysis.accounts import duration, idle_knobs
from analysis.claims import candidates
from analysis.frame import read_study
from analysis.report import Findings, compose, write_report
from analysis.tables import count

Maker = Callable[..., MadeUpStudy]
ROOT = Path(__file__).parents[2]


def text_of(made: MadeUpStudy) -> str:
    study = read_study(made.folder)
    return compose(study, Findings(study), pictures=())


def section(text: str, title: str) -> str:
    """From a heading to the next of its level."""
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def cells(text: str, first: str) -> list[str]:
    """Of the table row that begins with a cell."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.replace("\\|", "").strip("|").split(" | ")]


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.02, "Distilling **beat** the student alone: +"),
        (-0.02, "Distilling **lost to** the student alone: -"),
        (
            0.001,
            "Whether distilling beats the student alone is undecided: the interval contains 0; the difference is +",
        ),
    ],
)
def test_the_answer_stands_on_top_in_one_sentence_with_its_interval(whole: Maker, gain: float, words: str) -> None:
    top = text_of(whole(gain=gain)).split("\n\n")
    assert top[0] == "# made_up"
    assert top[1].startswith(words)
    assert "percentage points of test accuracy (95 % t interval " in top[1]
    assert "mean of paired differences by seed, n = 5 seeds)." in top[1]
    assert "95 % bootstrap over the 360 test images, paired by image" in top[2]


def test_the_primary_interval_is_scipys_paired_t_interval(whole: Maker) -> None:
    made = whole()
    study = read_study(made.folder)
    confirm = study.stage("confirm")
    tests = {key: group["test/accuracy"].to_numpy() for key, group in confirm.groupby("candidate")}
    gaps = 100 * (tests["best 1"] - tests["baseline 1"])
    low, high = stats.t.interval(0.95, 4, loc=gaps.mean(), scale=stats.sem(gaps))
    assert (
        f"{gaps.mean():+.2f} percentage points of test accuracy (95 % t interval {low:+.2f} to {high:+.2f};"
        in text_of(made)
    )


def test_only_the_decided_primary_difference_is_bold(whole: Maker) -> None:
    made = whole(gain=0.02)
    text = text_of(made)
    assert cells(text, "student distilled (winner)")[-1].startswith("**+")
    assert cells(text, "best 1")[-3].startswith("**+")
    assert "**" not in "".join(cells(text, "best 2") + cells(text, "published 1") + cells(text, "baseline 1"))


@pytest.mark.parametrize("fields", [{"gain": 0.001}, {"gain": 0.05, "seeds": 2}, {"gain": 0.05, "seeds": 1}])
def test_nothing_is_bold_whose_interval_contains_zero_nor_below_three_seeds(
    whole: Maker, fields: dict[str, float]
) -> None:
    assert "**" not in text_of(whole(**fields))


def test_two_seeds_are_too_few_for_a_claim_and_one_gives_no_interval(whole: Maker, tmp_path: Path) -> None:
    two = text_of(whole(tmp_path / "two", gain=0.05, seeds=2))
    assert "undecided: 2 seeds are too few, a claim needs 3; the difference is +5" in two
    assert "95 % t interval" in two.split("\n\n")[1]
    one = text_of(whole(tmp_path / "one", gain=0.05, seeds=1))
    assert "undecided: 1 seed is too few, a claim needs 3; the difference is +" in one
    assert "(no interval; mean of paired differences by seed, n = 1 seed)" in one
    assert cells(one, "student alone (baseline)")[4] == cells(one, "student alone (baseline)")[4].split(" ±")[0]


def test_the_teacher_is_one_run_with_the_binomial_interval_of_its_test_images(whole: Maker) -> None:
    row = cells(text_of(whole(teacher_test=0.975)), "teacher")
    expected = stats.binomtest(351, 360).proportion_ci(0.95, method="exact")
    assert row[1:] == [
        "lenet5_teacher",
        "81 194",
        "1.10",
        f"97.50 [{100 * expected.low:.2f} to {100 * expected.high:.2f}] \\*",
        "1",
        "—",
    ]


def test_a_teacher_below_the_student_alone_is_said_on_top(whole: Maker, tmp_path: Path) -> None:
    assert "The teacher ends below" not in text_of(whole(tmp_path / "good"))
    text = text_of(whole(tmp_path / "bad", teacher_test=0.9))
    assert "- The teacher ends below the student alone: 90.00 % against 94.0" in text.split("## ")[0]


def test_the_top_says_what_the_intervals_are_conditional_on_and_which_order_was_used(
    whole: Maker, tmp_path: Path
) -> None:
    top = text_of(whole(tmp_path / "batches")).split("## ")[0]
    assert "conditional on the split and the teacher" in top
    assert "`batches` of 4" in top
    assert "is repeatable, byte for byte" in top
    assert "not repeatable" in text_of(whole(tmp_path / "free", order="free")).split("## ")[0]


def test_holm_corrects_all_differences_but_the_primary(whole: Maker) -> None:
    made = whole(gain=0.005)
    found = {candidate.key: candidate for candidate in candidates(read_study(made.folder))}
    p, q = sorted(found[key].p for key in ("best 2", "published 1"))  # type: ignore[type-var]
    assert found["best 1"].p is not None
    assert found["best 1"].p_holm is None
    assert found["best 1"].primary
    adjusted = sorted(found[key].p_holm for key in ("best 2", "published 1"))  # type: ignore[type-var]
    assert adjusted == pytest.approx([2 * p, max(2 * p, q)])  # type: ignore[operator, type-var]
    table = section(text_of(made), "All confirmed recipes")
    assert cells(table, "best 1")[-2:] == ["—", "primary"]
    assert cells(table, "best 2")[-1] == cells(table, "published 1")[-1] == "exploratory"
    assert cells(table, "baseline 1")[-3:] == ["—", "—", "—"]


def test_confirmed_recipes_show_the_setups_own_knob_and_both_weights(whole: Maker) -> None:
    table = section(text_of(whole()), "All confirmed recipes")
    head, row = cells(table, "recipe"), cells(table, "best 1")
    shown = dict(zip(head, row, strict=True))
    assert float(shown["CE weight"]) == float(shown["alpha_ce"])
    assert float(shown["distillation weight"]) == pytest.approx(1 - float(shown["alpha_ce"]), abs=1e-4)


def test_best_trials_complete_first_by_objective_then_nll_then_number(made_up: Maker) -> None:
    made = made_up(trials=5)
    made.trial("search", 0, [0.8], nlls=[0.5], published=True)
    made.trial("search", 1, [0.9], nlls=[0.6])
    made.trial("search", 2, [0.9], nlls=[0.4])
    made.trial("search", 3, [0.99], nlls=[0.1], state="pruned")
    made.trial("search", 4, [], state="failed")
    table = section(text_of(made), "The 10 best trials of the search").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")][2:]
    assert [row[0] for row in rows] == ["2", "1", "0 (published)", "3", "4"]
    assert rows[0][1:] == ["1", "90.00", "0.4000", "complete"]
    assert rows[4][1:] == ["—", "—", "—", "failed"]


def test_with_nll_as_objective_the_lowest_is_best(made_up: Maker) -> None:
    made = made_up(trials=2, objective="val/nll")
    made.trial("search", 0, [0.95], nlls=[0.3])
    made.trial("search", 1, [0.90], nlls=[0.2])
    table = section(text_of(made), "The 10 best trials of the search")
    assert table.index("| 1 | 1 |") < table.index("| 0 | 1 |")


def test_trials_are_counted_with_the_reasons(whole: Maker) -> None:
    counted = section(text_of(whole()), "Trials counted")
    assert cells(counted, "search")[:6] == ["search", "30", "26", "3", "1", "0"]
    assert "| search | failed | the loss is not finite at step 21 | 1 | 13 |" in counted
    assert "| search | pruned | after epoch 4 | 3 | 5, 14, 23 |" in counted


def test_a_knob_that_does_nothing_is_flagged_with_what_differs(made_up: Maker) -> None:
    made = made_up(trials=4)
    for number, (temperature, seconds) in enumerate([(4.0, 1.0), (9.0, 2.0)]):
        recipe = {"method": {"name": "kd", "temperature": temperature}}
        made.trial("search", number, [0.5, 0.6], recipe=recipe, seconds=seconds)
    made.trial("search", 2, [0.5, 0.6], recipe={"note": 1}, seed=1)  # another seed
    made.trial("search", 3, [0.5, 0.6 + 1e-12], recipe={"note": 2})  # another epoch 2
    assert idle_knobs(read_study(made.folder)) == [("search 0", "search 1", "`method.temperature` (4 and 9)")]
    flagged = section(text_of(made), "Knobs that do nothing")
    assert "search 0 and search 1 have identical metrics in every epoch" in flagged


def test_commands_repeat_the_best_recipe_and_the_sweep(whole: Maker) -> None:
    text = section(text_of(whole()), "To repeat it")
    assert "python -m kdtrain results/made_up/best.yaml --results repeat\n" in text
    assert "python run_sweep.py sweeps/made_up.yaml --set recipe.epochs=3 --trials 30 --seed 0\n" in text


def test_cost_stands_last_and_counts_every_training_once(whole: Maker) -> None:
    made = whole()
    text = text_of(made)
    assert [line for line in text.splitlines() if line.startswith("## ")][-1] == "## Cost and versions"
    cost = section(text, "Cost and versions")
    outcomes = read_study(made.folder).outcomes.values()
    assert cells(cost, "trainings")[1] == str(1 + 8 + 30 + 20)
    assert cells(cost, "epochs")[1] == str(sum(outcome["epochs"] for outcome in outcomes))
    assert cells(cost, "peak memory of a trial")[1] == "300 MiB"


def test_steps_that_overflowed_in_float16_are_added_up_where_there_were_such_trainings(whole: Maker) -> None:
    made = whole()
    assert "float16" not in text_of(made)
    for number, trial in enumerate(made.store.trials()):
        outcome = trial.outcome()
        assert outcome is not None
        trial.write_outcome(outcome | ({"skipped_steps": 3.0} if number < 2 else {}))
    assert cells(section(text_of(made), "Cost and versions"), "float16 steps skipped")[1] == "6"


def test_everything_above_cost_is_equal_when_only_times_and_machine_differ(whole: Maker, tmp_path: Path) -> None:
    first, second = whole(tmp_path / "one"), whole(tmp_path / "two")
    for trial in second.store.trials():
        outcome = trial.outcome()
        assert outcome is not None
        trial.write_outcome(
            outcome | {"seconds": 99.0, "images_per_s": 1.0, "device": "gpu", "git_commit": "f00", "threads": 8}
        )
    second.event("opened", command="again")
    one, two = text_of(first), text_of(second)
    assert one != two
    assert one.split("## Cost and versions")[0] == two.split("## Cost and versions")[0]


def test_confirming_runs_that_failed_are_left_out_with_their_pair_and_said(whole: Maker) -> None:
    made = whole()
    made.trial(
        "confirm",
        2,
        [],
        seed=1002,
        state="failed",
        reason="killed",
        candidate="best 1",
        role="best",
        baseline="baseline 1",
        source={"stage": "search", "number": 0},
    )
    text = text_of(made)
    assert "n = 4 seeds)" in text.split("\n\n")[1]
    assert "left out with their pairs: 1 of 5 confirming runs of best 1" in text


def test_an_unfinished_study_says_so_on_top_and_shows_what_is_there(made_up: Maker) -> None:
    made = made_up(trials=24)
    assert "no winner is confirmed" in text_of(made)
    teacher = made.trial("teacher", 0, curve(0.9, 5, 0), test=0.9, model="lenet5_teacher")
    made.trial("baselines", 0, curve(0.95, 5, 0), values={"optimizer.lr": 0.1})
    made.trial("search", 0, curve(0.93, 5, 1), values={"optimizer.lr": 0.1}, teacher=teacher)
    made.plan("search", 1, values={"optimizer.lr": 0.2})
    text = text_of(made)
    assert text.split("\n\n")[1] == (
        "> This study is unfinished: teacher 1 of 1, baselines 1 of 1, search 1 of 24 ended. "
        "What is shown may still change. It continues with "
        "`python run_sweep.py sweeps/made_up.yaml`."  # as it was started
    )
    assert "The teacher ends below the student alone" in text
    assert cells(text, "student distilled (winner)")[4] == "not confirmed yet"
    assert "| 1 | — | — | 0.2 | — | — | — | not ended |" in text or "| 1 | 0.2 | — | — | — | not ended |" in text
    assert (write_report(made.folder)).exists()


def test_a_teacher_from_a_file_is_said_to_be_one(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5])
    folder = made.store.trial("search0000")
    folder.write_recipe((folder.recipe() or {}) | {"teacher": {"file": "t.safetensors", "sha256": "0"}})
    assert "| teacher (from a file, not measured here) |" in text_of(made)


def test_the_title_is_the_reports_own_if_it_has_one(made_up: Maker) -> None:
    from kdtrain.trials.store import write_json

    made = made_up()
    write_json(made.folder / "study.json", made.description | {"report": {"title": "Does it help?"}})
    assert text_of(made).startswith("# Does it help?\n")


def test_missing_predictions_leave_out_the_bootstrap_and_say_so(whole: Maker) -> None:
    made = whole()
    made.store.trial("confirm0003").predictions.unlink()
    assert "There is no bootstrap over test images: not every confirming run" in text_of(made)


def test_two_builds_are_equal_byte_for_byte(whole: Maker) -> None:
    made = whole()
    arrays = {
        "softened_image": np.arange(64, dtype=np.uint8).reshape(8, 8),
        "softened_classes": np.array([f"species {k}" for k in range(10)]),
        "softened_label": 3,
        "softened_temperatures": [1.0, 5.0],
        "softened_teacher": np.full((2, 10), 0.1),
        "softened_student": np.full((2, 10), 0.1),
    }
    np.savez(made.folder / "pictures.npz", **arrays)  # type: ignore[arg-type]

    def built() -> dict[str, bytes]:
        write_report(made.folder)
        return {
            path.name: path.read_bytes() for path in made.folder.iterdir() if path.suffix in (".md", ".png", ".csv")
        }

    first = built()
    assert set(first) == {
        "report.md",
        "trials.csv",
        "history.png",
        "slices.png",
        "importance.png",
        "learning_curves.png",
        "softened.png",
    }
    assert first == built()


def test_every_picture_named_is_there_and_a_stale_one_is_removed(whole: Maker) -> None:
    made = whole()
    (made.folder / "softened.png").write_bytes(b"of an earlier report")
    text = write_report(made.folder).read_text()
    named = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert named == {path.name for path in made.folder.glob("*.png")}
    assert "softened.png" not in named


def run_analysis(*arguments: str | Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "analysis"]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_the_command_builds_the_report_without_torch_or_ray(whole: Maker) -> None:
    made = whole()
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('analysis', run_name='__main__')\n"
        "except SystemExit as end: print('code', end.code)\n"
        "print('imported', sorted({'torch', 'ray', 'torchvision', 'pydantic'} & set(sys.modules)))"
    )
    done = run_analysis(made.folder, code=code)
    assert done.stdout.splitlines() == [str(made.folder / "report.md"), "code 0", "imported []"]
    assert done.stderr == ""


def test_what_a_user_can_mend_is_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = run_analysis(tmp_path / "absent")
    assert done.returncode == 2
    assert (
        done.stderr == f"{tmp_path / 'absent'}: no such folder; give a sweep's folder, for example results/digits_kd\n"
    )
    assert done.stdout == ""


def test_a_study_whose_every_trial_failed_is_reported_without_scores(made_up: Maker) -> None:
    made = made_up(trials=3)
    for number in range(3):
        made.trial("search", number, [0.4], state="failed", reason="out of memory", values={"optimizer.lr": 0.1})
        folder = made.store.trial(f"search{number:04d}")
        best = {"epoch": 1, "val/accuracy": 0.4, "val/nll": 1.0}
        folder.write_outcome((folder.outcome() or {}) | {"best": best})  # what it reached before it failed
    text = write_report(made.folder).read_text()
    assert "| search | failed | out of memory | 3 | 0, 1, 2 |" in text
    assert not list(made.folder.glob("*.png"))


def test_choices_of_numbers_switches_and_nothing_are_drawn_by_name(made_up: Callable[..., MadeUpStudy]) -> None:
    choices = {"ema": ["null", "decay: 0.9999"], "batch_size": [32, 64], "compile": [True, False]}
    parameters = tuple(
        {"name": name, "kind": "choice", "low": None, "high": None, "choices": options, "conditions": {}}
        for name, options in choices.items()
    )
    made = made_up(parameters=parameters)
    for number in range(6):
        values = {name: options[number % 2] for name, options in choices.items()}
        made.trial("search", number, [0.5 + 0.01 * number], values=values)
    write_report(made.folder)
    assert (made.folder / "slices.png").exists()


def test_the_report_accounts_for_what_teachers_computed_and_what_reading_saved(whole: Maker) -> None:
    made = whole()
    folders = list(made.store.trials())
    for number, folder in enumerate(folders):
        outcome = folder.outcome()
        assert outcome is not None
        computed = 1077 if number == 0 else 0
        folder.write_outcome(
            outcome
            | {"teacher_images": 1077, "teacher_images_computed": computed, "teacher_seconds": computed / 1000}
            | {"teacher_forward_seconds": (computed + 32) / 1000, "device": "cpu (x86_64)"}
            | {"teacher_images_checked": 32, "image_cache_off": "disk full" if number < 2 else None}
            | {"seconds": 10.0, "views_seconds": 0.0, "teacher_cache_off": "no room" if number == 1 else None}
        )
    cost = section(text_of(made), "Cost and versions")
    saved = 1077 * (len(folders) - 1)
    assert cells(cost, "teacher's answers, images")[1] == count(saved + 1077)
    assert cells(cost, "of them computed")[1] == "1 077 (in 1.1 s)"
    assert cells(cost, "of them read, not computed again")[1] == f"{count(saved)} (about {duration(saved / 1000)})"
    assert cells(cost, "computed once more, to check what was read")[1] == count(32 * len(folders))
    assert cells(cost, "trainings that asked live, though they were to read")[1] == "1: no room"
    assert cells(cost, "trainings that decoded images themselves, though they were to read")[1] == "2: disk full"
    spent = 10 * len(folders)
    floor = cells(cost, "of it without teachers and views (the floor)")[1]
    assert floor == f"{duration(spent - 1.077)}: x {spent / (spent - 1.077):.2f}"
