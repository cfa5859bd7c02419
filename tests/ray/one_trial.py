"""python one_trial.py CONFIG.json ROWS.jsonl: runs one job on a Ray of its own, again if it breaks.

The rows that reach Tune are written to ROWS.jsonl.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune

from kdtrain.executors.ray_worker import run_job

CPUS = 2


class Rows(tune.Callback):
    """Write every result that Tune gets, in order."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        with open(self.file, "a") as file:
            file.write(json.dumps({key: result[key] for key in sorted(result) if key != "config"}, default=str) + "\n")


def main(config: Path, rows: Path) -> None:
    job = json.loads(config.read_text())
    ray.init(address="local", num_cpus=CPUS, resources={"slot": 1}, include_dashboard=False, log_to_driver=False)
    trainable = tune.with_resources(run_job, {"slot": 1.0})
    for attempt in range(1 + job["resources"]["retries"]):  # as a study does
        name = f"tune-{attempt}"
        run_config = tune.RunConfig(name=name, storage_path=job["ray_storage"], verbose=0, callbacks=[Rows(rows)])
        (result,) = tune.Tuner(trainable, param_space=job, run_config=run_config).fit()
        if not (result.metrics or {}).get("broken"):
            break
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
