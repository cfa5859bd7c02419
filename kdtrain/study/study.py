"""The stages of one sweep, in order: smoke, teacher, baselines, search, select, confirm, pictures.

A Study hands out jobs, and an executor carries them out. Each stage stands in a module of its own.
"""

from kdtrain.config.problems import Problem
from kdtrain.config.sweep import Sweep
from kdtrain.errors import NoResult
from kdtrain.study.bookkeeping import STARTING, Bookkeeping
from kdtrain.study.confirm import confirm, draw_pictures, fix_winner, read_test
from kdtrain.study.description import weights_remark
from kdtrain.study.jobs import Job, JobStream
from kdtrain.study.journal import StudyJournal
from kdtrain.study.searching import run_in_turn, run_search
from kdtrain.study.select import select
from kdtrain.study.smoke import run_smoke
from kdtrain.study.teachers import train_teachers
from kdtrain.study.tradeoff import fix_fronts, measure_costs
from kdtrain.study.warm_start import read_warm_start, show_warm_start
from kdtrain.trials.workspace import Workspace


class Study(Bookkeeping):
    """A sweep that is carried out in a folder of results."""

    def __init__(self, sweep: Sweep, workspace: Workspace, journal: StudyJournal, only: str | None = None) -> None:
        """Take a sweep; with `only`, one of STAGES, the study does what is missing of that stage, and nothing else."""
        super().__init__(sweep, workspace, journal, only)
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
        self._require_gpu()
        known = read_warm_start(self)
        yield from run_smoke(self)
        self._require_gpu()
        if self.only == "smoke":
            return
        teachers = yield from train_teachers(self)
        if self.only == "teacher":
            return
        yield from measure_costs(self)
        show_warm_start(self, known)
        if self.account is not None:
            alone, searched = yield from run_in_turn(self)
        else:
            alone = yield from run_search(self, self.baselines)
            if self.only == "baselines":
                return
            searched = yield from run_search(self, self.search)
        if self.only in ("baselines", "search"):
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

    def _require_gpu(self) -> None:
        """Raise UserError if the budget counts GPU hours, but no training uses a GPU; it may not be known yet."""
        budget = self.sweep.study.budget
        if budget is not None and budget.gpu_hours is not None and self.on_gpu is False:
            text = "gpu_hours needs trainings on a GPU, and these are on the CPU; write hours or epochs"
            raise self.sweep.located.error([Problem(("study", "budget", "gpu_hours"), text)])
