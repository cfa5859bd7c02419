"""Runs one job of a study inside Ray: in a reused process of Tune, or on several workers of Ray Train's TorchTrainer.

The store holds rows, checkpoints and outcomes; Ray transports the metrics to the study and restarts processes. A
training's checkpoint is in the store only, where a digest detects damage and where a continued sweep and `kdtrain
train` find it. The checkpoint that Ray gets with each report only names the epoch: it shows a restarted worker which
reports have arrived.
"""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ray import train as ray_train
from ray import tune
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util import get_node_ip_address

from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import Resources
from kdtrain.data.registry import data_folder, load
from kdtrain.errors import UserError
from kdtrain.executors.local import after_job, broken_by, carry_out, node_cache, sentence
from kdtrain.runtime.memory import is_out_of_memory, release_gpu_memory
from kdtrain.runtime.process import compile_into, source_state
from kdtrain.runtime.source_code import code_digest
from kdtrain.storage.mirror import results_folder
from kdtrain.storage.remote import RemoteFiles
from kdtrain.study.jobs import Broken
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.preflight import what_would_fit
from kdtrain.trials.identity import require_weights_files
from kdtrain.trials.records import Measured
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WARM_UP_S = 60.0
REPORT_EVERY_S = 0.2
"""How often Ray Train fetches a report. Workers wait for it before the next one, so with Ray's own 2 s every epoch
would take at least 2 s."""
EPOCH_FILE = "epoch.json"


class UnfitNode(UserError):
    """A node that cannot run any job of the study: it lacks the results folder or the data."""


def run_job(config: dict[str, Any]) -> None:
    """Run one job as a Tune trial; report each epoch, and once more if the job broke or has no epochs."""
    report = tune.report
    source_state()  # as this process has imported the code; somebody may edit it later
    release_gpu_memory()  # of a pruned trial, which has ended in mid-report
    if config["kind"] in ("warm", "idle"):
        _wait(config)
        report({"epoch": 0})
        return
    resources = _prepared(config)
    measured: list[Measured | None] = []
    if resources.workers > 1 and config["kind"] in ("train", "evaluate", "test"):
        broken, unfit = _broken_by(lambda: _on_workers(config, resources))
        if broken is not None and broken.out_of_memory:
            advice = "each worker has its own GPU, so a smaller recipe.batch_size or more resources.workers need less"
            broken = replace(broken, reason=f"{broken.reason}; {advice}")
    else:
        # Ray takes the share of a GPU that `needs` names, and a driver of several workers has none
        uses_gpu = bool(config["needs"].get("GPU"))
        broken, unfit = _broken_by(lambda: measured.append(_run(config, _device(uses_gpu), report)))
        broken = after_job(broken, config["alone"], lambda: _what_would_fit(config))
    if broken is not None or config["kind"] != "train":
        report({"epoch": 0, "broken": _text(broken and asdict(broken)), "unfit": unfit, "measured": _text(*measured)})


def _text(told: Any = None) -> str | None:
    """Return what a job reports as text, because Tune flattens nested results; None for nothing."""
    return None if told is None else json.dumps(told)


def _what_would_fit(config: dict[str, Any]) -> str:
    workspace = Workspace(Store(results_folder(config["results"])), data_folder(config["data"]), CUDA)
    return what_would_fit(Recipe.model_validate(config["recipe"]), workspace)


def _prepared(config: dict[str, Any]) -> Resources:
    """Prepare this process for the job; return the job's resources."""
    resources = Resources.model_validate(config["resources"])
    torch.set_num_threads(resources.cpus_per_worker)
    compile_into(Path(config["scratch"]) / "compiled")
    return resources


