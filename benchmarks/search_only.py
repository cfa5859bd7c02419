"""Run only the search stage of a kdtrain sweep: `python benchmarks/search_only.py FILE RESULTS DATA`."""

import sys
from collections.abc import Iterator
from pathlib import Path

from kdtrain.cli.display import Display, quiet
from kdtrain.config.sweep import load_sweep
from kdtrain.study.description import describe
from kdtrain.study.journal import StudyJournal
from kdtrain.study.study import Job, Study
from kdtrain.trials.store import Store


class SearchOnly(Study):
    """A study without smoke, baselines, confirmation and pictures, which the other two sweeps do not have."""

    def jobs(self) -> Iterator[Job | None]:
        self.stage, self.stage_size = "search", self.search.trials
        yield from self._searched(self.search)


if __name__ == "__main__":
    file, results, data = (Path(word) for word in sys.argv[1:])
    sweep = load_sweep(file)
    study = SearchOnly(sweep, Store(results), StudyJournal(results / sweep.name), data)
    study.journal.open(describe(sweep, data), file.read_text())
    with quiet(results / sweep.name / "ray.log") as terminal:
        from kdtrain.executors.ray_tune import execute

        with Display(study, terminal).shown():
            execute(study, None)
    outcomes = [folder.outcome() or {} for folder in study.store.trials()]
    names = ("teacher_images", "teacher_images_computed", "teacher_images_checked")
    used, computed, checked = (sum(outcome[name] for outcome in outcomes) for name in names)
    print(f"{len(outcomes)} trials, teacher images used {used}, computed {computed}, again to check {checked}")
