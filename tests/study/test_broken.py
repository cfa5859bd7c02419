"""What breaks is no result of its recipe: it leaves its traceback, is tried again, and changes no other trial."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import TREE, decisions, events, open_study, plans, sweep_file, with_trials_of

from analysis.claims import candidates, find
from analysis.frame import read_study
from kdtrain.errors import NoResult, UserError
from kdtrain.executors import local
from kdtrain.storage.mirror import results_folder
from kdtrain.study.confirm import FIRST_CONFIRMING_SEED, TESTED_TOGETHER
from kdtrain.study.jobs import Broken, Job
from kdtrain.study.journal import StudyJournal
from kdtrain.study.search import Search
from kdtrain.study.study import Study
from kdtrain.training import loop
from kdtrain.training.state import TrainState
from kdtrain.trials.records import JobEnd
from kdtrain.trials.store import is_broken

Fault = Callable[[TrainState], bool]
SMALL = {"trials": 2, "confirm": {"seeds": 2}, "pruner": None}


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], Counter[int]]:
    """Make a real training raise where `when` is true of it; return the number of its steps by epoch, from 1."""
    train_step = loop.train_step
    held: list[Fault] = []

    def faulty(state: TrainState, *arguments: Any) -> Any:
        if held[-1](state):
            raise RuntimeError(f"the device was lost in epoch {state.epoch + 1}")
        return train_step(state, *arguments)

    def begin(when: Fault) -> Counter[int]:
        steps: Counter[int] = Counter()

        def counted(state: TrainState) -> bool:
            raises = when(state)
            steps[state.epoch + 1] += not raises and state.recipe.teacher is not None
            return raises

        held.append(counted)
        monkeypatch.setattr(loop, "train_step", faulty)
        return steps

    return begin


def of_published(state: TrainState) -> bool:
    """Return True in epoch 2 of the published point's distilled training in the search."""
    return state.recipe.teacher is not None and state.recipe.seed == 0 and state.epoch == 1


def end_of(study: Study, stage: str, number: int) -> JobEnd:
    return study.journal.ends(stage)[number]


def errors(study: Study) -> list[str]:
    return sorted(path.name for path in (study.journal.folder / "errors").glob("*"))


def search_is(study: Study, number: int) -> Fault:
    """Return a fault of one trial of the search, in epoch 2."""
    lr = plans(study, "search")[number]["values"]["optimizer.lr"]
    return lambda state: of_published(state) and state.recipe.optimizer.lr == lr


def without_trial_2(finished: Study, results: Path, file: Path) -> Study:
    """Open a study that has all trials of the finished one but number 2 of the search."""
    study = with_trials_of(finished, results, file)
    shutil.rmtree(study.workspace.store.trial(plans(finished, "search")[2]["trial_id"]).path)
    return study


def copied(finished: Study, tmp_path: Path, **options: Any) -> Study:
    """Open the finished study in a copy of its folder."""
    results = shutil.copytree(finished.workspace.store.results, tmp_path / "results")
    return open_study(sweep_file(tmp_path, **options), results)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_training_that_raises_is_broken_after_its_retries_and_trained_by_the_next_start(
    retries: int, finished: Study, fault: Callable[[Fault], Counter[int]], tmp_path: Path
) -> None:
    fault(search_is(finished, 2))
    file = sweep_file(tmp_path, resources={"retries": retries})
    study = without_trial_2(finished, tmp_path / "results", file)
    local.execute(study)
    attempts = [f"search-2-{attempt}.txt" for attempt in range(1, retries + 2)]
    assert errors(study) == attempts
    for name in attempts:
        text = (study.journal.folder / "errors" / name).read_text()
        assert text.startswith("Traceback (most recent call last)")
        assert "RuntimeError: the device was lost in epoch 2" in text
    end = end_of(study, "search", 2)
    assert (end["state"], end["value"], end["traceback"]) == ("broken", None, f"errors/{attempts[-1]}")
    assert end["reason"] == "RuntimeError: the device was lost in epoch 2"
    folder = study.workspace.store.trial(plans(study, "search")[2]["trial_id"])
    assert folder.outcome() is None
    assert len(folder.epochs()) == 1
    assert not (folder.path / "error.txt").exists()
    assert events(study)[-1]["event"] == "finished", "one broken trial does not stop a sweep"
    assert "search-2" in (study.broken_jobs() or "")

    fault(lambda state: False)
    again = open_study(file, tmp_path / "results")
    suggested = [row["values"] for row in plans(study, "search")]
    states = [end["state"] for number, end in sorted(again.journal.ends("search").items()) if number != 2]
    local.execute(again)
    assert [row["values"] for row in plans(again, "search")] == suggested, "suggestions drawn meanwhile stay"
    ends = dict(sorted(again.journal.ends("search").items()))
    assert ends.pop(2)["state"] in ("complete", "pruned")
    assert [end["state"] for end in ends.values()] == states, "and so do decisions"
    assert again.broken_jobs() is None
    assert errors(again) == attempts


