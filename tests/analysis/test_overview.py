"""A results folder of made-up sweeps whose claims are known, beside unfinished and damaged ones."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from made_up_study import MadeUpStudy, choice, curve, number, whole_study
from scipy import stats

from analysis.by_method import Methods, methods, rank_correlation
from analysis.claims import BEAT, LOST, UNDECIDED, Verdict
from analysis.forest import forest, limits
from analysis.frame import read_study
from analysis.overview import family, rows, write_overview
from analysis.statistics import Estimate
from analysis.summary import UNFINISHED, UNREADABLE, Summary, summaries, sweep_folders
from kdtrain.errors import UserError
from kdtrain.storage.folder import append_row, write_bytes

Golden = Callable[[str, str], None]
SEARCH = {
    "kd": number("method[kd].temperature", "loguniform", 1.0, 20.0, method="kd"),
    "at": number("method[at].balance.weight", "loguniform", 100.0, 9000.0, method="at"),
    "sp": number("method[sp].weight", "loguniform", 1.0, 20.0, method="sp"),
}


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


@pytest.fixture(scope="module")
def found(several: Path) -> dict[str, Summary]:
    return {summary.name: summary for summary in summaries(sweep_folders(several))}


def row_of(results: Path, summary: Summary) -> list[str]:
    return list(rows(results, [summary])[0].values())


def of_method(all_methods: Methods, name: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of a method by sweep and hyperparameter."""
    table = next(method.rows for method in all_methods.found if method.name == name)
    return {(row["sweep"], row["hyperparameter"].strip("`")): dict(row) for row in table}


def test_all_sweeps(several: Path, golden: Golden) -> None:
    overview, problems = write_overview(several)
    golden("overview.md", overview.read_text())
    assert str(several) not in overview.read_text()
    paths = [problem.split(": ")[0] for problem in problems]
    assert paths == [str(several / path) for path in ("newer/study.json", "odd", "torn/study.json")]


def test_one_row_per_sweep_by_name_and_only_decided_claims_bold(several: Path, found: dict[str, Summary]) -> None:
    assert list(found) == ["begun", "even", "lost", "newer", "odd", "torn", "won"]
    won = row_of(several, found["won"])
    assert won[:4] == ["[won](won/report.md)", "digits, 1 077 to train", "— → lenet5_student", "kd"]
    assert won[4].startswith("**+2.")
    assert won[5:7] == ["5", "**beat**"]
    assert row_of(several, found["lost"])[6] == "**lost to**"
    assert "**" not in "".join(row_of(several, found["even"]))
    begun = row_of(several, found["begun"])
    assert begun[4] == begun[5] == begun[7] == begun[8] == "—"
    names = {name: summary.verdict.name for name, summary in found.items()}
    assert names == {
        "won": BEAT, "lost": LOST, "even": UNDECIDED, "begun": UNFINISHED,
        "newer": UNREADABLE, "odd": UNREADABLE, "torn": UNREADABLE,
    }  # fmt: skip


def test_the_difference_and_p_are_scipys_paired_t_test(several: Path, found: dict[str, Summary]) -> None:
    confirm = read_study(several / "even").stage("confirm")
    tests = {key: group["test/accuracy"].to_numpy() for key, group in confirm.groupby("candidate")}
    gaps = 100 * (tests["best 1"] - tests["baseline 1"])
    low, high = stats.t.interval(0.95, 4, loc=gaps.mean(), scale=stats.sem(gaps))
    row = row_of(several, found["even"])
    assert row[4] == f"{gaps.mean():+.2f} [{low:+.2f} to {high:+.2f}]"
    assert float(row[7]) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=5e-5)


def test_holm_corrects_over_the_finished_sweeps(found: dict[str, Summary]) -> None:
    p_values = sorted(found[name].p for name in ("won", "lost", "even"))  # type: ignore[type-var]
    first = 3 * p_values[0]  # type: ignore[operator]
    second = max(first, 2 * p_values[1])  # type: ignore[operator]
    expected = [first, second, max(second, p_values[2])]
    assert sorted(found[name].p_holm for name in ("won", "lost", "even")) == pytest.approx(expected)  # type: ignore[type-var]
    assert found["begun"].p_holm is found["newer"].p_holm is None
    counts = family(list(found.values()))
    assert (counts.claims, counts.with_p, counts.decided, counts.significant) == (3, 3, 2, 2)


def test_an_unfinished_sweep_with_a_difference_has_no_p(tmp_path: Path) -> None:
    made = whole_study(tmp_path, gain=0.05)
    made.plan("search", 40)  # more trials were added
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


