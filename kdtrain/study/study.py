"""The stages of one sweep, in order: smoke, teacher, baselines, search, confirm, pictures.

A Study hands out jobs and is told when they have ended; who carries them out (Ray Tune, a test) is not its business.
The store is the truth: what has an outcome is never run again, so a study that was cut off is simply opened again.
The smoke stage comes before the teacher, not after it: its point is to fail before anything long.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrain.config import space
from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.config.sweep import Sweep
from kdtrain.errors import NoResult, UserError
from kdtrain.storage.folder import Row
from kdtrain.study.description import plain_yaml
from kdtrain.study.journal import StudyJournal
from kdtrain.study.search import Search, Values
from kdtrain.trials.identity import trial_id
from kdtrain.trials.outcome import best_epoch, outcome_row, ranking_key, require_own_workers
from kdtrain.trials.records import EpochRow
from kdtrain.trials.store import Store, TrialFolder

FIRST_CONFIRMING_SEED = 1_000_000
"""Searches take seeds below it, confirming runs from it on, 1,000 for each study seed: no seed that chose is ever
counted again."""
STARTING = "starting Ray"
PARTS = ("data", "method", "teacher", "student")
"""What must fit together: a batch is tried through each of their combinations before anything long."""
TEACHER_PARTS = ("data", "teacher", "student")
"""What decides which teacher is trained: its model may be the student's."""


@dataclass(frozen=True)
class Job:
    """One thing to run: a training (final: its weights are kept), a smoke test, the test split of the recipes in
    `also`, or the pictures, which compare those in `also`."""

    stage: str
    number: int
    recipe: Recipe
    trial_id: str
    kind: str = "train"
    final: bool = False
    prunable: bool = False
    also: tuple[Recipe, ...] = ()
    details: Row = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        return f"{self.stage}-{self.number}"

    @property
    def about(self) -> Row:
        return {"stage": self.stage, "number": self.number, "trial_id": self.trial_id}


@dataclass(frozen=True)
class Candidate:
    """A recipe that is confirmed with n seeds."""

    key: str
    role: str
    values: Values
    source: Row
    baseline: str | None