def test_what_breaks_once_goes_on_from_its_checkpoint_and_changes_nothing(
    finished: Study, fault: Callable[[Fault], Counter[int]], tmp_path: Path
) -> None:
    broke: list[int] = []
    here = search_is(finished, 2)

    def once(state: TrainState) -> bool:
        raises = here(state) and not broke
        broke.extend([1] * raises)
        return raises

    fault(once)
    study = without_trial_2(finished, tmp_path / "results", sweep_file(tmp_path))
    local.execute(study)
    assert errors(study) == ["search-2-1.txt"]
    assert decisions(study) == decisions(finished)
    assert study.broken_jobs() is None


def test_a_broken_trial_is_absent_from_what_sampler_and_pruner_see(finished: Study, tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "val/accuracy": 0.5} for epoch in (1, 2)]

    def after_a_batch(*, second: str) -> Search:
        search = open_study(sweep_file(tmp_path, study={"batch": 4}), tmp_path / second).search
        for number in range(4):
            if number != 1 or second != "never planned":
                search.plan(number, finished.search.planned[number])
        for number in (0, 2, 3):
            search.tell(number, "complete", 0.5, rows)
        if second == "broken":
            search.pruned_at(1, rows)  # it had begun
            search.forget(1)
        elif second == "complete":
            search.tell(1, "complete", 0.9, [{**row, "val/accuracy": 0.9} for row in rows])
        return search

    broken, absent, complete = (after_a_batch(second=each) for each in ("broken", "never planned", "complete"))
    assert broken.suggest(4) == absent.suggest(4) != complete.suggest(4)
    for search in (broken, absent, complete):
        search.plan(4, finished.search.planned[4])
    worse = [{**row, "val/accuracy": 0.6} for row in rows]
    assert broken.pruned_at(4, worse) == absent.pruned_at(4, worse)
    assert 1 not in broken.planned


def test_a_broken_teacher_stops_the_sweep_with_its_traceback_and_is_trained_by_the_next_start(
    fault: Callable[[Fault], Counter[int]], tmp_path: Path
) -> None:
    fault(lambda state: state.recipe.student.model == "lenet5_teacher")
    file = sweep_file(tmp_path, study=SMALL, resources={"retries": 1})
    study = open_study(file, tmp_path / "results")
    with pytest.raises(NoResult) as raised:
        local.execute(study)
    (problem,) = raised.value.problems
    assert "training lenet5_teacher broke: RuntimeError: the device was lost" in problem
    assert str(study.journal.folder / "errors" / "teacher-0-2.txt") in problem
    assert "the same command tries again" in problem
    assert errors(study) == ["teacher-0-1.txt", "teacher-0-2.txt"]
    fault(lambda state: False)
    again = open_study(file, tmp_path / "results")
    local.execute(again)
    assert events(again)[-1]["event"] == "finished"


