"""The report: golden files hold its words and tables, the tests what no golden file shows."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_study import MadeUpStudy, choice, curve, every_array, methods_study
from scipy import stats

from analysis import plots, pruning, results
from analysis.__main__ import main
from analysis.accounts import equal_trials
from analysis.claims import bootstrap, candidates, comparisons, grown_seeds
from analysis.cost import cost
from analysis.findings import Pictures, find_all
from analysis.frame import Study, read_study
from analysis.headline import headline
from analysis.report import compose, write_report
from analysis.trained import trained

Maker = Callable[..., MadeUpStudy]
Golden = Callable[[str, str], None]
ROOT = Path(__file__).parents[2]


def networks(made: MadeUpStudy) -> list[dict[str, str]]:
    study = read_study(made.folder)
    found = find_all(study)
    return headline(study, found.winner, found.baseline, found.teachers)["networks"]


def text_of(made: MadeUpStudy) -> str:
    return write_report(made.folder).read_text()


def test_a_whole_study(whole: Maker, golden: Golden) -> None:
    made = whole()
    softened = {name: array for name, array in every_array().items() if name.startswith("softened_")}
    np.savez(made.folder / "pictures.npz", **softened, gradcam_none_reason=np.array("no stage"))
    golden("report_whole.md", text_of(made))


def test_few_labels_are_told_of_the_data_and_of_each_network(whole: Maker) -> None:
    made = whole()
    assert "labels" not in networks(made)[0]  # all networks see all images, with their labels
    for trial in made.store.trials():
        record = trial.recipe()
        trial.write_recipe(record | {"data": record["data"] | {"labels": 100}})
    rows = networks(made)
    assert [(row["training images"], row["labels"]) for row in rows] == [("100", "100")] * 2 + [("1 077", "100")]
    assert "1 077 images to train on, of which 100 have their label, 360 to choose by" in text_of(made)


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
    made.describe(report={"title": "Does it help?"}, data_notes=["digits: 2 of 60 images of test are also in train"],
                  study=made.description["study"] | {"trials": 24})  # fmt: skip
    made.change_outcome("confirm0007", test=None)
    made.store.trial("confirm0001").predictions.unlink()
    made.trial("search", 22, [0.5], recipe={"method": {"name": "kd", "temperature": 4.0}})
    made.trial("search", 23, [0.5], recipe={"method": {"name": "kd", "temperature": 9.0}})
    made.plan("pictures", 0)
    made.end("pictures", 0, "confirm0000", "failed", reason="out of memory\ntraceback")
    share_teachers(made)
    made.change_outcome("search0001", skipped_steps=3.0)
    golden("report_rare.md", text_of(made))


def test_methods_against_each_other_with_two_student_models(tmp_path: Path, golden: Golden) -> None:
    golden("report_methods.md", text_of(methods_study(tmp_path)))


def test_a_study_of_an_earlier_version_is_reported_without_a_race(whole: Maker) -> None:
    made = whole(earlier=True, searched=6)
    text = text_of(made)
    assert "## Select" not in text
    assert "| best 2 | search 0 |" in text
    assert 'The winner is "best 1" (from search 0' in text
    assert "among the best with the highest mean val/accuracy" in text


def test_a_recipe_that_diverged_in_one_confirming_seed_makes_no_claim(whole: Maker) -> None:
    made = whole(searched=6)
    about = {"candidate": "best", "role": "best", "baseline": "baseline 1", "source": {"stage": "search", "number": 0}}
    made.trial("confirm", 2, state="failed", reason=NON_FINITE, seed=1002, **about)
    best, published, _ = candidates(read_study(made.folder))
    assert (best.diverged, best.planned, best.p) == (1, 5, None)
    assert published.p is not None
    text = text_of(made)
    assert "undecided: 1 confirming run has diverged" in text
    assert "Best diverged in 1 of 5 confirming runs" in text
    assert "| diverged in 1 of 5 |" in text
    assert "bootstrap" not in text


def test_after_the_study_has_grown_the_first_interval_is_that_of_the_first_seeds(tmp_path: Path) -> None:
    study = read_study(methods_study(tmp_path).folder)
    best, _, alone, _ = candidates(study)
    (grown,) = grown_seeds(study, best, alone)
    tests = {key: rows["test/accuracy"].to_numpy()[:3] for key, rows in study.stage("confirm").groupby("candidate")}
    gaps = tests["best kd"] - tests["baseline 1"]
    expected = stats.t.interval(0.95, 2, loc=gaps.mean(), scale=stats.sem(gaps))
    assert grown.seeds == 3
    assert grown.first is not None
    assert grown.first.interval is not None
    assert (grown.first.interval.low, grown.first.interval.high) == pytest.approx(expected)


def test_holms_family_has_the_pairs_of_options_and_not_the_primary_difference(tmp_path: Path) -> None:
    study = read_study(methods_study(tmp_path).folder)
    found = comparisons(study)
    tests = {key: rows["test/accuracy"].to_numpy() for key, rows in study.stage("confirm").groupby("candidate")}
    p_option = stats.ttest_rel(tests["best dkd"], tests["baseline 1"]).pvalue
    p_pair = stats.ttest_rel(tests["best kd"], tests["best dkd"]).pvalue
    smaller, larger = sorted((p_option, p_pair))
    corrected = {smaller: 2 * smaller, larger: max(2 * smaller, larger)}
    (pair,) = found.pairs
    assert [candidate.p_holm for candidate in found.candidates] == [
        None,
        pytest.approx(corrected[p_option]),
        None,
        None,
    ]
    assert (pair.first.key, pair.second.key, pair.p_holm) == ("best kd", "best dkd", pytest.approx(corrected[p_pair]))


def test_the_rank_correlation_of_a_rung_is_over_the_trials_that_finished(made_up: Maker) -> None:
    made = made_up()
    chance, early, final = np.random.default_rng(0), [], []
    for number in range(12):
        first, last = chance.uniform(0.5, 0.9, 2)
        if number % 4 == 0:
            made.trial("search", number, [0.4, first], state="pruned", reason="stopped")
        else:
            early.append(first)
            final.append(max(first, last))
            made.trial("search", number, [0.4, first, last])
    (row,) = pruning.rank_correlations(read_study(made.folder))
    expected = stats.spearmanr(early, final).statistic
    assert list(row.values()) == ["student distilled", "epoch 2", "3", "9", f"{expected:+.2f}"]


def test_a_published_point_that_leads_its_option_is_the_best_of_it(tmp_path: Path) -> None:
    made = methods_study(tmp_path)
    (selected,) = [row for row in read_study(made.folder).events("selected") if row["race"] == "search"]
    fields = {key: value for key, value in selected.items() if key not in ("event", "time")}
    made.event("selected", **fields | {"leaders": {"kd": "published 1", "dkd": "search 10"}})
    confirmed = ["published 1", "best dkd", "baseline 1", "baseline 2"]
    made.event("winner", candidate="published 1", baseline="baseline 1", trial_id="confirm0000", confirmed=confirmed)
    for number, seed in enumerate(range(1000, 1005)):
        source = {"stage": "search", "number": 0}
        made.trial("confirm", number, [0.95], seed=seed, test=0.95 + number / 1000, candidate="published 1",
                   role="published", baseline="baseline 1", source=source, values={"method": "kd"})  # fmt: skip
    study = read_study(made.folder)
    found = comparisons(study)
    assert [(each.key, each.option) for each in found.candidates if each.option] == [
        ("published 1", "kd"), ("best dkd", "dkd"),
    ]  # fmt: skip
    assert found.candidates[0].primary
    assert [(pair.first.option, pair.second.option) for pair in found.pairs] == [("kd", "dkd")]


def test_the_history_has_every_trial_pruned_ones_of_the_student_alone_too(tmp_path: Path) -> None:
    study = read_study(methods_study(tmp_path).folder)
    figure = plots.history(study)
    assert figure is not None
    points = {each.get_label(): len(each.get_offsets()) for each in figure.axes[0].collections}
    states = pd.concat([study.stage("search"), study.stage("baselines")])["state"].value_counts()
    assert points["student alone, pruned"] == (study.stage("baselines")["state"] == "pruned").sum() > 0
    assert sum(points.values()) == states.sum() == 60
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        *points,
        "best so far, distilled",
        "best so far, student alone",
    }


def test_the_table_of_what_was_trained_has_spaces_and_choices_in_words(made_up: Maker) -> None:
    made = made_up()
    method = {"choice": [{"name": "kd", "temperature": {"loguniform": [1, 20]}}, {"name": "none"}]}
    made.describe(recipe={"method": method, "batch_size": {"choice": [32, 64]}, "epochs": 3, "mixup": None})
    assert [row["in the sweep file"] for row in trained(read_study(made.folder))] == [
        "kd (temperature 1 to 20 (searched, log scale)) or none (searched)", "32 or 64 (searched)", "3", "—",
    ]  # fmt: skip


def test_the_table_of_what_was_trained_has_the_keys_that_a_teachers_data_reset(made_up: Maker) -> None:
    made = made_up()
    teachers = [{"model": "resnet18", "weights": None, "data": {"labelled_per_class": None, "augment": {"scale": 0.1}}}]
    made.describe(recipe={"teacher": teachers})
    (row,) = trained(read_study(made.folder))
    assert row["in the sweep file"] == "[resnet18 (data (labelled_per_class null, augment (scale 0.1)))]"


def test_teachers_of_one_teacher_are_told_apart_by_their_seeds(made_up: Maker) -> None:
    made = made_up()
    members = [{"trial_id": made.trial("teacher", seed, [0.5], seed=seed, model="lenet5_half")} for seed in (0, 1)]
    folder = made.store.trial(made.trial("teacher", 2, [0.6], model="lenet5_teacher"))
    folder.write_recipe((folder.recipe() or {}) | {"teacher": {"members": members}})
    text = text_of(made)
    assert [f"| teacher's teacher, seed {seed} | lenet5_half |" in text for seed in (0, 1)] == [True, True]
    assert [f"Teacher lenet5_half (seed {seed})" in text for seed in (0, 1)] == [True, True]
    assert "Teacher lenet5_teacher:" in text


def test_a_study_without_a_trial_or_whose_trials_all_failed_has_a_report_without_pictures(made_up: Maker) -> None:
    made = made_up(trials=1)
    assert "unfinished: search 0 of 1" in text_of(made)
    made.trial("search", 0, [0.4], state="failed", reason=NON_FINITE, values={"optimizer.lr": 0.1})
    best = {"epoch": 1, "val/accuracy": 0.4, "val/nll": 1.0}
    made.change_outcome("search0000", best=best)  # reached before it failed
    folder = made.store.trial("search0000")
    folder.write_recipe((folder.recipe() or {}) | {"teacher": {"file": "t.safetensors", "sha256": "0"}})
    assert "| teacher (from a file, not measured here) |" in text_of(made)
    assert not list(made.folder.glob("*.png"))
    made.event("no_result", reason="search: none of 1 trials completed: 1 failed; the same command gives the same")
    text = text_of(made)
    assert "> This study has ended without a result. search: none of 1 trials completed" in text
    assert "To continue it" not in text


def test_what_broke_is_listed_with_its_traceback_and_leaves_rows_without_interval_and_p(whole: Maker) -> None:
    made = whole()
    made.end("search", 2, "search0002", "broken", reason="OSError: full", traceback="errors/search-2-3.txt")
    made.end("confirm", 2, "confirm0002", "broken", reason="RuntimeError: driver", traceback="errors/confirm-2-3.txt")
    made.store.trial("confirm0002").remove_outcome()
    study = read_study(made.folder)
    best, published, alone = candidates(study)
    assert best.difference is not None
    assert (best.difference.n, best.difference.interval, best.difference.broken, best.p) == (4, None, 1, None)
    assert best.test is not None
    assert best.test.interval is None
    assert published.difference is not None
    assert published.difference.interval is not None, "nothing of its own or of its baseline broke"
    text = text_of(made)
    assert "> 2 jobs broke" in text
    assert "undecided: 1 confirming run broke" in text
    assert "| search | 2 | OSError: full | `errors/search-2-3.txt` |" in text
    made.end("confirm", 15, alone.trial_ids[1000], "broken", reason="RuntimeError: driver")  # of the baseline
    assert all(each.difference.interval is None for each in candidates(read_study(made.folder)) if each.difference)


def test_a_journal_that_called_broken_jobs_failed_is_read_as_it_is_meant(made_up: Maker) -> None:
    made = made_up(trials=3)
    made.trial("search", 0, [0.4], state="failed", reason="RuntimeError: CUDA error")
    made.trial("search", 1, [0.4], state="failed", reason=NON_FINITE)
    made.plan("search", 2)
    made.end("search", 2, None, "failed", reason="warmup_epochs must be below epochs 3, got 3")
    assert list(read_study(made.folder).trials["state"]) == ["broken", "failed", "failed"]


def test_the_primary_interval_is_scipys_paired_t_interval(finished: Study) -> None:
    tests = {key: group["test/accuracy"].to_numpy() for key, group in finished.stage("confirm").groupby("candidate")}
    gaps = tests["best"] - tests["baseline 1"]
    best = candidates(finished)[0]
    assert best.difference is not None
    assert best.difference.interval is not None
    expected = stats.t.interval(0.95, 4, loc=gaps.mean(), scale=stats.sem(gaps))
    assert (best.difference.interval.low, best.difference.interval.high) == pytest.approx(expected)
    assert (best.difference.mean, best.p) == pytest.approx((gaps.mean(), stats.ttest_1samp(gaps, 0).pvalue))


def test_best_trials_complete_first_by_objective_then_nll_then_number(made_up: Maker) -> None:
    made = made_up(trials=5)
    made.trial("search", 0, [0.8], nlls=[0.5], published=True)
    made.trial("search", 1, [0.9], nlls=[0.6])
    made.trial("search", 2, [0.9], nlls=[0.4])
    made.trial("search", 3, [0.99], nlls=[0.1], state="pruned")
    made.trial("search", 4, [], state="failed")
    rows = results.best_trials(read_study(made.folder), 10)
    assert [row["trial"] for row in rows] == ["2", "1", "0 (published)", "3", "4"]


def test_only_trials_of_one_seed_with_equal_metrics_in_every_epoch_are_equal(made_up: Maker) -> None:
    made = made_up(trials=4)
    for number, (temperature, seconds) in enumerate([(4.0, 1.0), (9.0, 2.0)]):
        recipe = {"method": {"name": "kd", "temperature": temperature}}
        made.trial("search", number, [0.5, 0.6], recipe=recipe, seconds=seconds)
    made.trial("search", 2, [0.5, 0.6], recipe={"note": 1}, seed=1)  # another seed
    made.trial("search", 3, [0.5, 0.6 + 1e-12], recipe={"note": 2})  # another epoch 2
    assert [(each["first"], each["second"]) for each in equal_trials(read_study(made.folder))] == [
        ("search 0", "search 1")
    ]


def test_a_failed_confirming_run_is_left_out_with_its_pair_and_a_bootstrap_needs_all_predictions(whole: Maker) -> None:
    made = whole()
    best, *_, alone = candidates(read_study(made.folder))
    found = bootstrap(read_study(made.folder), best, alone)
    assert found is not None
    assert (found.images, found.seeds) == (360, 5)
    made.store.trial("confirm0003").predictions.unlink()
    assert bootstrap(read_study(made.folder), best, alone) is None
    made.trial("confirm", 2, state="failed", seed=1002, candidate="best", role="best", baseline="baseline 1",
               source={"stage": "search", "number": 0})  # fmt: skip
    best = candidates(read_study(made.folder))[0]
    assert best.difference is not None
    assert (best.planned, len(best.trial_ids), best.difference.n) == (5, 4, 4)


def test_the_objective_val_mpa_has_columns_of_its_own_and_says_which_classes_count(whole: Maker) -> None:
    text = text_of(whole(searched=6, objective="val/mpa"))
    assert "| val accuracy, % | val MPA, % | val NLL, nats | state |" in text
    assert "its val/mpa" not in text, "one student model only"
    assert (
        "Ranked by val/mpa of the best epoch (mean accuracy per class, over the classes that have validation images)"
        in text
    )


def test_only_cost_differs_if_only_times_and_the_machine_differ(whole: Maker, tmp_path: Path) -> None:
    first, second = whole(tmp_path / "one", searched=6), whole(tmp_path / "two", searched=6)
    for trial in second.store.trials():
        changes = {"seconds": 99.0, "images_per_s": 1.0, "device": "gpu", "threads": 8}
        changes |= {"git_commit": "f00", "git_dirty": "0123456789abcdef"}
        trial.write_outcome((trial.outcome() or {}) | changes)
    second.event("opened", command="again", data="/other data")
    studies = [read_study(made.folder) for made in (first, second)]
    texts = [compose(study, find_all(study), Pictures()) for study in studies]
    one, two = (text.split("## Cost and versions") for text in texts)
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert "| git commit | abc1234 |" in one[1], "earlier records have no git_dirty"
    assert "| git commit | f00 with changes 0123456789abcdef |" in two[1]
    assert f"kdtrain train {second.folder}/best.yaml --results repeat --data '/other data'\n```\n" in two[1]
    assert "```sh\nagain\n```\n" in two[1]
    assert [line for line in one[1].splitlines() if line.startswith("## ")] == ["## To repeat it"]


def share_teachers(made: MadeUpStudy, **rest: object) -> None:
    """Teacher outputs: 1077 needed by each training, computed once, read else; 32 checked; two caches off."""
    for number, trial in enumerate(made.store.trials()):
        computed = 1077 if number == 0 else 0
        changes = {
            "teacher_images": 1077, "teacher_images_computed": computed, "teacher_seconds": computed / 1000,
            "teacher_forward_seconds": (computed + 32) / 1000, "teacher_images_checked": 32, "device": "cpu (x86_64)",
            "image_cache_off": "disk full" if number < 2 else None, "seconds": 10.0, "views_seconds": 0.0,
            "teacher_cache_off": "no room" if number == 1 else None,
        }  # fmt: skip
        trial.write_outcome((trial.outcome() or {}) | changes | rest)


def test_the_report_says_on_which_device_and_how_many_trials_shared_a_gpu(whole: Maker) -> None:
    made = whole()
    assert "trials at once" not in text_of(made), "a study of an earlier version"
    for trials in (1, 3):
        made.event("placed", device="NVIDIA L4", trials_per_gpu=trials, trials_at_once=2 * trials)
    made.change_outcome("search0001", device="NVIDIA L4")
    text = text_of(made)
    assert "| device | NVIDIA L4; cpu |" in text
    assert "| trials at once | 6 |\n| trials per GPU | 3 |" in text
    made.event("placed", device="cpu", trials_per_gpu=None, trials_at_once=2)
    assert "| trials at once | 2 |\n| threads per worker" in text_of(made)


def test_seconds_without_the_teacher_are_known_on_a_cpu_only(made_up: Maker) -> None:
    made = made_up()
    for number in range(3):
        made.trial("search", number, [0.5])
    assert cost(read_study(made.folder))["teacher_outputs"] is None
    share_teachers(made)
    found = cost(read_study(made.folder))
    assert (found["bare_s"], found["overhead"]) == pytest.approx((28.923, 30 / 28.923))
    assert found["teacher_outputs"]["seconds_per_image"] == pytest.approx(1 / 1000)
    share_teachers(made, device="cuda")  # a GPU still computes when the time is taken
    found = cost(read_study(made.folder))
    assert found["bare_s"] is found["overhead"] is found["teacher_outputs"]["seconds_per_image"] is None


NON_FINITE = "epoch 2, step 5: train/loss is nan"


@pytest.mark.slow
@pytest.mark.usefixtures("rendered")
def test_the_command_builds_report_and_overview_without_torch_or_ray_and_a_second_build_is_equal(whole: Maker) -> None:
    made = whole(searched=24)
    made.describe(report={"published": "mnist"})
    np.savez(made.folder / "pictures.npz", **every_array())
    (made.folder / "gradcam_encoder.png").write_bytes(b"of an earlier report")
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

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in made.folder.iterdir() if path.suffix in (".md", ".png")}

    first = files()
    text = first["report.md"].decode()
    shown = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert shown == first.keys() - {"report.md"} == {
        "history.png", "slices.png", "importance.png", "learning_curves.png", "softened.png", "gradcam_none.png",
        "attention.png", "lr_schedule.png", "mixed_images.png",
    }  # fmt: skip
    assert "| student distilled (best) | 46 164 |" in text, "the reference that the sweep names"
    write_report(made.folder)
    assert files() == first


def test_without_matplotlib_the_report_gives_the_reason(made_up: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "analysis.pictures", None)
    lines = [line for line in text_of(made_up()).splitlines() if "There is no picture of this study" in line]
    assert len(lines) == 1
    assert "analysis.pictures" in lines[0]


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
