"""What a search begins with: the methods' defaults (`start_from`), and trials of earlier sweeps (`warm_start`)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from studies import TREE, carry_out, decisions, events, open_study, plans, rewrite, sweep_file

from analysis.report import write_report
from kdtrain.config.sweep import load_sweep
from kdtrain.errors import UserError
from kdtrain.study.search import Search
from kdtrain.study.study import Study
from kdtrain.study.warm_start import check_warm_start

WIDER = {"method": {**TREE["recipe"]["method"], "temperature": {"loguniform": [1, 20]}}}
"""The space of TREE with a parameter more, which that has fixed to 4."""
LEARNING = {"published": None, "sampler": {"name": "tpe", "startup_trials": 1}}


@pytest.fixture(scope="module")
def warm(finished: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("warm")
    study = warm_study(folder, finished)
    carry_out(study)
    return study


def warm_study(folder: Path, finished: Study, recipe: Any = None, **study: Any) -> Study:
    settings = {**LEARNING, "warm_start": [str(finished.journal.folder)], **study}
    return open_study(sweep_file(folder, name="warm", recipe=recipe or WIDER, study=settings), folder / "results")


def history(study: Study) -> list[dict[str, Any]]:
    (event,) = [row for row in events(study) if row["event"] == "warm_start"]
    return [row for row in event["trials"] if row["stage"] == "search"]


# The methods' defaults


def test_a_search_tries_the_published_points_then_the_methods_defaults(tmp_path: Path) -> None:
    study = open_study(sweep_file(tmp_path, study={"start_from": "defaults", "trials": 4}), tmp_path / "results")
    carry_out(study)
    values = [row["values"] for row in plans(study, "search")]
    assert values[:2] == [study.sweep.published[0], study.sweep.defaults[0]]
    assert [row["published"] for row in plans(study, "search")] == [True, False, False, False]
    assert [row["values"] for row in plans(study, "baselines")][:2] == list(study.baselines.sweep.first_points)


def test_a_methods_default_counts_as_a_trial_of_its_option(tmp_path: Path) -> None:
    methods = [WIDER["method"], {"name": "dist", "balance": {"weight": {"loguniform": [0.1, 100]}}}]
    file = sweep_file(
        tmp_path,
        recipe={"method": {"choice": methods}},
        study={"published": None, "start_from": "defaults", "trials": 8},
    )
    search = Search("search", load_sweep(file))
    for number in range(8):
        search.plan(number, search.suggest(number))
    assert [search.planned[number]["method"] for number in range(8)] == ["kd", "dist"] * 4


# Trials of earlier sweeps


def test_the_complete_trials_of_another_sweep_enter_the_history_at_their_points(finished: Study, warm: Study) -> None:
    ends, own = finished.journal.ends("search"), {row["number"]: row for row in plans(finished, "search")}
    expected = [
        {"stage": "search", "number": number, "value": end["value"],
         "values": {**own[number]["values"], "method.temperature": 4.0}}
        for number, end in sorted(ends.items()) if end["state"] == "complete"
    ]  # fmt: skip
    assert history(warm) == expected
    assert len(expected) > 1
    (event,) = [row for row in events(warm) if row["event"] == "warm_start"]
    complete = [end for end in finished.journal.ends("baselines").values() if end["state"] == "complete"]
    assert sum(row["stage"] == "baselines" for row in event["trials"]) == len(complete)


def test_a_tradeoff_learns_from_another_sweep_with_the_cost_of_each_student(finished: Study, tmp_path: Path) -> None:
    models = {"student": {"model": {"choice": ["lenet5_student", "lenet5_teacher"]}}}
    study = warm_study(tmp_path, finished, models, tradeoff={"cost": "parameters"}, trials=2, pruner={"name": "none"})
    carry_out(study)
    seen = study.search._suggestions[None].finished.trials[: len(history(study))]
    assert [trial.values for trial in seen] == [[row["value"], 11604.0] for row in history(study)]


def test_suggestions_depend_on_the_history_and_no_ranking_does(finished: Study, warm: Study, tmp_path: Path) -> None:
    cold = open_study(sweep_file(tmp_path, name="warm", recipe=WIDER, study=LEARNING), tmp_path / "results")
    search = Search("search", warm.sweep)
    search.add_history([(row["values"], row["value"]) for row in history(warm)])
    first = plans(warm, "search")[0]["values"]
    assert search.suggest(0) == first != cold.search.suggest(0)
    assert set(warm.search.values) <= set(range(6))
    racing = {row["candidate"] for row in plans(warm, "select") if row["race"] == "search"}
    assert racing <= {f"search {number}" for number in range(6)}


def test_a_continued_study_does_not_read_the_other_folder_again(finished: Study, warm: Study, tmp_path: Path) -> None:
    """Killed in the search, it goes on as the undisturbed one although the other sweep is gone."""
    other = tmp_path / "small"
    shutil.copytree(finished.journal.folder, other)
    settings = {**LEARNING, "warm_start": [str(other)]}
    file = sweep_file(tmp_path, name="warm", recipe=WIDER, study=settings)
    carry_out(open_study(file, tmp_path / "results"), jobs=12)
    shutil.rmtree(other)
    continued = open_study(file, tmp_path / "results")
    carry_out(continued)
    assert decisions(continued) == decisions(warm)
    assert len([row for row in events(continued) if row["event"] == "warm_start"]) == 1


def test_the_report_says_how_many_trials_the_sampler_was_shown(warm: Study) -> None:
    text = " ".join(write_report(warm.journal.folder).read_text().split())
    assert f"the sampler was shown {len(history(warm))} complete trials of " in text


def test_a_weight_that_is_spelled_in_another_way_is_translated(finished: Study, tmp_path: Path) -> None:
    method = {"name": "kd", "balance": {"alpha": {"uniform": [0, 1]}}, "temperature": 4.0}
    study = warm_study(tmp_path, finished, {"method": method})
    study.begin()
    before = {row["number"]: row["values"]["method.balance.alpha_ce"] for row in plans(finished, "search")}
    for row in history(study):
        assert row["values"]["method.balance.alpha"] == pytest.approx(1 - before[row["number"]])


def edited(finished: Study, folder: Path, **study: Any) -> Path:
    """A copy of a finished study with other settings in its study.json."""
    shutil.copytree(finished.journal.folder, folder)
    record = json.loads((folder / "study.json").read_text())
    rewrite(folder / "study.json", study=record["study"] | study)
    return folder


def test_a_warm_start_that_cannot_be_used_is_refused_with_its_line(finished: Study, tmp_path: Path) -> None:
    unfinished = edited(finished, tmp_path / "unfinished") / "record.jsonl"
    lines = unfinished.read_text().splitlines(keepends=True)
    unfinished.write_text("".join(line for line in lines if '"finished"' not in line))
    fixed = {"method": {**TREE["recipe"]["method"], "balance": {"alpha_ce": 0.5}}}
    others = {"optimizer": {"name": "adam", "lr": 0.01}, "method": {**WIDER["method"], "balance": {"alpha_ce": 0.5}}}
    far = {"optimizer": {"name": "adam", "lr": {"loguniform": [10, 100]}}, **fixed}
    whole = str(finished.journal.folder)
    for name, recipe, folder, rule in (
        ("absent", {}, str(tmp_path / "absent"), "is no folder of a sweep's results"),
        ("unfinished", {}, str(unfinished.parent), "has not finished"),
        ("loss", {}, str(edited(finished, tmp_path / "nll", objective="val/nll")), "has the objective val/nll"),
        ("others", others, whole, "shares no searched parameter: .* this study method.temperature"),
        ("file", {}, str(finished.journal.path), "is no folder of a sweep's results"),
        ("url", {}, "s3://bucket/other", "must be a folder of this machine, got the URL"),
        ("nobody", {}, "~nobody-here/other", "is no path"),
        ("far", far, whole, "has no complete trial whose parameters all have a value in this space"),
    ):
        study = {"published": None, "warm_start": [folder]}
        sweep = load_sweep(sweep_file(tmp_path, name=name, recipe=recipe, study=study))
        if name == "absent":
            assert "is not there" in check_warm_start(sweep)[0], "a check takes it for one that may come later"
        else:
            with pytest.raises(UserError, match=rf"{name}\.yaml:\d+: study\.warm_start\.0: .*{rule}"):
                check_warm_start(sweep)
        opened = open_study(tmp_path / f"{name}.yaml", tmp_path / "results")
        with pytest.raises(UserError, match=rf"{name}\.yaml:\d+: study\.warm_start\.0: .*{rule}"):
            opened.begin()