def test_a_preflight_check_that_raises_keeps_its_traceback_and_a_mistake_is_not_tried_again(
    fault: Callable[[Fault], Counter[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(local, "smoke", broken)
    study = open_study(sweep_file(tmp_path), tmp_path / "results")
    with pytest.raises(UserError, match=r"fails on its first batch: RuntimeError: no kernel \(traceback: .*smoke-0-3"):
        local.execute(study)
    assert errors(study) == ["smoke-0-1.txt", "smoke-0-2.txt", "smoke-0-3.txt"]

    def mistake(*_: object) -> None:
        raise UserError("recipe.data: too small")

    monkeypatch.setattr(local, "smoke", mistake)
    study = open_study(sweep_file(tmp_path), tmp_path / "other")
    with pytest.raises(UserError, match=r"small.yaml:\d+: recipe\.data: too small$"):
        local.execute(study)
    assert errors(study) == []
    assert study.journal.is_idle()


def test_a_broken_confirming_run_leaves_its_row_without_an_interval_until_it_is_repeated(
    finished: Study, fault: Callable[[Fault], Counter[int]], tmp_path: Path
) -> None:
    study, file = copied(finished, tmp_path), tmp_path / "small.yaml"
    first = plans(study, "confirm")[0]
    shutil.rmtree(study.workspace.store.trial(first["trial_id"]).path)
    fault(lambda state: state.recipe.seed == first["seed"])
    local.execute(study)
    assert end_of(study, "confirm", 0)["state"] == "broken"
    row = find(candidates(read_study(study.journal.folder)), first["candidate"])
    assert row is not None
    assert row.test is not None
    assert (row.test.n, row.test.interval, row.p) == (1, None, None)
    fault(lambda state: False)
    again = open_study(file, tmp_path / "results")
    local.execute(again)
    assert decisions(again)[: len(decisions(finished))] == decisions(finished)
    assert events(again)[-1]["event"] == "finished"


def test_the_test_split_is_read_in_several_jobs_once_even_if_one_of_them_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read_test, read, lost = local.read_test, [], [FIRST_CONFIRMING_SEED + 1]

    def counted(recipe: Any, workspace: Any) -> Any:
        if recipe.seed in lost and recipe.teacher is None:
            raise RuntimeError("the device was lost")
        before = workspace.trial(recipe).outcome()["test"]
        read.extend([workspace.trial_id(recipe)] if before is None else [])
        return read_test(recipe, workspace)

    monkeypatch.setattr(local, "read_test", counted)
    file = sweep_file(tmp_path, study=SMALL)
    study = open_study(file, tmp_path / "results")
    jobs: list[Job] = []
    with pytest.raises(NoResult, match=r"the test split was not read for all recipes: 1 broken \(RuntimeError: the"):
        run_all(study, jobs)
    first, *others = [job for job in jobs if job.kind == "test"]
    assert [recipe.student.model for recipe in first.trained] == ["lenet5_teacher"], "students read its outputs"
    assert all(len(job.trained) <= TESTED_TOGETHER for job in others)
    confirmed = {row["trial_id"] for stage in ("teacher", "confirm") for row in plans(study, stage)}
    assert len({job.key for job in others}) == -(-(len(confirmed) - 1) // TESTED_TOGETHER) > 1
    assert 0 < len(read) < len(confirmed)
    lost.clear()
    again = open_study(file, tmp_path / "results")
    run_all(again, [])
    assert Counter(read) == dict.fromkeys(confirmed, 1)
    assert all((again.workspace.store.trial(each).outcome() or {})["test"] for each in confirmed)
    assert "test" not in {row.get("stage") for row in events(again)}, "the report counts it to the confirm stage"


def run_all(study: Study, jobs: list[Job]) -> None:
    """Carry the study out, and add its jobs to the list."""
    for job in study.jobs():
        assert job is not None
        jobs.append(job)
        study.ended(job, local.run_job(study, job))


def test_broken_pictures_leave_the_result_and_are_drawn_by_the_next_start_which_is_the_last_to_do_anything(
    finished: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw_arrays = local.draw_arrays

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(local, "draw_arrays", broken)
    study, file = copied(finished, tmp_path), tmp_path / "small.yaml"
    (study.journal.folder / "pictures.npz").unlink()
    local.execute(study)
    assert end_of(study, "pictures", 0)["reason"] == "MemoryError"
    assert "finished" in {row["event"] for row in events(study)}
    monkeypatch.setattr(local, "draw_arrays", draw_arrays)
    again, jobs = open_study(file, tmp_path / "results"), []
    assert again.begin()
    run_all(again, jobs)
    assert [job.key for job in jobs] == ["pictures-0"]
    recorded = events(again)
    third = open_study(file, tmp_path / "results")
    assert not third.begin()
    assert list(third.jobs()) == []
    assert events(third) == recorded
    (study.journal.folder / "pictures.npz").unlink()
    assert open_study(file, tmp_path / "results").begin()
    grown = sweep_file(tmp_path, study={"trials": 7})
    assert open_study(grown, tmp_path / "results").begin()


def test_out_of_memory_is_tried_once_more_alone_and_then_broken(tmp_path: Path) -> None:
    study = open_study(sweep_file(tmp_path, resources={"retries": 0}), tmp_path / "results")
    handed: list[tuple[str, bool]] = []

    def run_out_of_memory() -> None:
        for job in study.jobs():
            assert job is not None
            handed.append((job.key, job.alone))
            study.ended(job, Broken("out of memory", "Traceback", out_of_memory=True) if job.kind == "train" else None)

    with pytest.raises(NoResult, match="broke: out of memory"):
        run_out_of_memory()
    assert handed == [("smoke-0", False), ("teacher-0", False), ("teacher-0", True)]


@pytest.mark.parametrize("what", ["failed", "broken"])
def test_a_sweep_without_a_complete_trial_says_if_continuing_helps(
    what: str, fault: Callable[[Fault], Counter[int]], tmp_path: Path
) -> None:
    lr = 1.0e30 if what == "failed" else 0.01
    optimizer = {"name": "sgd", "lr": lr}
    recipe = {"optimizer": optimizer, "teacher": {**TREE["recipe"]["teacher"], "lr_schedule": {"name": "constant"}}}
    fault(lambda state: what == "broken" and state.recipe.student.model == "lenet5_student")
    file = sweep_file(tmp_path, recipe=recipe, study=SMALL | {"published": None}, resources={"retries": 0})
    study = open_study(file, tmp_path / "results")
    with pytest.raises(NoResult) as raised:
        local.execute(study)
    (problem,) = raised.value.problems
    assert problem.startswith(f"baselines: none of 1 trials completed: 1 {what} (")
    assert ("the same command tries again" in problem) == (what == "broken")
    assert ("the same command gives the same" in problem) == (what == "failed")
    assert (str(study.journal.folder / "errors") in problem) == (what == "broken")
    assert events(study)[-1] == {**events(study)[-1], "event": "no_result", "reason": problem}
    again = open_study(file, tmp_path / "results")
    if what == "failed":
        with pytest.raises(NoResult):
            again.begin()
    else:
        assert again.begin()


def test_an_outcome_that_an_earlier_version_wrote_of_a_crash_is_none_and_its_recipe_is_trained(
    finished: Study, tmp_path: Path
) -> None:
    study, file = copied(finished, tmp_path), tmp_path / "small.yaml"
    first, second = plans(study, "search")[:2]
    store = study.workspace.store
    before = store.trial(second["trial_id"]).outcome()
    rows = events(study)
    for plan, reason in ((first, "epoch 1, step 3: train/loss is nan"), (second, "RuntimeError: CUDA error")):
        folder = store.trial(plan["trial_id"])
        folder.write_outcome({**(folder.outcome() or {}), "state": "failed", "reason": reason})
        for row in rows:
            if row["event"] == "ended" and (row["stage"], row["number"]) == ("search", plan["number"]):
                row.update(state="failed", reason=reason, value=None)
    study.journal.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = open_study(file, tmp_path / "results")
    assert [end_of(again, "search", number)["state"] for number in (0, 1)] == ["failed", "broken"]
    local.execute(again)
    assert [end_of(again, "search", number)["state"] for number in (0, 1)] == ["failed", "complete"]
    after = store.trial(second["trial_id"]).outcome()
    assert before is not None
    assert after is not None
    assert after["best"] == before["best"]


def test_tracebacks_are_numbered_over_all_starts_also_at_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for machine in ("one", "other"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        journal = StudyJournal(results_folder(f"file://{tmp_path}/results").folder("small"))
        journal.write_error("search-1", f"Traceback of {machine}")
        journal.write_error("search-11", "another job")
    written = {path.name: path.read_text() for path in (tmp_path / "results" / "small" / "errors").iterdir()}
    assert written == {
        "search-1-1.txt": "Traceback of one\n", "search-1-2.txt": "Traceback of other\n",
        "search-11-1.txt": "another job\n", "search-11-2.txt": "another job\n",
    }  # fmt: skip


def test_only_the_reason_of_a_non_finite_loss_is_a_result() -> None:
    def end(state: str, reason: str | None) -> dict[str, Any]:
        return {"state": state, "reason": reason}

    for text in (
        "epoch 1, step 1: train/loss is nan",
        "epoch 2, after step 7: val/nll is inf",
        "epoch 1: every one of",
    ):
        assert not is_broken(end("failed", text))
    for reason in ("RuntimeError: epoch 1, step 1", "[Errno 28] No space left on device", None):
        assert is_broken(end("failed", reason))
    assert not is_broken(end("pruned", "stopped by asha after epoch 2"))
    assert not is_broken(end("complete", None))