def _device(uses_gpu: bool) -> torch.device:
    """Return the device of this process; UnfitNode if Ray gives it a GPU that torch cannot use."""
    if not uses_gpu:
        return CPU
    try:
        torch.zeros(1, device=CUDA).tolist()
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        raise UnfitNode(
            f"{_node()}: Ray gives a trial the GPU {visible}, but torch {torch.__version__} cannot use it"
            f" ({str(error).splitlines()[0]}); install a torch and a driver that fit, or write"
            " resources.gpus_per_worker: 0 to train on the CPU"
        ) from None
    return CUDA


def _node() -> str:
    return f"node {get_node_ip_address()} ({socket.gethostname()})"


def require_fit_node(config: dict[str, Any], recipe: Recipe) -> None:
    """Raise UnfitNode, which names this node, if it lacks the study's code, its results or the recipe's data."""
    here = _node()
    if "://" not in config["results"] and not (Path(config["scratch"]) / config["mark"]).exists():
        raise UnfitNode(
            f"--results: {config['results']} on {here} is not the folder that the driver has; name a mount that all"
            " nodes share, or a URL such as s3://bucket/results"
        )
    for module, digest in config["code"].items():
        if code_digest(module) != digest:
            raise UnfitNode(
                f"{here}: {sys.modules[module].__file__}: the code of this method was changed while the sweep runs;"
                " start the sweep again, in a new process"
            )
    try:
        load(recipe.data, data_folder(config["data"]))
    except UserError as error:
        raise UnfitNode(f"{here}: {error}") from None
    try:
        require_weights_files(recipe)
    except UserError as error:
        raise UnfitNode(f"{here}: {error}; every node needs the file under this path, such as a shared mount") from None


def check_node(config: dict[str, Any], recipe: dict[str, Any]) -> str | None:
    """Return why this node is unfit, or None; a Ray task that runs on each node before the study begins."""
    try:
        require_fit_node(config, Recipe.model_validate(recipe))
    except UnfitNode as error:
        return str(error)
    return None


def _run(config: dict[str, Any], device: torch.device, report: Callable[[dict[str, Any]], None]) -> Measured | None:
    """Run the job itself, in this process or in each of its workers; return what it has measured."""
    recipe, resources = Recipe.model_validate(config["recipe"]), Resources.model_validate(config["resources"])
    require_fit_node(config, recipe)
    results, data_root = results_folder(config["results"]), data_folder(config["data"])
    cache = node_cache(resources)
    workspace = Workspace(Store(results, owner=f"{config['sweep']} {config['key']}"), data_root, device, cache)
    if config["kind"] == "train" and workspace.trial_id(recipe) != config["trial_id"]:
        raise UnfitNode(
            f"{_node()}: images, weights or kdtrain are not those of the driver: the recipe has another trial_id there"
        )
    if cache is not None:  # in every kind of job: a process keeps the images of its first job
        workspace.dataset(recipe.data).share(cache, test=config["kind"] != "train" or config["final"])

    def on_epoch(metrics: Metrics) -> None:
        report({"epoch": metrics["epoch"], recipe.objective: metrics[recipe.objective]})

    options = {
        "final": config["final"],
        "on_epoch": on_epoch,
        "checkpoint_every_steps": resources.checkpoint_every_steps,
        "loaders": resources.loaders,
        "shared_readings": config["readings"],
    }
    trained = [Recipe.model_validate(each) for each in config["also"]]
    pictures = results.folder(config["sweep"])
    return carry_out(config["kind"], recipe, trained, workspace, pictures, options, resources.workers)


def _wait(config: dict[str, Any]) -> None:
    """Hold a process for a pause, or until the wanted number of processes has started."""
    if config["kind"] == "idle":
        time.sleep(config["pause_s"])
        return
    folder = Path(config["scratch"]) / f"warm-{config['round']}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + WARM_UP_S
    while len(list(folder.iterdir())) < config["processes"] and time.monotonic() < deadline:
        time.sleep(0.05)


