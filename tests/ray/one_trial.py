"""python one_trial.py CONFIG.json ROWS.jsonl: runs one job on a Ray of its own, and writes the rows that reach Tune."""

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
    run_config = tune.RunConfig(name="tune", storage_path=job["ray_storage"], verbose=0, callbacks=[Rows(rows)])
    trainable = tune.with_resources(run_job, {"slot": 1.0})
    tune.Tuner(trainable, param_space=job, run_config=run_config).fit()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
