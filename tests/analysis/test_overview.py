"""A results folder of made-up sweeps whose claims are known, beside unfinished and damaged ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_study import MadeUpStudy, curve, whole_study
from scipy import stats

from analysis.__main__ import main
from analysis.by_method import rank_correlation
from analysis.forest import forest, limits
from analysis.frame import read_study
from analysis.overview import write_overview
from analysis.statistics import Estimate
from analysis.summary import BEAT, UNDECIDED, UNFINISHED, UNREADABLE, Summary, summaries, sweep_folders
from kdtrain.errors import UserError
from kdtrain.storage.folder import append_row
from kdtrain.trials.store import write_json

ROOT = Path(__file__).parents[2]
SEARCH = {
    "kd": {"name": "method[kd].temperature", "kind": "loguniform", "low": 1.0, "high": 20.0},
    "at": {"name": "method[at].balance.weight", "kind": "loguniform", "low": 100.0, "high": 9000.0},
}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """won, lost, even: whole studies; begun: unfinished; newer, torn, odd: not to be read. Tests only read it."""
    results = tmp_path_factory.mktemp("several") / "results"
    for name, gain in (("won", 0.02), ("lost", -0.02), ("even", 0.001)):
        whole_study(results, name=name, gain=gain, searched=24, prefix=name)
    (results / "won" / "report.md").write_text("its report")
    begun = MadeUpStudy(results / "begun", prefix="begun")
    values = {"method.temperature": 4.0, "method.balance.alpha_ce": 0.5, "optimizer.lr": 0.1}
    begun.trial("search", 0, curve(0.9, 3, 0), values=values, recipe={"method": {"name": "kd"}})
    begun.plan("search", 1, values={"optimizer.lr": 0.2})
    write_json(results / "newer" / "study.json", {"schema": 99})
    odd = MadeUpStudy(results / "odd")
    append_row(odd.folder / "record.jsonl", {"no": "event"})
    (results / "torn").mkdir()
    (results / "torn" / "study.json").write_text('{"schema": 1, "na')
    (results / "notes").mkdir()  # no sweep
    return results


@pytest.fixture(scope="module")
def text(several: Path) -> str:
    return write_overview(several)[0].read_text()


def cells(text: str, *first: str) -> list[str]:
    """Of the table row that begins with these cells."""
    start = f"| {' | '.join(first)} |"
    row = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def section(text: str, method: str) -> str:
    return text.split(f"### {method}\n", 1)[1].split("\n### ", 1)[0]


def test_the_first_sentence_counts_the_verdicts(text: str) -> None:
    assert text.split("\n\n")[1] == (
        "Of 7 sweeps, distilling beat the student alone in 1, lost to it in 1, is undecided in 1, and has no result "
        "in 4 (unfinished: begun; cannot be read: newer, odd, torn)."
    )


def test_a_row_a_sweep_by_name_with_its_claim_and_only_what_is_decided_bold(text: str) -> None:
    table = text.split("| sweep |")[1].split("\n\n")[0].splitlines()[2:]
    assert [line.split(" | ")[0].strip("| []").split("]")[0].split(" ")[0] for line in table] == [
        "begun", "even", "lost", "newer", "odd", "torn", "won",
    ]  # fmt: skip
    won = cells(text, "[won](won/report.md)")
    assert won[1:4] == ["digits, 1 077 to train", "— → lenet5_student", "kd"]
    assert won[4].startswith("**+2.")
    assert won[5:7] == ["5", "**beat**"]
    assert cells(text, "lost (no report.md)")[6] == "**lost to**"
    even = cells(text, "even (no report.md)")
    assert even[6] == "undecided: the interval contains 0"
    assert "**" not in "".join(even)


def test_the_difference_and_p_are_scipys_paired_t_test(several: Path, text: str) -> None:
    confirm = read_study(several / "even").stage("confirm")
    tests = {key: group["test/accuracy"].to_numpy() for key, group in confirm.groupby("candidate")}
    gaps = 100 * (tests["best 1"] - tests["baseline 1"])
    low, high = stats.t.interval(0.95, 4, loc=gaps.mean(), scale=stats.sem(gaps))
    row = cells(text, "even (no report.md)")
    assert row[4] == f"{gaps.mean():+.2f} [{low:+.2f} to {high:+.2f}]"
    assert float(row[7]) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=5e-5)


def test_holm_corrects_over_the_finished_sweeps_and_the_text_says_what_stays(several: Path, text: str) -> None:
    found = {summary.name: summary for summary in summaries(sweep_folders(several))}
    family = sorted(found[name].p for name in ("won", "lost", "even"))  # type: ignore[type-var]
    first = 3 * family[0]  # type: ignore[operator]
    second = max(first, 2 * family[1])  # type: ignore[operator]
    expected = [first, second, max(second, family[2])]
    assert sorted(found[name].p_holm for name in ("won", "lost", "even")) == pytest.approx(expected)  # type: ignore[type-var]
    assert found["begun"].p_holm is found["newer"].p_holm is None
    assert "These are 3 claims, one per finished sweep, each at 95 % and not corrected for the others." in text
    assert "t tests of the 3 that have one: of 2 decided, p stays below 0.05 in 2." in text


def test_an_unfinished_sweep_says_how_far_it_is_and_claims_nothing(text: str) -> None:
    row = cells(text, "begun (no report.md)")
    assert row[6] == "unfinished: search 1 of 24 ended"
    assert row[4] == row[5] == row[7] == row[8] == "—"


def test_an_unfinished_sweep_with_a_difference_shows_it_undecided(tmp_path: Path) -> None:
    made = whole_study(tmp_path, gain=0.05)
    made.plan("search", 40)  # its trials grew
    summary = summaries([made.folder])[0]
    assert summary.difference is not None
    assert (summary.verdict, summary.decided, summary.p) == (UNFINISHED, False, None)


def test_what_cannot_be_read_is_listed_with_its_reason_and_no_path_of_the_machine(several: Path, text: str) -> None:
    assert cells(text, "newer (no report.md)")[6].startswith("cannot be read: newer/study.json: is of schema 99, ")
    assert cells(text, "torn (no report.md)")[6].startswith("cannot be read: torn/study.json: is no JSON file of ")
    assert cells(text, "odd (no report.md)")[6].startswith("cannot be read: odd: is damaged (KeyError: 'event')")
    assert str(several) not in text


def test_a_folder_with_a_record_and_no_study_json_is_a_damaged_sweep(tmp_path: Path) -> None:
    made = MadeUpStudy(tmp_path / "lost_its_head")
    (made.folder / "study.json").unlink()
    summary = summaries(sweep_folders(tmp_path))[0]
    assert (summary.name, summary.verdict) == ("lost_its_head", UNREADABLE)
    assert summary.reason == "lost_its_head: is not a sweep's folder, it has no study.json"


def test_a_folder_without_sweeps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is neither a sweep's folder nor one of sweeps"):
        write_overview(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_sweep_is_one_claim_with_nothing_to_correct_for(tmp_path: Path) -> None:
    whole_study(tmp_path, name="only", searched=6)
    text = write_overview(tmp_path)[0].read_text()
    assert text.startswith("# Overview\n\nOf 1 sweep, distilling beat the student alone in 1, lost to it in 0, ")
    assert "This is one claim, at 95 %: there is nothing to correct it for." in text
    row = cells(text, "only (no report.md)")
    assert row[7] == row[8] != "—"


def test_two_builds_are_equal_byte_for_byte_wherever_the_folder_is_seen_from(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(results: Path) -> list[bytes]:
        write_overview(results)
        return [(several / name).read_bytes() for name in ("overview.md", "forest.png")]

    first = built(several)
    monkeypatch.chdir(several)
    assert built(Path()) == first


def test_a_method_has_its_hyperparameters_side_by_side_over_all_sweeps(text: str) -> None:
    of_kd = section(text, "kd")
    swept = [line.split(" | ")[0].strip("| ") for line in of_kd.splitlines() if line.startswith("| ")][2:]
    assert swept == [name for name in ("begun", "even", "lost", "won") for _ in range(3)]
    assert "- begun: importance is left out: 1 complete trials, below the 20" in of_kd
    head = cells(of_kd, "sweep")
    row = dict(zip(head, cells(of_kd, "won", "`optimizer.lr`"), strict=True))
    assert (row["searched"], row["of"], row["n"]) == ("0.01 to 0.3 (log)", "winner", "20")
    assert float(row["importance"]) > 0.3  # made to matter


def test_best_value_is_the_winners_and_published_the_published_points(several: Path, text: str) -> None:
    study = read_study(several / "won")
    row = cells(section(text, "kd"), "won", "`method.temperature`")
    searched = study.values.loc[study.stage("search").index, "method.temperature"]
    confirmed = study.values.loc[study.stage("confirm").index[0], "method.temperature"]
    assert row[3:6] == [f"{confirmed:.4g}", "winner", f"{searched.iloc[0]:.4g}"]


def test_what_it_did_is_spearmans_rank_correlation_over_the_complete_trials(several: Path, text: str) -> None:
    study = read_study(several / "won")
    complete = study.stage("search")[lambda trials: trials["state"] == "complete"]
    values = study.values.loc[complete.index, "method.temperature"].astype(float)
    ranks = pd.DataFrame({"x": values.rank(), "y": complete["val/accuracy"].rank()})
    expected = ranks.corr().loc["x", "y"]  # Pearson's of the ranks
    assert cells(section(text, "kd"), "won", "`method.temperature`")[7] == f"rho = {expected:+.2f}"


def test_below_five_trials_or_without_change_there_is_no_correlation() -> None:
    rising = pd.Series([1.0, 2.0, 3.0, 4.0, 5.0])
    assert rank_correlation(rising, rising**2) == pytest.approx(1.0)
    assert rank_correlation(rising[:4], rising[:4]) is None
    assert rank_correlation(rising * 0, rising) is None
    assert rank_correlation(rising, rising * 0) is None


def test_with_nll_as_objective_plus_still_means_that_larger_values_did_better(tmp_path: Path) -> None:
    made = MadeUpStudy(tmp_path / "nll", objective="val/nll", trials=5)
    for i in range(5):
        values = {"method.temperature": 1.0 + i, "method.balance.alpha_ce": 0.5, "optimizer.lr": 0.1}
        made.trial("search", i, [0.5], nlls=[2.0 - 0.1 * i], values=values, recipe={"method": {"name": "kd"}})
    row = cells(section(write_overview(tmp_path)[0].read_text(), "kd"), "nll", "`method.temperature`")
    assert row[3:5] == ["5", "trial 4"]
    assert row[7:] == ["rho = +1.00", "5"]


def branching(results: Path) -> MadeUpStudy:
    """A search over two methods and a choice, kd better; no trial of `sp`."""
    a_choice: dict[str, Any] = {"kind": "choice", "low": None, "high": None, "conditions": {}}
    method = a_choice | {"name": "method", "choices": ["kd", "at", "sp"]}
    freeze = a_choice | {"name": "student.freeze", "choices": ["none", "encoder"]}
    own = [{"choices": None, "conditions": {"method": label}, **fields} for label, fields in SEARCH.items()]
    sp = own[0] | {"name": "method[sp].weight", "conditions": {"method": "sp"}}
    made = MadeUpStudy(results / "both", parameters=(method, *own, sp, freeze), prefix="both")
    for i in range(6):
        label = ("kd", "at")[i % 2]
        values = {"method": label, SEARCH[label]["name"]: 200.0 - i, "student.freeze": ("none", "encoder")[i // 5]}
        accuracy = (0.8, 0.6)[i % 2] + 0.01 * i
        made.trial("search", i, [accuracy], values=values, recipe={"method": {"name": label}}, published=i == 1)
    return made


def test_methods_searched_in_one_sweep_have_a_table_each_and_what_no_trial_reached_is_said(tmp_path: Path) -> None:
    branching(tmp_path)
    text = write_overview(tmp_path)[0].read_text()
    of_at = section(text, "at")
    weight = cells(of_at, "both", "`method[at].balance.weight`")
    assert weight[2:6] == ["100 to 9000 (log)", "195", "trial 5", "199"]
    assert "method[kd]" not in of_at
    assert cells(of_at, "both", "`student.freeze`")[7] == "none 62.00 % (2), encoder 65.00 % (1)"
    assert cells(section(text, "kd"), "both", "`student.freeze`")[7] == "none 82.00 % (3), encoder — (0)"
    assert "- both: importance where method = at is left out: 3 complete trials, below the 20" in of_at
    assert "### Not reached\n\n- both: no trial has method = sp\n" in text


def test_without_any_difference_there_is_no_forest_and_an_old_one_is_removed(tmp_path: Path) -> None:
    branching(tmp_path)
    (tmp_path / "forest.png").write_bytes(b"of an earlier overview")
    assert "There is no forest plot: no sweep has measured a difference." in write_overview(tmp_path)[0].read_text()
    assert not (tmp_path / "forest.png").exists()


def claims(n: int) -> list[Summary]:
    return [Summary(f"sweep_{i:02d}", BEAT, difference=Estimate(0.01 + 0.001 * i, 0.005, 5)) for i in range(n)]


def test_the_forest_grows_by_a_row_a_sweep_and_names_each() -> None:
    heights = {}
    for n in (1, 2, 30):
        figure = forest(claims(n))
        assert figure is not None
        heights[n] = figure.get_size_inches()[1]
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [c.name for c in claims(n)]
        assert figure.axes[1].get_yticklabels()[0].get_text() == "+1.00 [+0.50 to +1.50], n = 5\nbeat"
    assert heights[30] - heights[1] == pytest.approx(29 * (heights[2] - heights[1]))


def test_the_forest_holds_zero_and_every_mean_and_does_not_follow_one_huge_interval() -> None:
    huge = Summary("two", UNDECIDED, "2 seeds are too few", difference=Estimate(-0.03, 0.9, 2))
    low, high = limits([*claims(5), huge])
    assert -12 < low < -3
    assert 1.9 < high < 12
    assert limits(claims(1))[0] < 0


def test_an_open_marker_is_for_what_has_no_interval_and_what_is_unfinished() -> None:
    def faces(*found: Summary) -> Iterator[list[float]]:
        figure = forest(found)
        assert figure is not None
        return (list(points.get_facecolor()[0][:3]) for points in figure.axes[0].collections)

    bare = Summary("bare", UNDECIDED, "1 seed is too few", difference=Estimate(0.01, None, 1))
    begun = Summary("begun", UNFINISHED, "search 1 of 2 ended", difference=Estimate(0.01, 0.005, 5))
    assert list(faces(bare, begun)) == [[1, 1, 1], [1, 1, 1]]
    assert list(faces(*claims(1))) != [[1, 1, 1]]


def test_the_command_writes_the_overview_without_torch_or_ray_and_says_what_it_could_not_read(several: Path) -> None:
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('analysis', run_name='__main__')\n"
        "except SystemExit as end: print('code', end.code)\n"
        "print('imported', sorted({'torch', 'ray', 'torchvision', 'pydantic'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(several)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == [str(several / "overview.md"), "code 0", "imported []"]
    said = [line.split(": ")[0] for line in done.stderr.splitlines()]
    assert said == [str(several / path) for path in ("newer/study.json", "odd", "torn/study.json")]


def test_the_command_on_a_folder_without_sweeps_is_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", str(tmp_path)])
    assert main() == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith(f"{tmp_path}: is neither a sweep's folder nor one of sweeps")


def test_a_lost_confirming_run_shows_in_n(tmp_path: Path) -> None:
    made = whole_study(tmp_path, name="only", searched=6)
    lost = made.store.trial("confirm0002")
    lost.write_outcome((lost.outcome() or {}) | {"test": None})
    assert cells(write_overview(tmp_path)[0].read_text(), "only (no report.md)")[5] == "4 of 5"
