"""Run only the search stage of a kdtrain sweep: `python benchmarks/search_only.py FILE RESULTS DATA`."""

import sys
from pathlib import Path

from kdtrain.cli.display import quiet
from kdtrain.config.sweep import load_sweep
from kdtrain.study.description import describe
from kdtrain.study.jobs import JobStream
from kdtrain.study.journal import StudyJournal
from kdtrain.study.searching import run_search
from kdtrain.study.study import Study
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace


class SearchOnly(Study):
    """A study without smoke, baselines, confirmation and pictures, which the other two sweeps do not have."""

    def jobs(self) -> JobStream:
        yield from run_search(self, self.search)


if __name__ == "__main__":
    file, results, data = (Path(word) for word in sys.argv[1:])
    sweep, store = load_sweep(file), Store(results)
    journal = StudyJournal(results / sweep.name)
    journal.open(describe(sweep, data), file.read_text())
    study = SearchOnly(sweep, Workspace(store, data), journal)
    with quiet(results / sweep.name / "ray.log"):
        from kdtrain.executors.ray_tune import execute

        execute(study)
    outcomes = [folder.outcome() or {} for folder in store.trials()]
    names = ("teacher_images", "teacher_images_computed", "teacher_images_checked")
    used, computed, checked = (sum(outcome[name] for outcome in outcomes) for name in names)
    print(f"{len(outcomes)} trials, teacher images used {used}, computed {computed}, again to check {checked}")
