"""One job inside Ray: in a reused Tune process, or, for more workers, on Ray Train's TorchTrainer around the same fit.

The store carries rows, checkpoints and outcomes; Ray carries the metrics to the study and restarts what dies.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
from ray import train as ray_train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from kdtrain.config.recipe import Recipe
from kdtrain.config.settings import Resources
from kdtrain.environment import prepare_process
from kdtrain.loop import Metrics
from kdtrain.pictures import draw_arrays
from kdtrain.run import smoke, train
from kdtrain.store import Store

WORKER_RESTARTS = 2
WARM_UP_S = 60.0


def run_job(config: dict[str, Any]) -> None:
    """A Tune trial: carries out one job of the study; reports once an epoch, and once where there is no epoch."""
    if config["kind"] in ("warm", "idle"):
        _wait(config)
        tune.report({"epoch": 0})
        return
    resources = Resources.model_validate(config["resources"])
    prepare_process(resources.cpus_per_worker)
    recipe = Recipe.model_validate(config["recipe"])
    data_root, device = Path(config["data_root"]), _device(resources)
    if config["kind"] == "smoke":
        tune.report({"epoch": 0, "broken": _broken_by(lambda: smoke(recipe, data_root, device))})
    elif config["kind"] == "pictures":
        store, folder = Store(Path(config["results"])), Path(config["sweep_folder"])
        tune.report({"epoch": 0, "broken": _broken_by(lambda: draw_arrays(recipe, store, data_root, folder))})
    elif resources.workers == 1:
        broken = _broken_by(lambda: _train(config, recipe, device, tune.report))
        if broken is not None:
            tune.report({"epoch": 0, "broken": broken})
    else:
        _train_on_workers(config, resources)


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


def _train_on_workers(config: dict[str, Any], resources: Resources) -> None:
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
    """One of several workers: the process group is there, the same train() as everywhere follows."""
    resources = Resources.model_validate(config["resources"])
    prepare_process(resources.cpus_per_worker)
    device = torch.device("cuda", torch.cuda.current_device()) if resources.gpus_per_worker else torch.device("cpu")
    recipe = Recipe.model_validate(config["recipe"])
    broken = _broken_by(lambda: _train(config, recipe, device, ray_train.report))
    if broken is not None:
        ray_train.report({"epoch": 0, "broken": broken})


def _train(config: dict[str, Any], recipe: Recipe, device: torch.device, report: Any) -> None:
    def on_epoch(metrics: Metrics) -> None:
        report({"epoch": metrics["epoch"], recipe.objective: metrics[recipe.objective]})

    store, data_root = Store(Path(config["results"])), Path(config["data_root"])
    train(recipe, store, data_root, device, final=config["final"], on_epoch=on_epoch)


def _broken_by(work: Any) -> str | None:
    """Why it failed, as a sentence, or None: a failure is data of the study, not a crash of Tune's."""
    try:
        work()
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _device(resources: Resources) -> torch.device:
    return torch.device("cuda" if resources.gpus_per_worker else "cpu")