def _on_workers(config: dict[str, Any], resources: Resources) -> None:
    per_worker = {"CPU": float(resources.cpus_per_worker + resources.loaders)}
    gpus = float(resources.gpus_per_worker)
    if gpus:
        per_worker["GPU"] = gpus
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(REPORT_EVERY_S))
    storage, files = ray_storage(config["ray_storage"])
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=resources.workers, use_gpu=gpus > 0, resources_per_worker=per_worker
        ),
        run_config=ray_train.RunConfig(
            name=f"{config['trial_id']}-{config['key']}",
            storage_path=f"{storage}/train",
            storage_filesystem=files,
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # as Ray documents it
            failure_config=ray_train.FailureConfig(max_failures=0),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
        ),
    )
    trainer.fit()


def _worker(config: dict[str, Any]) -> None:
    """Run the job as one of several workers, whose process group exists. An exception on one rank ends the group."""
    resources = _prepared(config)
    device = _device(bool(resources.gpus_per_worker))
    reports = TrainReports(config)
    _run(config, torch.device("cuda", torch.cuda.current_device()) if device == CUDA else device, reports.send)
    if reports.arrived:  # otherwise the training had ended before this job
        reports.catch_up()


class TrainReports:
    """A worker's reports to Ray Train: every epoch once, even if a worker ends before Ray has fetched its report.

    All ranks report, because each report is a barrier; the metrics of rank 0 count.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        recipe = Recipe.model_validate(config["recipe"])
        self._objective = recipe.objective
        self._folder = Store(results_folder(config["results"])).trial(config["trial_id"])
        self.arrived = _last_arrived()

    def send(self, metrics: Metrics) -> None:
        """Report an epoch, after earlier ones whose reports were lost; skip one that is repeated from a checkpoint."""
        self.catch_up(before=int(metrics["epoch"]))
        if self.arrived < metrics["epoch"]:
            self._send(metrics)

    def catch_up(self, before: int | None = None) -> None:
        """Report the epochs that the store has and Ray has not."""
        for row in self._folder.sound_epochs():
            if self.arrived < row["epoch"] and (before is None or row["epoch"] < before):
                self._send({**row})

    def _send(self, row: dict[str, Any]) -> None:
        self.arrived = int(row["epoch"])
        metrics = {name: row[name] for name in ("epoch", self._objective)}
        if ray_train.get_context().get_world_rank() > 0:
            ray_train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / EPOCH_FILE).write_text(json.dumps({"epoch": row["epoch"]}))
            ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(folder))


def _last_arrived() -> int:
    """Return the last epoch whose report Ray Train has, or 0."""
    checkpoint = ray_train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return int(json.loads((Path(folder) / EPOCH_FILE).read_text())["epoch"])


def ray_storage(written: str) -> tuple[str, Any]:
    """Return (path, pyarrow's file system) for Ray's own files; the latter is None for a folder of this machine."""
    if "://" not in written:
        return written, None
    url, _, below = written.rpartition("#")
    remote = RemoteFiles(url, "--results")
    return f"{remote.base}/{below}", remote.files


def _broken_by(work: Callable[[], None]) -> tuple[Broken | None, bool]:
    """Return (why `work` broke, or None; whether a node is unfit): what breaks belongs in the study, not in Tune."""
    try:
        work()
    except WorkerGroupError as error:
        failures = [own for _, own in sorted(error.worker_failures.items())]
        unfit = next((own for own in failures if isinstance(own, UnfitNode)), None)
        if unfit is not None:
            return Broken(str(unfit), users=True), True
        reason = "; ".join(f"worker {rank}: {_short(own)}" for rank, own in sorted(error.worker_failures.items()))
        users = all(isinstance(own, UserError) for own in failures)
        return Broken(reason, str(error), out_of_memory=any(map(is_out_of_memory, failures)), users=users), False
    except Exception as error:
        return broken_by(error), isinstance(error, UnfitNode)
    return None, False


def _short(error: Exception) -> str:
    """Return an error's sentence; the last line of the traceback that Ray adds to an error of another process."""
    return str(error).strip().splitlines()[-1].strip() if "Traceback" in str(error) else sentence(error)
