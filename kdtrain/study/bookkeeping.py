"""What the jobs of a study do: which run, which wait for another one, and how each has ended.

The outcomes in the store decide what is left to do: a job that has an outcome is never run again, so a study that was
cut off continues when it is opened again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, cast

from kdtrain.config.parameter import Values
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.errors import UserError
from kdtrain.storage.folder import Row, sha256
from kdtrain.study.budget import open_account
from kdtrain.study.jobs import STOPPED_BY_BUDGET, WITH_OUTCOME, WITHOUT_EVENTS, Broken, Job, JobStream, advice
from kdtrain.study.journal import ERRORS, StudyJournal
from kdtrain.study.search import Search
from kdtrain.trials.objectives import HIGHER_IS_BETTER, ranking_key
from kdtrain.trials.outcome import best_epoch, outcome_row, require_own_workers
from kdtrain.trials.records import (
    STAGES,
    BestEpoch,
    EndedEvent,
    EpochRow,
    JobEnd,
    Measured,
    MemoryRecord,
    Outcome,
    chance_remark,
)
from kdtrain.trials.store import PICTURES, PREDICTIONS, WEIGHTS, TrialFolder
from kdtrain.trials.workspace import Workspace

REASONS_SHOWN = 3
STARTING = "starting"


class Bookkeeping:
    """The jobs of a study: which run, which wait, and how each has ended. Executors and stages share it."""

    def __init__(self, sweep: Sweep, workspace: Workspace, journal: StudyJournal, only: str | None = None) -> None:
        """Take a sweep; with `only`, one of STAGES, the study does what is missing of that stage, and nothing else."""
        self.sweep, self.workspace, self.journal, self.only = sweep, workspace, journal, only
        self._earlier_stages = STAGES[1 : STAGES.index(only)] if only in STAGES[1:] else ()
        self.account = open_account(sweep, journal.events())  # of study.budget
        if self.account is not None and only in ("baselines", "search"):
            self._earlier_stages = ("teacher",)  # the two take their batches in turn
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
        self._cut = {  # by job: the epoch after which the budget has ended it
            (stage, number, end["trial_id"]): int(end["epochs"])
            for stage in ("baselines", "search")
            for number, end in journal.ends(stage).items()
            if str(end["reason"]).startswith(STOPPED_BY_BUDGET)
        }
        self.remarks: list[str] = []  # sentences for the terminal, each as soon as it is known

    def should_prune(self, job: Job, epoch: int) -> bool:
        """Return True if the training is pruned and must stop; called after each of its epochs, counted from 1.

        Workers may have run ahead, and a continued training may have skipped a decision. So the trial ends at the first
        epoch at which it would have been pruned, and later rows are dropped.
        """
        folder = self._trial(job)
        rows = [row for row in folder.epochs() if row["epoch"] <= epoch]
        stop = self._pruned_at(job, rows)
        if stop is None and self._is_cut(job, rows):
            stop = self._cut[job.stage, job.number, job.trial_id] = epoch
        if stop is None:
            return False
        folder.files.revoke_lease()
        folder.keep_epochs(stop)
        folder.write_outcome(outcome_row("pruned", self._pruning_reason(job, stop), folder))
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
        trained = self._trained_seconds(job)
        for each in (job, *self._waiting.pop(job.trial_id, [])):
            if broken is None:
                end = self._end(each)
            else:
                end = {"state": "broken", "value": None, "reason": broken.reason, "epochs": 0, "traceback": traceback}
            self._note_end(each, {**end, "seconds": trained} if each is job and trained is not None else end)

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
        budget = None if self.account is None else self.account.text
        about = {"stage": self.stage, "of": self.stage_size, "budget": budget}
        return {**about, "running": running, "best": best, **counts}

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
        best, recipe = self._best(job), self._trial(job).recipe()
        return best["val/accuracy"], chance_remark(best, recipe["data"] if recipe else {})

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

    def ranking_key(self, job: Job) -> tuple[float, float] | None:
        """Return the key by which a training is ranked, or None if it did not complete."""
        if self.ends[job.key]["state"] != "complete":
            return None
        return ranking_key(self._best(job), self.sweep.study.objective)

    def _best(self, job: Job) -> BestEpoch:
        """Return the best epoch of a complete job."""
        outcome = self._trial(job).outcome()
        assert outcome is not None
        assert outcome["best"] is not None
        return outcome["best"]

    def is_untested(self, job: Job) -> bool:
        """Return True if a training is complete and its test metrics or predictions are missing or damaged."""
        folder = self._trial(job)
        outcome = folder.outcome()
        if outcome is None or outcome["state"] != "complete":
            return False
        return outcome["test"] is None or not folder.is_whole(PREDICTIONS)

    def run_stage(self, jobs: Sequence[Job]) -> JobStream:
        """Hand out all jobs of a stage and wait until they have ended."""
        if jobs:
            self.stage, self.stage_size = jobs[0].stage, len(jobs)
        yield from self.run(jobs)

    def run(self, jobs: Sequence[Job]) -> JobStream:
        """Hand out jobs and wait until they have ended."""
        yield from self.hand_out(jobs)
        yield from self.wait_for(jobs)

    def wait_for(self, jobs: Sequence[Job]) -> JobStream:
        """Wait until jobs that were handed out have ended."""
        while any(job.key not in self.ends for job in jobs):
            yield from self.to_do_again() or [None]

    def hand_out(self, jobs: Sequence[Job]) -> JobStream:
        """Hand out the jobs that the store has no outcome of."""
        yield from (job for job in jobs if self._begin(job))

    def runs(self, *stages: str) -> bool:
        """Return True if a job of these stages runs."""
        return any(job.stage in stages for job in self._running.values())

    def to_do_again(self) -> list[Job | None]:
        """Return the jobs that broke and are to be handed out once more."""
        again: list[Job | None] = [*self._again]
        self._again.clear()
        return again

    def _begin(self, job: Job) -> bool:
        """Note a job as planned; return True if it is to be run, False if its recipe is trained or being trained."""
        if job.stage in self._earlier_stages and not (job.kind in WITH_OUTCOME and self._has_outcome(job)):
            raise UserError(
                f"--stage {self.only}: {job.key} has not ended yet; run the sweep without --stage, or with {job.stage}"
            )
        if job.kind not in WITHOUT_EVENTS:
            self.journal.note("planned", **job.about, **job.details)
        if job.kind in WITH_OUTCOME:
            if self._has_outcome(job):
                self._note_end(job, self._end(job))
                return False
            if self.account is not None:
                self.account.begin(job)
            if any(other.trial_id == job.trial_id for other in self._running.values()):
                self._waiting.setdefault(job.trial_id, []).append(job)
                return False
        self._running[job.key] = job
        return True

    def _has_outcome(self, job: Job) -> bool:
        """Return True if the store has an outcome that serves this job.

        The outcome of a pruned training serves if this study would have pruned it as well. A final training must have
        kept its weights.
        """
        folder = self._trial(job)
        outcome, damage = folder.standing()
        if damage is not None:
            self.remarks.append(f"{job.key} is trained again: {damage}")
            return False
        if job.kind == "evaluate":
            return outcome is not None
        require_own_workers(job.recipe, folder, self.sweep.resources.workers)
        if outcome is None or outcome["state"] == "failed":
            return outcome is not None
        if outcome["state"] == "complete":
            return not job.final or self._keeps_weights(job, folder, outcome)
        return self._pruned_at(job, folder.epochs()) is not None

    def _keeps_weights(self, job: Job, folder: TrialFolder, outcome: Outcome) -> bool:
        """Return True if a final training has its weights, unchanged if they are still to be read.

        At a URL they are verified by the process that reads them, not fetched by this one.
        """
        if folder.files.url is not None or not (job.stage == "teacher" or outcome["test"] is None):
            return folder.has_weights()
        is_whole = folder.is_whole(WEIGHTS)
        if not is_whole and folder.has_weights():
            self.remarks.append(f"{job.key} is trained again: {folder.files}/{WEIGHTS} has changed")
        return is_whole

    def _pruned_at(self, job: Job, rows: list[EpochRow]) -> int | None:
        """Return the epoch at which this study prunes the training, or None.

        A decision that the journal holds is repeated as soon as its rows are there; without one, the rows decide.
        """
        cut = self._cut.get((job.stage, job.number, job.trial_id))
        if cut is not None:
            return cut if rows and rows[-1]["epoch"] >= cut else None
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

    def _pruning_reason(self, job: Job, epoch: int) -> str:
        is_cut = self._cut.get((job.stage, job.number, job.trial_id)) == epoch
        return f"{STOPPED_BY_BUDGET if is_cut else f'stopped by {self.sweep.study.pruner.name}'} after epoch {epoch}"

    def _is_cut(self, job: Job, rows: Sequence[EpochRow]) -> bool:
        """Return True if a searched trial must end now because the share of its stage has ended.

        A budget of epochs ends no trial, because a trial only starts if it fits. A published one is never ended.
        """
        account = self.account
        if account is None or account.repeatable or not rows:
            return False
        account.measure(job, sum(row["seconds"] for row in rows) * self._gpus)
        is_searched = job.stage in ("baselines", "search") and not job.details.get("published")
        return is_searched and len(rows) < job.recipe.epochs and account.is_over("search")

    def _trained_seconds(self, job: Job) -> float | None:
        """Return the seconds of a training that has run, times its GPUs; None if no budget counts them."""
        if self.account is None or self.account.repeatable or job.kind != "train":
            return None
        return sum(row["seconds"] for row in self._trial(job).epochs()) * self._gpus

    @property
    def _gpus(self) -> float:
        """The GPUs of a trial, or 1 if they do not count."""
        if self.sweep.study.budget is None or self.sweep.study.budget.gpu_hours is None:
            return 1.0
        shared, resources = self._noted_place.get("trials_per_gpu"), self.sweep.resources
        if shared:
            return 1 / float(shared)
        return resources.workers * (1.0 if resources.gpus_per_worker == "auto" else resources.gpus_per_worker)

    def _note_end(self, job: Job, end: JobEnd) -> None:
        self.ends[job.key] = end
        if self.account is not None:
            epochs = job.recipe.epochs if end["state"] == "broken" else end["epochs"]
            self.account.end(job, epochs, end.get("seconds"))
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
        about = {"trial_id": job.trial_id, **{key: end[key] for key in ("state", "value", "epochs")}}
        return known if known is not None and about.items() <= known.items() else None

    def _end(self, job: Job) -> JobEnd:
        """Return how a job that did not break has ended for this study: a trial that it would have pruned counts as
        pruned, even if another sweep has trained it to its end."""
        if job.kind not in WITH_OUTCOME:
            end: JobEnd = {"state": "complete", "value": None, "reason": None, "epochs": 0}
            if job.kind == "pictures" and (arrays := self.journal.files.file(PICTURES)).exists():
                end["sha256"] = sha256(arrays)
            measured = self.measurements.get(job.key)
            return {**end, "memory": cast(MemoryRecord, measured)} if measured and job.kind == "smoke" else end
        folder = self._trial(job)
        outcome, rows = folder.outcome(), folder.epochs()
        assert outcome is not None
        state, reason, epochs, best = outcome["state"], outcome["reason"], outcome["epochs"], outcome["best"]
        stop = self._pruned_at(job, rows) if state != "failed" else None
        if stop is not None:
            state, reason, epochs = "pruned", self._pruning_reason(job, stop), stop
            best = best_epoch(rows[:stop], self.sweep.study.objective)
        value = best[self.sweep.study.objective] if best and state != "failed" else None
        return {"state": state, "value": value, "reason": reason, "epochs": epochs}
