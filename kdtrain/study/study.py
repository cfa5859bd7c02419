"""The stages of one sweep, in order: smoke, teacher, baselines, search, select, confirm, pictures.

A Study hands out jobs, and an executor carries them out. The outcomes in the store decide what is left to do: a job
that has an outcome is never run again, so a study that was cut off continues when it is opened again. The stages
themselves stand in `smoke`, `teachers`, `select` and `confirm`, the searches here.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, cast

from kdtrain.config.parameter import Values
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.errors import NoResult, UserError
from kdtrain.storage.folder import Row
from kdtrain.study.confirm import confirm, draw_pictures, fix_winner, read_test
from kdtrain.study.description import weights_remark
from kdtrain.study.jobs import WITH_OUTCOME, WITHOUT_EVENTS, Broken, Job, JobStream, advice
from kdtrain.study.journal import ERRORS, StudyJournal
from kdtrain.study.search import Search
from kdtrain.study.select import select
from kdtrain.study.selection import SearchedTrial
from kdtrain.study.smoke import run_smoke
from kdtrain.study.teachers import train_teachers
from kdtrain.study.tradeoff import fix_fronts, measure_costs
from kdtrain.trials.objectives import HIGHER_IS_BETTER, ranking_key
from kdtrain.trials.outcome import best_epoch, outcome_row, require_own_workers
from kdtrain.trials.records import STAGES, EndedEvent, EpochRow, JobEnd, Measured, MemoryRecord, chance_remark
from kdtrain.trials.store import TrialFolder
from kdtrain.trials.workspace import Workspace

REASONS_SHOWN = 3
STARTING = "starting"


class Study:
    """A sweep that is carried out in a folder of results."""

    def __init__(self, sweep: Sweep, workspace: Workspace, journal: StudyJournal, only: str | None = None) -> None:
        """Take a sweep; with `only`, one of STAGES, the study does what is missing of that stage, and nothing else."""
        self.sweep, self.workspace, self.journal, self.only = sweep, workspace, journal, only
        self._earlier_stages = STAGES[1 : STAGES.index(only)] if only in STAGES[1:] else ()
        self.search = Search("search", sweep)
        self.baselines = Search("baselines", sweep.baseline())
        self.stage, self.stage_size = STARTING, 0
        self.on_gpu: bool | None = None  # whether trainings use a GPU; None if that is not known yet
        self.memory: MemoryRecord | None = None  # the most that preflight checks have measured, when they have ended
        self.placed = ""  # where trials run, the sentence that the terminal has shown
        self._noted_place: Row = {}
        self._running: dict[str, Job] = {}
        self._waiting: dict[str, list[Job]] = {}  # by trial_id: jobs of a recipe that another job is training
        self._again: list[Job] = []  # jobs that broke and are handed out once more
        self._breaks: Counter[str] = Counter()  # by job, in this start
        self.measurements: dict[str, Measured] = {}  # by job
        self.ends: dict[str, JobEnd] = {}
        self.remarks: list[str] = []  # sentences for the terminal, each as soon as it is known
        self._stages = self._run_stages()
        self._first: Job | None = None  # taken by `begin`
        self._first_stage = self.stage, self.stage_size

    def begin(self) -> bool:
        """Return True if there is a job to do; if not, the study has finished. It needs no executor to find out.

        Raises:
            UserError, NoResult: See `jobs`.
        """
        self._first = next(self._stages, None)
        self._first_stage = self.stage, self.stage_size
        self.stage, self.stage_size = STARTING, 0  # until an executor takes the job
        return self._first is not None

    def jobs(self) -> JobStream:
        """Yield every job that is still to do, stage by stage; None if a running job must end before the next one.

        Raises:
            UserError: A combination of the space cannot run.
            NoResult: A stage has left nothing to go on with.
        """
        if self._first is not None:
            self.stage, self.stage_size = self._first_stage
            yield self._first
        yield from self._stages

    def _run_stages(self) -> JobStream:
        try:
            yield from self._all_stages()
        except NoResult as error:
            self.journal.append_once("no_result", reason=str(error))
            raise

    def _all_stages(self) -> JobStream:
        about = self.journal.study_record()
        self.remarks += map(weights_remark, about.get("weights", []) if about else [])
        yield from run_smoke(self)
        if self.only == "smoke":
            return
        teachers = yield from train_teachers(self)
        if self.only == "teacher":
            return
        yield from measure_costs(self)
        alone = yield from self._run_search(self.baselines)
        if self.only == "baselines":
            return
        searched = yield from self._run_search(self.search)
        if self.only == "search":
            return
        if self.sweep.study.tradeoff is None:
            selection = yield from select(self, searched, alone)
            candidates = fix_winner(self, selection, searched, alone)
        else:
            candidates = fix_fronts(self, searched, alone)
        if self.only == "select":
            return
        runs = yield from confirm(self, candidates)
        yield from read_test(self, teachers, runs)
        if self.only == "confirm":
            return
        yield from draw_pictures(self, runs)
        self.workspace.store.remove_leftovers(self.journal.trial_ids())
        self.journal.append_once("finished")

    def should_prune(self, job: Job, epoch: int) -> bool:
        """Return True if the training is pruned and must stop; called after each of its epochs, counted from 1.

        Workers may have run ahead, and a continued training may have skipped a decision. So the trial ends at the first
        epoch at which it would have been pruned, and later rows are dropped.
        """
        folder = self._trial(job)
        stop = self._pruned_at(job, [row for row in folder.epochs() if row["epoch"] <= epoch])
        if stop is None:
            return False
        folder.files.revoke_lease()
        folder.keep_epochs(stop)
        folder.write_outcome(outcome_row("pruned", self._pruning_reason(stop), folder))
        folder.remove_checkpoints()
        return True

    def ended(self, job: Job, broken: Broken | None = None) -> None:
        """Record that a running job has ended, or hand it out again if it broke.

        A job is tried again at most `resources.retries` times, and once more alone after running out of a GPU's memory.
        Then it counts as broken until the study is opened again, and is then run again.
        """
        if job.kind in WITH_OUTCOME:
            lost = Broken("its process ended without an outcome")
            broken = None if self._has_outcome(job) else broken or lost
        traceback = None
        if broken is not None:
            if not broken.users:
                traceback = self.journal.write_error(job.key, broken.traceback or broken.reason)
            if self._is_tried_again(job, broken):
                self._again.append(replace(job, alone=job.alone or broken.out_of_memory))
                return
        self._running.pop(job.key, None)
        for each in (job, *self._waiting.pop(job.trial_id, [])):
            if broken is None:
                self._note_end(each, self._end(each))
            else:
                end: JobEnd = {"state": "broken", "value": None, "reason": broken.reason, "epochs": 0}
                self._note_end(each, {**end, "traceback": traceback})

    def measured(self, job: Job, measured: Measured) -> None:
        """Keep the memory that a preflight check has measured, or a latency; call it before `ended`."""
        self.measurements[job.key] = measured

    def place(self, sentence: str, device: str, trials_per_gpu: int | None, trials_at_once: int) -> None:
        """Note where an executor runs the next jobs, if that has changed."""
        if sentence != self.placed:
            self.placed = sentence
            self.remarks.append(f"trials run on {sentence}")
        fields: Row = {"device": device, "trials_per_gpu": trials_per_gpu, "trials_at_once": trials_at_once}
        if fields != self._noted_place:
            self._noted_place = fields
            self.journal.append("placed", **fields)

    def broken_jobs(self) -> str | None:
        """Return a sentence about the jobs of this start that broke, or None."""
        broken = {key: end for key, end in self.ends.items() if end["state"] == "broken"}
        if not broken:
            return None
        return f"broken: {', '.join(broken)}; the same command tries them again{self._tracebacks(broken.values())}"

    def _is_tried_again(self, job: Job, broken: Broken) -> bool:
        if broken.out_of_memory:
            return not job.alone
        self._breaks[job.key] += 1
        is_mistake = broken.users and job.kind == "smoke"  # the combination cannot run
        return not is_mistake and self._breaks[job.key] <= self.sweep.resources.retries

    def progress(self) -> Row:
        """Return the stage, its number of jobs by state, and the best objective of the search so far, for a display."""
        # copies, because a display reads them in a thread of its own
        ends = [end["state"] for key, end in list(self.ends.items()) if key.rpartition("-")[0] == self.stage]
        counts = {state: ends.count(state) for state in ("complete", "pruned", "failed", "broken")}
        running = sum(job.stage == self.stage for job in list(self._running.values()))
        best = (max if self.maximize else min)(list(self.search.values.values()), default=None)
        return {"stage": self.stage, "of": self.stage_size, "running": running, "best": best, **counts}

    # for the stages

    def remark_on_chance(self, stage: str, jobs: Sequence[Job]) -> None:
        """Warn if all trainings of a stage that completed are no better than the most frequent class."""
        complete = [job for job in jobs if self.ends[job.key]["state"] == "complete"]
        remarks = list(takewhile(bool, (self.accuracy(job)[1] for job in complete)))
        if complete and len(remarks) == len(complete):
            each = "the complete trial" if len(complete) == 1 else f"each of the {len(complete)} complete trials"
            self.remarks.append(f"{stage}: {each} is {remarks[0]}")

    def accuracy(self, job: Job) -> tuple[float, str | None]:
        """Return the validation accuracy of a complete job, with a remark if nothing was learned."""
        outcome, recipe = self._trial(job).outcome(), self._trial(job).recipe()
        assert outcome is not None
        assert outcome["best"] is not None
        return outcome["best"]["val/accuracy"], chance_remark(outcome["best"], recipe["data"] if recipe else {})

    def _run_search(self, search: Search) -> Generator[Job | None, None, list[SearchedTrial]]:
        """Run a search's trials batch by batch, each suggested when the batch before it has ended (or one by one)."""
        self.stage, self.stage_size = search.stage, search.trials
        searched: list[Job] = []
        number = 0
        while number < search.trials:
            batch = search.batch_of(number)
            jobs = [job for number in batch if (job := self._planned_job(search, number)) is not None]
            searched += jobs
            if self.sweep.study.order == "batches":
                yield from self.run(jobs)
            else:
                yield from self._to_do_again()
                yield from (job for job in jobs if self._begin(job))
            number = batch.stop
        while any(job.stage == search.stage for job in self._running.values()):
            yield from self._to_do_again() or [None]
        ends = [self.ends[f"{search.stage}-{number}"] for number in range(search.trials)]
        if not any(end["state"] == "complete" for end in ends):
            raise NoResult(f"{search.stage}: none of {search.trials} trials completed: {self.summary(ends)}")
        self.remark_on_chance(search.stage, searched)
        return [self._searched_trial(search, job) for job in searched]

    def summary(self, ends: Sequence[JobEnd]) -> str:
        """Return how many jobs failed, broke or were pruned, with their first reasons and what can be done."""
        parts = []
        for state in ("pruned", "failed", "broken"):
            reasons = [str(end["reason"]) for end in ends if end["state"] == state]
            shown = list(dict.fromkeys(reasons))
            more = f"; and {len(shown) - REASONS_SHOWN} other reasons" if len(shown) > REASONS_SHOWN else ""
            if reasons:
                parts.append(f"{len(reasons)} {state} ({'; '.join(shown[:REASONS_SHOWN])}{more})")
        return f"{', '.join(parts)}; {advice(ends)}{self._tracebacks(ends)}"

    def _tracebacks(self, ends: Iterable[JobEnd]) -> str:
        return f"; tracebacks: {self.journal.files}/{ERRORS}" if any(end.get("traceback") for end in ends) else ""

    def traceback_of(self, end: JobEnd) -> str:
        return f" (traceback: {self.journal.files}/{end['traceback']})" if end.get("traceback") else ""

    # jobs

    @property
    def maximize(self) -> bool:
        return HIGHER_IS_BETTER[self.sweep.study.objective]

    def _trial(self, job: Job) -> TrialFolder:
        return self.workspace.store.trial(job.trial_id)

    def job(
        self,
        stage: str,
        number: int,
        recipe: Recipe,
        values: Values | None = None,
        *,
        published: bool = False,
        details: Row | None = None,
        **options: Any,
    ) -> Job:
        details = {"values": values or {}, "published": published, **(details or {})}
        return Job(stage, number, recipe, self.workspace.trial_id(recipe), details=details, **options)

    def _planned_job(self, search: Search, number: int) -> Job | None:
        """Return the job of a trial, with the values of an earlier start or new ones; None if they do not go together:
        the trial has then failed for that reason."""
        earlier = self._earlier_values(search, number)
        values = earlier or search.suggest(number)
        plan = self.journal.plan(search.stage, number) if earlier else None
        search.plan(number, values, plan.get("attributes") if plan else None)
        kept = search.sampler_attributes(number)
        details: Row = {"attributes": kept} if kept else {}
        published = number < len(search.sweep.published)
        try:
            recipe = search.recipe(number)
        except UserError as error:
            about = {"stage": search.stage, "number": number, "trial_id": None}
            end: JobEnd = {"state": "failed", "value": None, "reason": str(error), "epochs": 0}
            self.journal.note("planned", **about, values=values, published=False, **details)
            self.journal.note("ended", **about, **end)
            self.ends[f"{search.stage}-{number}"] = end
            search.tell(number, "failed", None, [])
            return None
        prunable = not published and self.sweep.study.pruner.name != "none"
        return self.job(search.stage, number, recipe, values, published=published, prunable=prunable, details=details)

    def _earlier_values(self, search: Search, number: int) -> Values | None:
        """Return the values that a trial was planned with at an earlier start, or None.

        None also if they make another trial now, because code, images or weights have changed since: the sampler chose
        them by results that this search does not have.
        """
        plan = self.journal.plan(search.stage, number)
        if plan is None or plan["trial_id"] is None:
            return plan and plan["values"]
        recipe = search.sweep.recipe_for(plan["values"], self.sweep.study.seed)
        return plan["values"] if self.workspace.trial_id(recipe) == plan["trial_id"] else None

    def _searched_trial(self, search: Search, job: Job) -> SearchedTrial:
        values = job.details["values"]
        option = search.sweep.option(values)
        key = self.ranking_key(job)
        return SearchedTrial(job.stage, job.number, job.trial_id, values, job.recipe.student, key, option)

    def ranking_key(self, job: Job) -> tuple[float, float] | None:
        """Return the key by which a training is ranked, or None if it did not complete."""
        if self.ends[job.key]["state"] != "complete":
            return None
        outcome = self._trial(job).outcome()
        assert outcome is not None
        assert outcome["best"] is not None
        return ranking_key(outcome["best"], self.sweep.study.objective)

    def is_untested(self, job: Job) -> bool:
        outcome = self._trial(job).outcome()
        return outcome is not None and outcome["state"] == "complete" and outcome["test"] is None

    def run_stage(self, jobs: Sequence[Job]) -> JobStream:
        """Hand out all jobs of a stage and wait until they have ended."""
        if jobs:
            self.stage, self.stage_size = jobs[0].stage, len(jobs)
        yield from self.run(jobs)

    def run(self, jobs: Sequence[Job]) -> JobStream:
        yield from (job for job in jobs if self._begin(job))
        while any(job.key not in self.ends for job in jobs):
            yield from self._to_do_again() or [None]

    def _to_do_again(self) -> list[Job | None]:
        again: list[Job | None] = [*self._again]
        self._again.clear()
        return again

    def _begin(self, job: Job) -> bool:
        """Note a job as planned; return True if it is to be run, False if its recipe is trained or being trained."""
        if job.kind not in WITHOUT_EVENTS:
            self.journal.note("planned", **job.about, **job.details)
        if job.kind in WITH_OUTCOME:
            if self._has_outcome(job):
                self._note_end(job, self._end(job))
                return False
            if any(other.trial_id == job.trial_id for other in self._running.values()):
                self._waiting.setdefault(job.trial_id, []).append(job)
                return False
        if job.stage in self._earlier_stages:
            raise UserError(
                f"--stage {self.only}: {job.key} has not ended yet; run the sweep without --stage, or with {job.stage}"
            )
        self._running[job.key] = job
        return True

    def _has_outcome(self, job: Job) -> bool:
        """Return True if the store has an outcome that serves this job.

        The outcome of a pruned training serves if this study would have pruned it as well. A final training must have
        kept its weights.
        """
        folder = self._trial(job)
        outcome = folder.outcome()
        if job.kind == "evaluate":
            return outcome is not None
        require_own_workers(job.recipe, folder, self.sweep.resources.workers)
        if outcome is None or outcome["state"] == "failed":
            return outcome is not None
        if outcome["state"] == "complete":
            return not job.final or folder.has_weights()
        return self._pruned_at(job, folder.epochs()) is not None

    def _pruned_at(self, job: Job, rows: list[EpochRow]) -> int | None:
        """Return the epoch at which this study prunes the training, or None.

        A decision that the journal holds is repeated as soon as its rows are there; without one, the rows decide.
        """
        if not job.prunable:
            return None
        known = self.journal.end(job.stage, job.number)
        if known is not None and known["trial_id"] == job.trial_id:
            if known["state"] == "complete":
                return None
            if known["state"] == "pruned":
                return int(known["epochs"]) if rows and rows[-1]["epoch"] >= known["epochs"] else None
        rows = [row for row in rows if row["epoch"] < job.recipe.epochs]
        return self._search_of(job).pruned_at(job.number, rows)

    def _search_of(self, job: Job) -> Search:
        return self.baselines if job.stage == "baselines" else self.search

    def _pruning_reason(self, epoch: int) -> str:
        return f"stopped by {self.sweep.study.pruner.name} after epoch {epoch}"

    def _note_end(self, job: Job, end: JobEnd) -> None:
        self.ends[job.key] = end
        if job.stage in ("baselines", "search"):
            if end["state"] == "broken":
                self._search_of(job).forget(job.number)
            else:
                search, rows = self._search_of(job), self._trial(job).epochs()[: end["epochs"]]
                known = self._known_end(job, end)
                search.tell(job.number, end["state"], end["value"], rows, known and known.get("attributes"))
                if known is None and (kept := search.pruner_attributes(job.number)):
                    end = {**end, "attributes": kept}
        if job.kind not in WITHOUT_EVENTS:
            self.journal.note("ended", **job.about, **end)

    def _known_end(self, job: Job, end: JobEnd) -> EndedEvent | None:
        """Return the journal's event if the job ended like this at an earlier start, or None."""
        known = self.journal.end(job.stage, job.number)
        about = {"trial_id": job.trial_id, **{key: end[key] for key in ("state", "value", "epochs")}}  # type: ignore[literal-required]
        return known if known is not None and about.items() <= known.items() else None

    def _end(self, job: Job) -> JobEnd:
        """Return how a job that did not break has ended for this study: a trial that it would have pruned counts as
        pruned, even if another sweep has trained it to its end."""
        if job.kind not in WITH_OUTCOME:
            end: JobEnd = {"state": "complete", "value": None, "reason": None, "epochs": 0}
            measured = self.measurements.get(job.key)
            return {**end, "memory": cast(MemoryRecord, measured)} if measured and job.kind == "smoke" else end
        folder = self._trial(job)
        outcome, rows = folder.outcome(), folder.epochs()
        assert outcome is not None
        state, reason, epochs, best = outcome["state"], outcome["reason"], outcome["epochs"], outcome["best"]
        stop = self._pruned_at(job, rows) if state != "failed" else None
        if stop is not None:
            state, reason, epochs = "pruned", self._pruning_reason(stop), stop
            best = best_epoch(rows[:stop], self.sweep.study.objective)
        value = best[self.sweep.study.objective] if best and state != "failed" else None
        return {"state": state, "value": value, "reason": reason, "epochs": epochs}
