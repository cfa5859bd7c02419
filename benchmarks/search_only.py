"""kdtrain's sweep, its search stage alone: `python benchmarks/search_only.py FILE RESULTS DATA`"""

import sys
from collections.abc import Iterator
from pathlib import Path

from kdtrain.config import load_sweep
from kdtrain.describe import describe
from kdtrain.execute import execute
from kdtrain.record import Record
from kdtrain.store import Store
from kdtrain.study import Job, Study


class SearchOnly(Study):
    """Without smoke, baselines, confirming runs and pictures, which the other two sweeps do not have."""

    def jobs(self) -> Iterator[Job | None]:
        yield from self._searched(self.search)


if __name__ == "__main__":
    file, results, data = (Path(word) for word in sys.argv[1:])
    sweep = load_sweep(file)
    study = SearchOnly(sweep, Store(results), Record(results / sweep.name), data)
    study.record.open(describe(sweep, data), file.read_text())
    execute(study, None)
    outcomes = [folder.outcome() or {} for folder in study.store.trials()]
    computed = sum(outcome["teacher_images_computed"] for outcome in outcomes)
    print(f"trials {len(outcomes)}, teacher images computed {computed}")
