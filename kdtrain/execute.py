"""Carries a Study out on Ray Tune: one Tuner for all stages, so that warm processes serve every training.

Tune's own snapshots are not used: the study and the store are the truth, and every start makes a fresh Tuner.
"""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kdtrain.config.settings import Resources
from kdtrain.errors import NoResult, UserError
from kdtrain.launch import run_job
from kdtrain.resources import concurrent_trials, machine_resources, per_worker
from kdtrain.study import Job, Study

PROCESS_RESTARTS = 2
OBJECT_STORE_BYTES = 200 << 20
CONNECT_S = 10.0
DRIVER_SLOTS = 64
"""Drivers of trials with several workers take a slot, not a CPU: the CPUs are their workers'."""


def execute(study: Study, address: str | None) -> None:
    """Runs every job of the study; raises UserError for what the user can mend, KeyboardInterrupt when interrupted."""
    resources = study.sweep.resources
    with _connected(resources, address):
        limit = concurrent_trials(resources, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        if resources.workers > 1:
            limit = min(limit, int(ray.cluster_resources().get("slot", 0)))
            if limit == 0:
                start = f"ray start --head --resources '{{\"slot\": {DRIVER_SLOTS}}}'"
                raise UserError(f"--address: the drivers of several workers need a slot; start the head with: {start}")
        reuse = resources.workers == 1
        searcher = StudySearcher(study, keep_warm=limit if reuse and address is None else 0)
        driver = {"slot": 1.0} if resources.workers > 1 else per_worker(resources)
        storage = study.record.folder.absolute() / ".ray"
        shutil.rmtree(storage, ignore_errors=True)  # of a driver that was killed
        tuner = tune.Tuner(
            tune.with_resources(run_job, driver),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=StudyScheduler(searcher),
                num_samples=-1, max_concurrent_trials=limit, reuse_actors=reuse,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(storage), verbose=0,
                failure_config=tune.FailureConfig(max_failures=PROCESS_RESTARTS),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)
    if searcher.error is not None:
        raise searcher.error
    if not searcher.finished:
        raise NoResult("Ray Tune ended before the study did; ray.log may say why. The same command continues")


class StudySearcher(Searcher):
    """Hands the study's jobs to Tune as configs and tells the study when they have ended.

    keep_warm: how many processes to start at once and to keep. Tune ends all but one idle process at each barrier of a
    study, and gives a process that is still starting up for one that is free; so while the study waits, idle trials
    hold the processes, and the first trials wait for one another. 0: leave it to Tune.
    """

    def __init__(self, study: Study, keep_warm: int) -> None:
        super().__init__()
        self.study = study
        self.keep_warm = keep_warm
        self.warmed = 0
        self.waiting_since: float | None = None
        self.pending: Iterator[Job | None] = study.jobs()
        self.by_tune_id: dict[str, Job] = {}
        self.readings = study.sweep.readings()
        self.error: Exception | None = None
        self.finished = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if self.warmed < self.keep_warm:
            self.warmed += 1
            return {**self._common(), "kind": "warm", "processes": self.keep_warm}
        try:
            job = next(self.pending)
        except StopIteration:
            self.finished = True
            return Searcher.FINISHED
        except Exception as error:  # Tune would wrap it, and end with a traceback of its own
            self.error = error
            return Searcher.FINISHED
        if job is None:
            return self._idle() if self.keep_warm else None
        self.waiting_since = None
        self.by_tune_id[trial_id] = job
        return {
            **self._common(),
            "kind": job.kind,
            "key": job.key,
            "recipe": job.recipe.model_dump(mode="json"),
            "trial_id": job.trial_id,
            "final": job.final,
            "also": [recipe.model_dump(mode="json") for recipe in job.also],
        }

    def _idle(self) -> dict[str, Any]:
        """A trial that only waits: a twentieth of the time waited already, so that it delays by no more than that."""
        now = time.monotonic()
        self.waiting_since = self.waiting_since or now
        pause_s = min(max(0.05 * (now - self.waiting_since), 0.05), 30.0)
        return {**self._common(), "kind": "idle", "pause_s": pause_s}

    def _common(self) -> dict[str, Any]:
        study = self.study
        folder = study.record.folder.absolute()
        return {
            "results": str(study.store.results.absolute()),
            "sweep_folder": str(folder),
            "ray_storage": str(folder / ".ray"),
            "data_root": str(study.data_root),
            "resources": study.sweep.resources.model_dump(),
            "readings": self.readings,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self.by_tune_id.pop(trial_id, None)
        if job is None:
            return
        died = f"its process died {PROCESS_RESTARTS + 1} times" if error else None
        self.study.ended(job, died or (result or {}).get("broken"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's record and the store hold it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudyScheduler(FIFOScheduler):
    """First in, first out; stops what the study prunes."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        job = self.searcher.by_tune_id.get(trial.trial_id)
        if job is not None and "broken" not in result and self.searcher.study.should_prune(job, result["epoch"]):
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE


@contextmanager
def _connected(resources: Resources, address: str | None) -> Iterator[None]:
    """A Ray of our own on this machine for as long as this lasts, or the one at `address`."""
    if address is not None:
        _refuse_silence(address)
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            token = "; if it asks for a token, set RAY_AUTH_MODE=token"
            raise UserError(f"--address: no Ray cluster answers at {address} ({error}){token}") from None
        try:
            yield
        finally:
            ray.shutdown()
        return
    there = machine_resources()
    _sweep_up()
    temporary = tempfile.mkdtemp(prefix=f"kd-{os.getpid()}-", dir="/tmp")  # Ray's sockets need a short path
    os.environ["RAY_TMPDIR"] = temporary  # where all processes of this Ray look for its address, see below
    try:
        ray.init(
            address="local", num_cpus=int(there["CPU"]), num_gpus=int(there["GPU"]), resources={"slot": DRIVER_SLOTS},
            # the dashboard cleans up after workers of a pruned trial; on loopback, as is Ray's default
            include_dashboard=resources.workers > 1, dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False, _temp_dir=temporary,
        )  # fmt: skip
        # without it the cleaner of Ray Train gives up where another Ray runs on this machine, and the workers of a
        # pruned trial keep their CPUs for ever
        address_file = Path(temporary) / "ray" / "ray_current_cluster"
        address_file.parent.mkdir(exist_ok=True)
        address_file.write_text(ray.get_runtime_context().gcs_address)
        yield
    finally:
        ray.shutdown()
        os.environ.pop("RAY_TMPDIR", None)
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep_up() -> None:
    """Removes the temporary folders of drivers that were killed."""
    for folder in Path("/tmp").glob("kd-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_silence(address: str) -> None:
    """UserError where nothing listens at HOST:PORT: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", or a name that Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"--address: no Ray cluster answers at {address} ({error.strerror or error})") from None
