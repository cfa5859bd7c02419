"""A results folder of made-up sweeps whose claims are known, beside unfinished and damaged ones."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_up_study import MadeUpStudy, choice, curve, number, whole_study

from analysis.by_method import rank_correlation
from analysis.claims import BEAT, UNDECIDED, Verdict
from analysis.forest import forest, limits
from analysis.overview import write_overview
from analysis.statistics import Estimate
from analysis.summary import UNFINISHED, UNREADABLE, Summary, summaries, sweep_folders
from kdtrain.errors import UserError
from kdtrain.storage.folder import append_row, write_bytes

Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """won, lost, even: whole studies; begun: unfinished; newer, torn, odd: unreadable. Tests only read it."""
    results = tmp_path_factory.mktemp("several") / "results"
    for name, gain in (("won", 0.02), ("lost", -0.02), ("even", 0.001)):
        made = whole_study(results, name=name, gain=gain, searched=24, prefix=name)
        made.describe(report={"published": "mnist" if name == "won" else "cifar10"})
    (results / "won" / "report.md").write_text("its report")
    begun = MadeUpStudy(results / "begun", prefix="begun")
    values = {"method.temperature": 4.0, "method.balance.alpha_ce": 0.5, "optimizer.lr": 0.1}
    begun.trial("search", 0, curve(0.9, 3, 0), values=values, recipe={"method": {"name": "kd"}})
    begun.plan("search", 1, values={"optimizer.lr": 0.2})
    write_bytes(results / "newer" / "study.json", b'{"schema": 99}')
    odd = MadeUpStudy(results / "odd")
    append_row(odd.folder / "record.jsonl", {"no": "event"})
    (results / "torn").mkdir()
    (results / "torn" / "study.json").write_text('{"schema": 1, "na')
    (results / "notes").mkdir()  # no sweep
    return results


def test_an_unfinished_sweep_with_a_difference_has_no_p(tmp_path: Path) -> None:
    made = whole_study(tmp_path, gain=0.05, searched=6)
    made.describe(study=made.description["study"] | {"trials": 7})  # one was added
    made.plan("search", 6)
    summary = summaries([made.folder])[0]
    assert summary.difference is not None
    assert (summary.verdict.name, summary.decided, summary.p) == (UNFINISHED, False, None)


def test_a_folder_with_a_record_and_no_study_json_is_a_damaged_sweep(tmp_path: Path) -> None:
    made = MadeUpStudy(tmp_path / "headless")
    (made.folder / "study.json").unlink()
    summary = summaries(sweep_folders(tmp_path))[0]
    assert (summary.name, summary.verdict.name) == ("headless", UNREADABLE)
    assert "study.json" in summary.verdict.reason


def test_a_folder_without_sweeps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}: "):
        write_overview(tmp_path)
    assert not list(tmp_path.iterdir())


def test_below_five_trials_or_without_change_there_is_no_correlation() -> None:
    rising = pd.Series([1.0, 2.0, 3.0, 4.0, 5.0])
    assert rank_correlation(rising, rising**2) == pytest.approx(1.0)
    assert rank_correlation(rising[:4], rising[:4]) is None
    assert rank_correlation(rising * 0, rising) is None
    assert rank_correlation(rising, rising * 0) is None


def claims(n: int) -> list[Summary]:
    return [Summary(f"sweep_{i:02d}", Verdict(BEAT), difference=Estimate(0.01 + 0.001 * i, 0.005, 5)) for i in range(n)]


def test_the_forest_holds_zero_and_every_mean_and_does_not_follow_one_huge_interval() -> None:
    huge = Summary("two", Verdict(UNDECIDED, "2 seeds are too few"), difference=Estimate(-0.03, 0.9, 2))
    low, high = limits([*claims(5), huge])
    assert -12 < low < -3
    assert 1.9 < high < 12
    assert limits(claims(1))[0] < 0


def test_all_sweeps_and_the_same_text_from_every_working_directory(
    several: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    overview, problems = write_overview(several)
    golden("overview.md", overview.read_text())
    assert str(several) not in overview.read_text()
    paths = [problem.split(": ")[0] for problem in problems]
    assert paths == [str(several / path) for path in ("newer/study.json", "odd/record.jsonl", "torn/study.json")]
    monkeypatch.chdir(several)
    golden("overview.md", write_overview(Path())[0].read_text())


def test_a_lost_confirming_run_shows_in_n_and_one_claim_is_not_corrected(tmp_path: Path, golden: Golden) -> None:
    made = whole_study(tmp_path, name="only", searched=6)
    made.change_outcome("confirm0002", test=None)
    golden("overview_one.md", write_overview(tmp_path)[0].read_text())


def test_methods_of_one_sweep_have_a_table_each_and_an_old_forest_is_removed(tmp_path: Path, golden: Golden) -> None:
    """Search over methods and a choice: kd is better, `sp` has no trial, and there is no difference to draw."""
    search = {
        "kd": number("method[kd].temperature", "loguniform", 1.0, 20.0, method="kd"),
        "at": number("method[at].balance.weight", "loguniform", 100.0, 9000.0, method="at"),
        "sp": number("method[sp].weight", "loguniform", 1.0, 20.0, method="sp"),
    }
    parameters = (choice("method", *search), *search.values(), choice("student.freeze", "none", "encoder"))
    made = MadeUpStudy(tmp_path / "both", parameters=parameters, prefix="both")
    for i in range(6):
        label = ("kd", "at")[i % 2]
        values = {"method": label, search[label]["name"]: 200.0 - i, "student.freeze": ("none", "encoder")[i // 5]}
        accuracy = (0.8, 0.6)[i % 2] + 0.01 * i
        made.trial("search", i, [accuracy], values=values, recipe={"method": {"name": label}}, published=i == 1)
    (tmp_path / "forest.png").write_bytes(b"of an earlier overview")
    golden("overview_branching.md", write_overview(tmp_path)[0].read_text())
    assert not (tmp_path / "forest.png").exists()


def test_with_nll_as_objective_plus_still_means_that_larger_values_did_better(tmp_path: Path) -> None:
    made = MadeUpStudy(tmp_path / "nll", objective="val/nll", trials=5)
    for i in range(5):
        values = {"method.temperature": 1.0 + i, "method.balance.alpha_ce": 0.5, "optimizer.lr": 0.1}
        made.trial("search", i, [0.5], nlls=[2.0 - 0.1 * i], values=values, recipe={"method": {"name": "kd"}})
    text = write_overview(tmp_path)[0].read_text()
    assert "| nll | `method.temperature` | 1 to 20 (log) | 5 | trial 4 | — | — | rho = +1.00 | 5 |" in text


def test_the_forest_grows_by_a_row_a_sweep_and_names_each() -> None:
    heights = {}
    for n in (1, 2, 30):
        figure = forest(claims(n))
        assert figure is not None
        heights[n] = figure.get_size_inches()[1]
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [c.name for c in claims(n)]
        assert figure.axes[1].get_yticklabels()[0].get_text() == "+1.00 [+0.50 to +1.50], n = 5\nbeat"
    assert heights[30] - heights[1] == pytest.approx(29 * (heights[2] - heights[1]))


def test_an_open_marker_is_for_what_has_no_interval_and_what_is_unfinished() -> None:
    bare = Summary("bare", Verdict(UNDECIDED, "1 seed is too few"), difference=Estimate(0.01, None, 1))
    begun = Summary("begun", Verdict(UNFINISHED, "search 1 of 2 ended"), difference=Estimate(0.01, 0.005, 5))
    figure = forest([bare, begun, *claims(1)])
    assert figure is not None
    white = [list(points.get_facecolor()[0][:3]) == [1, 1, 1] for points in figure.axes[0].collections]
    assert white == [True, True, False]