class Study:
    """One sweep being carried out in its folder of a store."""

    def __init__(self, sweep: Sweep, store: Store, record: StudyJournal, data_root: Path) -> None:
        self.sweep, self.store, self.journal, self.data_root = sweep, store, record, data_root
        self.search = Search("search", sweep)
        self.baselines = Search("baselines", sweep.baseline())
        self.running: dict[str, Job] = {}
        self.waiting: dict[str, list[Job]] = {}
        self.states: dict[str, Row] = {}
        self.confirming: dict[str, list[Job]] = {}  # by candidate
        self.kept: dict[str, Recipe] = {}  # teachers and confirmed recipes, whose weights are kept
        self.stage, self.stage_size = STARTING, 0

    def jobs(self) -> Iterator[Job | None]:
        """Every job that is still to do, stage by stage; None: nothing to start until a running one has ended.

        Raises UserError where a stage leaves nothing to go on with.
        """
        yield from self._smoke()
        yield from self._teachers()
        for search in (self.baselines, self.search):
            self.stage, self.stage_size = search.stage, search.trials
            yield from self._searched(search)
        candidates = self._candidates()
        yield from self._confirmed(candidates)
        winner = self._winner(candidates)
        if winner is None:
            raise NoResult("confirm: none of the best recipes completed all its seeds; trials.csv has the reasons")
        yield from self._tested(winner)
        yield from self._all([self._job("pictures", 0, winner, kind="pictures", also=self._compared(candidates))])
        self.store.remove_leftovers(self.journal.trial_ids())
        self.journal.append_once("finished")

    def should_prune(self, job: Job, epoch: int) -> bool:
        """Told after each epoch of a training; if True the job has ended as pruned and is to be stopped.

        Workers may have run ahead, and a continued training may have skipped a decision: what counts is the first
        epoch that was to be the last, and the rows after it are dropped.
        """
        folder = self.store.trial(job.trial_id)
        stop = self._pruned_after(job, [row for row in folder.epochs() if row["epoch"] <= epoch])
        if stop is None:
            return False
        folder.files.revoke_lease()
        folder.keep_epochs(stop)
        folder.write_outcome(outcome_row("pruned", self._pruning(stop), folder))
        folder.remove_checkpoints()
        return True

    def ended(self, job: Job, broken: str | None = None) -> None:
        """A job has ended: with an outcome in the store, or `broken` with a reason.

        What breaks outside the training (a full disk, a killed process) is no outcome of the recipe: it counts as
        failed here, and is tried again when the study is opened again.
        """
        if job.kind == "train":
            broken = None if self._has_ended(job) else broken or "its process ended without an outcome"
        self.running.pop(job.key, None)
        self._note_end(job, broken)
        for follower in self.waiting.pop(job.trial_id, []):
            self._note_end(follower, broken)

    def progress(self) -> Row:
        """For a display: the stage, how its jobs stand, and the best objective of the search so far."""
        ends = [row["state"] for key, row in list(self.states.items()) if key.rpartition("-")[0] == self.stage]
        counts = {state: ends.count(state) for state in ("complete", "pruned", "failed")}
        running = sum(job.stage == self.stage for job in list(self.running.values()))
        values = [trial.value for trial in list(self.search.ended.values()) if trial.value is not None]
        best = (max if self.sweep.study.objective == "val/accuracy" else min)(values, default=None)
        return {"stage": self.stage, "of": self.stage_size, "running": running, "best": best, **counts}

    # stages

    def _smoke(self) -> Iterator[Job | None]:
        """One real batch through every (method, teacher, student) that the space can reach."""
        jobs = []
        combined: list[Values] = []
        for number, values in enumerate(space.combinations(self.sweep.tree, PARTS)):
            recipe = self.sweep.recipe_for(values, self.sweep.study.seed)
            jobs.append(self._job("smoke", number, recipe, kind="smoke", values=values))
            combined.append(values)
        passed = {row["trial_id"] for row in self.journal.ends("smoke").values() if row["state"] == "complete"}
        yield from self._all([job for job in jobs if job.trial_id not in passed])
        problems: list[str] = []
        for job, values in zip(jobs, combined, strict=True):
            state = self.states.get(job.key)
            if state is not None and state["state"] == "failed":
                what = f"{job.recipe.method.name} with student {job.recipe.student.model}"
                what += f" and teacher {job.recipe.teacher.model}" if job.recipe.teacher else ""
                text = f"{what} fails on its first batch: {state['reason']}"
                problems += self.sweep.error(values, ("method",), text).problems
        if problems:
            raise UserError(*problems)

    def _teachers(self) -> Iterator[Job | None]:
        """Each teacher that the space can reach, unless the store has it."""
        recipes: dict[Recipe, Values] = {}
        for values in space.combinations(self.sweep.tree, TEACHER_PARTS):
            recipe = teacher_recipe(self.sweep.recipe_for(values, self.sweep.study.seed))
            if recipe is not None:
                recipes.setdefault(recipe, values)
        jobs = [self._job("teacher", number, recipe, final=True) for number, recipe in enumerate(recipes)]
        yield from self._all(jobs)
        problems: list[str] = []
        for job, values in zip(jobs, recipes.values(), strict=True):
            if self.states[job.key]["state"] != "complete":
                folder = self.store.trial(job.trial_id)
                again = f"remove {folder.files} to try again" if folder.outcome() else "the same command tries again"
                text = f"training {job.recipe.student.model} failed: {self.states[job.key]['reason']} ({again})"
                problems += self.sweep.error(values, ("teacher",), text).problems
        if problems:
            raise NoResult(*problems)

    def _searched(self, search: Search) -> Iterator[Job | None]:
        """Trials in batches, each drawn at once when the batch before it has ended (or freely, one by one)."""
        number = 0
        while number < search.trials:
            batch = search.batch_of(number)
            jobs = []
            for number in batch:
                search.planned[number] = self.journal.planned_values(search.stage, number) or search.suggest(number)
                job = self._search_job(search, number)
                if job is not None:
                    jobs.append(job)
            if self.sweep.study.order == "batches":
                yield from self._all(jobs)
            else:
                yield from (job for job in jobs if self._begin(job))
            number = batch.stop
        while any(job.stage == search.stage for job in self.running.values()):
            yield None
        if not any(trial.state.name == "COMPLETE" for trial in search.ended.values()):
            reasons = sorted({str(row["reason"]) for row in self.journal.ends(search.stage).values() if row["reason"]})
            raise NoResult(f"{search.stage}: none of {search.trials} trials completed: {'; '.join(reasons)}")

    def _confirmed(self, candidates: list[Candidate]) -> Iterator[Job | None]:
        """Every candidate with every confirming seed; their weights are kept for the test split."""
        jobs: list[Job] = []
        for candidate in candidates:
            own = self.confirming.setdefault(candidate.key, [])
            for index in range(self.sweep.study.confirm.seeds):
                jobs.append(self._confirm_job(candidate, len(jobs), self._confirming_seed(index)))
                own.append(jobs[-1])
        yield from self._all(jobs)

    def _tested(self, winner: Recipe) -> Iterator[Job | None]:
        """The test split is read: once for each confirmed training and teacher, after the winner has been fixed."""
        untested = [recipe for recipe in self.kept.values() if self._untested(recipe)]
        if not untested:
            return
        job = self._job("test", 0, winner, kind="test", also=tuple(untested))
        yield from self._all([job])
        broken = self.states[job.key]["reason"]
        if broken:
            raise NoResult(f"confirm: reading the test split failed: {broken}")

    def _untested(self, recipe: Recipe) -> bool:
        outcome = self.store.trial(trial_id(recipe, self.data_root)).outcome()
        return outcome is not None and outcome["state"] == "complete" and outcome["test"] is None

    def _candidates(self) -> list[Candidate]:
        """The k best, the published points, and the baselines that they are compared with."""
        confirm = self.sweep.study.confirm
        best = self._ranked(self.search)[: confirm.best]
        published = range(len(self.sweep.published)) if confirm.published else range(0)
        searches = {search.stage: search for search in (self.baselines, self.search)}
        baselines: list[tuple[str, int]] = []

        def confirmed(search: Search, number: int) -> str:
            if (search.stage, number) not in baselines:
                baselines.append((search.stage, number))
            return f"baseline {baselines.index((search.stage, number)) + 1}"

        def baseline_of(number: int, same_student: bool) -> str | None:
            """The best baseline of the trial's student: of the same model, or of the whole same student config. Where
            the baselines' search has tried no such model, the student alone at the trial's own values."""
            student = self.search.recipe(number).student
            for other in self._ranked(self.baselines):
                own = self.baselines.recipe(other).student
                if own == student or (not same_student and own.model == student.model):
                    return confirmed(self.baselines, other)
            if same_student:
                return None
            known = (n for stage, n in baselines if stage == self.search.stage)
            like = (n for n in known if self.search.recipe(n).student.model == student.model)
            return confirmed(self.search, next(like, number))

        def candidate(key: str, role: str, search: Search, number: int, baseline: str | None) -> Candidate:
            source = {"stage": search.stage, "number": number}
            values = search.planned[number]
            if role == "baseline":
                shared = {parameter.name for parameter in self.baselines.sweep.parameters}
                values = {name: value for name, value in values.items() if name in shared}
            return Candidate(key, role, values, source, baseline)

        chosen = [
            candidate(f"best {i + 1}", "best", self.search, number, baseline_of(number, False))
            for i, number in enumerate(best)
        ]
        for i in published:
            baseline_of(i, True)  # its own student/freeze pair is confirmed as well
            chosen.append(candidate(f"published {i + 1}", "published", self.search, i, baseline_of(i, False)))
        for number in self._ranked(self.baselines):  # the best of every student model, whoever needs it
            model = self.baselines.recipe(number).student.model
            if model not in {searches[stage].recipe(other).student.model for stage, other in baselines}:
                confirmed(self.baselines, number)
        for i, (stage, number) in enumerate(baselines):
            chosen.append(candidate(f"baseline {i + 1}", "baseline", searches[stage], number, None))
        return chosen

    def _winner(self, candidates: list[Candidate]) -> Recipe | None:
        """Of the k best the one with the highest mean validation metric over the seeds, fixed without test."""
        best = [candidate for candidate in candidates if candidate.role == "best"]
        means = self._validation_means(best)
        if not means:
            return None
        key = max(means, key=lambda name: means[name])
        winner = next(candidate for candidate in candidates if candidate.key == key)
        recipe = self.sweep.recipe_for(winner.values, self._confirming_seed(0))
        chosen = {"candidate": key, "baseline": winner.baseline, "trial_id": trial_id(recipe, self.data_root)}
        self.journal.append_once("winner", **chosen)
        self.journal.files.write("best.yaml", plain_yaml(recipe, self.sweep.name).encode())
        return recipe

    def _validation_means(self, candidates: list[Candidate]) -> dict[str, float]:
        """The mean validation metric over the seeds, the higher the better; of candidates that completed them all."""
        sign = 1 if self.sweep.study.objective == "val/accuracy" else -1
        means: dict[str, float] = {}
        for candidate in candidates:
            runs = [self.states[job.key] for job in self.confirming[candidate.key]]
            if all(run["state"] == "complete" for run in runs):
                means[candidate.key] = sign * statistics.fmean(run["value"] for run in runs)
        return means

    def _compared(self, candidates: list[Candidate]) -> tuple[Recipe, ...]:
        """What pictures show side by side, with the first confirming seed: for each value of student.freeze the
        distilled recipe that is best on validation, then the students alone, the best first."""
        means = self._validation_means(candidates)
        ranked = sorted((c for c in candidates if c.key in means), key=lambda c: -means[c.key])
        recipes = [self._candidate_recipe(candidate, self._confirming_seed(0)) for candidate in ranked]
        distilled: dict[str, Recipe] = {}
        for recipe in recipes:
            if recipe.teacher is not None:
                distilled.setdefault(recipe.student.freeze, recipe)
        return *distilled.values(), *(recipe for recipe in recipes if recipe.teacher is None)

    # jobs

    def _confirming_seed(self, index: int) -> int:
        return FIRST_CONFIRMING_SEED + 1_000 * self.sweep.study.seed + index

    def _job(self, stage: str, number: int, recipe: Recipe, **options: Any) -> Job:
        details = {"values": options.pop("values", {}), "published": options.pop("published", False)}
        details |= options.pop("details", {})
        return Job(stage, number, recipe, trial_id(recipe, self.data_root), details=details, **options)

    def _search_job(self, search: Search, number: int) -> Job | None:
        """The job of a planned trial; None where its values do not go together: then it has failed with that reason."""
        published = number < len(search.sweep.published)
        try:
            recipe = search.recipe(number)
        except UserError as error:
            self._note_impossible(search, number, str(error))
            return None
        values = search.planned[number]
        prunable = not published and self.sweep.study.pruner.name != "none"
        return self._job(search.stage, number, recipe, values=values, published=published, prunable=prunable)

    def _note_impossible(self, search: Search, number: int, reason: str) -> None:
        about = {"stage": search.stage, "number": number, "trial_id": None}
        outcome = {"state": "failed", "value": None, "reason": reason, "epochs": 0}
        self.journal.note("planned", **about, values=search.planned[number], published=False)
        self.journal.note("ended", **about, **outcome)
        self.states[f"{search.stage}-{number}"] = outcome
        search.tell(number, "failed", None, [])

    def _confirm_job(self, candidate: Candidate, number: int, seed: int) -> Job:
        recipe = self._candidate_recipe(candidate, seed)
        details = {"candidate": candidate.key, "role": candidate.role, "seed": seed}
        details |= {"source": candidate.source, "baseline": candidate.baseline}
        return self._job("confirm", number, recipe, values=candidate.values, final=True, details=details)

    def _candidate_recipe(self, candidate: Candidate, seed: int) -> Recipe:
        search = self.baselines if candidate.role == "baseline" else self.search
        return search.sweep.recipe_for(candidate.values, seed)

    def _search(self, job: Job) -> Search:
        return self.baselines if job.stage == "baselines" else self.search

    def _all(self, jobs: list[Job]) -> Iterator[Job | None]:
        """Hands out the jobs and waits until all have ended."""
        if jobs and jobs[0].stage not in ("baselines", "search"):
            self.stage, self.stage_size = jobs[0].stage, len(jobs)
        for job in jobs:
            if self._begin(job):
                yield job
        while any(job.key not in self.states for job in jobs):
            yield None

    def _begin(self, job: Job) -> bool:
        """Notes a job as planned; True if it is to be run now, False if its outcome is there or on its way."""
        if job.kind != "test":  # the second half of confirm, not a stage of its own
            self.journal.note("planned", **job.about, **job.details)
        if job.final:
            self.kept[job.trial_id] = job.recipe
        if job.kind == "train":
            if self._has_ended(job):
                self._note_end(job)
                return False
            if any(other.trial_id == job.trial_id for other in self.running.values()):
                self.waiting.setdefault(job.trial_id, []).append(job)
                return False
        self.running[job.key] = job
        return True

    def _has_ended(self, job: Job) -> bool:
        """Whether the store's outcome serves this job. One that was pruned serves only where this study would have
        pruned it as well; a final one must have kept its weights."""
        folder = self.store.trial(job.trial_id)
        require_own_workers(job.recipe, folder, self.sweep.resources.workers)
        outcome = folder.outcome()
        if outcome is None or outcome["state"] == "failed":
            return outcome is not None
        if outcome["state"] == "complete":
            return not job.final or folder.has_weights()
        return self._pruned_after(job, folder.epochs()) is not None

    def _pruned_after(self, job: Job, rows: list[EpochRow]) -> int | None:
        """The epoch after which this study stops the job, or None: as it once decided, as soon as there are the rows,
        else decided from them."""
        if not job.prunable:
            return None
        known = self.journal.ends(job.stage).get(job.number)
        if known is not None and known["trial_id"] == job.trial_id and known["state"] == "pruned":
            return int(known["epochs"]) if rows and rows[-1]["epoch"] >= known["epochs"] else None
        return self._search(job).pruned_after(job.number, [row for row in rows if row["epoch"] < job.recipe.epochs])

    def _pruning(self, epoch: int) -> str:
        return f"stopped by {self.sweep.study.pruner.name} after epoch {epoch}"

    def _note_end(self, job: Job, broken: str | None = None) -> None:
        outcome = self._outcome(job, broken)
        self.states[job.key] = outcome
        if job.stage in ("baselines", "search"):
            rows = self.store.trial(job.trial_id).epochs()[: outcome["epochs"]]
            self._search(job).tell(job.number, outcome["state"], outcome["value"], rows)
        if job.kind != "test":
            self.journal.note("ended", **job.about, **outcome)

    def _outcome(self, job: Job, broken: str | None) -> Row:
        """State, objective at the best epoch, epochs and reason of an ended job, as this study sees it: a trial that
        it would have pruned is pruned, even if another sweep has trained it to its end."""
        if broken or job.kind != "train":
            return {"state": "failed" if broken else "complete", "value": None, "reason": broken, "epochs": 0}
        folder = self.store.trial(job.trial_id)
        outcome, rows = folder.outcome(), folder.epochs()
        assert outcome is not None
        state, reason, epochs, best = outcome["state"], outcome["reason"], outcome["epochs"], outcome["best"]
        stop = self._pruned_after(job, rows) if state != "failed" else None
        if stop is not None:
            state, reason, epochs = "pruned", self._pruning(stop), stop
            best = best_epoch(rows[:stop], self.sweep.study.objective)
        value = best[self.sweep.study.objective] if best and state != "failed" else None
        return {"state": state, "value": value, "reason": reason, "epochs": epochs}

    def _ranked(self, search: Search) -> list[int]:
        """Numbers of the complete trials of distinct recipes, best first: objective, then NLL, then number."""

        def key(number: int) -> tuple[float, ...]:
            outcome = self._folder(search, number).outcome()
            assert outcome is not None
            assert outcome["best"] is not None
            best = outcome["best"]
            return (*(-part for part in ranking_key(best, self.sweep.study.objective)), number)

        complete = [number for number, trial in search.ended.items() if trial.state.name == "COMPLETE"]
        distinct: dict[str, int] = {}
        for number in sorted(complete, key=key):
            distinct.setdefault(self._folder(search, number).trial_id, number)
        return list(distinct.values())

    def _folder(self, search: Search, number: int) -> TrialFolder:
        return self.store.trial(trial_id(search.recipe(number), self.data_root))
