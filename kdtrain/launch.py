"""One job inside Ray: in a reused Tune process, or, for more workers, on Ray Train's TorchTrainer around the same fit.

The store carries rows, checkpoints and outcomes; Ray carries the metrics to the study and restarts what dies.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import train as ray_train
from ray import tune
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from kdtrain.config.recipe import Recipe
from kdtrain.config.settings import Resources
from kdtrain.environment import prepare_process
from kdtrain.loop import Metrics
from kdtrain.pictures import draw_arrays
from kdtrain.run import read_test, smoke, train
from kdtrain.store import Store

WORKER_RESTARTS = 2
WARM_UP_S = 60.0


def run_job(config: dict[str, Any]) -> None:
    """A Tune trial: carries out one job of the study; reports every epoch, and once more where it broke or has none."""
    if config["kind"] in ("warm", "idle"):
        _wait(config)
        tune.report({"epoch": 0})
        return
    resources = Resources.model_validate(config["resources"])
    prepare_process(resources.cpus_per_worker)
    on_workers = resources.workers > 1 and config["kind"] in ("train", "test")
    # of several workers each has its own GPU, and the driver has none
    device = torch.device("cuda" if resources.gpus_per_worker and resources.workers == 1 else "cpu")
    broken = _broken_by(
        lambda: _on_workers(config, resources) if on_workers else _carry_out(config, device, tune.report)
    )
    if broken is not None or config["kind"] != "train":
        tune.report({"epoch": 0, "broken": broken})


def _carry_out(config: dict[str, Any], device: torch.device, report: Callable[[dict[str, Any]], None]) -> None:
    """The job itself, in this process or in each of its workers."""
    recipe = Recipe.model_validate(config["recipe"])
    store, data_root = Store(Path(config["results"])), Path(config["data_root"])

    def on_epoch(metrics: Metrics) -> None:
        report({"epoch": metrics["epoch"], recipe.objective: metrics[recipe.objective]})

    match config["kind"]:
        case "train":
            train(recipe, store, data_root, device, final=config["final"], on_epoch=on_epoch)
        case "smoke":
            smoke(recipe, data_root, device)
        case "test":
            for trained in config["also"]:
                read_test(Recipe.model_validate(trained), store, data_root, device)
        case "pictures":
            draw_arrays(recipe, store, data_root, Path(config["sweep_folder"]))


def _wait(config: dict[str, Any]) -> None:
    """Holds a process: for a while, or until as many as are asked for have come up."""
    if config["kind"] == "idle":
        time.sleep(config["pause_s"])
        return
    folder = Path(config["ray_storage"]) / "warm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + WARM_UP_S
    while len(list(folder.iterdir())) < config["processes"] and time.monotonic() < deadline:
        time.sleep(0.05)


def _on_workers(config: dict[str, Any], resources: Resources) -> None:
    per_worker = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=resources.workers, use_gpu=bool(resources.gpus_per_worker), resources_per_worker=per_worker
        ),
        run_config=ray_train.RunConfig(
            name=f"{config['trial_id']}-{config['key']}",
            storage_path=str(Path(config["ray_storage"]) / "train"),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # it is one, by Ray's own documentation
            failure_config=ray_train.FailureConfig(max_failures=WORKER_RESTARTS),
        ),
    )
    trainer.fit()


def _worker(config: dict[str, Any]) -> None:
    """One of several workers: the process group is there. What breaks on one rank leaves it, and so ends the group."""
    resources = Resources.model_validate(config["resources"])
    prepare_process(resources.cpus_per_worker)
    device = torch.device("cuda", torch.cuda.current_device()) if resources.gpus_per_worker else torch.device("cpu")
    _carry_out(config, device, ray_train.report)


def _broken_by(work: Callable[[], None]) -> str | None:
    """Why it failed, as a sentence, or None: a failure is data of the study, not a crash of Tune's."""
    try:
        work()
    except WorkerGroupError as error:
        return "; ".join(f"worker {rank}: {_sentence(own)}" for rank, own in sorted(error.worker_failures.items()))
    except Exception as error:
        return _sentence(error)
    return None


def _sentence(error: Exception) -> str:
    """Without the traceback that Ray puts into the text of what happened in another process."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1].strip() if "Traceback" in str(error) else str(error)) if lines else type(error).__name__