def test_two_builds_are_equal_byte_for_byte_from_every_working_directory(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(results: Path) -> list[bytes]:
        write_overview(results)
        return [(several / name).read_bytes() for name in ("overview.md", "forest.png")]

    first = built(several)
    monkeypatch.chdir(several)
    assert built(Path()) == first


def test_a_method_has_its_hyperparameters_over_all_sweeps(several: Path, found: dict[str, Summary]) -> None:
    all_methods = methods(list(found.values()))
    of_kd = of_method(all_methods, "kd")
    assert [sweep for sweep, _ in of_kd] == [name for name in ("begun", "even", "lost", "won") for _ in range(3)]
    assert [(note.sweep, note.branch.complete) for note in all_methods.found[0].notes] == [("begun", 1)]
    lr = of_kd["won", "optimizer.lr"]
    assert (lr["searched"], lr["of"], lr["n"]) == ("0.01 to 0.3 (log)", "winner", "20")
    assert float(lr["importance"]) > 0.3  # made to matter

    study = read_study(several / "won")
    search = study.stage("search")
    temperature = of_kd["won", "method.temperature"]
    confirmed = study.values.loc[study.stage("confirm").index[0], "method.temperature"]
    assert temperature["best value"] == f"{confirmed:.4g}"
    assert temperature["published"] == f"{study.values.loc[search.index[0], 'method.temperature']:.4g}"
    complete = search[search["state"] == "complete"]
    values = study.values.loc[complete.index, "method.temperature"].astype(float)
    ranks = pd.DataFrame({"x": values.rank(), "y": complete["val/accuracy"].rank()})
    assert temperature["association"] == f"rho = {ranks.corr().loc['x', 'y']:+.2f}"  # Pearson's of the ranks


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
    row = of_method(methods(summaries([made.folder])), "kd")["nll", "method.temperature"]
    assert [row[name] for name in ("best value", "of", "association", "n")] == ["5", "trial 4", "rho = +1.00", "5"]


def branching(results: Path) -> MadeUpStudy:
    """Search over two methods and a choice, kd is better; no trial of `sp`."""
    parameters = (choice("method", *SEARCH), *SEARCH.values(), choice("student.freeze", "none", "encoder"))
    made = MadeUpStudy(results / "both", parameters=parameters, prefix="both")
    for i in range(6):
        label = ("kd", "at")[i % 2]
        values = {"method": label, SEARCH[label]["name"]: 200.0 - i, "student.freeze": ("none", "encoder")[i // 5]}
        accuracy = (0.8, 0.6)[i % 2] + 0.01 * i
        made.trial("search", i, [accuracy], values=values, recipe={"method": {"name": label}}, published=i == 1)
    return made


def test_methods_searched_in_one_sweep_have_a_table_each(tmp_path: Path) -> None:
    all_methods = methods(summaries([branching(tmp_path).folder]))
    of_at, of_kd = of_method(all_methods, "at"), of_method(all_methods, "kd")
    weight = of_at["both", "method[at].balance.weight"]
    assert list(weight.values())[2:6] == ["100 to 9000 (log)", "195", "trial 5", "199"]
    assert ("both", "method[kd].temperature") not in of_at
    assert of_at["both", "student.freeze"]["association"] == "none 62.00 % (2), encoder 65.00 % (1)"
    assert of_kd["both", "student.freeze"]["association"] == "none 82.00 % (3), encoder — (0)"
    assert [(note.sweep, note.branch.title) for note in all_methods.unreached] == [("both", "method = sp")]


def test_one_sweep_without_a_difference_has_no_forest_and_an_old_one_is_removed(tmp_path: Path, golden: Golden) -> None:
    branching(tmp_path)
    (tmp_path / "forest.png").write_bytes(b"of an earlier overview")
    golden("overview_branching.md", write_overview(tmp_path)[0].read_text())
    assert not (tmp_path / "forest.png").exists()


def claims(n: int) -> list[Summary]:
    return [Summary(f"sweep_{i:02d}", Verdict(BEAT), difference=Estimate(0.01 + 0.001 * i, 0.005, 5)) for i in range(n)]


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
    huge = Summary("two", Verdict(UNDECIDED, "2 seeds are too few"), difference=Estimate(-0.03, 0.9, 2))
    low, high = limits([*claims(5), huge])
    assert -12 < low < -3
    assert 1.9 < high < 12
    assert limits(claims(1))[0] < 0


def test_an_open_marker_is_for_what_has_no_interval_and_what_is_unfinished() -> None:
    def faces(*found: Summary) -> Iterator[list[float]]:
        figure = forest(found)
        assert figure is not None
        return (list(points.get_facecolor()[0][:3]) for points in figure.axes[0].collections)

    bare = Summary("bare", Verdict(UNDECIDED, "1 seed is too few"), difference=Estimate(0.01, None, 1))
    begun = Summary("begun", Verdict(UNFINISHED, "search 1 of 2 ended"), difference=Estimate(0.01, 0.005, 5))
    assert list(faces(bare, begun)) == [[1, 1, 1], [1, 1, 1]]
    assert list(faces(*claims(1))) != [[1, 1, 1]]


def test_a_lost_confirming_run_shows_in_n_and_one_claim_is_not_corrected(tmp_path: Path, golden: Golden) -> None:
    made = whole_study(tmp_path, name="only", searched=6)
    made.change_outcome("confirm0002", test=None)
    summary = summaries([made.folder])[0]
    assert row_of(tmp_path, summary)[5] == "4 of 5"
    assert summary.p == summary.p_holm is not None
    golden("overview_one.md", write_overview(tmp_path)[0].read_text())
