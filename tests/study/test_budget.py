"""`study.budget` on real trainings of a few dozen digits, and the account of what a study spends."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from studies import TREE, carry_out, decisions, events, open_study, plans, sweep_file

from analysis.frame import read_study
from analysis.report import write_report
from kdtrain.config.budget_checks import most_confirmed
from kdtrain.config.study_settings import Budget
from kdtrain.config.sweep import load_sweep
from kdtrain.errors import NoResult, UserError
from kdtrain.study.budget import STAGES, Account, wall_seconds
from kdtrain.study.cost import trainings
from kdtrain.study.jobs import Job
from kdtrain.study.journal import StudyJournal
from kdtrain.study.study import Study

EPOCHS = TREE["recipe"]["epochs"]
HOUR_S = 3600.0


def spent(study: Study) -> dict[str, int]:
    """The epochs of all trials, by stage."""
    ends = {(row["stage"], row["number"]): row["epochs"] for row in events(study) if row["event"] == "ended"}
    return {stage: sum(epochs for (own, _), epochs in ends.items() if own == stage) for stage in STAGES}


def budget_ends(study: Study) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in events(study) if row["event"] == "budget_end"}


def within(folder: Path, budget: dict[str, Any], **study: Any) -> Study:
    """A study that only a budget limits."""
    file = sweep_file(folder, study={"trials": None, "budget": budget, **study})
    return open_study(file, folder / "results")


class Clock:
    """A clock that each epoch of a study moves on by so many hours."""

    def __init__(self, study: Study, hours: float) -> None:
        assert study.account is not None
        self.time, self.step = study.account.now(), hours * HOUR_S
        study.account.now = lambda: self.time
        prune = study.should_prune

        def moved_on(job: Job, epoch: int) -> bool:
            self.time += self.step
            return prune(job, epoch)

        study.should_prune = moved_on  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def by_epochs(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = within(tmp_path_factory.mktemp("epochs"), {"epochs": 100})
    carry_out(study)
    return study


def test_a_budget_of_epochs_is_never_exceeded_and_cuts_no_trial(by_epochs: Study) -> None:
    own = spent(by_epochs)
    assert own["baselines"] + own["search"] <= 60
    assert own["baselines"] + own["search"] > 60 - 4 * EPOCHS, "one batch of each would have fitted"
    assert sum(own.values()) <= 100
    reasons = [str(row["reason"]) for row in events(by_epochs) if row["event"] == "ended"]
    assert not any("budget" in reason for reason in reasons)
    assert events(by_epochs)[-1]["event"] == "finished"


def test_baselines_and_search_take_their_batches_in_turn_and_get_equal_numbers_of_trials(by_epochs: Study) -> None:
    planned = [row["stage"] for row in events(by_epochs) if row["event"] == "planned" and row["stage"] in STAGES[:2]]
    batches = [(stage, len(list(rows))) for stage, rows in itertools.groupby(planned)]
    assert batches == [("baselines", 2), ("search", 2)] * (len(planned) // 4)
    assert budget_ends(by_epochs)["search"]["number"] == len(plans(by_epochs, "search")) > 4


def test_what_a_stage_leaves_over_passes_on_to_the_next(by_epochs: Study) -> None:
    """All that may be spent at the end of select is 80 %, whatever the searches have spent."""
    own = spent(by_epochs)
    before_confirm = own["baselines"] + own["search"] + own["select"]
    assert before_confirm <= 80
    assert len({row["seed"] for row in plans(by_epochs, "confirm")}) == TREE["study"]["confirm"]["seeds"]


@pytest.mark.parametrize(("jobs", "cut_at_epoch"), [(6, 2), (17, None), (24, 1)])
def test_a_killed_study_within_a_budget_of_epochs_decides_as_the_undisturbed_one(
    by_epochs: Study, tmp_path: Path, jobs: int, cut_at_epoch: int | None
) -> None:
    carry_out(within(tmp_path, {"epochs": 100}), jobs=jobs, cut_at_epoch=cut_at_epoch)
    continued = within(tmp_path, {"epochs": 100})
    carry_out(continued)
    assert decisions(continued) == decisions(by_epochs)
    ends = [{**row, "time": 0} for study in (continued, by_epochs) for row in budget_ends(study).values()]
    assert ends[: len(ends) // 2] == ends[len(ends) // 2 :]


def test_a_budget_may_end_the_confirming_seeds(tmp_path: Path) -> None:
    study = within(tmp_path, {"epochs": 100}, confirm={"seeds": 9})
    carry_out(study)
    seeds = [row["seed"] for row in plans(study, "confirm")]
    assert 3 <= len(set(seeds)) < 9
    assert len({seeds.count(seed) for seed in seeds}) == 1, "each seed trains every confirmed recipe"
    assert budget_ends(study)["confirm"]["number"] == len(set(seeds))
    assert sum(spent(study).values()) <= 100


def test_trials_and_a_budget_limit_a_search_together(tmp_path: Path) -> None:
    study = within(tmp_path, {"epochs": 1000}, trials=4)
    carry_out(study)
    assert len(plans(study, "search")) == len(plans(study, "baselines")) == 4
    assert budget_ends(study) == {}


@pytest.fixture(scope="module")
def by_hours(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = within(tmp_path_factory.mktemp("hours"), {"hours": 3.2}, pruner=None, batch=3)
    Clock(study, 0.1)
    carry_out(study)
    return study


def test_at_the_end_of_a_share_of_hours_the_running_trials_end_after_their_next_epoch(by_hours: Study) -> None:
    study = by_hours
    ends = {stage: study.journal.ends(stage) for stage in STAGES}
    # 2 epochs of the teacher, 4 trials of 4 epochs; the share of 1.92 hours ends in the first batch of the search
    cut = [(key, end["epochs"], end["reason"]) for key, end in ends["search"].items() if end["state"] == "pruned"]
    assert cut == [(1, 2, "stopped by study.budget after epoch 2"), (2, 1, "stopped by study.budget after epoch 1")]
    assert [end["state"] for end in ends["baselines"].values()] == ["complete"] * 3
    assert ends["search"][0]["state"] == "complete"
    candidates = {row["candidate"] for row in plans(study, "confirm")}
    assert candidates >= {"published 1"}, "a trial that was cut does not compete"
    assert len({row["seed"] for row in plans(study, "confirm")}) == 1, "the first seed is always trained"


def test_a_killed_study_within_hours_keeps_what_was_decided(by_hours: Study) -> None:
    before = decisions(by_hours)
    continued = Study(by_hours.sweep, by_hours.workspace, StudyJournal(by_hours.journal.folder))
    Clock(continued, 0.0)  # now there would be time for more
    assert {job.kind for job in carry_out(continued)} <= {"smoke", "pictures"}
    assert decisions(continued) == before


def test_without_time_for_a_first_batch_there_is_no_result(tmp_path: Path) -> None:
    study = within(tmp_path, {"hours": 1})
    Clock(study, 0.4)  # the teacher has two epochs
    with pytest.raises(NoResult, match=r"study\.budget has ended before the first batch"):
        carry_out(study)


def test_a_budget_that_cuts_every_trial_asks_for_a_larger_one(tmp_path: Path) -> None:
    study = within(tmp_path, {"hours": 0.5}, pruner=None, published=None)
    Clock(study, 0.1)
    with pytest.raises(
        NoResult, match=r"baselines: none of 2 trials completed: 2 pruned .*; write a larger study\.budget"
    ):
        carry_out(study)


def test_gpu_hours_are_refused_without_a_gpu(tmp_path: Path) -> None:
    study = within(tmp_path, {"gpu_hours": 1})
    study.on_gpu = False
    with pytest.raises(UserError, match=r"small\.yaml:\d+: study\.budget\.gpu_hours: .* on the CPU; write hours"):
        study.begin()


def test_the_stage_baselines_ends_with_the_search_if_there_is_a_budget(by_epochs: Study, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, study={"trials": None, "budget": {"epochs": 100}})
    study = Study(load_sweep(file), by_epochs.workspace, by_epochs.journal, "search")
    assert carry_out(study) == [], "all has ended"


def test_the_budget_of_a_study_cannot_change(by_epochs: Study, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, study={"trials": None, "budget": {"epochs": 200}})
    with pytest.raises(UserError, match=r"study\.budget\.epochs was 100, is 200"):
        open_study(file, by_epochs.workspace.store.results)


# The report


def report_of(study: Study) -> str:
    return " ".join(write_report(study.journal.folder).read_text().split())


def test_the_report_says_where_a_budget_has_ended_a_stage(by_epochs: Study) -> None:
    text = report_of(by_epochs)
    number = len(plans(by_epochs, "search"))
    assert "Budget: 100 epochs, of which 60 % are for baselines and search" in text
    assert f"It ended the searches after {number} trials of each." in text
    assert f"{number} trials suggested by `tpe`" in text
    assert "confirming seeds." not in text.partition("- Budget")[2].partition(" - ")[0]
    assert "is repeatable, byte for byte" in text


def test_the_report_says_that_a_budget_of_time_is_not_repeatable_and_how_many_seeds_it_allowed(by_hours: Study) -> None:
    text = report_of(by_hours)
    assert "Budget: 3.2 hours, of which" in text
    assert "It allowed 1 of 2 confirming seeds. How much is done in a time differs from run to run" in text
    assert "byte for byte" not in text
    assert read_study(by_hours.journal.folder).finished


def test_confirm_has_epochs_for_a_whole_front_and_its_baselines(tmp_path: Path) -> None:
    students = {"choice": [{"model": "lenet5_student"}, {"model": "lenet5_teacher"}]}
    study = {"tradeoff": {"cost": "parameters"}, "published": None, "select": {"candidates": 2}, "pruner": None}
    recipe = {"student": students, "method": {"name": "logit_mse", "balance": {"alpha": 0.5}}}
    file = sweep_file(tmp_path, recipe=recipe, study={**study, "trials": None, "budget": {"epochs": 1000}})
    sweep = load_sweep(file)
    assert most_confirmed(sweep.study, sweep.tree) * sweep.study.confirm.seeds == trainings(sweep)["confirm"] == 4 * 2


# The account


def job(number: int, stage: str = "search", epochs: int = 10) -> Any:
    recipe = type("Recipe", (), {"epochs": epochs})
    return type("Job", (), {"stage": stage, "recipe": recipe, "key": f"{stage}-{number}"})


def test_running_trainings_count_with_all_their_epochs() -> None:
    account = Account(Budget(epochs=100), 0)
    account.begin(job(0))
    account.begin(job(1, "teacher"))
    assert account.fits("search", 50)
    assert not account.fits("search", 51)
    account.end(job(0), 4, None)
    account.end(job(1, "teacher"), 10, None)
    assert account.fits("search", 56)
    assert not account.fits("search", 57)
    assert account.spent == 4


@pytest.mark.parametrize(("kept", "ends"), [(0, (60, 80, 100)), (30, (60, 70, 100)), (70, (60, 60, 100))])
def test_select_gives_up_its_share_for_three_confirming_seeds(kept: int, ends: tuple[float, ...]) -> None:
    account = Account(Budget(epochs=100), kept)
    assert tuple(account.share_end(stage) for stage in ("search", "select", "confirm")) == ends


def test_gpu_hours_are_the_seconds_that_the_study_has_trained_itself() -> None:
    account = Account(Budget(gpu_hours=10), 0)
    account.begin(job(0))
    account.measure(job(0), 1800)
    assert account.spent == 0.5
    account.end(job(0), 10, 2 * HOUR_S)
    account.end(job(1), 10, None)  # trained by another study
    account.end(job(2, "teacher"), 5, HOUR_S)
    assert account.spent == 3
    assert account.fits("search", 15), "an epoch takes 0.2 hours"
    assert not account.fits("search", 16)


def test_hours_sum_over_the_starts_of_a_study() -> None:
    times = [("opened", 0.0), ("planned", 1.0), ("ended", 3.0), ("opened", 10.0), ("placed", 11.0), ("opened", 20.0)]
    rows = [{"event": event, "time": time * HOUR_S, "stage": "search", "number": 0} for event, time in times]
    rows[2] |= {"epochs": 10, "seconds": 1.0}
    assert wall_seconds(rows) == 4 * HOUR_S
    account = Account(Budget(hours=10), 0, rows, lambda: 21 * HOUR_S)
    assert account.spent == 5
    assert account.fits("search", 2), "ten epochs have taken the four hours since the first training"
    assert not account.fits("search", 3)
